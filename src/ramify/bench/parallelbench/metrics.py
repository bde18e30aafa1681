"""What a sweep of decoders says: tokens per step, PBx, the oracle, parallelizability, and the order of decoding.

Tokens per step (TPS) are answer tokens ÷ forward passes, measured after the generation for rules that decide for
themselves. Answers padded with end tokens inflate it, so a ``Sample`` counts the others by themselves.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.errors import RamifyError

Floats = NDArray[np.float64]

LEVELS = (80, 75, 70)


@dataclass(frozen=True)
class Sample:
    """One decoded answer. ``score``: 0 to 1; ``passes``: forward passes; ``tokens``: fixed; ``real``: no padding."""

    score: float
    passes: int
    tokens: int
    real: int


@dataclass(frozen=True)
class Point:
    """A setting of a sweep: means over its samples."""

    tps: float
    score: float

    @classmethod
    def of(cls, samples: Sequence[Sample], padded: bool = True) -> Point:
        """``padded``: count the padding too."""
        tokens = sum(sample.tokens if padded else sample.real for sample in samples)
        passes = sum(sample.passes for sample in samples)
        return cls(tokens / passes, statistics.mean(sample.score for sample in samples))


def pb(points: Sequence[Point], level: float, interpolate: bool) -> float:
    """PBx: the most tokens per step at a score of at least ``level`` %; 0 if there is none.

    ``interpolate``: between neighbours in the sweep, for rules that decide for themselves; else only what was measured
    counts, as for rules that fix k tokens per step.
    """
    bar = level / 100
    ordered = sorted(points, key=lambda point: point.tps)
    best = max((point.tps for point in ordered if point.score >= bar), default=0.0)
    if interpolate:
        for one, other in itertools.pairwise(ordered):
            if one.score >= bar > other.score:
                share = (one.score - bar) / (one.score - other.score)
                best = max(best, one.tps + share * (other.tps - one.tps))
    return best


def oracle(sweep: Sequence[Sequence[Sample]]) -> Point:
    """For every problem the setting with the best score, and of these the one with the fewest passes; then means.

    ``sweep``: for every setting its samples, the problems in the same order.
    """
    if len({len(samples) for samples in sweep}) != 1:
        raise RamifyError("the oracle chooses among settings for each problem, so all need the same problems")
    return Point.of([min(column, key=lambda one: (-one.score, one.passes)) for column in zip(*sweep, strict=True)])


def parallelizability(scores: Mapping[int, float]) -> float:
    """Centre of mass Σ k·score ÷ Σ score over k tokens per step; 0 where nothing is ever right."""
    total = sum(scores.values())
    return sum(k * score for k, score in scores.items()) / total if total else 0.0


def order_preference(scores: Mapping[int, float]) -> float:
    """How much a task gains from left to right: the slope of the score per halving of the block length, at 2 per step.

    The paper gives no unit for the slope; halvings are our choice, since its block lengths double.
    """
    if len(scores) < 2:
        raise RamifyError("a slope needs the scores of at least 2 block lengths")
    slope, _ = np.polyfit([-math.log2(block) for block in scores], list(scores.values()), 1)
    return float(slope)


@dataclass(frozen=True)
class Order:
    """Of the steps at which positions were fixed with the positions themselves; 1: left to right, −1: right to left."""

    kendall: float
    spearman: float


def decoding_order(steps: Sequence[int], padding: Sequence[bool] | None = None) -> Order:
    """``steps``: when each position was fixed first, from left to right. ``padding``: positions to leave out.

    Ties, which are what is fixed in one step, count as in Kendall's tau-b and as mean ranks. Both are nan where all or
    all but one came in the same step.
    """
    if padding is not None:
        steps = [step for step, pad in zip(steps, padding, strict=True) if not pad]
    return Order(kendall(range(len(steps)), steps), spearman(range(len(steps)), steps))


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Tau-b: agreeing less disagreeing pairs ÷ √(pairs untied in one · pairs untied in the other)."""
    signs = [np.sign(np.subtract.outer(values, values)) for values in (np.asarray(one), np.asarray(other))]
    room = float(abs(signs[0]).sum() * abs(signs[1]).sum())
    return float((signs[0] * signs[1]).sum()) / math.sqrt(room) if room else math.nan


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Correlation of the ranks, those of equal values being their mean."""
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (one, other)]
    centred = [each - each.mean() if each.size else each for each in ranks]
    room = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / room if room else math.nan


def _ranks(values: Floats) -> Floats:
    ranks: Floats = (np.sign(np.subtract.outer(values, values)).sum(1) + len(values) - 1) / 2
    return ranks
