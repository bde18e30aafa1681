"""Small pictures: crops that keep to their part, the codebook, the measures of quality, a short training run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ramify.errors import RamifyError
from ramify.models.causal import BUNDLED
from ramify.models.image_tokens import ImageTokens
from ramify.train import images
from ramify.train.images_model import ImageModelConfig, train_image_model
from ramify.train.images_quality import Judge, _cosines, features, frechet, seams
from ramify.train.job import Job, trainer
from ramify.train.trainer import TrainConfig

needs_pictures = pytest.mark.skipif(not BUNDLED["demo-masked-image"].exists(), reason="the image model is not there")
pytest.importorskip("skimage", reason="pictures come with scikit-image")
pytest.importorskip("sklearn", reason="the codebook is made with scikit-learn")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("pictures must not be downloaded")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("name", images.CLASSES)
def test_pictures_are_grey_and_large_enough(name: str) -> None:
    picture = images.picture(name)
    assert 0.0 <= picture.min() < picture.max() <= 1.0
    assert picture.shape[0] >= images.SIZE
    assert picture.shape[1] * images.HELD_OUT >= images.SIZE


def test_training_crops_have_no_held_out_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = torch.arange(200.0).expand(64, -1) / 200
    monkeypatch.setattr(images, "picture", lambda name: columns)
    generator = torch.Generator().manual_seed(0)
    assert images.crops(images.balanced(200), "train", generator).max() < 0.75
    assert images.crops(images.balanced(200), "test", generator).min() >= 0.75


def test_crops_are_a_function_of_the_generator() -> None:
    one, other, third = (
        images.crops(images.balanced(4), "train", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_the_codebook_is_sorted_by_grey_and_keeps_a_picture() -> None:
    tokens = images.fit_tokens(16, 2, seed=0, count=60)
    assert (tokens.codes, tokens.grid, tokens.classes) == (16, (16, 16), images.CLASSES)
    means = tokens.codebook.mean(1)
    assert torch.equal(means, means.sort().values)
    crops = images.crops(images.balanced(12), "test", torch.Generator().manual_seed(0))
    assert (tokens.decode(tokens.encode(crops)) - crops).square().mean() < 0.1 * crops.var()


def test_a_missing_package_and_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(images.PICTURES, "brick", ("brick", "no_such_brick.png"))
    images.picture.cache_clear()
    with pytest.raises(RamifyError, match="comes without no_such_brick"):
        images.picture("brick")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RamifyError, match=r"ramify\[images\]"):
        images.require_extra()


def test_the_cosines_are_orthonormal() -> None:
    basis = _cosines()
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=torch.float64))


def test_the_distance_of_known_gaussians() -> None:
    """|m − n|² + Σ (σ − τ)² for diagonal covariances; 0 for equal ones, whatever they are."""
    one = (torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double())
    other = (torch.tensor([3.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 4.0])).double())
    assert frechet(one, other) == pytest.approx(9 + 1 + 1)
    assert frechet(other, one) == pytest.approx(11)
    spread = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()
    assert frechet((one[0], spread), (one[0], spread)) == pytest.approx(0.0, abs=1e-9)


def test_seams_of_ramps_and_of_blocks() -> None:
    ramp = torch.arange(8.0).expand(1, 8, 8) + torch.arange(8.0)[:, None]
    assert seams(ramp, 2) == pytest.approx(1.0)
    blocks = ramp[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2) + 0.25 * ramp
    assert seams(blocks, 2) == pytest.approx((2 + 0.25) / 0.25)


def test_features_see_what_mirrors_do_not_change() -> None:
    crops = images.crops(images.balanced(6), "test", torch.Generator().manual_seed(0))
    assert features(crops).shape == (6, 16)
    torch.testing.assert_close(features(crops), features(crops.flip(2)))
    assert (features(crops) - features(crops + 0.1))[:, 1:].abs().max() < 1e-3


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(ImageTokens.load(BUNDLED["demo-masked-image"]))


@needs_pictures
def test_the_judge_knows_classes_and_damage(judge: Judge) -> None:
    labels, ids = images.balanced(120), judge.real["train"][:120]
    real = judge.of(ids, labels)
    assert real.right > 0.95
    assert judge.of(ids, (labels + 1) % len(images.CLASSES)).right < 0.05
    generator = torch.Generator().manual_seed(0)
    hit = torch.rand(ids.shape, generator=generator) < 0.05
    damaged = judge.of(torch.where(hit, ids[torch.randperm(120, generator=generator)], ids), labels)
    assert damaged.train > 2 * real.train
    assert damaged.seams > real.seams
    same = judge.of(ids[:6].repeat(20, 1), labels)
    assert same.entropy < real.entropy


def test_a_short_run_saves_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ramify.models.masked import load_masked

    monkeypatch.setattr("ramify.train.images_quality.REAL", 120)
    small = ImageModelConfig(
        codes=8, side=4, hidden_size=16, intermediate_size=16, layers=1, heads=1, batch=4, validation=6, judged=36,
        train=TrainConfig(steps=2, eval_every=1, save_every=1),
    )  # fmt: skip
    points = list(train_image_model(tmp_path, small))
    assert [point.step for point in points] == [1, 2]
    assert all("held-out loss" in (point.evaluation or {}) for point in points)
    lm, tokens = load_masked(tmp_path / "model"), ImageTokens.load(tmp_path / "model")
    assert (lm.mask_id, lm.facts.null_token_id, lm.vocab_size) == (tokens.mask_id, tokens.null_id, tokens.vocab_size)
    assert lm.context == tokens.length + 1
    figures = json.loads((tmp_path / "model" / "training.json").read_text())
    assert set(figures["quality"]) == {"training crops", "held-out crops", "model, 16 passes", "model, 32 passes"}
    assert "k-means" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(RamifyError, match="holds another run"):
        next(train_image_model(tmp_path, dataclasses.replace(small, layers=2)))


def test_the_recipe_takes_no_data(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="has its own data"):
        next(trainer("demo-masked-image")(Job(tmp_path, data=tmp_path)))
