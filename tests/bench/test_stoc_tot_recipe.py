"""STOC-TOT's simulators: the figures of the notes, and what the method's parts are worth in them."""

from __future__ import annotations

import functools
import random

import pytest

from ramify.bench.recipes.stoc_tot import BANK, MASKING, SETTINGS, TableRoles, accuracies, bank, run, variants
from ramify.methods.search.stoc_tot import StocTot

QUESTIONS = 1000
TOLERANCE = 0.02 + 2 * 0.5 / QUESTIONS**0.5  # that of the notes, and twice the standard error of fewer questions


@functools.cache
def found(place: int) -> dict[str, float]:
    right, count, noise, signal, _ = SETTINGS[place]
    options = StocTot(proposals=count, depth=2, nodes=1000)
    return accuracies(options, [0], QUESTIONS, right=right, noise=noise, signal=signal)[0]


@pytest.mark.parametrize("place", [0, 1, 2, 3, 5])
def test_the_tree_gives_the_known_figures(place: int):
    known = dict(zip(("first", "vote", "best", "sum"), SETTINGS[place][-1], strict=True))
    assert found(place) == pytest.approx(known, abs=TOLERANCE)


def test_the_sum_beats_the_vote_only_where_validities_say_something():
    assert all(found(place)["sum"] > found(place)["vote"] for place in (0, 1, 2, 3))
    assert found(5)["sum"] < found(5)["vote"]


def test_the_bank_gives_the_known_figures():
    for row, (_, _, known) in zip(bank(0, 6000), MASKING, strict=True):
        shown = [float(row[column].split()[0]) for column in ("unconstrained", "with the bank")]
        assert shown == pytest.approx(known, abs=0.02)
        assert row["bank without the answer (recall 0)"] == "0.000"
    assert BANK == 40


def test_rephrased_questions_lead_to_the_same():
    roles = TableRoles(random.Random(0), right=0.5, noise=1.0, repeat=1.0)
    first, *others = roles.propose("why", (), (), 4)
    assert all(other.endswith(first) for other in others)
    assert len({first, *others}) == 4
    options = StocTot(proposals=4, depth=2, nodes=1000)
    alone = options.solve(roles, "why", [])
    assert len(alone.root.children) == 1
    kept = StocTot(proposals=4, depth=2, nodes=1000, paraphrase="none").solve(roles, "why", [])
    assert len(kept.root.children) == 4
    assert kept.scores == pytest.approx(alone.scores)


def test_variants_and_the_outcome():
    rows = {row["variant"]: row for row in variants([0], 40)}
    assert rows["8 walks"]["first line"] == "–"
    assert rows["a chain (n = 1)"]["Σ P"] == rows["a chain (n = 1)"]["first line"]
    assert rows["half of the lines end after one step"]["nodes"] < 13
    outcome = run(seeds=1, questions=5, draws=50)
    assert [len(table.rows) for table in outcome.tables] == [6, 9, 4]
