"""``bench forward`` on tiny models: what it measures, what it leaves out and why, and what it says about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build

import ramify.bench.configurations as configurations_module
import ramify.bench.recipes.forward as module
from ramify.bench.configurations import Configuration, configurations, time_in_turn
from ramify.bench.decoded import Decoded
from ramify.bench.footprint import Footprint, Task, footprint
from ramify.bench.recipes import RECIPES, Outcome
from ramify.bench.recipes.shapes import SHAPES, random_model
from ramify.errors import RamifyError
from ramify.models.calibrate import CostCurve
from ramify.models.causal import DEMO
from ramify.models.weights import FORMATS, unavailable

SOURCE = Path(module.__file__).parents[3]
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
QUICK: dict[str, Any] = {
    "budget": 0.0,
    "rows": "1,2,4,8",
    "new_tokens": 4,
    "repeats": 1,
    "memory": False,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "read_bandwidth", lambda device: 1e10)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A tiny Llama, wide enough for every weight format, in a folder without a tokenizer."""
    build("llama", **WIDE).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def here(dtype: torch.dtype = torch.float32) -> list[str]:
    return [name for name in FORMATS if not unavailable(name, dtype, "cpu")]


def run(**options: Any) -> Outcome:
    return RECIPES["forward"].run(**QUICK | options)


def said(outcome: Outcome) -> str:
    return "\n".join(outcome.notes)


# ---------------------------------------------------------------- the whole


def test_the_static_forward_is_measured_where_it_is_asked_for(saved: str):
    outcome = run(model=saved, weights="plain", rows="1,3", static=True)
    floors, greedy = outcome.tables[3:]
    assert [row["configuration"] for row in floors.rows] == ["transformers", "fused plain", "static"]
    assert floors.rows[1]["GB of weights read"] == floors.rows[2]["GB of weights read"]
    assert greedy.rows[-1]["decoding"] == "static"
    assert greedy.rows[-1]["equal to hf-greedy"] == "all"


def test_every_configuration_is_measured(saved: str, tmp_path: Path):
    threads = torch.get_num_threads()
    outcome = run(model=saved)
    labels = ["transformers", *(f"fused {name}" for name in here())]
    cpu, wall, relative, floors, greedy = outcome.tables
    assert cpu.title == f"Cost of a pass by rows, ms of CPU time: {saved}, float32, sdpa attention, 1 thread"
    for table in (cpu, wall, relative):
        assert [list(row) for row in table.rows] == [["rows", *labels]] * 4
        assert [row["rows"] for row in table.rows] == [1, 2, 4, 8]
        assert all(0 < row[label] < float("inf") for row in table.rows for label in labels)
    assert [relative.rows[0][label] for label in labels] == [1.0] * len(labels)
    assert relative.rows[2]["transformers"] == pytest.approx(cpu.rows[2]["transformers"] / cpu.rows[0]["transformers"])
    assert [row["configuration"] for row in floors.rows] == labels
    for row in floors.rows:
        assert row["floor, ms"] == pytest.approx(row["GB of weights read"] * 1e9 / 1e10 * 1e3)
        assert row["× floor"] == pytest.approx(row["best single row, ms"] / row["floor, ms"])
    assert [row["decoding"] for row in greedy.rows] == ["hf-greedy", *labels]
    assert all(row["tokens"] == 4 for row in greedy.rows)
    exact = [row["equal to hf-greedy"] for row in greedy.rows if row["decoding"] not in ("fused int8", "fused int4")]
    assert exact == ["all"] * len(exact)
    assert greedy.rows[0]["speed-up over hf-greedy"] == "1.00×"
    assert greedy.rows[0]["rows run for one"] == "–"
    assert torch.get_num_threads() == threads
    [chart] = outcome.charts
    assert list(chart.lines) == list(chart.floors) == labels
    assert chart.lines["transformers"][0] == (1.0, cpu.rows[0]["transformers"])
    json.dumps(outcome.to_dict(), allow_nan=False)
    assert [file.suffix for file in outcome.save(tmp_path / "page.md", "# forward")] == [".md", ".svg"]
    notes = said(outcome)
    assert "behind 32 cached tokens" in notes  # a quarter of the context
    assert "reads 10.0 GB/s here" in notes
    assert f"All {len(labels)} configurations were in memory at once" in notes
    assert "The weights are random" not in notes


