"""The recipes that compare unions and hold tuning to its word, on a tiny model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from families import byte_lm

from ramify.bench import tune as library
from ramify.bench.prompts import Prompt
from ramify.bench.recipes import compositions, tune
from ramify.bench.recipes.compositions import Trial, parts, united
from ramify.models.calibrate import CostCurve

PROMPTS = [Prompt(str(index), text) for index, text in enumerate(("abcabcabc", "xyxyxyxy", "for i in range("))]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    curve = CostCurve("made up", [1, 8, 64], [1.0, 1.1, 5.0])
    monkeypatch.setattr(library, "calibrate", lambda lm, refresh: curve)
    monkeypatch.setattr("ramify.methods.draft.union.calibrate", lambda lm: curve)
    for recipe in (compositions, tune):
        monkeypatch.setattr(recipe, "held_out_prompts", lambda count: PROMPTS[:count])
        monkeypatch.setattr(recipe, "load", lambda model, dtype: byte_lm())


def test_pairs_the_triple_and_the_usual_pair() -> None:
    assert united(["a", "b", "c"], ["b", "a"]) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert united(["a", "b", "c"], ["x", "y"])[-1] == ("x", "y")
    assert united(["a", "b"], ["x"]) == [("a", "b")]


def test_what_cannot_be_united_is_left_out() -> None:
    found, notes = parts(byte_lm(), ["suffix:length=3", "medusa", "assistant"])
    assert found == ["suffix:length=3"]
    assert [note.partition(" is left out: ")[0] for note in notes] == ["medusa", "assistant"]


def test_a_trial_keeps_to_its_nodes_and_measures_once() -> None:
    trial = Trial(byte_lm(), 4, 2, [0, 7], 12, {"do_sample": True, "temperature": 0.7})
    first = trial.tokens_per_call(["suffix", "token-recycling"])
    assert len(first) == 2
    assert min(first) >= 1.0
    [spec] = trial.known
    assert spec == "union:methods=(suffix:length=4+token-recycling:nodes=4):nodes=4:share=useful"
    assert trial.tokens_per_call(["suffix", "token-recycling"]) is first
    assert trial.row(["suffix"])["drafters"] == "suffix"


def test_compositions_end_to_end() -> None:
    outcome = compositions.run(
        prompts=2, max_new_tokens=10, nodes=4, seeds=1, repeats=1, singles="suffix:length=4,token-recycling:nodes=4"
    )
    titles = [table.title for table in outcome.tables]
    assert len(titles) == 6
    assert titles[0].startswith("Tokens per call with 4 nodes")
    assert {row["drafters"] for row in outcome.tables[0].rows} == {
        "suffix:length=4", "token-recycling:nodes=4", *(row["drafters"] for row in outcome.tables[1].rows),
    }  # fmt: skip
    assert [row["share"] for row in outcome.tables[1].rows] == ["useful", "turns", "order"]
    assert next(row["method"] for row in outcome.tables[2].rows) == "greedy"
    assert all(row["identical"] == "2 of 2" for row in (*outcome.tables[2].rows, *outcome.tables[5].rows))


def test_tune_end_to_end_leaves_the_users_folder_alone(tmp_path: Path) -> None:
    outcome = tune.run(
        prompts=2, others=1, max_new_tokens=8, repeats=1, methods="suffix:length=4,token-recycling:nodes=4"
    )
    titles = [table.title.split(",")[0] for table in outcome.tables]
    assert titles == ["Tried", "Predicted and measured", "auto on 1 other prompts"] * 2
    assert [chart.name for chart in outcome.charts] == ["greedy", "sampled"]
    assert all(len(table.rows) >= 1 for table in outcome.tables)
    assert os.environ["RAMIFY_CACHE"] == str(tmp_path)
    assert not (tmp_path / "profiles.json").exists()
