"""Accuracy against cost: means over seeds, differences by question, and what a ladder of costs says in between."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import pytest
from families import byte_lm, lm, text
from hypothesis import given
from hypothesis import strategies as st

import ramify
from ramify.bench.study import Scored, Study, effective, level
from ramify.bench.tasks import Task
from ramify.engine.aggregate import best
from ramify.engine.path import Path
from ramify.methods.search.best_of_n import BestOfN
from ramify.methods.search.routing_ensemble import RoutingEnsemble
from ramify.methods.search.self_consistency import SelfConsistency

TASKS = [Task("1", "2+2?", "2+2?", "4"), Task("2", "1+1?", "1+1?", "2")]
LADDER = [
    Scored([0.0, 0.2], [10, 20], [0.0, 1.0]),
    Scored([0.5, 0.2], [30, 50], [0.5, 1.0]),
    Scored([1, 1], [90, 90], [1, 1]),
]


def test_what_a_question_adds() -> None:
    found = Scored()
    right, wrong = Path(answer="4"), Path(answer="5")
    found.add(TASKS[0], [("4", 10, [right]), ("5", 20, [wrong, right]), (None, 30, [wrong])])
    assert found.right == [pytest.approx(1 / 3)]
    assert found.oracle == [pytest.approx(2 / 3)]
    assert found.cost == 20
    assert Scored([1.0, 0.0]).less(Scored([0.5, 0.5])) == "+0.0 ± 98.0"


def test_between_two_costs() -> None:
    found = level(LADDER, 30)
    assert found is not None
    assert found.cost == 30
    assert found.right == [pytest.approx(0.3), pytest.approx(0.2)]
    assert found.oracle == [pytest.approx(0.3), pytest.approx(1.0)]
    assert level(LADDER, 14) is None
    assert level(LADDER, 91) is None


@given(st.floats(15, 90))
def test_a_level_costs_what_was_asked(cost: float) -> None:
    found = level(LADDER, cost)
    assert found is not None
    assert found.cost == pytest.approx(cost)
    assert LADDER[0].right[0] <= found.right[0] <= LADDER[-1].right[0]


def test_rules_and_policies_on_the_same_pools(tmp_path: File) -> None:
    study = Study(byte_lm(), TASKS, 1.0, 8)
    records = study.record(3, 2, 0, tmp_path)
    assert study.decided(records, 2) == study.replayed(records, SelfConsistency(2))
    assert study.decided(records, 3, best) == study.replayed(records, BestOfN(3))
    again = Study(byte_lm(), TASKS, 1.0, 8).record(3, 2, 0, tmp_path)
    assert [[[p.tokens for p in pool] for pool in seeds] for seeds in again] == [
        [[p.tokens for p in pool] for pool in seeds] for seeds in records
    ]
    assert study.about(2, 0) != study.about(3, 0) != Study(byte_lm(), TASKS[:1], 1.0, 8).about(3, 0)


def test_routes_are_paid_for() -> None:
    found = ramify.generate(lm("qwen3_moe"), text(5), RoutingEnsemble(routes=3), max_new_tokens=6)
    assert effective(found) == 6 + 6 * 4


class Counting(Study):
    asks = 0

    def _ask(self, *given: Any, **more: Any) -> Any:
        self.asks += 1
        return super()._ask(*given, **more)


def test_what_draws_nothing_is_asked_once() -> None:
    for spec, asks in (("beam-search:num_beams=2", 2), ("self-consistency:paths=2", 6)):
        study = Counting(byte_lm(), TASKS, 1.0, 6)
        assert study.live(spec, 3, 0).tokens == [12, 12]
        assert study.asks == asks