def test_the_demo_model(monkeypatch: pytest.MonkeyPatch):
    if not (DEMO / "model.safetensors").exists():
        pytest.skip("the demo model is not in the package")
    outcome = run(dtype="float32", weights="plain", rows=(1, 2))
    greedy = outcome.tables[-1]
    assert greedy.title.startswith("Greedy decoding after 64 tokens, CPU time: demo, float32")
    assert [row["equal to hf-greedy"] for row in greedy.rows] == ["all"] * 3
    assert outcome.tables[3].rows[0]["8 rows ÷ best single row"] == "–"  # not measured, not made up


def test_a_shape_with_random_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SHAPES, "tiny", ("qwen2", {**WIDE, "vocab_size": 96, "num_hidden_layers": 1,
                                                   "num_key_value_heads": 2, "max_position_embeddings": 256,
                                                   "tie_word_embeddings": True}))  # fmt: skip
    outcome = run(shape="tiny", weights=["plain"], rows=4)
    assert [row["rows"] for row in outcome.tables[0].rows] == [1, 4]
    assert "tiny, bfloat16, sdpa attention" in outcome.tables[0].title
    assert "The weights are random, so the best logits nearly tie, and in bfloat16" in said(outcome)
    assert "/" not in outcome.tables[0].title  # no temporary folder
    assert "The weights are random" not in said(run(shape="tiny", dtype="float32", weights="", rows=1))


def test_several_threads_are_timed_by_the_wall_clock(saved: str):
    before = torch.get_num_threads()
    outcome = run(model=saved, weights="plain", threads=2, attention="eager")
    assert torch.get_num_threads() == before
    assert outcome.charts[0].y == "ms of wall time"
    assert outcome.charts[0].lines["transformers"][0] == (1.0, outcome.tables[1].rows[0]["transformers"])
    assert "eager attention, 2 threads" in outcome.tables[0].title


def test_only_what_was_asked_for(saved: str):
    outcome = run(model=saved, weights="", new_tokens=0)
    assert len(outcome.tables) == 4
    assert list(outcome.tables[0].rows[0]) == ["rows", "transformers"]
    assert "No other forward makes a single row faster" in said(outcome)


# ---------------------------------------------------------------- what is refused and left out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shape": "qwen2-0.5"}, "unknown shape 'qwen2-0.5'; did you mean 'qwen2-0.5b'?"),
        ({"shape": "qwen2-0.5b", "dtype": "bfloat61"}, "unknown dtype 'bfloat61'"),
        ({"weights": "plain,int9"}, "unknown weight format 'int9'; did you mean 'int8'?"),
        ({"weight": "plain"}, "unknown option 'weight'; did you mean 'weights'?"),
        ({"rows": "1,two"}, "rows takes whole numbers"),
        ({"rows": 0}, "rows holds 0"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str):
    with pytest.raises(RamifyError, match=re.escape(sentence)):
        run(**options)


def test_a_family_that_the_fused_forward_does_not_know(tmp_path: Path):
    build("gpt2").save_pretrained(tmp_path / "gpt2")
    outcome = run(model=str(tmp_path / "gpt2"), weights="plain,int8")
    assert list(outcome.tables[0].rows[0]) == ["rows", "transformers"]
    for name in ("plain", "int8"):
        [note] = [note for note in outcome.notes if note.startswith(f"fused {name} is left out: ")]
        assert "GPT2LMHeadModel is none of the families" in note
        assert "leave out" not in note  # advice for whoever called load


