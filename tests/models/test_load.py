"""Loading: from objects and folders, what a generation takes from the model's own settings, and bad input by name.

Every refusal is a ``RamifyError`` of one line that says what is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONTEXT, FAMILIES, FUSED, REFUSED, build, byte_lm, byte_tokenizer, fresh, lm, model, text
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from ramify.api import generate, stream
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM, load


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` makes it; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    byte_lm().model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a plain model without a tokenizer, to be damaged."""
    model("llama").save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


def refused(call: Any, *parts: str) -> None:
    with pytest.raises(RamifyError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# ---- what loads ----


@pytest.mark.parametrize("family", FAMILIES)
def test_families_score_trees(family: str):
    assert lm(family).trees
    assert lm(family).reason == ""
    assert lm(family).how == ("fused" if family in FUSED else "transformers") + ", plain weights"
    assert lm(family, "transformers").how == "transformers, plain weights"
    assert lm(family, "transformers").trees


@pytest.mark.parametrize(
    ("family", "reason"),
    [("bloom", "takes no tree mask"), ("mamba", "linear_attention layers"), ("qwen3_next", "linear_attention layers")],
)
def test_other_families_say_why_not(family: str, reason: str):
    assert family in REFUSED
    assert not lm(family).trees
    assert reason in lm(family).reason
    refused(
        lambda: generate(lm(family), [1, 2, 3], "prompt-lookup", options={"length": 4}, max_new_tokens=4),
        "cannot run drafts", reason, "use method='greedy' or 'sample'",
    )  # fmt: skip
    refused(
        lambda: generate(lm(family), [1, 2, 3], "suffix", max_new_tokens=4), "cannot run", reason, "use method='greedy'"
    )
    expected = model(family).generate(
        torch.tensor([text(6)]), attention_mask=torch.ones(1, 6, dtype=torch.long), do_sample=False, max_new_tokens=9,
        eos_token_id=None,
    )  # fmt: skip
    assert generate(lm(family), text(6), "greedy", max_new_tokens=9).tokens == expected[0, 6:].tolist()


def test_a_model_object():
    loaded = load(model("gemma2"))
    assert isinstance(loaded, CausalLM)
    assert loaded.model is model("gemma2")
    assert (loaded.vocab_size, loaded.context, loaded.layers) == (96, CONTEXT, 2)
    assert loaded.dtype == torch.float32
    assert loaded.device == torch.device("cpu")
    as_it_is, as_loaded = (generate(each, [1, 2], max_new_tokens=3) for each in (model("gemma2"), loaded))
    assert as_it_is.tokens == as_loaded.tokens
    refused(lambda: generate(loaded, "a text"), "without a tokenizer", "token ids")
    refused(lambda: list(stream(loaded, [1, 2], max_new_tokens=2)), "without a tokenizer")
    assert generate(loaded, [1, 2], max_new_tokens=3).text == ""


def test_loading_leaves_the_mode_of_a_model_object():
    made = build("llama", attention_dropout=0.5)
    made.train()
    loaded = load(made)
    assert loaded.how == "fused, plain weights"
    assert all(weight.requires_grad for weight in made.parameters())


def test_a_model_object_with_its_tokenizer():
    result = generate(byte_lm(), "abc", max_new_tokens=12)
    assert result.prompt == list(b"abc")
    assert result.text == byte_tokenizer().decode(result.tokens)
    assert result.finish == "length"


def test_a_folder(saved: Path):
    for source in (saved, str(saved)):
        loaded = load(source)
        assert loaded.name == str(saved)
        assert not loaded.model.training
        assert not any(weight.requires_grad for weight in loaded.model.parameters())
        assert loaded.tokenizer.get_vocab() == byte_tokenizer().get_vocab()


def test_a_folder_gives_the_same_text(folder: Path):
    loaded = load(folder)
    assert loaded.tokenizer is None
    assert loaded.dtype == torch.float32
    ids = text(8)
    assert generate(loaded, ids, max_new_tokens=20).tokens == generate(lm("llama"), ids, max_new_tokens=20).tokens
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(plain(torch.tensor([ids])).logits[0], fresh("llama", ids))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_dtypes(folder: Path, dtype: Any):
    loaded = load(folder, dtype=dtype)
    assert loaded.dtype == (torch.bfloat16 if dtype == "bfloat16" else dtype)
    assert loaded.trees
    plain = generate(loaded, text(8), "greedy", max_new_tokens=12)
    assert plain.stats.generated_tokens == 12
    if dtype == torch.float64:
        assert generate(loaded, text(8), "suffix", max_new_tokens=12).tokens == plain.tokens


# ---- bad folders ----


def test_a_path_that_does_not_exist(tmp_path: Path):
    refused(lambda: load(tmp_path / "nowhere"), str(tmp_path / "nowhere"))
    refused(lambda: load(str(tmp_path / "nowhere")), str(tmp_path / "nowhere"))
    refused(lambda: load("no-such-owner/no-such-model"), "no-such-owner/no-such-model")


def test_a_folder_without_config(tmp_path: Path):
    refused(lambda: load(tmp_path), str(tmp_path), "no config.json")


def test_a_file_is_no_folder(tmp_path: Path):
    file = tmp_path / "model.txt"
    file.write_text("not a model")
    refused(lambda: load(file), str(file))


def test_pickled_weights_only(folder: Path):
    (folder / "model.safetensors").unlink()
    torch.save(model("llama").state_dict(), folder / "pytorch_model.bin")
    refused(lambda: load(folder), str(folder), "pytorch_model.bin", "pickled", "safetensors")


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    refused(lambda: load(folder), str(folder), "no weights", ".safetensors")


@pytest.mark.parametrize("size", [0, 6, 200, 30_000, -1])
def test_truncated_weights(folder: Path, size: int):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(lambda: load(folder), str(folder), "damaged")


def test_weights_of_another_model(folder: Path):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: load(folder), str(folder), "model.layers.1.")


