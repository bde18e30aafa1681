"""The recipe of S2D: what it counts, and what it calls a claim that holds."""

from __future__ import annotations

from typing import Any

import pytest

from ramify.bench.lexicon import Lexicon, build
from ramify.bench.recipes.s2d import ADAPTIVE, DRAFTED, FIXED, _accepted, claims, drafts
from ramify.models.causal import load

LANGUAGE = Lexicon.of()


def test_accepted_is_one_and_the_matching_beginning():
    assert [_accepted(chain, [1, 2, 3, 4]) for chain in ([1, 2, 3], [1, 9, 3], [9, 2, 3], [])] == [4, 2, 1, 1]


def test_chains_take_as_many_layers_as_their_exits():
    draft = load(build(LANGUAGE, width=24))
    contexts = LANGUAGE.contexts(3, 12)
    for place, thresholds in enumerate(FIXED.values(), 1):
        chains, layers = drafts(draft, thresholds, contexts)
        assert layers == place
        assert [len(chain) for chain in chains] == [DRAFTED] * 3
    chains, layers = drafts(draft, (0.0, 0.0), contexts)
    assert layers == 1
    assert len({tuple(chain) for chain in chains}) > 1


def rows(**changes: float) -> list[dict[str, Any]]:
    """What the published check found; ``changes`` of greedy MAT by draft, spaces as underscores."""
    given = {
        "SFT": ([2.06, 5.28, 6.34, 4.73, 5.5, 6.16], [1, 2, 3, 1.49, 2.0, 2.26]),
        "SoFT": ([6.28, 6.46, 6.38, 6.33, 6.38, 6.38], [1, 2, 3, 1.28, 1.62, 1.67]),
    }
    found = []
    for name, (mat, layers) in given.items():
        for way, value, depth in zip(FIXED | ADAPTIVE, mat, layers, strict=True):
            draft = f"{name}, {way}"
            found.append({"draft": draft, "MAT, greedy": value, "MAT, T = 1": value, "layers": depth})
    for row in found:
        row["MAT, greedy"] = changes.get(row["draft"], row["MAT, greedy"])
    return found


def test_the_published_check_holds():
    found = claims(rows())
    assert len(found) == 10
    assert all(row["holds"] == "yes" for row in found)


@pytest.mark.parametrize(
    ("draft", "value", "claim"),
    [
        ("SoFT, fixed exit 1", 4.0, "exit 1, SoFT over SFT, greedy"),
        ("SFT, fixed exit 3", 7.0, "full depth, SoFT over SFT, greedy"),
        ("SoFT, fixed exit 3", 6.65, "best adaptive of at most 60 % of the layers over full depth, SoFT, greedy"),
        ("SFT, adaptive (0.75, 0.7)", 4.0, "MAT rises with the thresholds, SFT, greedy"),
    ],
)
def test_a_claim_can_fail(draft: str, value: float, claim: str):
    failed = [row["claim"] for row in claims(rows(**{draft: value})) if row["holds"] == "no"]
    assert failed == [claim]
