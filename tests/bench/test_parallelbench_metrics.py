"""Tokens per step, PBx, the oracle, parallelizability, orders: by the published figures and by scipy."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from ramify.bench.parallelbench.metrics import (
    LEVELS,
    Point,
    Sample,
    decoding_order,
    kendall,
    oracle,
    order_preference,
    parallelizability,
    pb,
    spearman,
)
from ramify.errors import RamifyError

# Averages over 17 tasks of LLaDA-1.5, from the benchmark's site: (TPS, accuracy in %).
THRESHOLD = [(1.33, 86.4), (3.42, 83.8), (4.53, 77.5), (5.62, 68.3), (6.55, 57.9), (8.27, 47.2)]
FACTOR = [(3.95, 80.5), (4.58, 77.5), (5.12, 74.1), (5.62, 70.2), (6.26, 65.9)]
CONFIDENCE = [(1, 86.4), (2, 74.4), (4, 58.9), (8, 41.1), (16, 29.9), (32, 14.4)]
RANDOM = [(1, 74.5), (2, 69.6), (4, 60.3), (8, 49.6), (16, 28.8), (32, 18.3)]


def sweep(pairs: list[tuple[float, float]]) -> list[Point]:
    return [Point(tps, score / 100) for tps, score in pairs]


@pytest.mark.parametrize(
    ("pairs", "interpolate", "wanted"),
    [
        (THRESHOLD, True, (4.09, 4.82, 5.42)),
        (FACTOR, True, (4.05, 4.97, 5.66)),
        (CONFIDENCE, False, (1, 1, 2)),
        (RANDOM, False, (0, 0, 1)),
    ],
)
def test_the_published_figures(pairs: list[tuple[float, float]], interpolate: bool, wanted: tuple[float, ...]):
    # The factor's last figure needs more digits than the site's table gives.
    assert [pb(sweep(pairs), level, interpolate) for level in LEVELS] == pytest.approx(wanted, abs=0.015)


@given(st.lists(st.tuples(st.floats(1, 32), st.floats(0, 100)), min_size=1, max_size=6), st.booleans())
def test_pb_falls_with_the_level(pairs: list[tuple[float, float]], interpolate: bool):
    found = [pb(sweep(pairs), level, interpolate) for level in range(0, 101, 5)]
    assert found == sorted(found, reverse=True)
    assert found[0] == max(tps for tps, _ in pairs)
    assert all(pb(sweep(pairs), level, True) >= pb(sweep(pairs), level, False) for level in (20, 50, 80))


def test_tokens_per_step_times_passes_are_the_tokens():
    samples = [Sample(1, 3, 12, 5), Sample(0, 5, 12, 3)]
    point = Point.of(samples)
    assert point == Point(3.0, 0.5)
    assert point.tps * sum(sample.passes for sample in samples) == 24
    assert Point.of(samples, padded=False).tps == 1.0


def test_the_oracle_takes_the_fewest_passes_of_the_best():
    careful = [Sample(1, 6, 6, 6), Sample(1, 6, 6, 6), Sample(0, 6, 6, 6)]
    bold = [Sample(1, 1, 6, 6), Sample(0, 1, 6, 6), Sample(0, 2, 6, 6)]
    assert oracle([careful, bold]) == Point(18 / 9, 2 / 3)
    assert oracle([careful]) == Point.of(careful)
    with pytest.raises(RamifyError, match="same problems"):
        oracle([careful, bold[:2]])


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_oracle_is_as_good_as_any(found: list[list[tuple[bool, int]]]):
    settings = [[Sample(float(right), passes, 9, 9) for right, passes in samples] for samples in found]
    assert oracle(settings).score >= max(Point.of(samples).score for samples in settings)


def test_centres_and_slopes():
    assert parallelizability({1: 1.0, 2: 1.0, 4: 1.0}) == pytest.approx(7 / 3)
    assert parallelizability({1: 1.0, 2: 0.0, 4: 0.0}) == 1
    assert parallelizability({1: 0.0}) == 0
    assert order_preference({1: 0.9, 2: 0.8, 4: 0.7, 8: 0.6}) == pytest.approx(0.1)
    assert order_preference({1: 0.5, 32: 0.5}) == pytest.approx(0)
    with pytest.raises(RamifyError, match="at least 2 block lengths"):
        order_preference({2: 0.5})


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_orders_are_those_of_scipy(steps: list[int]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scipy, where all came in one step
        tau, rho = kendalltau(range(len(steps)), steps).statistic, spearmanr(range(len(steps)), steps).statistic
    assert decoding_order(steps).kendall == pytest.approx(tau, nan_ok=True)
    assert decoding_order(steps).spearman == pytest.approx(rho, nan_ok=True)


def test_orders():
    assert decoding_order([0, 1, 2, 3]).kendall == 1
    assert decoding_order([3, 2, 1, 0]).spearman == pytest.approx(-1)
    assert decoding_order([0, 1, 2, 0, 0], padding=[False] * 3 + [True] * 2).kendall == 1
    assert decoding_order([0, 1, 2, 0, 0]).kendall < 0.2
    assert math.isnan(kendall([0, 1], [3, 3]))
    assert math.isnan(spearman([], []))