def test_weights_of_another_shape(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: load(folder), str(folder), "model.norm.weight")


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "{}", '{"model_type": "no-such-thing"}', '{"model_type": "t5"}', '{"model_type": "vit"}']
)
def test_a_config_of_no_language_model(folder: Path, config: str):
    (folder / "config.json").write_text(config)
    refused(lambda: load(folder), str(folder))


def test_unknown_dtype(folder: Path):
    for dtype in ("float31", "Tensor", "nn"):
        refused(lambda dtype=dtype: load(folder, dtype=dtype), repr(dtype), "bfloat16")
        refused(lambda dtype=dtype: load(build("llama"), dtype=dtype), repr(dtype))


@pytest.mark.parametrize("method", ["greedy", "prompt-lookup"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers(bad: float, method: str):
    broken = build("llama")
    with torch.no_grad():
        broken.lm_head.weight.fill_(bad)
    # Where infinities cancel, the logits are NaN.
    for given in ({}, {"do_sample": True, "top_p": 0.9}, {"repetition_penalty": 1.2}):
        if method == "greedy" and "do_sample" in given:
            continue
        refused(lambda given=given: generate(load(broken), [5, 6, 5], method, max_new_tokens=4, **given),
                "NaN or infinite logits")  # fmt: skip


# ---- prompts and lengths ----


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], ["a", ""]])
def test_an_empty_prompt(prompt: Any):
    refused(lambda: generate(byte_lm(), prompt, max_new_tokens=3), "the prompt is empty")


def test_no_prompts():
    assert generate(byte_lm(), [""][:0] or ["x"], max_new_tokens=2)[0].stats.generated_tokens == 2


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_a_prompt_beyond_the_context(length: int):
    for given in ({}, {"max_new_tokens": 5}):
        refused(lambda given=given: generate(lm("llama"), [1] * length, **given), f"context of {CONTEXT} tokens")


def test_the_longest_prompt_leaves_room_for_one_token():
    assert generate(lm("llama"), text(CONTEXT - 1)).stats.generated_tokens == 1


