"""One plot for measurements: lines over two logarithmic axes, as an SVG that needs nothing else to be shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 62, 50
# Okabe and Ito's colours, told apart by readers with any colour vision.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GAP = 15  # between two names at the right end, in pixels


@dataclass(frozen=True)
class Chart:
    """Lines over axes that double from one grid line to the next; all numbers are above zero.

    ``even``: the upright axis runs evenly instead, as shares do.

    ``name``: a short word for the file. ``lines``: points of each line, by what it is called. ``floors``: for some of
    them the least value that it could have, drawn dashed in its colour; ``floor`` says what that is. ``ticks``: the
    numbers below the axis, by default those of all points.
    """

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    floors: Mapping[str, float] = field(default_factory=dict)
    floor: str = ""
    ticks: Sequence[float] = ()
    even: bool = False

    def to_dict(self) -> dict[str, Any]:
        lines = {name: [list(point) for point in points] for name, points in self.lines.items()}
        return {"title": self.title, "x": self.x, "y": self.y, "lines": lines, "floors": dict(self.floors)}

    def svg(self) -> str:
        """The picture; its background is white, so that it can be read on any page."""
        points = [point for line in self.lines.values() for point in line]
        across = _Axis.of([x for x, _ in points], LEFT, WIDTH - RIGHT)
        heights = [*(y for _, y in points), *self.floors.values()]
        if self.even:
            up: _Axis = _Even.of(heights, HEIGHT - BOTTOM, TOP)
        else:
            ends = [2.0 ** math.floor(math.log2(min(heights))), 2.0 ** math.ceil(math.log2(max(heights)))]
            up = _Axis.of(ends, HEIGHT - BOTTOM, TOP)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="sans-serif" font-size="12" fill="#222" role="img">',
            f"<title>{escape(self.title)}</title>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            _text(LEFT, 24, self.title, 'font-size="14" font-weight="bold"'),
            *self._grid(across, up),
        ]
        colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(self.lines)}
        for name, value in self.floors.items():
            level = f"M{LEFT} {up.at(value):.1f}H{WIDTH - RIGHT}"
            parts.append(
                f'<path d="{level}" stroke="{colours[name]}" stroke-dasharray="2 5" fill="none">'
                f"<title>{escape(f'{name}, {self.floor}: {value:.3g}')}</title></path>"
            )
        parts += [
            _text(WIDTH - RIGHT, up.at(float(text)) - 4, text, 'text-anchor="end" fill="#666"')
            for text in dict.fromkeys(f"{value:.3g}" for value in self.floors.values())
        ]
        for name, line in self.lines.items():
            path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line)
            parts.append(f'<polyline points="{path}" stroke="{colours[name]}" stroke-width="2" fill="none"/>')
            parts += [
                f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3" fill="{colours[name]}">'
                f"<title>{escape(f'{name}: {y:.3g} at {x:g}')}</title></circle>"
                for x, y in line
            ]
        for name, y in _apart({name: up.at(line[-1][1]) for name, line in self.lines.items()}).items():
            parts.append(_text(WIDTH - RIGHT + 12, y + 4, name, f'fill="{colours[name]}"'))
        return "\n".join([*parts, "</svg>\n"])

    def _grid(self, across: _Axis, up: _Axis) -> list[str]:
        measured = self.ticks or sorted({x for line in self.lines.values() for x, _ in line})
        parts = []
        for value in up.marks():
            y = up.at(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
            parts.append(_text(LEFT - 8, y + 4, f"{value:g}", 'text-anchor="end"'))
        for value in measured:
            parts.append(_text(across.at(value), HEIGHT - BOTTOM + 18, f"{value:g}", 'text-anchor="middle"'))
        foot = self.x if not self.floors else f"{self.x}; dashed: {self.floor}"
        parts.append(_text(LEFT, HEIGHT - 10, foot))
        parts.append(_text(10, TOP - 10, self.y))
        return parts


@dataclass(frozen=True)
class _Axis:
    """Logarithmic axis between two values, drawn between two places in pixels."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        return cls(low, high if high > low else 2 * low, begin, end)

    def at(self, value: float) -> float:
        return self.begin + (self.end - self.begin) * math.log(value / self.low) / math.log(self.high / self.low)

    def marks(self) -> list[float]:
        """Where the grid lines are: the powers of two on the axis."""
        first, last = math.ceil(math.log2(self.low)), math.floor(math.log2(self.high))
        return [2.0**exponent for exponent in range(first, last + 1)]


@dataclass(frozen=True)
class _Even(_Axis):
    """The same with equal distances for equal differences, from one round number to another."""

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        step = cls.step(low, high)
        return cls(step * math.floor(low / step), step * math.ceil(high / step + 1e-9), begin, end)

    @staticmethod
    def step(low: float, high: float) -> float:
        """Distance of the grid lines: at most eight of them."""
        width = max(high - low, 1e-6)
        return next(n * 10.0**e for e in range(-7, 12) for n in (1, 2, 5) if width / (n * 10.0**e) <= 8)

    def at(self, value: float) -> float:
        return self.begin + (self.end - self.begin) * (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        step = self.step(self.low, self.high)
        count = round((self.high - self.low) / step)
        return [round(self.low + place * step, 9) for place in range(count + 1)]


def _apart(places: dict[str, float]) -> dict[str, float]:
    """``places`` moved down as far as texts there need to not lie on each other, and up again from the bottom."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = moved[name] = max(place, last + GAP)
    limit = float(HEIGHT - BOTTOM)
    for name in reversed(moved):
        limit = moved[name] = min(moved[name], limit)
        limit -= GAP
    return moved


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
