"""The cost curve: its arithmetic on made-up numbers, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import build, lm

import ramify.models.calibrate as module
from ramify.models.calibrate import ROWS, CostCurve, cache_folder, calibrate, measure
from ramify.models.causal import CausalLM, load
from ramify.models.weights import unavailable

# Three rows are dearer than four, as on machines whose kernels come in fours.
BUMPY = CostCurve("bumpy", [1, 2, 3, 4, 8], [1.0, 1.5, 4.0, 2.0, 6.0])


def test_cost_goes_straight_from_point_to_point():
    assert [BUMPY.cost(rows) for rows in (1, 2, 4, 8)] == [1.0, 1.5, 2.0, 6.0]
    assert [BUMPY.cost(rows) for rows in (5, 6, 7)] == [3.0, 4.0, 5.0]
    assert BUMPY.cost(0) == 1.0
    assert BUMPY.cost(16) == 12.0  # beyond the last point in proportion to the rows
    assert BUMPY.cost(9) == pytest.approx(6.75)


def test_more_rows_are_run_where_they_take_less_time():
    assert [BUMPY.run(rows) for rows in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 5, 9]
    assert BUMPY.cost(3) == 2.0
    assert BUMPY.padding == {3: 4}
    # One row dearer than four, as where oneDNN multiplies packed weights; a gain within the clock's noise is none.
    assert CostCurve("packed", [1, 2, 4, 8], [3.0, 3.5, 2.5, 2.45]).padding == {1: 4, 2: 4, 3: 4}
    assert CostCurve("flat", [1, 2, 4], [2.0, 1.99, 1.98]).padding == {}


def test_ratio_is_in_units_of_a_plain_step():
    curve = CostCurve("slow", BUMPY.rows, [10 * seconds for seconds in BUMPY.seconds])
    assert [curve.ratio(rows) for rows in (1, 2, 3, 4, 8, 16)] == [1.0, 1.5, 2.0, 2.0, 6.0, 12.0]


def test_of_the_cheaper_sizes_the_smallest_that_is_as_cheap():
    curve = CostCurve("steps", [1, 2, 4, 8, 16], [4.0, 5.0, 3.04, 3.0, 6.0])
    assert curve.run(1) == curve.run(2) == 4  # eight rows take hardly less, and are more
    assert curve.run(3) == 4  # three rows lie on the way from two to four
    assert curve.run(8) == 8
    assert curve.run(12) == 12  # 4.5 seconds; sixteen rows take 6
    assert curve.run(99) == 99
    assert curve.cost(1) == curve.cost(4) == 3.04
    assert curve.ratio(2) == 1.0
    # Nothing beyond the largest measured size is known to be cheaper.
    assert CostCurve("falling", [1, 2], [2.0, 1.0]).padding == {1: 2}


def test_a_curve_may_begin_above_one_row():
    assert CostCurve("late", [4, 8], [2.0, 3.0]).cost(1) == 2.0


def test_best_is_the_most_tokens_per_second():
    def expected(nodes: int) -> float:
        return 1.0 + 0.5 * nodes

    # Sizes 1, 2, 3 and 7 make passes over 2, 3, 4 and 8 rows.
    assert BUMPY.best(expected, [2]) == 0  # 2.0 tokens for 4 seconds
    assert BUMPY.best(expected, [1, 2]) == 0  # 1.5 tokens for 1.5 seconds: a tie goes to fewer nodes
    assert BUMPY.best(expected, [1, 2, 3]) == 3  # 2.5 tokens for 2 seconds, past the bump
    assert BUMPY.best(expected, [1, 2, 3, 7]) == 3  # 4.5 tokens for 6 seconds
    assert BUMPY.best(expected, []) == 0
    assert BUMPY.best(lambda nodes: 1.0, range(1, 8)) == 0
    assert BUMPY.best(lambda nodes: 1.0 + nodes, range(1, 8)) == 3


# ---------------------------------------------------------------- the file


class Counted:
    """``measure`` without a clock; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, lm: CausalLM, key: str, budget: float) -> CostCurve:
        self.calls += 1
        return CostCurve(key, [1, 2], [1.0, 1.0 + self.calls])


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "deep" / "cache"))
    counted = Counted()
    monkeypatch.setattr(module, "measure", counted)
    return counted


def kept() -> Path:
    return cache_folder() / "cost-curves.json"


def test_a_curve_is_measured_once(counted: Counted):
    first = calibrate(lm("llama"))
    assert counted.calls == 1
    assert calibrate(lm("llama")) == first
    assert counted.calls == 1
    again = calibrate(lm("llama"), refresh=True)
    assert again.seconds == [1.0, 3.0]
    assert calibrate(lm("llama")) == again
    assert counted.calls == 2
    content = json.loads(kept().read_text())
    assert content == {first.key: {"key": first.key, "rows": [1, 2], "seconds": [1.0, 3.0]}}
    assert [file.name for file in kept().parent.iterdir()] == [kept().name]


