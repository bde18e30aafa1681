"""The bench recipes: each can be run by name, reports in three forms, and measures what its labels say."""

from __future__ import annotations

import importlib
import inspect
import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import ramify.bench.recipes.demo_lm as demo_lm
import ramify.bench.recipes.token_recycling as token_recycling
from ramify.bench.chart import Chart
from ramify.bench.recipes import RECIPES, Outcome, Table, machine_line
from ramify.errors import RamifyError
from ramify.methods.base import Method

OUTCOME = Outcome(
    [
        Table("First", [{"name": "a|b", "x": 0.123456, "n": 3}, {"name": "c", "x": 1234.5, "n": None}]),
        Table("Second", [{"only": "one"}]),
    ],
    ["A note [with brackets].", "Another."],
)
CHART = Chart("cost", "Cost & more", "rows", "ms", {"a<b": [(1, 3.0), (8, 5.0)]}, {"a<b": 2.5}, "the floor")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_by_seed_and_keywords(name: str):
    recipe = RECIPES[name]
    run = importlib.import_module(recipe.module).run
    parameters = inspect.signature(run).parameters
    assert parameters["seed"].default == 0
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert all(parameter.default is not parameter.empty for parameter in parameters.values())
    assert inspect.signature(run, eval_str=True).return_annotation is Outcome
    assert recipe.summary
    assert not recipe.summary.endswith(".")
    assert inspect.getdoc(run)


def test_every_recipe_file_is_listed():
    folder = Path(inspect.getfile(Outcome)).parent
    shared = {f"ramify.bench.recipes.{name}" for name in ("__init__", "shapes")}
    files = {f"ramify.bench.recipes.{file.stem}" for file in folder.glob("*.py")} - shared
    assert files == {recipe.module for recipe in RECIPES.values()}


@pytest.mark.parametrize(
    ("name", "typo", "nearest"),
    [("speed", "prompt", "prompts"), ("overhead", "vocab", "vocabulary"), ("demo-lm", "modle", "model")],
)
def test_an_unknown_option_suggests_the_nearest(name: str, typo: str, nearest: str):
    with pytest.raises(RamifyError, match=f"unknown option {typo!r}; did you mean {nearest!r}?"):
        RECIPES[name].run(seed=0, **{typo: 1})


# ---------------------------------------------------------------- views


def test_markdown_has_every_table_and_note():
    parts = OUTCOME.to_markdown().split("\n\n")
    assert parts[0] == machine_line()
    assert parts[1] == "### First"
    assert parts[2].split("\n")[1:] == ["| --- | --- | --- |", r"| a\|b | 0.123 | 3 |", "| c | 1.23e+03 | None |"]
    assert parts[2].split("\n")[0] == "| name | x | n |"
    assert parts[3:5] == ["### Second", "| only |\n| --- |\n| one |"]
    assert parts[5:] == ["A note [with brackets].", "Another.\n"]
    assert Outcome(notes=["Nothing."]).to_markdown() == f"{machine_line()}\n\nNothing.\n"


def test_charts_stand_beside_the_markdown(tmp_path: Path):
    outcome = Outcome(OUTCOME.tables, OUTCOME.notes, [CHART])
    assert CHART.title not in outcome.to_markdown()
    page = tmp_path / "page.md"
    assert outcome.save(page, "# A page") == [page, tmp_path / "page-cost.svg"]
    text = page.read_text()
    assert text.startswith(f"# A page\n\n{machine_line()}\n\n### First")
    assert "\n\n![Cost & more](page-cost.svg)\n\nA note" in text
    assert (tmp_path / "page-cost.svg").read_text() == CHART.svg()
    [found] = json.loads(json.dumps(outcome.to_dict()))["charts"]
    assert found["lines"] == {"a<b": [[1, 3.0], [8, 5.0]]}
    assert found["floors"] == {"a<b": 2.5}
    outcome.show(Console(file=StringIO()))


def test_the_dictionary_is_json():
    found = json.loads(json.dumps(OUTCOME.to_dict()))
    assert set(found) == {"machine", "tables", "notes", "charts"}
    assert found["tables"][0] == {"title": "First", "rows": list(OUTCOME.tables[0].rows)}
    assert found["notes"] == OUTCOME.notes
    assert Outcome().to_dict()["tables"] == []


