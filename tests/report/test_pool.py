"""The page of a search: what it draws, and that no text can break out of it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from ramify.engine.events import Accepted, Decided, Ended, Event, Finished, Forked, Grown, Noted, Prefilled, Refined
from ramify.engine.path import Path as Continuation
from ramify.engine.result import Result, Stats
from ramify.errors import RamifyError
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.report.pool import CELLS, draw, render, write

HOSTILE = "</pre><img src=x onerror=alert(1)>"


def result(steps: int = 4) -> Result:
    """Two paths from the prompt, one of them forked after two steps; the second is cut after three."""
    first = Continuation(0, tokens=[1] * steps, finish="stop", text=HOSTILE, answer="42", confidences=[1.0] * steps)
    second = Continuation(1, tokens=[2] * 3, finish="confidence", confidences=[0.5] * 3)
    third = Continuation(2, parent=0, start=2, tokens=[1] * steps, finish="length", answer="41")
    events: list[Event] = [Prefilled(0, 5, 1, 0.1), Forked(0, 0, 0, None, 0), Forked(0, 0, 1, None, 0)]
    for step in range(steps):
        if step == 2:
            events.append(Forked(0, 2, 2, 0, 2))
        paths = (0, *((1,) if step < 3 else ()), *((2,) if step >= 2 else ()))
        events.append(Grown(0, step, paths, (1,) * len(paths), tuple(3.0 - number for number in paths), 9, 0.0))
    events += [Refined(0, 1, (0,), 2), Ended(0, 3, 1, "confidence"), Ended(0, steps, 0, "stop")]
    events += [
        Ended(0, steps, 2, "length"),
        Noted("said <b>"),
        Decided(0, steps, (first, third, second), "42", {"42": 2.0}),
    ]
    events += [Accepted(0, steps, (), tuple(first.tokens), 0.0), Finished(0, steps, "stop")]
    return Result(HOSTILE, first.tokens, [0] * 5, "stop", Stats.of(events, 0), events)


def page(**changes: int) -> str:
    return render(result(**changes), f"why {HOSTILE}?", method=SelfConsistency(paths=3), model="demo<i>")


def test_lanes() -> None:
    lanes, steps = draw(result())
    assert steps == 4
    assert [(lane.path.number, lane.kind, lane.end) for lane in lanes] == [
        (0, "best", 100),
        (1, "cut", 75),
        (2, "lost", 100),
    ]
    assert [(cell.left, cell.width) for cell in lanes[2].cells] == [(50, 25), (75, 25)]
    assert lanes[0].fork is None
    assert lanes[2].fork == (50, 0)
    assert lanes[0].cells[0].shade > lanes[1].cells[0].shade > lanes[2].cells[0].shade
    assert [("read again" in cell.text) for cell in lanes[0].cells] == [False, True, False, False]


def test_long_paths_share_cells() -> None:
    lanes, steps = draw(result(steps=1000))
    assert steps == 1000
    assert len(lanes[0].cells) <= CELLS
    assert sum(cell.width for cell in lanes[0].cells) == pytest.approx(100)


def test_contents() -> None:
    text = html.unescape(page())
    for part in (
        "<h1>42</h1>",
        "SelfConsistency(paths=3",
        "3, of which 2 came to their end",
        "said <b>",
        "41",
        "confidence",
    ):
        assert part in text, part


def test_nothing_breaks_out_and_nothing_is_loaded() -> None:
    text = page()
    assert not re.search(r"<(img|script|link|iframe|object)|url\(|@import", text)
    assert "default-src 'none'" in text


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="cannot write the page to"):
        write(result(), "why?", tmp_path / "no" / "page.html", method=SelfConsistency(), model="demo")
