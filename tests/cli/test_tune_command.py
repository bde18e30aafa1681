"""``ramify tune``: what it hands to the library, what it prints and writes, and which input it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import byte_lm

from ramify import cli
from ramify.bench import tune as library
from ramify.methods.profile import Profile
from ramify.models.calibrate import CostCurve

CURVE = CostCurve("made up", [1, 8, 64], [1.0, 1.1, 5.0])


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, a made-up curve, a cache folder and a working folder of the test's own."""
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.shell, "load", lambda *given, **how: byte_lm())
    monkeypatch.setattr(library, "calibrate", lambda lm, refresh: CURVE)
    monkeypatch.setattr(cli.shell.err, "_width", 1000)
    (tmp_path / "prompts.txt").write_text("abcabcabc\nxyzxyzxyz\n")


SHORT = ("tune", "--prompts", "prompts.txt", "--methods", "suffix:length=3,token-recycling:nodes=5", "--repeats", "1",
         "--max-new-tokens", "8")  # fmt: skip


def run(*arguments: str) -> int:
    return cli.run(cli.app, arguments)


def test_it_writes_the_profile_the_chart_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT, "--svg", "tune.svg", "--html", "tune.html") == 0
    output, errors = capsys.readouterr()
    assert "For greedy text" in output
    assert "the chart is in tune.svg" in errors
    assert "--method auto now uses this" in errors
    assert (tmp_path / "tune.svg").read_text().startswith("<svg")
    assert "</html>" in (tmp_path / "tune.html").read_text()
    assert Profile.of(byte_lm(), sampled=False) is not None


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT, "--temperature", "0.7", "--dry-run", "--json") == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["temperature"] == 0.7
    assert data["prompts"] == 2
    assert {"suffix:length=3", "token-recycling:nodes=5"} <= {each["method"] for each in data["candidates"]}
    assert data["curve"]["rows"] == CURVE.rows
    assert data["why"]
    assert Profile.of(byte_lm(), sampled=True) is None


def test_top_p_alone_is_sampling_at_temperature_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT, "--top-p", "0.9", "--json") == 0
    assert json.loads(capsys.readouterr().out)["temperature"] == 1.0
    assert Profile.of(byte_lm(), sampled=True) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", "-1"), "the temperature is -1"),
        (("--methods", "(suffix"), "the parentheses in '(suffix' do not close each other"),
        (("--prompts", "missing.txt"), "cannot read prompts"),
        (("--svg", "no/such/folder.svg"), "cannot write to no/such/folder.svg"),
        (("--repeats", "0"), "at least one prompt and one repeat, got 2 and 0"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SHORT, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_method_that_does_not_exist_is_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT[:4], "sufix,suffix:length=3", *SHORT[5:], "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["left_out"] == {"sufix": "unknown method 'sufix'; did you mean 'suffix'?"}