def test_too_little_memory_leaves_out(saved: str, monkeypatch: pytest.MonkeyPatch):
    class Little:
        available = 1000

    monkeypatch.setattr(configurations_module.psutil, "virtual_memory", Little)
    found, notes = configurations(saved, None, None, ["plain"], [1, 4])
    assert [one.label for one in found] == ["transformers"]
    assert "fused plain is left out: loading takes up to" in notes[0]


def test_rows_beyond_the_context(saved: str):
    found, notes = configurations(saved, None, None, [], [1, 96, 97])
    assert found[0].sizes == [1, 96]
    assert notes == ["More than 96 rows do not fit the context of 128 tokens."]


def test_models_without_trees_are_refused(tmp_path: Path):
    build("bloom").save_pretrained(tmp_path / "bloom")
    with pytest.raises(RamifyError, match="cannot run forward passes of several rows"):
        run(model=str(tmp_path / "bloom"))


# ---------------------------------------------------------------- the figures


def test_bytes_that_are_read_and_held(saved: str):
    found, _ = configurations(saved, None, None, here(), [1])
    by = {one.label: one for one in found}
    own = by["transformers"]
    model = own.lm.model
    table, everything = model.model.embed_tokens.weight.nbytes, sum(p.nbytes for p in model.parameters())
    assert own.held == everything
    assert own.reads == everything - table  # the head is a matrix of its own
    norms = sum(p.nbytes for name, p in model.named_parameters() if "norm" in name)
    assert by["fused plain"].held == everything
    assert by["fused plain"].reads == everything - table - norms
    if "fused packed" in by:
        assert by["fused packed"].held == everything
    if "fused int8" in by:
        assert by["fused int8"].held == by["fused int8"].reads + table + norms
        assert by["fused int8"].reads < by["fused plain"].reads / 3
        assert by["fused int8"].rounded
    layers, heads, size = 2, 2, 16
    assert own.cached == by["fused plain"].cached == 2 * layers * heads * size * 4


