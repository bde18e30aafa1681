"""Geometry of the page's plots, in percentages that the template places with CSS.

They scale with any screen, follow its colours, and need no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ramify.bench.rows import Row, Spread
from ramify.bench.table import shares, spread


@dataclass(frozen=True)
class Mark:
    """A median with its range on an axis: ``middle``, ``left`` and ``width`` in % of the axis; ``text`` says it."""

    middle: float
    left: float
    width: float
    text: str


@dataclass(frozen=True)
class RatioPlot:
    """``ticks``: (position in %, text). ``one``: where 1 lies. ``lines``: (label, wall time, CPU time) for each row."""

    ticks: list[tuple[float, str]]
    one: float
    lines: list[tuple[str, Mark | None, Mark | None]]


@dataclass(frozen=True)
class Histogram:
    """``bars``: (tokens committed by one call, calls, height in %, share of the calls in %) for one method."""

    label: str
    calls: int
    mat: float
    bars: list[tuple[int, int, float, float]]


@dataclass(frozen=True)
class Split:
    """``parts``: (name, share of the wall time in %) for one method, in order."""

    label: str
    parts: list[tuple[str, float]]


def ratio_plot(rows: Sequence[Row]) -> RatioPlot:
    """Speed-ups of all rows on one axis that starts at zero."""
    spreads = [s for row in rows for s in (row.ratio, row.cpu_ratio) if s]
    top, step = axis(max((s.high for s in spreads), default=1.0))

    def mark(ratio: Spread | None) -> Mark | None:
        if ratio is None:
            return None
        width = 100 * (ratio.high - ratio.low) / top
        return Mark(100 * ratio.median / top, 100 * ratio.low / top, width, spread(ratio))

    ticks = [(100 * i * step / top, f"{i * step:g}×") for i in range(round(top / step) + 1)]
    return RatioPlot(ticks, 100 / top, [(row.label, mark(row.ratio), mark(row.cpu_ratio)) for row in rows])


def axis(highest: float) -> tuple[float, float]:
    """The end of an axis from zero that holds ``highest`` with some air, and the distance of its ticks."""
    highest = max(highest, 1.0) * 1.04
    step = next(s * 10.0**e for e in range(-1, 9) for s in (1, 2, 2.5, 5) if highest / (s * 10.0**e) <= 6)
    return step * math.ceil(highest / step), step


def histograms(rows: Sequence[Row]) -> list[Histogram]:
    """Accepted lengths of every method that drafts; empty lengths up to the longest are kept, for a true picture."""
    found = []
    for row in rows:
        counts, calls = row.accepted_lengths, sum(row.accepted_lengths.values())
        if not row.drafted or not calls or row.mat is None:
            continue
        tallest = max(counts.values())
        lengths = range(1, max(counts) + 1) if max(counts) <= 24 else sorted(counts)
        known = [(length, counts.get(length, 0)) for length in lengths]
        bars = [(length, count, 100 * count / tallest, 100 * count / calls) for length, count in known]
        found.append(Histogram(row.label, calls, row.mat, bars))
    return found


def splits(rows: Sequence[Row]) -> list[Split]:
    """Where the time of every method went, for those that tell."""
    return [Split(row.label, [(part, 100 * share) for part, share in found]) for row in rows if (found := shares(row))]
