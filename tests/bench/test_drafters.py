"""The table of all drafters: who is in it, and what its columns mean."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from families import lm

from ramify.bench.recipes import RECIPES
from ramify.bench.recipes.drafters import applicable, own_share
from ramify.methods.registry import catalogue


def test_what_cannot_be_built_is_left_out_with_its_reason():
    found, notes = applicable(lm("llama"))
    names = {method.card.name for method in found}
    assert {"prompt-lookup", "suffix", "token-recycling"} <= names
    assert any(note.startswith("assistant is left out: ") for note in notes)
    drafters = {card.name for card in catalogue() if card.family == "draft" and card.lossless}
    assert len(found) + len(notes) == len(drafters)
    [only], notes = applicable(lm("llama"), ["suffix"])
    assert (only.card.name, notes) == ("suffix", [])


def test_a_model_without_trees_has_none():
    found, notes = applicable(lm("bloom"), ["token-recycling"])
    assert len(found) + len(notes) == 1


def test_own_share_leaves_the_prompt_out():
    shares = {"prefill": 0.5, "draft": 0.05, "score": 0.4, "verify": 0.03, "other": 0.02}
    row: Any = SimpleNamespace(shares=shares)
    assert own_share(row) == pytest.approx(0.2)
    assert own_share(SimpleNamespace(shares=None)) == 0.0  # type: ignore[arg-type]


def test_the_tables_say_what_was_asked():
    outcome = RECIPES["drafters"].run(
        prompts=1, max_new_tokens=12, repeats=1, methods="suffix,prompt-lookup", dtype="float32"
    )
    greedy, sampled = outcome.tables
    assert [row["method"] for row in greedy.rows] == ["greedy", "suffix", "prompt-lookup"]
    assert [row["method"] for row in sampled.rows] == ["sample", "suffix", "prompt-lookup"]
    assert all(row["identical"] == "1 of 1" for table in outcome.tables for row in table.rows)
    assert greedy.rows[0]["tokens per call"] == 1.0
    assert all(row["rows per call"] >= 1.0 for row in greedy.rows)