def test_a_tied_head_is_read(tmp_path: Path):
    build("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    [own], _ = configurations(str(tmp_path / "tied"), None, None, [], [1])
    assert own.reads == own.held


def test_all_take_turns(saved: str, monkeypatch: pytest.MonkeyPatch):
    found, _ = configurations(saved, None, None, ["plain"], [1, 4])
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(Configuration, "run", lambda one, rows: (seen.append((one.label, rows)), (9.0, 7.0 / rows))[1])
    assert time_in_turn(found, 0.0) == 3
    turns = [("transformers", 1), ("fused plain", 1), ("transformers", 4), ("fused plain", 4)]
    assert seen == [turn for turn in turns for _ in range(2)] * 3
    assert found[0].cache.lengths == found[1].cache.lengths == [32]
    for one in found:
        one.cpu, one.wall = [float("inf")] * 2, [float("inf")] * 2
    time_in_turn(found, 0.0)
    assert (found[1].cpu, found[1].wall) == ([7.0, 1.75], [9.0, 9.0])


def test_greedy_pads_by_the_measured_curve(saved: str, monkeypatch: pytest.MonkeyPatch):
    def measured(found: list[Configuration], budget: float) -> int:
        for one in found:
            one.cpu = one.wall = [3.0, 4.0, 2.0, 5.0]
        return 3

    monkeypatch.setattr(module, "time_in_turn", measured)
    outcome = run(model=saved, weights="plain")
    assert [row["rows run for one"] for row in outcome.tables[-1].rows] == ["–", 4, 4]
    assert [row["equal to hf-greedy"] for row in outcome.tables[-1].rows] == ["all"] * 3
    floors = outcome.tables[3].rows[0]
    assert (floors["best single row, ms"], floors["rows run for it"]) == (2000.0, 4)
    assert floors["8 rows ÷ best single row"] == 2.5
    assert "fused plain runs more rows than wanted where that takes less CPU time: 4 for 1, 4 for 2" in said(outcome)
    assert "which brings a single row to 67%" in said(outcome)


def test_what_is_said_follows_from_the_numbers():
    curves = {"transformers": CostCurve("", [1, 2], [0.8, 0.8]), "fused plain": CostCurve("", [1, 2], [0.5, 0.6])}
    notes = list(module._cost_notes(curves, {"transformers": 0.4, "fused plain": 0.1}, "CPU time"))
    assert notes == [
        "A single row is fastest with fused plain: 500 ms; transformers takes 800 ms, 1.60 times as long.",
        "Nearest to its floor is transformers, at 2.00 times the floor.",
    ]
    tokens = {"hf-greedy": [1, 2, 3], "a": [1, 2, 3], "b": [1, 5, 3], "c": [1, 2]}
    seconds = {"hf-greedy": [0.4, 0.6], "a": [0.2, 0.2], "b": [0.8, 0.8], "c": [0.5, 0.5]}
    decoded = Decoded(tokens, seconds, dict.fromkeys(tokens, 1), ["b"])
    assert [decoded.equal(label) for label in tokens] == [None, None, 1, 2]
    assert [row["equal to hf-greedy"] for row in decoded.rows()] == ["all", "all", "the first 1", "the first 2"]
    assert decoded.rows()[1]["speed-up over hf-greedy"] == "2.50× [2.00, 3.00]"
    assert decoded.rows()[1]["ms per token"] == 200.0
    notes = list(decoded.notes("bfloat16", random=False))
    assert notes[1] == "The least time per token is that of a, 2.50× [2.00, 3.00] the speed of hf-greedy."
    assert notes[2:] == [
        "Tokens part from those of hf-greedy: b after 1, c after 2.",
        "Rounded weights make another model, whose tokens need not be equal: b.",
    ]


def test_shapes():
    model = random_model("llama-100m", dtype="bfloat16")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(100e6, rel=0.1)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id is None


# ---------------------------------------------------------------- loading


def test_memory_of_every_way_to_load(saved: str, monkeypatch: pytest.MonkeyPatch):
    tasks: list[Task] = []

    def fake(task: Task) -> Footprint:
        tasks.append(task)
        return Footprint(0.5 * len(tasks), 10**9, 2 * 10**9, 10**6)

    monkeypatch.setattr(module, "footprint", fake)
    outcome = run(model=saved, weights="plain", memory=True)
    table = outcome.tables[-1]
    assert [row["loaded by"] for row in table.rows] == [
        "transformers by itself",
        "ramify, transformers",
        "ramify, fused plain",
    ]
    assert [(task.forward, task.weights) for task in tasks[:3]] == [
        (None, None),
        ("transformers", None),
        ("fused", "plain"),
    ]
    assert len(tasks) == 9
    assert {(task.source, task.dtype, task.attention, task.new_tokens) for task in tasks} == {
        (saved, "float32", "sdpa", 32)
    }
    first = table.rows[0]
    assert (first["seconds to load"], first["lowest"], first["highest"]) == (2.0, 0.5, 3.5)
    assert first["peak, GB"] == 2.0
    held = sum(p.nbytes for p in build("llama", **WIDE).parameters()) + 64 * 2 * 2 * 2 * 16 * 4
    assert first["weights and cache, GB"] == held / 1e9
    assert first["peak ÷ these"] == 2e9 / held
    assert "beyond the 1.00 GB of an interpreter" in said(outcome)


@pytest.mark.process
def test_a_fresh_process(saved: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    task = Task(saved, "float32", "sdpa", [1, 2, 3], 2, 1)
    for one in (task, Task(**vars(task) | {"forward": "fused", "weights": "plain"})):
        found = footprint(one)
        assert 0 < found.seconds < 60
        assert found.base > 50e6
        assert 0 < found.peak < 1e9
    with pytest.raises(RamifyError, match=r"could not load .*nowhere"):
        footprint(Task(**vars(task) | {"source": saved + "/nowhere"}))