def test_lengths():
    refused(lambda: generate(lm("llama"), [1, 2], max_new_tokens=0), "max_new_tokens is 0", "at least 1")
    refused(lambda: generate(lm("llama"), [1, 2], max_new_tokens=-3), "max_new_tokens is -3")
    refused(lambda: generate(lm("llama"), [1, 2], max_new_tokens=CONTEXT), f"context of {CONTEXT} tokens")
    assert generate(lm("llama"), [1, 2], max_new_tokens=CONTEXT - 2).stats.generated_tokens == CONTEXT - 2
    assert generate(lm("llama"), text(10)).stats.generated_tokens == CONTEXT - 10  # 128 do not fit
    assert generate(byte_lm(), "abc").stats.generated_tokens == 128
    assert generate(lm("llama"), [1, 2], max_length=9).stats.generated_tokens == 7


@pytest.mark.parametrize("token", [-1, 96, 1 << 40])
def test_a_prompt_outside_the_vocabulary(token: int):
    refused(lambda: generate(lm("llama"), [1, token, 2], max_new_tokens=2), f"token {token} is outside the vocabulary")


def test_a_batch_has_texts_ids_and_chats():
    chat = [{"role": "user", "content": "hi"}]
    results = generate(byte_lm(), ["hi", list(b"hi"), chat], max_new_tokens=6)
    assert results[0].tokens == results[1].tokens
    assert results[2].tokens == generate(byte_lm(), chat, max_new_tokens=6).tokens


# ---- the model's own settings ----


def own(**settings: Any) -> CausalLM:
    made = build("llama")
    made.generation_config = GenerationConfig(pad_token_id=0, **settings)
    return load(made)


def test_the_models_own_settings_hold():
    prompt = text(9, 3, period=3)
    plain = generate(lm("llama"), prompt, max_new_tokens=40).tokens
    assert generate(own(max_new_tokens=11), prompt).tokens == plain[:11]
    assert generate(own(max_length=15), prompt).tokens == plain[:6]
    assert generate(own(max_new_tokens=11), prompt, max_new_tokens=3).tokens == plain[:3]
    eos = plain[4]
    unused = next(token for token in range(1, 96) if token not in plain)
    cut = plain[: plain.index(eos) + 1]
    result = generate(own(eos_token_id=eos), prompt, max_new_tokens=40)
    assert (result.tokens, result.finish) == (cut, "stop")
    assert generate(own(eos_token_id=[unused, eos]), prompt, "suffix", max_new_tokens=40).tokens == cut
    penalised = generate(lm("llama"), prompt, max_new_tokens=40, repetition_penalty=1.5).tokens
    assert generate(own(repetition_penalty=1.5), prompt, max_new_tokens=40).tokens == penalised != plain
    hot = {"do_sample": True, "temperature": 1.4}
    sampled = generate(lm("llama"), prompt, "suffix", max_new_tokens=40, seed=5, **hot).tokens
    assert generate(own(**hot), prompt, "suffix", max_new_tokens=40, seed=5).tokens == sampled != plain
    # "greedy" is greedy whatever the model's settings say.
    assert generate(own(**hot), prompt, "greedy", max_new_tokens=40).tokens == plain
    given = GenerationConfig(max_new_tokens=7, pad_token_id=0)
    assert generate(lm("llama"), prompt, generation_config=given).tokens == plain[:7]


def test_settings_survive_a_folder(tmp_path: Path):
    own(max_new_tokens=5).model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_new_tokens"] == 5
    assert generate(load(tmp_path), text(9)).stats.generated_tokens == 5


# ---- chats ----


def test_a_chat_goes_through_its_template():
    chat = [{"role": "user", "content": "hi"}]
    result = generate(byte_lm(), chat, max_new_tokens=4)
    assert bytes(result.prompt).decode() == "user: hi\nassistant: "
    assert stream(byte_lm(), chat, max_new_tokens=4).request.prompt == result.prompt


def test_a_chat_without_a_template():
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
    loaded = load(byte_lm().model, tokenizer=tokenizer)
    refused(lambda: generate(loaded, [{"role": "user", "content": "hi"}], max_new_tokens=4), "no chat template")
