"""Sizes of drafts: trees that promise and drafts that contain each other (for copied chains see test_lookups.py)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.methods.draft.sizing import LASTING, PRIOR, RETRY, TRIAL, NestedSize, PromisedSize
from ramify.models.calibrate import CostCurve

FREE = CostCurve("free", [1, 100], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 100], [1.0, 2.0, 100.0])
SOME = CostCurve("some", [1, 2, 4, 5, 9, 20], [1.0, 1.1, 1.2, 2.0, 2.1, 4.0])


@given(st.lists(st.floats(0.01, 1.0), max_size=12), st.integers(0, 20))
def test_a_tree_has_the_most_tokens_per_second(promises: list[float], accepted: int):
    promises.sort(reverse=True)
    sizing = PromisedSize(SOME, 12)
    sizing.observe("kind", [0.5] * 10, accepted)
    factor = (PRIOR[0] + accepted) / (PRIOR[1] + 5.0)
    expected = [1.0 + sum(min(1.0, factor * p) for p in promises[:nodes]) for nodes in range(len(promises) + 1)]
    speeds = [tokens / SOME.cost(nodes + 1) for nodes, tokens in enumerate(expected)]
    chosen = sizing.choose("kind", promises)
    assert speeds[chosen] == pytest.approx(max(speeds))
    assert all(speed < speeds[chosen] + 1e-12 for speed in speeds[:chosen])


def test_promises_that_are_kept_count_for_more():
    sizing = PromisedSize(SOME, 8)
    promises = [0.3] * 8
    sizes = []
    for accepted in [0] * 9 + [8] * 9:
        sizing.observe("kind", promises, accepted)
        sizes.append(sizing.choose("kind", promises))
    assert all(low >= high for low, high in pairwise(sizes[:9]))
    assert sizes[8] == 0
    assert all(low <= high for low, high in pairwise(sizes[8:]))
    assert sizes[-1] == 8
    assert sizing.choose("another kind", promises) == PromisedSize(SOME, 8).choose("kind", promises)


def test_a_tree_that_does_not_pay_is_left_out_and_tried_again():
    sizing = PromisedSize(STEEP, 8)
    assert [sizing.choose("kind", [0.5, 0.4]) for _ in range(2 * RETRY)] == ([0] * (RETRY - 1) + [1]) * 2
    assert [sizing.choose("none", []) for _ in range(2 * RETRY)] == [0] * 2 * RETRY
    assert PromisedSize(FREE, 8).choose("kind", [0.5, 0.4]) == 2


def test_nested_sizes_are_judged_by_a_trial_of_the_largest():
    rows = [1, 4, 5, 20]
    sizing = NestedSize(SOME, rows)
    for _ in range(TRIAL):
        assert sizing.choose() == 3
        sizing.observe([1, 2, 3, 4])
    speeds = [tokens / SOME.cost(count) for tokens, count in zip((1, 2, 3, 4), rows, strict=True)]
    best = speeds.index(max(speeds))
    assert best == 1
    for _ in range(TRIAL, LASTING * TRIAL):
        assert sizing.choose() == best
        sizing.observe([9, 9, 9, 99])  # the trial is over
    for _ in range(TRIAL):  # the next one judges anew
        assert sizing.choose() == 3
        sizing.observe([1, 1, 1, 1])
    assert sizing.choose() == 0


def test_a_trial_counts_what_was_seen_and_not_what_was_asked():
    sizing = NestedSize(SOME, [1, 20])
    for _ in range(TRIAL + 5):
        assert sizing.choose() == 1  # a last step of a text is never observed
    for _ in range(TRIAL):
        sizing.observe([1, 2])
    assert sizing.choose() == 0
