"""HyPER's controller: what the pool looks like, and which action each path takes for the next interval.

The paper's equations could not be read. That there are four actions with fixed weights, chosen online from cheap
statistics of the paths, first to explore and later to exploit, is the paper's. All numbers and forms here are a
reconstruction: every one of them stands in ``HyperRec``, so that the true ones can take its place.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramify.engine.aggregate import confidence_bar, lowest
from ramify.engine.path import Path, mean

NONE, SINGLE, BRANCH, MULTI = "none", "single-token", "branch", "multi-token"
ACTIONS = (NONE, SINGLE, BRANCH, MULTI)


@dataclass(frozen=True)
class HyperRec:
    """What is reconstruction in HyPER.

    ``start``: paths that begin after the warm-up. ``window``: intervals in a window of the bar, below which a path is
    pruned, and never the last ``least`` ones. ``low``, ``high``: percentiles of the warm-up that become 0 and 1 of the
    scales. ``branch``: weights of early progress, of equal paths, of room in the pool, of the path's entropy;
    ``crowd``: at most one branch for so many paths. ``single``: weights of low confidence, progress, diversity.
    ``multi``: weight of a confidence below ``unsure``, weight of progress, constant. ``none``: the score to beat.
    ``refine_above``: entropy of a token, on the warm-up's scale, from which it is refined. ``tries``, ``stretch``: how
    many continuations of how many tokens multi-token compares. ``agree``, ``agreeing``: end when so many finished paths
    agree that much. ``tail``: share of a path whose confidence votes. ``top``, ``top_least``: of n paths the n/top best
    vote, at least ``top_least``.
    """

    start: int = 16
    window: int = 2
    least: int = 2
    low: float = 10.0
    high: float = 90.0
    branch: tuple[float, float, float, float] = (0.4, 0.3, 0.2, 0.1)
    crowd: int = 8
    single: tuple[float, float, float] = (0.5, 0.3, 0.2)
    multi: tuple[float, float, float] = (0.6, 0.4, -0.2)
    unsure: float = 0.25
    none: float = 0.45
    refine_above: float = 0.8
    tries: int = 3
    stretch: int = 16
    agree: float = 0.95
    agreeing: int = 8
    tail: float = 0.25
    top: int = 4
    top_least: int = 3


@dataclass(frozen=True)
class Scale:
    """What the warm-up says is usual.

    ``bar``: of the mean confidence of a window. ``length``: median tokens of a path. The pairs are the values that
    count as 0 and 1: of the mean ``confidence`` and ``entropy`` of an interval, and of the entropy before a ``token``.
    """

    bar: float
    length: float
    confidence: tuple[float, float]
    entropy: tuple[float, float]
    token: tuple[float, float]

    @staticmethod
    def of(paths: Sequence[Path], interval: int, eta: float, rec: HyperRec) -> Scale:
        """From finished paths; the bar is what ``eta`` per cent of their least confident windows reach."""
        bar = confidence_bar([lowest(path, rec.window * interval) for path in paths], eta)
        length = statistics.median(len(path) for path in paths)
        confidences = [value for path in paths for value in _means(path.confidences, interval)]
        entropies = [value for path in paths for value in _means(path.entropies, interval)]
        tokens = [value for path in paths for value in path.entropies]
        [confidence, entropy, token] = [_quantiles(values, rec) for values in (confidences, entropies, tokens)]
        return Scale(bar, length, confidence, entropy, token)


@dataclass(frozen=True)
class State:
    """The pool at a tick: ``progress`` ρ, ``diversity`` D, ``size`` n of at most ``limit`` paths."""

    progress: float
    diversity: float
    size: int
    limit: int

    @property
    def phase(self) -> str:
        """How far along the pool is."""
        return "explore" if self.progress < 1 / 3 else "balance" if self.progress < 2 / 3 else "exploit"


@dataclass(frozen=True)
class Standing:
    """One path at a tick: its confidence and entropy on the warm-up's scale, and whether it may be forked."""

    confidence: float
    entropy: float
    may_branch: bool = True


def scores(state: State, path: Standing, rec: HyperRec) -> dict[str, float]:
    """What each action is worth for a path."""
    early, same, room, unsure = rec.branch
    low, late, apart = rec.single
    weak, end, base = rec.multi
    branch = early * (1 - state.progress) + same * (1 - state.diversity)
    branch += room * (1 - state.size / state.limit) + unsure * path.entropy
    return {
        NONE: rec.none,
        SINGLE: low * (1 - path.confidence) + late * state.progress + apart * state.diversity,
        BRANCH: branch if path.may_branch and state.size < state.limit else float("-inf"),
        MULTI: weak * max(0.0, (rec.unsure - path.confidence) / rec.unsure) + end * state.progress + base,
    }


def choose(state: State, paths: Sequence[Standing], actions: Sequence[str], rec: HyperRec) -> list[str]:
    """The action of every path: the one of the greatest score, none where it is tied; few branches at a time."""
    found = [scores(state, path, rec) for path in paths]
    allowed = [action for action in ACTIONS if action in actions or action == NONE]
    chosen = [max(allowed, key=each.__getitem__) for each in found]  # the first of equals, and NONE comes first
    wishes = sorted((place for place, action in enumerate(chosen) if action == BRANCH), key=lambda p: -found[p][BRANCH])
    others = [action for action in allowed if action != BRANCH]
    for place in wishes[branches(state, rec) :]:
        chosen[place] = max(others, key=found[place].__getitem__)
    return chosen


def branches(state: State, rec: HyperRec) -> int:
    """How many paths may branch at one tick."""
    return min(max(1, state.size // rec.crowd), state.limit - state.size)


def scaled(value: float, bounds: tuple[float, float]) -> float:
    """``value`` with the ``bounds`` at 0 and 1, and no further."""
    low, high = bounds
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else float(value > high)


def _means(values: Sequence[float], size: int) -> list[float]:
    """Means of consecutive stretches of ``size``; the last one may be shorter."""
    return [mean(list(values[start : start + size])) for start in range(0, len(values), size)]


def _quantiles(values: Sequence[float], rec: HyperRec) -> tuple[float, float]:
    low, high = np.percentile(np.asarray(values), [rec.low, rec.high]).tolist()
    return low, high
