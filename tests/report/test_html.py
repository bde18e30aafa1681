"""The page: its contents, that it loads nothing, that no text can break out of it, and that it works in a browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ramify.bench.comparison import Comparison
from ramify.bench.prompts import Prompt
from ramify.bench.rows import Outcome, Row, Spread
from ramify.bench.trace import Step
from ramify.errors import RamifyError
from ramify.report.html import browser_data, embed, render
from ramify.report.plots import axis, histograms, ratio_plot

HOSTILE = "</script><img src=x onerror=alert(1)>"


def row(label: str, ratio: Spread, drafted: int) -> Row:
    return Row(
        label=label, method="m", lossless=True, tokens_per_second=120.0 * ratio.median, tokens_per_cpu_second=100.0,
        ratio=ratio, cpu_ratio=ratio, group_ratios={}, tokens=7, target_calls=4, row_steps=9, drafted=drafted,
        accepted=3, mat=1.75,
        accepted_lengths={1: 2, 2: 1, 3: 1}, off_share=0.0, acceptance_by_depth=[0.5, 0.25],
        shares={"prefill": 0.1, "draft": 0.1, "score": 0.7, "verify": 0.05, "other": 0.05},
        prefill_seconds=0.1, memory=10**9, outcomes=[Outcome("p<1>", 7, 4, (0.1,), True)],
    )  # fmt: skip


@pytest.fixture
def comparison() -> Comparison:
    plain = [Step((), (), (), (token,)) for token in (1, 2, 3)]
    tree = Step((-1, -1, 0, 0, 2), (1, 2, 3, 4, 5), (0, 2), (1, 3, 6))
    wide = Step(tuple([-1] * 8 + [i % 8 for i in range(152)]), tuple(range(160)), (3,), (3, 200))
    ended = Step((-1, 0), (1, 2), (0, 1), (1,))
    pieces = {token: f"t{token}" for token in range(201)} | {3: HOSTILE, 4: "\n    ", 6: " ok"}
    return Comparison(
        model={"name": "demo<b>", "device": "cpu", "dtype": "float32", "forward": "fused, plain weights"},
        machine=dict.fromkeys(("processor", "cores", "threads", "system", "python", "torch", "transformers"), "1"),
        settings={"max_new_tokens": 3, "repeats": 3, "seed": 0},
        command="ramify compare '<i>'",
        memory_kind="resident",
        prompts=[Prompt("p<1>", "x = " + HOSTILE)],
        rows=[row("greedy", Spread(1, 1, 1), 0), row("tree & more", Spread(1.5, 1.25, 2.0), 20)],
        steps=[[plain], [[tree, wide, ended]]],
        pieces=pieces,
        seconds=3.0,
    )  # fmt: skip


def test_contents(comparison: Comparison) -> None:
    page = html.unescape(render(comparison))
    for text in ("tree & more gives 1.50 times", "same tokens on 1 of 1", "1.50× [1.25, 2.00]", "max_new_tokens = 3",
                 "ramify compare '<i>'", "1,000 MB", "4 calls, 1.75 on average"):  # fmt: skip
        assert text in page


def test_loads_nothing_and_is_one_file(comparison: Comparison) -> None:
    page = render(comparison)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(|<link|<iframe|\ssrc=",
        page.replace("onerror", "").replace("src=x", "").replace("// ", ""),
    )
    assert "default-src 'none'" in page


def test_texts_cannot_break_out(comparison: Comparison) -> None:
    page = render(comparison)
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert "demo<b>" not in page
    assert "p<1>" not in page
    stored = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert stored
    assert json.loads(stored[1])["pieces"]["3"] == HOSTILE
    assert json.loads(embed("a\u2028<&>")) == "a\u2028<&>"


def test_browser_data_is_limited_and_shares_shapes(comparison: Comparison) -> None:
    data = browser_data(comparison, prompts=1, steps=2)
    assert [prompt["of"] for each in data["rows"] for prompt in each["prompts"]] == [3, 3]
    assert len(data["rows"][1]["prompts"][0]["steps"]) == 2
    assert data["shapes"][0] == ()
    assert len(data["shapes"]) == 3


def test_headline_is_honest_when_nothing_is_faster(comparison: Comparison) -> None:
    slow = dataclasses.replace(comparison.rows[1], ratio=Spread(1.1, 0.9, 1.2))
    assert "No method was faster" in render(dataclasses.replace(comparison, rows=[comparison.rows[0], slow]))


def test_plot_geometry(comparison: Comparison) -> None:
    assert axis(1.5) == (2.0, 0.5)
    plot = ratio_plot(comparison.rows)
    wall = plot.lines[1][1]
    assert wall is not None
    assert wall.middle == pytest.approx(1.5 * plot.one)
    assert wall.left + wall.width == pytest.approx(2.0 * plot.one)
    [histogram] = histograms(comparison.rows)
    assert histogram.bars == [(1, 2, 100, 50), (2, 1, 50, 25), (3, 1, 50, 25)]


def test_unwritable_place_is_an_error(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="cannot write the page"):
        comparison.save_html(tmp_path / "missing" / "report.html")


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-sync", "--disable-component-update", "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize(
    ("step", "kinds", "told"),
    [
        ("2.1.1", {"root": 1, "accepted": 2, "own": 1, "rejected": 3, "unreached": 0}, "5 tokens drafted, 2 accepted"),
        ("2.1.2", {"root": 1, "accepted": 1, "own": 1, "rejected": 26, "unreached": 133}, "160 tokens drafted"),
        ("2.1.3", {"root": 1, "accepted": 1, "own": 0}, "The text ended inside the draft"),
        ("1.1.1", {"root": 1, "accepted": 0, "own": 1}, "Nothing was drafted"),
    ],
)
def test_in_a_browser(comparison: Comparison, tmp_path: Path, step: str, kinds: dict[str, int], told: str) -> None:
    comparison.save_html(tmp_path / "report.html")
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"file://{tmp_path}/report.html#{step}",
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert told in re.sub(r"<[^>]+>", "", page)
    for kind, count in kinds.items():
        assert page.count(f'<g class="{kind}">') == count, kind
    assert "<img" not in page
