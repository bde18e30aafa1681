"""The page of a canvas: what it draws, and that no text can break out of it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from ramify.engine.events import Accepted, Cut, Event, Finished, Prefilled, Remasked, Scored, Unmasked
from ramify.engine.result import Result, Stats
from ramify.errors import RamifyError
from ramify.methods.unmask.orders import Unmask
from ramify.report.canvas import Stay, render, stays, write

HOSTILE = "</pre><img src=x onerror=alert(1)>"


class Words:
    """A tokenizer whose every token is hostile."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{HOSTILE}{token}" for token in tokens)


def result() -> Result:
    """Three positions behind a prompt of two: one is taken back, one is cut away."""
    events: list[Event] = [
        Prefilled(0, 2, 0, 0.0),
        Scored(0, (0,), 6, 0.1),
        Unmasked(0, 0, (2, 4), (7, 8), (0.5, 0.25), 0.0),
        Scored(1, (0,), 6, 0.1),
        Unmasked(0, 1, (3,), (9,), (0.75,), 0.0),
        Remasked(0, 1, (2,)),
        Cut(0, 1, 4),
        Scored(2, (0,), 4, 0.1),
        Unmasked(0, 2, (2,), (6,), (1.0,), 0.0),
        Accepted(0, 2, (), (6, 9), 0.0),
        Finished(0, 2, "length"),
    ]
    return Result("", [6, 9], [1, 1], "length", Stats.of(events, 0), events)


def test_what_stood_where_and_when() -> None:
    found, steps = stays(result())
    assert steps == 3
    assert found == [
        Stay(2, 7, 0, 1, 0.5),
        Stay(4, 8, 0, 1, 0.25),
        Stay(3, 9, 1, 3, 0.75),
        Stay(2, 6, 2, 3, 1.0),
    ]


def test_contents() -> None:
    text = html.unescape(render(result(), method=Unmask(block=4), model="demo<i>"))
    for part in (
        "2 positions in 3 steps",
        "Unmask(block=4",
        "taken back at step 1",
        "confidence 0.750",
        "16 positions",
    ):
        assert part in text, part
    assert text.count('class="gone"') == 2
    assert text.count('class="kept"') == 2


def test_nothing_breaks_out_and_nothing_is_loaded() -> None:
    text = render(result(), method=Unmask(), model=HOSTILE, tokenizer=Words())
    assert not re.search(r"<(img|script|link|iframe|object)|url\(|@import", text)
    assert "default-src 'none'" in text
    assert "&lt;img" in text


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="cannot write the page to"):
        write(result(), tmp_path / "no" / "page.html", method=Unmask(), model="demo")