def test_a_model_takes_its_padding_from_the_kept_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    fresh = load(build("llama"))
    assert fresh.padding == {}
    monkeypatch.setattr(module, "measure", lambda lm, key, budget: CostCurve(key, [1, 2, 4], [3.0, 3.5, 2.5]))
    curve = calibrate(fresh)
    assert fresh.padding == curve.padding == {1: 4, 2: 4, 3: 4}
    assert load(build("llama", seed=4)).padding == {1: 4, 2: 4, 3: 4}
    assert load(build("llama"), forward="transformers").padding == {}
    again = load(build("llama"))
    again.padding = {}
    assert calibrate(again) == curve
    assert again.padding == {1: 4, 2: 4, 3: 4}


def test_models_do_not_displace_each_other(counted: Counted):
    curves = [calibrate(lm(family)) for family in ("llama", "gpt2", "gemma3")]
    assert [calibrate(lm(family)) for family in ("llama", "gpt2", "gemma3")] == curves
    assert counted.calls == 3
    assert len(json.loads(kept().read_text())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "[]", "3", "null", "\x00\xff", '{"KEY": null}', '{"KEY": []}', '{"KEY": {"rows": [1]}}',
        '{"KEY": {"key": "KEY", "rows": [], "seconds": []}}',
        '{"KEY": {"key": "KEY", "rows": [1, 2], "seconds": [1.0]}}',
        '{"KEY": {"key": "KEY", "rows": ["a"], "seconds": [1.0]}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew(damage: str, counted: Counted):
    key = calibrate(lm("llama")).key
    other = calibrate(lm("gpt2"))
    kept().write_text(damage.replace("KEY", key), encoding="latin-1")
    assert calibrate(lm("llama")).seconds == [1.0, 4.0]
    assert calibrate(lm("llama")).seconds == [1.0, 4.0]
    assert counted.calls == 3
    assert list(json.loads(kept().read_text())) == [key]
    assert other.key != key


def test_damage_to_one_curve_spares_the_others(counted: Counted):
    first, other = calibrate(lm("llama")), calibrate(lm("gpt2"))
    content = json.loads(kept().read_text())
    content[first.key] = "gone"
    kept().write_text(json.dumps(content))
    assert calibrate(lm("gpt2")) == other
    assert counted.calls == 2
    calibrate(lm("llama"))
    assert counted.calls == 3
    assert calibrate(lm("gpt2")) == other


def test_a_folder_that_cannot_be_written_is_no_error(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "file"))
    assert calibrate(lm("llama")).rows == [1, 2]
    assert calibrate(lm("llama")).rows == [1, 2]
    assert counted.calls == 2


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RAMIFY_CACHE")
    assert cache_folder().name == "ramify"


# ---------------------------------------------------------------- the key


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_key_names_what_the_cost_depends_on(threads: None):
    torch.set_num_threads(1)
    key = module.curve_key(lm("llama"))
    assert key.startswith("llama-")
    assert f"float32 sdpa fused-plain cpu 1 threads torch {torch.__version__}" in key
    assert module.curve_key(load(build("llama", seed=7))) == key  # other weights cost the same
    half = load(build("llama").to(torch.bfloat16))
    assert "bfloat16 sdpa fused-plain cpu 1 threads" in module.curve_key(half)
    assert "float32 eager fused-plain cpu" in module.curve_key(load(build("llama"), attention="eager"))
    assert "float32 sdpa transformers-plain cpu" in module.curve_key(lm("llama", "transformers"))
    assert "float32 sdpa transformers-plain cpu" in module.curve_key(lm("gpt2"))
    if not unavailable("packed", torch.float32, "cpu"):
        assert "float32 sdpa fused-packed cpu" in module.curve_key(lm("llama", "packed"))
    deeper = load(build("llama", num_hidden_layers=3))
    torch.set_num_threads(2)
    two = module.curve_key(lm("llama"))
    torch.set_num_threads(1)
    assert len({key, two, module.curve_key(half), module.curve_key(deeper), module.curve_key(lm("qwen3"))}) == 5


# ---------------------------------------------------------------- the measurement


def test_sizes_are_those_that_the_context_holds():
    small = measure(lm("llama"), "key", budget=0.0)
    assert small.rows == [size for size in ROWS if size <= 96]  # a context of 128, a quarter of it filled
    model = load(build("llama", max_position_embeddings=40))
    curve = measure(model, "key", budget=0.0, rows=(1, 2, 20, 30, 31))
    assert (curve.key, curve.rows) == ("key", [1, 2, 20, 30])
    assert all(0 < seconds < 60 for seconds in curve.seconds)
    assert list(ROWS) == sorted(set(ROWS))
    assert ROWS[0] == 1
