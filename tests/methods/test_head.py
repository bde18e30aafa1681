"""The head format: strict, typed to a model, and never a pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import lm, text
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.head import Fit, Head, Regime, fingerprint, load_head, teach
from ramify.models.causal import CausalLM, load


class Bend(Head):
    """A matrix and a vector: enough to be saved."""

    @dataclass(frozen=True)
    class Sizes:
        width: int = 8
        kind: str = "plain"

    method = "bend"
    regime = Regime(steps=4, learning_rate=1e-2)

    def __init__(self, fit: Fit, sizes: Any) -> None:
        super().__init__(fit, sizes)
        self.matrix = nn.Parameter(torch.randn(fit.hidden_size * sizes.width, fit.hidden_size))
        self.vector = nn.Parameter(torch.randn(sizes.width))

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        return self.matrix.sum()

    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        return {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = lm("llama")
    torch.manual_seed(0)
    Bend.new(model, width=16).save(tmp_path / "head")
    return tmp_path / "head"


def test_what_is_saved_is_loaded(folder: Path):
    head = load_head(Bend, folder, lm("llama"))
    torch.manual_seed(0)
    expected = Bend.new(lm("llama"), width=16)
    assert head.sizes == Bend.Sizes(width=16)
    assert torch.equal(head.matrix, expected.matrix)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert load_head(Bend, head, lm("llama")) is head


def test_compact_weights_are_near_and_small(tmp_path: Path):
    head = Bend.new(lm("llama"), width=16)
    head.save(tmp_path, compact=True)
    stored = load_file(tmp_path / "head.safetensors")
    assert stored["matrix"].dtype == torch.int8
    assert (stored["vector"].dtype, stored["matrix.scale"].shape) == (torch.bfloat16, (512, 1))
    found = load_head(Bend, tmp_path, lm("llama"))
    error = (found.matrix - head.matrix.detach()).abs()
    assert bool((error <= head.matrix.abs().amax(dim=1, keepdim=True) / 127).all())
    assert float(error.max()) > 0.0


def spoil(folder: Path, **changes: Any) -> None:
    file = folder / "head.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda f: (f / "head.json").unlink(), "holds no head: there is no head.json"),
        (lambda f: (f / "head.json").write_text("{"), "is damaged: head.json cannot be read"),
        (lambda f: spoil(f, method="medusa"), "holds a head of 'medusa', not of 'bend'"),
        (lambda f: spoil(f, sizes={"widht": 3}), "unknown size of a bend head: 'widht'; did you mean 'width'?"),
        (lambda f: (f / "head.safetensors").write_bytes(b"x" * 40), "the weights of the bend head .* are damaged"),
        (lambda f: (f / "head.safetensors").unlink(), "has no weights: there is no head.safetensors"),
        (lambda f: (f / "head.safetensors").rename(f / "head.pt"), r"comes as a pickle \(head.pt\)"),
        (lambda f: save_file({"matrix": torch.zeros(512, 32)}, f / "head.safetensors"), "it lacks vector"),
        (
            lambda f: save_file(load_file(f / "head.safetensors") | {"more": torch.zeros(1)}, f / "head.safetensors"),
            "it has unknown more",
        ),
        (
            lambda f: save_file(load_file(f / "head.safetensors") | {"vector": torch.zeros(3)}, f / "head.safetensors"),
            "it has another shape for vector",
        ),
    ],
)
def test_damaged_heads_get_one_sentence(folder: Path, harm: Any, sentence: str):
    harm(folder)
    with pytest.raises(RamifyError, match=sentence) as caught:
        load_head(Bend, folder, lm("llama"))
    assert "\n" not in str(caught.value)


def test_a_head_for_another_model_is_refused(folder: Path):
    for change, sentence in (
        ({"hidden_size": 64}, "its hidden size is 32, not 64"),
        ({"vocab_size": 50}, "its vocabulary is 96, not 50"),
        ({"layers": 9}, "its number of layers is 2, not 9"),
    ):
        head = Bend.new(lm("llama"))
        head.fit = replace(head.fit, **change)
        with pytest.raises(RamifyError, match=rf"trained for another model .*: {sentence}"):
            load_head(Bend, head, lm("llama"))


class Tokenizer:
    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


def test_the_tokenizer_counts():
    model = lm("llama").model
    one, same, other = (load(model, tokenizer=Tokenizer(*words)) for words in ("ab", "ab", "ba"))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(lm("llama")) == ""
    with pytest.raises(RamifyError, match="its tokenizer has another vocabulary"):
        load_head(Bend, Bend.new(one), other)
    load_head(Bend, Bend.new(one), lm("llama"))  # nothing is known about it


def test_without_a_bundled_head_there_is_advice():
    with pytest.raises(RamifyError, match=r"there is no bend head for .*; train one with 'ramify train bend"):
        load_head(Bend, None, lm("llama"))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_the_teacher_says_what_a_session_says(name: str):
    tokens = torch.tensor([text(20, 1), text(20, 2)])
    taught = teach(lm(name), tokens, [1, -1])
    session = Session(lm(name), 2)
    scores = session.score([TokenTree.chain(row) for row in tokens], hidden_layers=[1, -1])
    torch.testing.assert_close(taught.logits, scores.logits, atol=1e-5, rtol=1e-5)
    for layer in (1, -1):
        torch.testing.assert_close(taught.hidden[layer], scores.hidden[layer], atol=1e-5, rtol=1e-5)
