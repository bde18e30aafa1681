"""How much an assistant drafts: the length that pays, nothing where none does, and back again."""

from __future__ import annotations

from typing import Any

import pytest
from families import lm, text
from hypothesis import given
from hypothesis import strategies as st

from ramify.api import generate
from ramify.methods.draft import assistant
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.schedule import FADE_ALL, LONGEST, TRIAL, Agreement, Fastest, Heuristic, Schedule
from ramify.methods.draft.sizing import PRIOR, RETRY
from ramify.models.calibrate import CostCurve

FLAT = CostCurve("flat", [1, 64], [1.0, 1.0])
PROMPT = text(11, 6, period=4)


def own(cost: float) -> CostCurve:
    return CostCurve("own", [1, 64], [cost, cost])


def taught(schedule: Fastest, drafted: int, accepted: int, passes: int, times: int = 200) -> Fastest:
    for _ in range(times):
        for _ in range(passes):
            schedule.ran(1)
        schedule.observe(drafted, accepted)
    return schedule


def test_the_papers_example():
    """a = 0.8 and c = 0.1: 3.689 tokens from five drafted ones, 2.46 times plain decoding; the best length is near."""
    speeds = [(1 - 0.8 ** (n + 1)) / 0.2 / (1 + 0.1 * n) for n in range(LONGEST + 1)]
    assert speeds[5] == pytest.approx(2.4595, abs=1e-4)
    schedule = taught(Fastest(FLAT, own(0.1)), 5, 4, 5)  # four of five tried
    assert schedule.choose() == speeds.index(max(speeds)) == 6


@given(st.floats(0.01, 0.99), st.floats(0.001, 1.5), st.floats(0.0, 0.2), st.integers(1, LONGEST))
def test_the_choice_is_the_fastest(rate: float, cost: float, slope: float, longest: int):
    curve = CostCurve("line", [1, 64], [1.0, 1.0 + 63 * slope])
    schedule = Fastest(curve, own(cost), longest)
    schedule.agreement.accepted, schedule.agreement.tried = rate, 1.0

    def speed(length: int) -> float:
        return sum(rate**place for place in range(length + 1)) / (1.0 + slope * length + length * cost)

    assert speed(schedule.choose()) == pytest.approx(max(map(speed, range(longest + 1))))


def test_passes_over_trees_are_cheaper_tokens():
    """A pass over 30 rows that costs twice as much but gives four tokens halves the price of a token."""
    curve = CostCurve("own", [1, 30], [0.2, 0.4])
    schedule = Fastest(FLAT, curve)
    for _ in range(200):
        schedule.ran(30)
        schedule.observe(4, 3)
    assert schedule.seconds / schedule.drafted == pytest.approx(0.1)


def test_what_does_not_pay_is_left_and_tried_again():
    schedule = taught(Fastest(FLAT, own(0.5)), 3, 0, 3)
    choices = [schedule.choose() for _ in range(40 * RETRY)]
    tried = [place + 1 for place, choice in enumerate(choices) if choice]
    assert tried == [RETRY * factor for factor in (1, 3, 7, 15, 23, 31, 39)]
    assert set(choices) == {0, TRIAL}
    trials = 0
    while (choice := schedule.choose()) in (0, TRIAL):  # the text has become easy: the trials say so
        if choice:
            trials += 1
            taught(schedule, TRIAL, TRIAL, TRIAL, times=1)
        assert trials < 8
    assert trials > 1
    taught(schedule, 8, 0, 8)
    assert [schedule.choose() for _ in range(RETRY)] == [0] * (RETRY - 1) + [TRIAL]  # as patient as in the beginning


def test_an_assistant_as_dear_as_the_target_never_pays():
    schedule = Fastest(FLAT, own(1.1))
    assert schedule.choose() == 0
    assert taught(schedule, 5, 5, 5).choose() == 0


def test_the_others():
    assert [Schedule(4).choose() for _ in range(3)] == [4, 4, 4]
    schedule = Heuristic(1)
    schedule.observe(0, 0)  # nothing was drafted, so nothing was accepted whole
    assert schedule.choose() == 1


@pytest.mark.parametrize("verifier", ["match", "speculative"])
@pytest.mark.parametrize(("cost", "least", "most"), [(0.02, 1, 8), (1.2, 37, 37)])
def test_in_decoding(monkeypatch: Any, verifier: Any, cost: float, least: int, most: int):
    """Of itself all is accepted: the drafts get long, unless the assistant costs more than the target (one trial)."""
    curves = iter([FLAT, own(cost)] * 2)
    monkeypatch.setattr(assistant, "calibrate", lambda model: next(curves))
    method = Assistant(model=lm("llama"), schedule="auto", verifier=verifier)
    plain = generate(lm("llama"), PROMPT, "greedy", max_new_tokens=40)
    for first in (True, False):
        result = generate(lm("llama"), PROMPT, method, max_new_tokens=40)
        assert result.tokens == plain.tokens
        assert least <= result.stats.target_calls <= most
        lengths = [len(draft.tree) for draft, _ in result.steps if draft]
        if first:
            assert lengths[0] == Fastest(FLAT, own(cost)).choose()
            assert cost > 1 or max(lengths) > lengths[0]
        elif cost < 1:  # the next request begins with what this one gave
            assert lengths[0] > Fastest(FLAT, own(cost)).choose()


def test_a_sequence_begins_with_what_earlier_ones_gave():
    before = Agreement(FADE_ALL)
    assert before.rate == PRIOR[0] / PRIOR[1]
    first = taught(Fastest(FLAT, own(0.3), before=before), 3, 0, 3)
    assert before.rate < 0.1
    assert Fastest(FLAT, own(0.3), before=before).choose() == first.choose() == 0
    assert Fastest(FLAT, own(0.3)).choose() > 0
    # What is seen here counts more than what was seen before.
    assert taught(Fastest(FLAT, own(0.3), before=before), 3, 3, 3, times=5).choose() > 0
