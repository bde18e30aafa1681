"""The chart: well-formed, true to its numbers, and its names apart."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from ramify.bench.chart import BOTTOM, GAP, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg())


def dots(svg: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter(f"{SPACE}circle")]


def test_points_lie_where_their_logarithms_say():
    svg = drawn(Chart("c", "T", "x", "y", {"one": [(1, 2.0), (2, 4.0), (16, 32.0)]}))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    quarter = (right - LEFT) / 4
    assert [x for x, _ in dots(svg)] == pytest.approx([LEFT, LEFT + quarter, right], abs=0.1)
    assert [y for _, y in dots(svg)] == pytest.approx([bottom, bottom - (bottom - TOP) / 4, TOP], abs=0.1)
    texts = [text.text for text in svg.iter(f"{SPACE}text")]
    assert {"T", "x", "y", "one", "1", "2", "16", "4", "8", "32"} <= set(texts)


def test_floors_are_drawn_and_named():
    lines = {"a": [(1, 8.0), (4, 9.0)], "b": [(1, 5.0), (4, 30.0)]}
    svg = drawn(Chart("c", "T", "rows", "ms", lines, {"a": 2.0, "b": 2.0}, "the <floor>"))
    dashed = [path for path in svg.iter(f"{SPACE}path") if "stroke-dasharray" in path.attrib]
    assert [path[0].text for path in dashed] == ["a, the <floor>: 2", "b, the <floor>: 2"]
    texts = [text.text for text in svg.iter(f"{SPACE}text")]
    assert "rows; dashed: the <floor>" in texts
    assert texts.count("2") == 1 + 1  # the grid's, and one for both floors


def test_names_do_not_lie_on_each_other():
    lines = {f"line {place}": [(1.0, 1.0), (2.0, 1.0 + 1e-3 * place)] for place in range(9)}
    svg = drawn(Chart("c", "T", "x", "y", lines))
    places = sorted(float(t.attrib["y"]) for t in svg.iter(f"{SPACE}text") if (t.text or "").startswith("line"))
    assert len(places) == 9
    assert min(b - a for a, b in itertools.pairwise(places)) >= GAP - 0.2
    assert places[-1] <= HEIGHT - BOTTOM + 5


def test_a_single_point_is_enough():
    assert len(dots(drawn(Chart("c", "T", "x", "y", {"one": [(1, 3.0)]})))) == 1
    assert len(dots(drawn(Chart("c", "T", "x", "y", {"one": [(1, 4.0)]})))) == 1
