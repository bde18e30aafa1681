"""The counters of a generation, from made-up events, and that they agree with each other on a real one."""

from __future__ import annotations

import pytest
import torch
from families import lm, text

from ramify.api import generate
from ramify.engine.events import Accepted, Drafted, Event, Finished, Noted, Prefilled, Scored
from ramify.engine.result import Result, Stats
from ramify.engine.tree import TokenTree, TreeShape

TREE = TokenTree(torch.tensor([5, 6, 7, 8]), TreeShape.of([-1, -1, 1, 2]))
EVENTS: list[Event] = [
    Noted("nothing was measured yet"),
    Prefilled(0, 9, 2, 0.5),
    Drafted(0, 0, TREE, 0.1),
    Scored(0, (0, 1), 6, 0.3),
    Accepted(0, 0, (1, 2), (6, 7, 3), 0.2),
    Drafted(0, 1, TokenTree.empty(), 0.1),
    Scored(1, (0, 1), 1, 0.3),
    Accepted(0, 1, (), (4,), 0.2),
    Drafted(1, 1, TREE, 0.7),
    Accepted(1, 1, (0,), (5, 9), 0.7),
    Drafted(0, 2, TREE, 0.1),
    Scored(2, (0,), 5, 0.2),
    Accepted(0, 2, (1, 2, 3), (6, 7), 0.2),  # the sequence ended inside the path
    Finished(0, 2, "length"),
]


def test_counters_of_one_row() -> None:
    stats = Stats.of(EVENTS, 0)
    assert (stats.prompt_tokens, stats.prefill_calls) == (9, 2)
    assert (stats.generated_tokens, stats.target_calls, stats.row_steps) == (6, 3, 12)
    assert (stats.drafted, stats.draft_calls, stats.accepted) == (8, 2, 4)
    assert stats.accepted_lengths == {3: 1, 1: 1, 2: 1}
    assert stats.accepted_depths == {1: 2, 2: 2}
    assert stats.acceptance_rate == 0.5
    assert stats.acceptance_by_depth == [1.0, 1.0]
    assert stats.off_share == pytest.approx(1 / 3)
    assert stats.draft_share == pytest.approx(0.3 / 1.7)


def test_rows_are_kept_apart() -> None:
    stats = Stats.of(EVENTS, 1)
    assert (stats.drafted, stats.accepted, stats.draft_calls, stats.target_calls) == (4, 1, 1, 2)
    assert stats.acceptance_by_depth == [1.0]
    assert stats.off_share == 0.5


def test_nothing_divides_by_zero() -> None:
    stats = Stats.of([], 0)
    assert stats.acceptance_rate == stats.off_share == stats.draft_share == 0.0
    assert stats.acceptance_by_depth == []


def test_acceptance_falls_from_depth_to_depth() -> None:
    deep = [event for part in (2, 1, 0, 2) for event in _step(part)]
    assert Stats.of(deep, 0).acceptance_by_depth == [0.75, 0.5]


def _step(accepted: int) -> list[Event]:
    path = (0, 1)[:accepted]
    return [Drafted(0, 0, TokenTree.chain([1, 2]), 0.0), Accepted(0, 0, path, (*path, 9), 0.0)]


def test_notes_are_events_of_every_row() -> None:
    result = Result("", [], [], "length", Stats(), EVENTS)
    assert result.notes == ["nothing was measured yet"]
    assert len(result.steps) == 4


def test_the_counters_of_a_real_generation_agree() -> None:
    stats = generate(
        lm("qwen3"), text(17, 2, period=6), "prompt-lookup", options={"length": 5}, max_new_tokens=40
    ).stats
    assert stats.accepted > 0
    assert sum(stats.accepted_depths.values()) == stats.accepted
    assert sum(stats.acceptance_by_depth) * stats.draft_calls == pytest.approx(stats.accepted)
    assert stats.acceptance_by_depth == sorted(stats.acceptance_by_depth, reverse=True)
    assert stats.acceptance_rate == stats.accepted / stats.drafted
    assert 0.0 < stats.off_share < 1.0
    assert 0.0 < stats.draft_share < 1.0
    assert generate(lm("qwen3"), text(9), "greedy", max_new_tokens=5).stats.off_share == 1.0