def test_the_console_shows_all():
    out = StringIO()
    OUTCOME.show(Console(file=out, width=100))
    shown = out.getvalue()
    for part in ("First", "Second", "name", "a|b", "0.123", "1.23e+03", "None", "A note [with brackets].", "Another."):
        assert part in shown


def test_the_machine_line_names_versions():
    line = machine_line()
    assert f"{torch.get_num_threads()} thread(s)" in line
    assert f"torch {torch.__version__}" in line
    assert "\n" not in line


# ---------------------------------------------------------------- the recipes themselves


def test_overhead_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    outcome = RECIPES["overhead"].run(seed=0, length=40, new_tokens=8, repeats=1, vocabulary=200)
    [table] = outcome.tables
    assert table.title == "Loop cost at 40 to 48 tokens, vocabulary 200"
    assert [row["step"] for row in table.rows] == ["plain step", "chain of 10", "tree of 80 nodes", "tree of 160 nodes"]
    assert all(isinstance(value, float) and value >= 0 for row in table.rows for value in list(row.values())[1:])
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []  # sizes are given, not taken from a cost curve


def test_token_recycling_compares_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[int, Method] = {}

    def count(lm: Any, method: Any, prompts: int, new: int, seed: int, **settings: Any) -> float:
        seen[id(method)] = method
        return 1.5 + seed + bool(settings)

    monkeypatch.setattr(token_recycling, "load", lambda *_, **__: SimpleNamespace(name="mock"))
    monkeypatch.setattr(token_recycling, "_tokens_per_call", count)
    [table] = token_recycling.run(seed=2, prompts=3, max_new_tokens=4, seeds=2).tables
    assert table.title == "Tokens per target call, mock, float32, 3 held-out prompts × 4 tokens"
    methods: list[Any] = list(seen.values())
    assert len(methods) == len(table.rows) == len({row["variant"] for row in table.rows})
    for method, row in zip(methods, table.rows, strict=True):
        label = row["variant"]
        assert (row["greedy"], row["T = 0.7, mean"], row["lowest"], row["highest"]) == (3.5, 5.0, 4.5, 5.5)
        if "lookup" in label or "automaton" in label:
            assert f"{method.length} tokens" in label
        elif "calibrated" in label:
            assert f"{method.nodes} nodes" in label
        else:  # all of the published tree
            assert (method.template, method.nodes) == ("paper", None)
            assert ("accepted path only" in label) == (method.update == "accepted")
            assert ("reset" in label) == (method.scope == "request")
            assert ("no seeding" in label) == (not method.seed_from_prompt)
            assert f"k = {method.k}" in label or method.k == 8


def test_demo_lm_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lib").mkdir()
    files = [tmp_path / "lib" / "a.py", tmp_path / "lib" / "b.py"]
    files[0].write_text("x" * 100)
    files[1].write_text("y" * 300)
    encode = lambda text: SimpleNamespace(ids=list(range(len(text))))  # noqa: E731
    tokenizer = SimpleNamespace(eos_token_id=0, backend_tokenizer=SimpleNamespace(encode=encode))
    mock = SimpleNamespace(name="mock", model=None, context=64, require_tokenizer=lambda: tokenizer)
    monkeypatch.setattr(demo_lm, "load", lambda model: mock)
    monkeypatch.setattr(demo_lm, "library_files", lambda: ([], files))
    monkeypatch.setattr(demo_lm, "bits_per_byte", lambda model, ids, eos, size, context: size / 100)
    monkeypatch.setattr(demo_lm, "xz_bits_per_byte", lambda one: 4.0)
    [table] = demo_lm.run().tables
    rows = [list(row.values()) for row in table.rows]
    assert rows == [
        ["lib/a.py", 100, 1.0, 4.0, "75 %"],
        ["lib/b.py", 300, 3.0, 4.0, "25 %"],
        ["all", 400, 2.5, 4.0, "38 %"],
    ]
    tokenizer.eos_token_id = None
    with pytest.raises(RamifyError, match="mock has no end-of-text token"):
        demo_lm.run()
