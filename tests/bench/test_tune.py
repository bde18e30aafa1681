"""Tuning by made-up curves and runs: what is tried, what is expected of it, who is timed, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import byte_lm, lm

from ramify.api import generate
from ramify.bench import forecast
from ramify.bench import tune as module
from ramify.bench.comparison import Comparison
from ramify.bench.forecast import Passes, Run, usual
from ramify.bench.prompts import Prompt
from ramify.bench.rows import Spread
from ramify.bench.tune import Search, drafters, tune
from ramify.bench.tuning import Candidate, Measured, Tuning, family
from ramify.errors import RamifyError
from ramify.methods.options import build_spec
from ramify.methods.profile import Profile
from ramify.models.calibrate import CostCurve

CURVE = CostCurve("made up", [1, 8, 16, 32, 64], [1.0, 1.1, 1.5, 2.5, 5.0])
PROMPTS = [Prompt("1", "def walk(path):\n    "), Prompt("2", "abcabcabc")]
PLAIN = Run(100, {1: [1.2] * 100}, verifying=10.0, rest=20.0)
SLOWER = Passes(CURVE, 1.2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))


def giving(tokens_per_call: float, rows: int, own: float = 0.0) -> Run:
    """A run whose passes take 1.2 times what the curve says."""
    calls = round(100 / tokens_per_call)
    return Run(100, {rows: [1.2 * CURVE.cost(rows)] * calls}, drafting=own, verifying=10.0, rest=20.0)


# Expectations


def test_speed_is_tokens_over_passes_own_work_and_the_rest() -> None:
    run = Run(300, {8: [9.0] * 50, 16: [9.0] * 50}, drafting=5.0, verifying=15.0, rest=10.0)
    assert (run.calls, run.tokens_per_call, run.rows_per_call) == (100, 3.0, 12.0)
    assert run.passing(SLOWER) == pytest.approx(1.2 * (50 * 1.1 + 50 * 1.5))
    assert run.speed(SLOWER) == pytest.approx(300 / (1.2 * 130 + 20 + 10))
    assert run.share(SLOWER) == pytest.approx(20 / (20 + 156))


def test_plain_decoding_alone_sets_the_level_and_is_predicted_as_measured() -> None:
    passes = Passes.of(CURVE, [PLAIN])
    assert (passes.level, passes.slope) == pytest.approx((1.2, 0.0))
    assert PLAIN.speed(passes) == pytest.approx(100 / 150)


def test_passes_are_fitted_to_all_runs_together() -> None:
    runs = [
        Run(1, {rows: [factor * CURVE.cost(rows)] * 9 + [99.0] for rows, factor in ((1, 1.1), (8, 1.25))}),
        Run(1, {32: [1.35 * CURVE.cost(32)] * 7, 64: [1.4 * CURVE.cost(64)]}),
    ]
    passes = Passes.of(CURVE, runs)
    assert (passes.level, passes.slope) == pytest.approx((1.1, 0.05))
    assert passes.seconds(16) == pytest.approx(1.3 * 1.5)


def test_spikes_do_not_count() -> None:
    assert usual([1.0] * 99 + [1000.0]) == pytest.approx(99 + 3)
    assert usual([1.0] * 5 + [2.0] * 5) == pytest.approx(15.0)  # two kinds of steps are no spikes
    assert usual([]) == 0.0


def test_a_run_counts_what_happened() -> None:
    method = build_spec("suffix:length=4")
    run = forecast.run(byte_lm(), method, PROMPTS, 3, max_new_tokens=12, do_sample=False)
    results = [
        generate(byte_lm(), prompt.text, build_spec("suffix:length=4"), seed=3, max_new_tokens=12, do_sample=False)
        for prompt in PROMPTS
    ]
    assert run.tokens == 24
    assert run.calls == sum(result.stats.target_calls for result in results)
    assert run.rows_per_call * run.calls == pytest.approx(sum(result.stats.row_steps for result in results))
    assert min(run.drafting, run.verifying, run.rest, *(min(times) for times in run.passes.values())) > 0.0


def test_the_clock_is_that_of_the_processor_for_one_thread() -> None:
    assert torch.get_num_threads() == 1
    assert forecast.clock(lm("llama")) == "CPU time"
    torch.set_num_threads(2)
    try:
        assert forecast.clock(lm("llama")) == "wall time"
    finally:
        torch.set_num_threads(1)


# The search


class Table:
    """Stands for running: gives the runs of a table, and notes who was asked for."""

    def __init__(self, runs: dict[str, Run]) -> None:
        self.runs, self.asked = runs, list[str]()
        self.names = {str(build_spec(spec)): spec for spec in runs}

    def __call__(self, lm: Any, method: Any, prompts: Any, seed: int, **settings: Any) -> Run:
        spec = self.names.get(str(method), str(method))
        self.asked.append(spec)
        return self.runs.get(spec, giving(1.0, 8))


def search(monkeypatch: pytest.MonkeyPatch, runs: dict[str, Run]) -> tuple[Search, Table]:
    table = Table({"greedy": PLAIN} | runs)
    monkeypatch.setattr(module, "run", table)
    monkeypatch.setattr(module, "calibrate", lambda lm, refresh: CURVE)
    settings = {"max_new_tokens": 8, "do_sample": False}
    return Search(byte_lm(), PROMPTS, settings, 0, lambda what: None), table


def test_the_best_are_tried_at_other_sizes_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found, table = search(
        monkeypatch,
        {
            "suffix": giving(2.0, 8),
            "token-recycling": giving(1.9, 8),
            "prompt-lookup": giving(1.85, 8),
            "lookahead": giving(1.2, 64),
            "suffix:length=16": giving(2.1, 8),
            "union:methods=(suffix+token-recycling)": giving(2.4, 8),
            "union:methods=(suffix+prompt-lookup)": giving(2.2, 8),
            "union:methods=(suffix+token-recycling+prompt-lookup)": giving(2.41, 8),
        },
    )
    found.try_all(["suffix", "token-recycling", "prompt-lookup", "lookahead"])
    assert "token-recycling:nodes=64" in found.runs
    assert not any(spec.startswith("lookahead:") or "lookahead" in spec[9:] for spec in found.runs)
    assert "union:methods=(suffix+token-recycling+prompt-lookup)" in found.runs
    ranked = found.finalists()
    assert ranked == [
        "union:methods=(suffix+token-recycling+prompt-lookup)",
        "union:methods=(suffix+token-recycling)",
        "suffix:length=16",
    ]
    assert len(table.asked) == len(set(table.asked)) + 1  # nothing twice but the warm-up


def test_a_bad_size_does_not_hide_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = search(
        monkeypatch,
        {"aded:nodes=8": giving(2.0, 8), "suffix": giving(1.9, 8), "sam": giving(1.8, 8), "medusa": giving(1.7, 8),
         "aded:nodes=64": giving(1.0, 64)},
    )  # fmt: skip
    for spec in ("aded:nodes=8", "suffix", "sam", "medusa", "aded:nodes=64"):
        found.run(spec)
    assert found.finalists() == ["aded:nodes=8", "suffix", "sam"]


def test_a_part_that_adds_nothing_ends_the_union(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = search(
        monkeypatch,
        {
            "suffix": giving(2.0, 8),
            "prompt-lookup": giving(1.9, 8),
            "aded": giving(1.9, 8),
            "union:methods=(suffix+prompt-lookup)": giving(2.01, 8, own=0.5),
            "union:methods=(suffix+aded)": giving(1.9, 8),
        },
    )
    found.try_all(["suffix", "prompt-lookup", "aded"])
    assert not any(spec.count("+") == 2 for spec in found.runs)


def test_what_cannot_be_built_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = search(monkeypatch, {})
    found.try_all(["assistant", "medusa", "greedy", "lud", "suffix"])
    assert set(found.left_out) >= {"assistant", "medusa", "greedy", "lud"}
    assert "needs a model" in found.left_out["assistant"]
    assert "there is no medusa head" in found.left_out["medusa"]
    assert "is no lossless draft method" in found.left_out["lud"]
    assert "suffix" in found.runs


def test_the_catalogue_is_what_is_tried() -> None:
    names = list(drafters())
    assert {"suffix", "token-recycling", "assistant", "aded"} <= set(names)
    assert not {"union", "switched", "auto", "greedy", "lud"} & set(names)


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("suffix", "suffix"),
        ("suffix:length=16", "suffix"),
        ("token-recycling:k=4:nodes=8", "token-recycling:k=4"),
        ("union:methods=(suffix+token-recycling:nodes=8)", "(suffix+token-recycling:nodes=8)"),
        ("sam:auxiliary=none", "sam:auxiliary=none"),
    ],
)
def test_a_size_does_not_make_another_method(spec: str, same: str) -> None:
    assert family(spec) == same


# The outcome


def tuning(best: bool = True) -> Tuning:
    comparison: Any = None
    chosen = Measured("suffix:length=16", 1.9, Spread(2.0, 1.8, 2.1))
    runs = {
        "suffix:length=16": giving(2.2, 8, own=6.0),
        "suffix": giving(2.0, 8),
        "union:methods=(suffix+token-recycling+prompt-lookup)": giving(1.9, 16),
    }
    candidates = [Candidate(spec, run, run.speed(SLOWER)) for spec, run in runs.items()]
    where = {"name": "demo", "dtype": "float32", "forward": "fused"}
    return Tuning(
        where, {}, "CPU time", 0.7, 2, SLOWER, PLAIN, candidates, {"assistant": "needs a model"}, [chosen],
        chosen if best else None, comparison,
    )  # fmt: skip


def test_the_reasons_are_given_in_figures() -> None:
    first, second, third = tuning().why()
    assert first == "For text at temperature 0.7 use suffix:length=16."
    assert "commits 2.22 tokens a pass; a pass has 8.0 rows and costs 1.10 plain ones" in second
    assert "drafting and verifying take 21 % of a step" in second
    assert "predicts 1.90 × plain decoding" in third
    assert "2.00 × [1.80, 2.10] (CPU time): the forecast is -5 % off" in third
    assert tuning(best=False).why()[0].startswith("For text at temperature 0.7 plain decoding is fastest here")


def test_views_hold_every_candidate() -> None:
    data = tuning().to_dict()
    assert [entry["method"] for entry in data["candidates"]][:2] == ["suffix:length=16", "suffix"]
    assert data["candidates"][0]["predicted"] == pytest.approx(tuning().candidates[0].speed / (100 / 150))
    assert data["recommended"] == "suffix:length=16"
    assert data["measured"][0]["error"] == pytest.approx(-0.05)
    svg = tuning().chart().svg()
    assert "cost of a pass" in svg
    assert "suffix: 2.22 at 8" in svg
    assert svg.count("<polyline") == 3


def test_end_to_end_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "calibrate", lambda lm, refresh: CURVE)
    said: list[str] = []
    found = tune(
        byte_lm(), PROMPTS, temperature=0.7, methods=["suffix:length=4", "token-recycling:nodes=6", "medusa"],
        max_new_tokens=12, repeats=1, progress=said.append,
    )  # fmt: skip
    assert isinstance(found.comparison, Comparison)
    assert {"suffix:length=4", "token-recycling:nodes=6"} <= {each.spec for each in found.candidates}
    assert "medusa" in found.left_out
    assert 1 <= len(found.measured) <= 3
    assert said[:2] == ["timing forward passes", "plain decoding"]
    profile = Profile.of(byte_lm(), sampled=True)
    assert profile is not None
    assert profile.spec == (found.best.spec if found.best else "")
    assert (profile.prompts, profile.temperature) == (2, 0.7)
    assert Profile.of(byte_lm(), sampled=False) is None
    result = generate(byte_lm(), PROMPTS[0].text, "auto", max_new_tokens=12, do_sample=True, temperature=0.7)
    assert (profile.spec or "plainly") in result.notes[0]


def test_a_dry_run_keeps_nothing_and_the_fastest_measured_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = search(monkeypatch, {"suffix": giving(3.0, 8), "prompt-lookup": giving(2.9, 8)})
    timed = {"suffix": 1.5, "prompt-lookup": 1.6}

    def compare(lm: Any, prompts: Any, methods: Any, **settings: Any) -> Any:
        rows = [Spread(1.0, 1.0, 1.0), *(Spread(*[timed.get(method.card.name, 0.5)] * 3) for method in methods[1:])]
        return type("Compared", (), {"rows": [type("Row", (), {"ratio": r, "cpu_ratio": r}) for r in rows]})

    monkeypatch.setattr(module, "compare", compare)
    found = tune(byte_lm(), PROMPTS, methods=["suffix", "prompt-lookup"], keep=False)
    assert found.best is not None
    assert found.best.spec == "prompt-lookup"
    assert found.best.error == pytest.approx(found.best.predicted / 1.6 - 1)
    assert Profile.of(byte_lm(), sampled=False) is None
    timed.update({"suffix": 0.9, "prompt-lookup": 0.8})
    found = tune(byte_lm(), PROMPTS, methods=["suffix", "prompt-lookup"])
    assert found.best is None
    kept = Profile.of(byte_lm(), sampled=False)
    assert kept is not None
    assert kept.spec == ""
    assert table.asked


def test_bad_input() -> None:
    with pytest.raises(RamifyError, match="cannot run drafts"):
        tune(lm("mamba"), PROMPTS)
    with pytest.raises(RamifyError, match="at least one prompt"):
        tune(lm("llama"), [])
    with pytest.raises(RamifyError, match="got 1 and 0"):
        tune(lm("llama"), ["x"], repeats=0)
