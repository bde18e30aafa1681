"""What tells right from wrong: areas, cuts and families by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.bench.kept import Pooled
from ramify.bench.signals import auc, cut_at, families, kin, pruned, signals
from ramify.bench.tasks import Task
from ramify.engine.path import Path
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import HyperRec

TASK = Task("1", "2+2?", "2+2?", "4")
METHOD = HyPER(length_sign=1, interval=2, warmup=2, limit=8, rec=HyperRec(start=2, window=1))


def path(number: int, confidences: list[float], answer: str | None = "4", **options: object) -> Path:
    size = len(confidences)
    known = {"tokens": [1] * size, "confidences": confidences, "entropies": [0.5] * size, "log_probs": [-1.0] * size}
    return Path(number, answer=answer, finish="stop", **(known | options))  # type: ignore[arg-type]


def test_areas() -> None:
    assert auc([3.0, 1.0], [2.0]) == 0.5
    assert auc([3.0, 2.0], [2.0, 0.0]) == 0.875
    assert auc([1.0], [1.0]) == 0.5


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_areas_of_both_sides_add_up(right: list[float], wrong: list[float]) -> None:
    assert auc(right, wrong) + auc(wrong, right) == pytest.approx(1.0)


def test_where_a_path_is_cut() -> None:
    falling = path(0, [9.0, 9.0, 5.0, 5.0, 1.0, 1.0, 9.0])
    assert cut_at(falling, 6.0, 2, 2) == 4
    assert cut_at(falling, 4.0, 2, 2) == 6
    assert cut_at(falling, 4.0, 2, 4) == 6
    assert cut_at(falling, 4.0, 4, 4) is None
    assert cut_at(falling, 1.0, 2, 2) is None
    assert cut_at(path(0, [1.0, 1.0]), 5.0, 2, 2) is None  # over before anyone looks


def test_signals_and_cuts_of_a_pool() -> None:
    pool = [path(0, [8.0] * 6), path(1, [6.0] * 6, "5"), path(2, [9.0] * 6), path(3, [2.0] * 5, "5")]
    rows = {row["signal"]: row for row in signals([TASK], [[pool]], METHOD)}
    assert rows["mean confidence"]["AUC"].startswith("1.000")
    assert rows["mean log-probability"]["AUC"].startswith("0.500")
    assert rows["length"]["AUC"].startswith("0.750")
    late = rows["confidence of the 2 tokens before token 6"]
    assert (late["questions"], late["of right paths"], late["of wrong paths"]) == (0, "0%", "0%")
    assert rows["confidence of the 2 tokens before token 4"]["questions"] == 1
    cut = {row["eta"]: row for row in pruned([TASK], [[pool]], METHOD)}
    assert cut[10.0]["of later paths cut"] == "50%"  # the bar is 7.8
    assert (cut[10.0]["of right ones"], cut[10.0]["of wrong ones"]) == ("0%", "100%")
    assert cut[10.0]["of their tokens saved"] == "27%"  # 3 of 11


def test_families_and_their_answers() -> None:
    parent, child = path(0, [1.0] * 4), path(1, [1.0] * 4, "5", parent=0, start=2)
    orphan, other = path(2, [1.0], None, parent=3), path(3, [1.0])
    other.finish = "confidence"
    paths = [parent, child, orphan, other]
    assert list(families(paths)) == [(parent, child)]
    related, plain, among = kin([TASK], [[Pooled(paths, 0)]], [[[parent, path(1, [1.0]), path(2, [1.0], "7")]]])
    assert (related["number"], related["same answer"], related["shared beginning"]) == (1, "0%", "50%")
    assert related["second right if the first is"] == "0%"
    assert (plain["number"], plain["same answer"], plain["second right if the first is"]) == (2, "50%", "50%")
    assert among["number"] == 2
