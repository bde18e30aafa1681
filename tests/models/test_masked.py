"""Denoisers: what is read as one, from which layouts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from denoisers import MASK, denoiser, plain_logits, save_as_dream, save_as_llada
from families import VOCABULARY, build

from ramify.engine.canvas import Canvas, CanvasSession
from ramify.errors import RamifyError
from ramify.models.causal import load, wrap
from ramify.models.masked import Denoiser, MaskedLM, is_masked, load_masked, masked

TOKENS = [3, 14, MASK, MASK, 15, 92, MASK, 6]


def logits_of(lm: MaskedLM, tokens: list[int]) -> torch.Tensor:
    row = Canvas(0, torch.tensor(tokens), torch.tensor(tokens) == MASK, 0)
    return CanvasSession(lm, [row]).score([range(len(tokens))])[0][0]


def same(lm: MaskedLM, expected: torch.Tensor) -> None:
    found = logits_of(lm, TOKENS)
    assert (found[:, MASK] == -torch.inf).all()
    torch.testing.assert_close(found[:, :MASK], expected[:, :MASK], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma"])
def test_a_pass_is_the_model_under_a_mask_that_hides_nothing(family: str) -> None:
    same(denoiser(family), plain_logits(denoiser(family), TOKENS))


def test_a_position_depends_on_what_comes_after_it() -> None:
    other = [*TOKENS[:-1], 7]
    assert not torch.allclose(logits_of(denoiser(), TOKENS)[0], logits_of(denoiser(), other)[0])


def test_a_model_that_sees_in_blocks_sees_no_later_one() -> None:
    lm = denoiser(block=4)
    same(lm, plain_logits(lm, TOKENS))
    other = [*TOKENS[:-1], 7]
    torch.testing.assert_close(logits_of(lm, TOKENS)[:4, :MASK], logits_of(lm, other)[:4, :MASK])


def test_a_prompt_that_does_not_see_the_answer() -> None:
    lm = MaskedLM(denoiser().base, Denoiser(MASK, prefix_causal=2))
    found, other = logits_of(lm, TOKENS), logits_of(lm, [*TOKENS[:-1], 7])
    torch.testing.assert_close(found[:2], other[:2])
    assert not torch.allclose(found[2, :MASK], other[2, :MASK])
    alone = logits_of(denoiser(), TOKENS[:2])  # what the prompt would be without any answer behind it
    torch.testing.assert_close(found[:2, :MASK], alone[:, :MASK], atol=1e-4, rtol=1e-4)
    row = Canvas(0, torch.tensor(TOKENS), torch.tensor(TOKENS) == MASK, 2)
    session = CanvasSession(lm, [row])
    session.score([range(2, 8)])
    session.hold([[6, 7]])
    with pytest.raises(RamifyError, match="whole pass only"):
        session.score([range(2, 6)], [range(6)])


def test_llada(tmp_path: Path) -> None:
    model = build("llama")
    lm = load_masked(save_as_llada(tmp_path / "llada", model))
    assert lm.facts == Denoiser(MASK)
    assert lm.model.config.model_type == "llama"
    same(lm, plain_logits(masked(wrap(model, None, "own"), MASK), TOKENS))


def test_dream(tmp_path: Path) -> None:
    model = build("qwen2")
    lm = load_masked(save_as_dream(tmp_path / "dream", model))
    assert lm.facts == Denoiser(MASK, shift=True)
    same(lm, plain_logits(masked(wrap(model, None, "own"), MASK, {"shift": True}), TOKENS))
    # Shifted: what the model says at position 2 is the logits of position 3.
    plain = plain_logits(masked(wrap(model, None, "own"), MASK), TOKENS)
    torch.testing.assert_close(logits_of(lm, TOKENS)[3, :MASK], plain[2, :MASK], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("save", [save_as_llada, save_as_dream])
def test_published_layouts_say_what_they_are(tmp_path: Path, save: object) -> None:
    assert callable(save)
    folder = save(tmp_path / "it", build("llama" if save is save_as_llada else "qwen2"))
    assert is_masked(folder)
    with pytest.raises(RamifyError, match=r"masked denoiser.*load_masked"):
        load(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = save_as_llada(tmp_path / "llada", build("llama"), n_layers=3)
    with pytest.raises(RamifyError, match=r"do not fit its config.json: model.layers.2"):
        load_masked(folder)


def test_a_setting_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = save_as_dream(tmp_path / "dream", build("qwen2"))
    settings = json.loads((folder / "config.json").read_text())
    del settings["hidden_size"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RamifyError, match=r"lacks 'hidden_size'"):
        load_masked(folder)


def test_biases_are_refused(tmp_path: Path) -> None:
    folder = save_as_llada(tmp_path / "llada", build("llama"), include_bias=True)
    with pytest.raises(RamifyError, match="has biases"):
        load_masked(folder)


def test_damaged_files(tmp_path: Path) -> None:
    folder = save_as_llada(tmp_path / "llada", build("llama"))
    (folder / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(RamifyError, match="damaged"):
        load_masked(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(RamifyError, match="damaged"):
        load_masked(folder)


def test_our_own_folder(tmp_path: Path) -> None:
    model = build("gpt2")
    model.config.denoiser = {"mask_token_id": MASK, "block": 2}
    model.save_pretrained(tmp_path)
    lm = load_masked(tmp_path)
    assert lm.facts == Denoiser(MASK, block=2)
    assert is_masked(tmp_path)
    assert is_masked(model)
    assert (lm.vocab_size, lm.mask_id, lm.layers) == (VOCABULARY, MASK, 2)
    with pytest.raises(RamifyError, match="load_masked"):
        load(tmp_path)
    assert load_masked(tmp_path, mask_token=7).mask_id == 7


def test_an_autoregressive_checkpoint_is_no_denoiser(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path)
    assert not is_masked(tmp_path)
    with pytest.raises(RamifyError, match=r"autoregressive checkpoint.*mask_token"):
        load_masked(tmp_path)


def test_mask_tokens_that_do_not_exist() -> None:
    with pytest.raises(RamifyError, match="outside the vocabulary"):
        masked(wrap(build("gpt2"), None, "it"), VOCABULARY)
    with pytest.raises(RamifyError, match=r"no token '\[NONE\]'"):
        load_masked("demo", mask_token="[NONE]")
    with pytest.raises(RamifyError, match="without a tokenizer"):
        masked(wrap(build("gpt2"), None, "it"), "[MASK]")


def test_what_cannot_be_a_canvas() -> None:
    with pytest.raises(RamifyError, match="sliding attention window"):
        masked(wrap(build("mistral"), None, "it"), MASK)
    with pytest.raises(RamifyError, match="cannot run a canvas"):
        masked(wrap(build("mamba"), None, "it"), MASK)
    with pytest.raises(RamifyError, match="at least 1 position"):
        masked(wrap(build("gpt2"), None, "it"), MASK, {"block": 0})
    with pytest.raises(RamifyError, match="a number of positions"):
        masked(wrap(build("gpt2"), None, "it"), MASK, {"prefix_causal": -1})
    with pytest.raises(RamifyError, match="not understood"):
        masked(wrap(build("gpt2"), None, "it"), MASK, {"blocks": 4})
