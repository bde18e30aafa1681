"""The recipes of masked denoisers: samplers that measure, small runs, options, the bundled models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

import ramify.train.demo_dlm as dlm
from ramify.bench.parallelbench import symbols
from ramify.errors import RamifyError
from ramify.models.causal import BUNDLED, load
from ramify.models.masked import load_masked
from ramify.train.data import held_out_documents
from ramify.train.demo_dlm import DemoDLMConfig, HeldOut, adapt, train_demo_dlm
from ramify.train.denoise_grids import GridModelConfig, drawn, train_grid_model
from ramify.train.denoise_lists import IDEAL, ListModelConfig, infill, infill_where_sure, train_list_model
from ramify.train.denoisers import at, curve, fill_at_random, fill_where_sure, small_decoder
from ramify.train.denoising import Denoise, full_pass, sight
from ramify.train.job import Job, trainer
from ramify.train.trainer import TrainConfig

SHORT = TrainConfig(steps=3, warmup=1, eval_every=2, save_every=2)


# ---------------------------------------------------------------- samplers


def exact(task: str) -> Denoise:
    """The exact denoiser of shuffle and replace-random, by what the visible slots leave open."""

    def denoise(ids: Tensor) -> Tensor:
        law = torch.nn.functional.one_hot(ids, symbols.VOCABULARY).double()
        for row, canvas in enumerate(ids.tolist()):
            items, word = canvas[1:7], canvas[symbols.NEW]
            answer = canvas[symbols.PROMPT : symbols.PROMPT + 6]
            slots = [place for place, token in enumerate(answer) if token == symbols.MASK]
            for place in slots:
                own = law[row, symbols.PROMPT + place]
                own[symbols.MASK] = 0.0
                if task == "shuffle":
                    own[[item for item in items if item not in answer]] = 1 / len(slots)
                elif word in answer:
                    own[items[place]] = 1.0
                else:
                    own[word], own[items[place]] = 1 / len(slots), 1 - 1 / len(slots)
        return law.log()

    return denoise


@pytest.mark.parametrize("task", ["shuffle", "replace-random"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_an_exact_denoiser_reaches_what_the_card_calls_ideal(task: str, place: int):
    count, each = 600, (1, 2, 3, 6)[place]
    wanted = IDEAL[task][place]
    found = infill(exact(task), task, each, count, seed=1)
    assert abs(found - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / count)


def test_the_threshold_decides_how_many_passes_there_are():
    assert infill_where_sure(exact("replace-random"), "replace-random", 0.9, 20, 0) == (1.0, 6.0)
    assert infill_where_sure(exact("replace-random"), "replace-random", 0.5, 20, 0) == (0.0, 1.0)  # 5/6 is enough
    right, passes = infill_where_sure(exact("shuffle"), "shuffle", 0.6, 20, 0)
    assert (right, passes) == (1.0, 6.0)


def test_what_is_visible_stays():
    ids = torch.randint(9, (5, 12), generator=at(0, 0))
    opened = torch.rand(5, 12, generator=at(0, 1)) < 0.4
    opened[0] = False

    def denoise(noisy: Tensor) -> Tensor:
        assert torch.equal(noisy[~opened], ids[~opened])
        return torch.zeros(5, 12, 9)

    for filled in (fill_at_random(denoise, ids, opened, 2, at(0, 2)), fill_where_sure(denoise, ids, opened, 0.5)[0]):
        assert torch.equal(filled[~opened], ids[~opened])
    _, passes = fill_where_sure(denoise, ids, opened, 2.0)
    assert passes.tolist() == opened.sum(1).tolist()


def test_steps_have_a_randomness_of_their_own():
    first = [torch.rand(3, generator=at(seed, step)).tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(drawn) for drawn in first}) == 4
    assert torch.rand(3, generator=at(1, 1)).tolist() == first[3]


# ---------------------------------------------------------------- list and grid model


@pytest.mark.parametrize("options", [{}, {"prefix_causal": True}, {"block": 2}])
def test_a_small_run_of_the_list_model(tmp_path: Path, options: dict[str, Any]):
    config = ListModelConfig(pool=50, batch=4, trials=4, train=SHORT, **options)
    assert [progress.step for progress in train_list_model(tmp_path, config)] == [1, 2, 3]
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["denoiser"]
    assert (saved["mask_token_id"], saved["block"]) == (symbols.MASK, options.get("block"))
    assert saved.get("prefix_causal", 0) == (symbols.PROMPT if options.get("prefix_causal") else 0)
    assert load_masked(tmp_path / "model").facts.prefix_causal == saved.get("prefix_causal", 0)
    card = (tmp_path / "model" / "README.md").read_text()
    assert all(f"-o {name}=" in card for name in options)
    assert "0.402" in card
    assert [step for step, _, _ in curve(tmp_path / "curve.jsonl", "shuffle, 1 a pass")] == [2, 3]
    assert not list(train_list_model(tmp_path, config))  # finished
    with pytest.raises(RamifyError, match="holds another run"):
        next(train_list_model(tmp_path, replace(config, batch=5)))


def test_a_small_run_of_the_grid_model(tmp_path: Path):
    config = GridModelConfig(batch=2, trials=2, train=SHORT)
    last = list(train_grid_model(tmp_path, config))[-1]
    assert last.evaluation is not None
    assert 0 <= last.evaluation["agreement in 16 passes"] <= 1
    assert json.loads((tmp_path / "model" / "config.json").read_text())["denoiser"]["mask_token_id"] == 8
    assert "| 64 |" in (tmp_path / "model" / "README.md").read_text()


def test_the_decoder_has_the_size_of_the_specification():
    model = small_decoder(symbols.VOCABULARY, symbols.LENGTH, symbols.MASK)
    assert sum(weight.numel() for weight in model.parameters()) == 154_816


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["list-model", "grid-model"])
def test_recipes_refuse_what_they_do_not_take(tmp_path: Path, name: str):
    with pytest.raises(RamifyError, match="has its own data"):
        next(iter(trainer(name)(Job(tmp_path, data=tmp_path))))
    with pytest.raises(RamifyError, match="unknown option of the recipe: 'blok'"):
        next(iter(trainer(name)(Job(tmp_path, options={"blok": 1}))))


def test_settings_that_contradict_each_other(tmp_path: Path):
    for options, why in [
        ({"block": 2, "prefix_causal": True}, "give block or prefix_causal"),
        ({"block": 0}, "block is 0"),
        ({"block": 23}, "block is 23"),
    ]:
        with pytest.raises(RamifyError, match=why):
            next(iter(trainer("list-model")(Job(tmp_path, options=options))))
    for settings, why in [
        ({"init": "zero"}, "take demo or scratch"),
        ({"layers": 0}, "at least 1 of the layers"),
        ({"block": 24}, "do not divide"),
        ({"block": 0}, "do not divide"),
    ]:
        with pytest.raises(RamifyError, match=why):
            DemoDLMConfig(**settings)


@pytest.mark.parametrize("name", ["list-model", "grid-model"])
def test_a_dry_run_only_estimates(tmp_path: Path, name: str):
    (progress,) = trainer(name)(Job(tmp_path / "out", dry=True))
    assert progress.evaluation is not None
    assert progress.evaluation["parameters"] > 150_000
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the diffusion language model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BUNDLED["demo"])


@pytest.fixture(scope="module")
def small(tokenizer: Any) -> Any:
    model = build("llama", vocab_size=4096, num_hidden_layers=3, tie_word_embeddings=True, max_position_embeddings=64)
    return load(model, tokenizer=tokenizer)


CONFIG = DemoDLMConfig(layers=2, block=4, context=16, batch=2, quick=2, draws=2, train=SHORT)


def test_adaptation_keeps_the_first_and_the_last_layers(small: Any):
    model, tokenizer = adapt(small, CONFIG)
    assert model.config.denoiser == {"mask_token_id": 4096, "shift": False, "block": 4, "null_token_id": None}
    assert (tokenizer.mask_token_id, tokenizer.sep_token_id, model.config.vocab_size) == (4096, 4097, 4098)
    assert small.tokenizer.mask_token is None
    source = small.model.state_dict()
    for own, theirs in ((0, 0), (1, 2)):
        for name in ("mlp.up_proj", "self_attn.q_proj"):
            weight = f"model.layers.{own}.{name}.weight"
            assert torch.equal(model.state_dict()[weight], source[f"model.layers.{theirs}.{name}.weight"])
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[:4096], source["model.embed_tokens.weight"])
    torch.testing.assert_close(embedding[4097], embedding[:4096].mean(0))
    scratch, _ = adapt(small, replace(CONFIG, init="scratch"))
    assert not torch.equal(scratch.get_input_embeddings().weight[:4096], embedding[:4096])
    with pytest.raises(RamifyError, match="3 layers, not 4"):
        adapt(small, replace(CONFIG, layers=4))


def test_all_layers_in_blocks_of_one_are_the_model_itself(small: Any):
    model, _ = adapt(small, replace(CONFIG, layers=3, block=1))
    ids = torch.randint(4096, (1, 12), generator=at(0, 0))
    with torch.no_grad():
        found = full_pass(model, 4096, sight(12, 1))(ids)[..., :4096]
        torch.testing.assert_close(found, small.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_a_uniform_denoiser_needs_the_logarithm_of_its_vocabulary(small: Any, monkeypatch: pytest.MonkeyPatch):
    texts = [[5] * 40, [7] * 61]
    held = HeldOut.of(small, texts, CONFIG, library=False)
    assert held.windows.shape == (11, 16)
    size = sum(len(small.tokenizer.decode(text).encode()) for text in texts)
    uniform: Denoise = lambda noisy: torch.zeros(*noisy.shape, 64)  # noqa: E731
    monkeypatch.setattr(HeldOut, "_pass", lambda *_: uniform)
    for block in (4, None):
        found, error = replace(held, block=block).bits_per_byte(None, 63, 1)
        assert found == pytest.approx(math.log2(64) * 103 / size)
        assert error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("block", [4, None])
def test_a_small_run_of_the_diffusion_model(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int | None
):
    monkeypatch.setattr(dlm, "HELD", 60)
    data = tmp_path / "text.py"
    data.write_text("def read(path):\n    with open(path) as file:\n        return file.read()\n" * 60)
    config = replace(CONFIG, block=block)
    out = tmp_path / "out"
    seen = list(train_demo_dlm(small, out, config, data, dry=False))
    assert [progress.step for progress in seen] == [1, 2, 3]
    saved = json.loads((out / "model" / "config.json").read_text())
    assert saved["denoiser"]["block"] == block
    assert saved["dtype"] == "bfloat16"
    figures = json.loads((out / "model" / "training.json").read_text())
    assert len(figures["first_guesses"]) == (block or 0)
    assert figures["bits_per_byte"] > figures["standard_error"] > 0
    assert "<|mask|>" in (out / "model" / "README.md").read_text()
    assert not list(train_demo_dlm(small, out, config, data, dry=False))
    (dry,) = train_demo_dlm(small, out, config, data, dry=True)
    assert dry.evaluation is not None


# ---------------------------------------------------------------- the bundled models


def bundled(name: str) -> tuple[Denoise, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    folder = BUNDLED[name]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    settings = model.config.denoiser
    length = model.config.max_position_embeddings
    denoise = full_pass(model, settings["mask_token_id"], sight(length, settings["block"]))
    return denoise, json.loads((folder / "training.json").read_text())


def test_the_bundled_list_model_is_as_good_as_its_card_says():
    denoise, figures = bundled("list-model")
    random = figures["random_order"]
    assert random["copy"][3] >= 0.99
    assert random["reverse"][3] >= 0.98
    assert random["shuffle"][0] >= 0.87
    assert random["replace-random"][0] >= 0.95
    for task in ("shuffle", "replace-random"):  # no better than an exact denoiser where slots are filled at once
        for share, ideal in zip(random[task][1:], IDEAL[task][1:], strict=True):
            assert share <= ideal + 4 * math.sqrt(ideal * (1 - ideal) / figures["config"]["trials"])
    assert infill(denoise, "copy", 6, 40, seed=5) == 1.0
    assert infill(denoise, "shuffle", 1, 60, seed=5) >= 0.8
    assert infill(denoise, "shuffle", 6, 60, seed=5) <= 0.1
    assert infill_where_sure(denoise, "reverse", 0.9, 40, seed=5)[0] >= 0.95


def test_the_bundled_grid_model_is_as_good_as_its_card_says():
    denoise, figures = bundled("grid-model")
    shares = {int(passes): found[0] for passes, found in figures["random_order"].items()}
    for passes, share in {64: 0.919, 32: 0.894, 16: 0.849, 8: 0.743, 4: 0.558}.items():
        assert shares[passes] == pytest.approx(share, abs=0.03)
    assert min(entropy for _, entropy in figures["random_order"].values()) > 2.07
    from ramify.train.denoise_grids import agreement

    assert agreement(drawn(denoise, 8, 40, seed=3)) == pytest.approx(shares[8], abs=0.07)


def test_the_bundled_diffusion_model_is_better_than_xz_and_fits():
    folder = BUNDLED["demo-dlm"]
    figures = json.loads((folder / "training.json").read_text())
    assert figures["bits_per_byte"] + 4 * figures["standard_error"] < figures["xz_bits_per_byte"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
    lm = load_masked("demo-dlm", dtype="float32", weights="plain")
    assert (lm.facts.block, lm.facts.shift, lm.tokenizer.mask_token_id) == (16, False, lm.mask_id)
    demo = load("demo", dtype="float32", weights="plain")
    held = HeldOut.of(demo, held_out_documents(demo), DemoDLMConfig(), library=True)
    bits, error = held.bits_per_byte(lm.model, lm.mask_id, 1, 40)
    assert abs(bits - figures["bits_per_byte"]) < 5 * error
