"""DoLa gives what transformers' gave; layers are chosen, and tokens kept, as its formula says."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from families import build, lm, model, text

from ramify.api import generate
from ramify.errors import RamifyError
from ramify.methods.options import build_spec
from ramify.methods.search.dola import DoLa, candidates, contrast
from ramify.models.causal import CausalLM, load

NEW = 14

# ``model.generate(dola_layers=…, repetition_penalty=1.2)`` of transformers 4.44.2 over the weights of deep().
GOLDEN: list[tuple[Any, list[int]]] = [
    ("low", [14, 53, 60, 94, 57, 94, 31, 53, 57, 64, 53, 37, 49, 60]),
    ("high", [49, 60, 10, 60, 60, 50, 30, 30, 30, 30, 51, 31, 94, 27]),
    ([0, 1], [14, 53, 70, 49, 49, 49, 60, 47, 6, 53, 70, 50, 77, 60]),
    ([1], [14, 53, 70, 53, 49, 49, 49, 60, 52, 60, 94, 60, 50, 10]),
]


@functools.cache
def deep(how: str | None = None) -> CausalLM:
    return load(build("llama", num_hidden_layers=6), forward=how)


@pytest.mark.parametrize(("layers", "tokens"), GOLDEN)
def test_what_transformers_had(layers: Any, tokens: list[int]) -> None:
    for how in (None, "transformers"):
        result = generate(deep(how), text(7, 1), DoLa(layers), max_new_tokens=NEW, repetition_penalty=1.2)
        assert result.tokens == tokens


def test_inside_transformers() -> None:
    ids = torch.tensor([text(7, 1)])
    method = DoLa("high")
    output = deep().model.generate(
        ids, attention_mask=torch.ones_like(ids), custom_generate=method, max_new_tokens=NEW, repetition_penalty=1.2
    )
    assert output[0, 7:].tolist() == GOLDEN[1][1]


def test_the_layer_that_differs_most_is_the_base_and_implausible_tokens_go() -> None:
    final = torch.tensor([0.60, 0.30, 0.05, 0.05]).log()
    near, far = torch.tensor([0.5, 0.4, 0.05, 0.05]).log(), torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    found = contrast(final, torch.stack([near, far]))
    assert found[:2].tolist() == pytest.approx(
        [float(torch.tensor(6.0).log()), float(torch.tensor(1.5).log())], abs=1e-5
    )
    assert found[2:].tolist() == [-torch.inf, -torch.inf]  # below a tenth of 0.6
    assert contrast(final, near[None])[1] == pytest.approx(float(torch.tensor(0.75).log()), abs=1e-5)


def test_tokens_that_no_layer_gives_a_chance_do_not_count() -> None:
    final = torch.tensor([0.5, 0.5, 0.0]).log()
    found = contrast(final, torch.stack([torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.9, 0.1, 0.0]).log()]))
    assert found[1] > found[0]


@pytest.mark.parametrize(
    ("layers", "depth", "tied", "expected"),
    [
        ("low", 2, False, [0]),
        ("low", 2, True, [1]),
        ("low", 6, False, [0, 2]),
        ("low", 6, True, [2]),
        ("low", 3, True, [2]),
        ("high", 6, False, [3, 5]),
        ("low", 48, False, list(range(0, 20, 2))),
        ("high", 48, True, list(range(28, 48, 2))),
        ([1, 5, 6, 9], 6, False, [1, 5]),
    ],
)
def test_which_layers_are_meant(layers: Any, depth: int, tied: bool, expected: list[int]) -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    built = load(build("llama", num_hidden_layers=depth, tie_word_embeddings=tied, **sizes))
    assert candidates(built, layers) == expected


def test_it_samples() -> None:
    def draw(seed: int) -> list[int]:
        method = DoLa("low")
        return list(generate(deep(), text(7, 1), method, max_new_tokens=NEW, do_sample=True, seed=seed).tokens)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_layers_are_read_from_a_command_line() -> None:
    assert build_spec("dola:dola_layers=high") == DoLa("high")
    assert build_spec("dola:dola_layers=(0,2)") == DoLa([0, 2])


@pytest.mark.parametrize("layers", ["middle", ["a"], None, 1.5])
def test_bad_layers(layers: Any) -> None:
    with pytest.raises(RamifyError, match="'low', 'high' or a list of layer numbers"):
        DoLa(layers)


def test_layers_that_the_model_has_not() -> None:
    with pytest.raises(RamifyError, match="names no layer between 0 and 1"):
        generate(lm("llama"), text(7, 1), DoLa([2, 7]), max_new_tokens=4)
    assert model("llama").config.num_hidden_layers == 2
