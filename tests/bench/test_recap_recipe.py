"""The benches of ReCAP and MaskGIT on a few canvases: what their tables say, and that parts can be left out."""

from __future__ import annotations

import pytest
import torch

from ramify.bench.parallelbench import symbols
from ramify.bench.pictures import fill, grids, lists, pictures
from ramify.bench.recipes import RECIPES, recap
from ramify.bench.similarity import key_similarity
from ramify.methods.unmask.recap import ReCAP
from ramify.models.causal import BUNDLED
from ramify.models.image_tokens import ImageTokens
from ramify.models.masked import load_masked


def test_the_grid_and_the_list_model() -> None:
    outcome = RECIPES["recap"].run(grid=2, items=2, images=0, repeats=0)
    schedules, parts, control = outcome.tables
    rows = {row["whole + local"]: row for row in schedules.rows}
    assert {name: rows[name]["positions"] for name in ("16 + 0", "8 + 8", "4 + 12")} == {
        "16 + 0": 1024,
        "8 + 8": 576,
        "4 + 12": 448,
    }
    assert rows["8 + 8"]["÷ as many commits"] == "0.56"
    assert rows["1 + 15"]["positions"] == 1024
    assert rows["16 + 0"]["− as many commits"] == "" != rows["8 + 8"]["− as many whole passes"]
    assert {row["16 commits of 4"]: row["whole + local"] for row in parts.rows}["u = 2"] == "6 + 10"
    assert [row["whole + local"] for row in control.rows] == ["6 + 0", "3 + 3", "2 + 4", "3 + 0", "2 + 0"]
    assert outcome.charts[0].svg().startswith("<svg")
    assert "cosine" in outcome.notes[-1]


def test_maskgit_on_grids() -> None:
    [table] = RECIPES["maskgit"].run(grid=3, images=0, steps=(2, 4), noises=(0.0, 4.5)).tables
    assert [row["steps"] for row in table.rows] == ["2", "4"]
    assert list(table.rows[0]) == ["steps", "τ_c = 0", "τ_c = 4.5"]


@pytest.mark.skipif(not BUNDLED["demo-masked-image"].exists(), reason="the image model is not there")
def test_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="pictures come with scikit-image")
    monkeypatch.setattr("ramify.train.images_quality.REAL", 60)
    two = {"16 + 0": ReCAP(steps=2, local=0), "8 + 8": ReCAP(steps=2)}
    monkeypatch.setattr(recap, "IMAGE_METHODS", two)
    judged, timed = RECIPES["recap"].run(grid=0, items=0, images=12, repeats=1, batch=2).tables
    assert [row["whole + local"] for row in judged.rows] == [*two, "real training crops", "real held-out crops"]
    assert [row["pictures at once"] for row in timed.rows] == [1, 1, 2, 2]
    assert timed.rows[0]["speed-up, wall"] == "1.00 [1.00, 1.00]"


def test_what_is_filled_does_not_depend_on_the_batch() -> None:
    lm, requests = load_masked("grid-model"), grids(5, seed=3)
    method = ReCAP(steps=8, schedule="even", order="random")
    one, other = fill(lm, method, requests, 2), fill(lm, method, requests, 5)
    assert torch.equal(one.tokens, other.tokens)
    assert (one.whole, one.local, one.positions) == (4, 4, 4 * 64 + 4 * 16)


def test_lists_have_six_open_slots_and_pictures_no_class_inside() -> None:
    [request] = lists("shuffle", 1, seed=0)
    assert (len(request.prompt), list(request.canvas)) == (symbols.PROMPT, [None] * 6 + [symbols.EOS] * 6)
    tokens = ImageTokens(torch.rand(4, 4), ("a",) * 6, (2, 2))
    [first, *_], labels = pictures(tokens, 7, seed=0)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert first.prompt == [4]
    law = first.sampler.law(torch.tensor([4]), torch.zeros(tokens.vocab_size))
    assert law.tolist() == [0.25] * 4 + [0.0] * 8


def test_keys_that_nothing_changes_are_alike() -> None:
    lm = load_masked("grid-model")
    assert 0.5 < key_similarity(lm, grids(2, seed=0), 16) < 1.0
    few, many = (key_similarity(lm, grids(4, seed=0), steps) for steps in (2, 64))
    assert few < many
