"""The settings by which transformers selects a mode: they work with the method of that mode, or are told to use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import lm, model, text
from transformers import GenerationConfig

import ramify
from ramify.api import generate, stream
from ramify.errors import RamifyError
from ramify.methods.draft.autoregressive import Greedy
from ramify.methods.modes import OPTIONS, SELECTS
from ramify.methods.registry import catalogue, find
from ramify.methods.search.beam_search import BeamSearch
from ramify.methods.search.contrastive_search import ContrastiveSearch
from ramify.methods.search.diverse_beam_search import DiverseBeamSearch
from ramify.methods.search.dola import DoLa

PROMPT = text(7, 1)
NEW = 8
CALLS: list[tuple[str, Any, dict[str, Any]]] = [
    ("beam-search", BeamSearch(3, length_penalty=0.5), {"num_beams": 3, "length_penalty": 0.5}),
    (
        "diverse-beam-search",
        DiverseBeamSearch(4, 2, 0.9),
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.9},
    ),
    ("contrastive-search", ContrastiveSearch(0.5, 3), {"penalty_alpha": 0.5, "top_k": 3}),
    ("dola", DoLa([0, 1]), {"dola_layers": [0, 1]}),
]
IDS = [name for name, _, _ in CALLS]


def test_every_option_is_one() -> None:
    names = {card.name for card in catalogue()}
    for name, options in OPTIONS.items():
        if name in names:
            assert set(options) <= set(find(name).__dataclass_fields__)  # type: ignore[attr-defined]
    assert set(SELECTS.values()) == set(OPTIONS)


@pytest.mark.parametrize(("name", "method", "settings"), CALLS, ids=IDS)
def test_settings_of_a_mode_are_options_of_its_method(name: str, method: Any, settings: dict[str, Any]) -> None:
    expected = generate(lm("llama"), PROMPT, method, max_new_tokens=NEW)
    assert generate(lm("llama"), PROMPT, name, max_new_tokens=NEW, **settings).tokens == expected.tokens
    assert generate(lm("llama"), PROMPT, name, options=settings, max_new_tokens=NEW).tokens == expected.tokens
    assert ramify.methods.registry.create(name, **settings) == method
    assert stream(lm("llama"), PROMPT, name, max_new_tokens=NEW, **settings).method == method


@pytest.mark.parametrize(("name", "method", "settings"), CALLS, ids=IDS)
def test_other_methods_say_which_to_use(name: str, method: Any, settings: dict[str, Any]) -> None:
    given = [{**settings}, {"generation_config": GenerationConfig(**settings)}]
    for each in given:
        for other in ("greedy", "prompt-lookup"):
            with pytest.raises(RamifyError, match=f"use method='{name}', options=") as error:
                generate(lm("llama"), PROMPT, other, max_new_tokens=NEW, **each)
            assert "\n" not in str(error.value)
    ids = torch.tensor([PROMPT])
    with pytest.raises(RamifyError, match=f"use method='{name}'"):
        model("llama").generate(ids, custom_generate=Greedy(), max_new_tokens=NEW, **settings)


def test_the_old_settings_beside_a_method_inside_transformers() -> None:
    ids = torch.tensor([PROMPT])
    for _, method, settings in CALLS[2:]:
        expected = generate(lm("llama"), PROMPT, method, max_new_tokens=NEW).tokens
        output = model("llama").generate(ids, custom_generate=method, max_new_tokens=NEW, **settings)
        assert output[0, len(PROMPT) :].tolist() == expected
    with pytest.raises(RamifyError, match="num_beams=3 repeats every prompt; leave it to BeamSearch"):
        model("llama").generate(ids, custom_generate=BeamSearch(3), num_beams=3, max_new_tokens=NEW)
    with pytest.raises(RamifyError, match=r"penalty_alpha=0\.2 asks for another method"):
        model("llama").generate(ids, custom_generate=ContrastiveSearch(), penalty_alpha=0.2, max_new_tokens=NEW)


def test_beams_inside_transformers() -> None:
    ids = torch.tensor([PROMPT, text(7, 4)])
    expected = model("llama").generate(ids, num_beams=3, do_sample=False, max_new_tokens=NEW)
    assert model("llama").generate(ids, custom_generate=BeamSearch(3), max_new_tokens=NEW).tolist() == expected.tolist()


def test_what_contradicts_itself() -> None:
    with pytest.raises(RamifyError, match="num_beams is given twice"):
        generate(lm("llama"), PROMPT, "beam-search", options={"num_beams": 3}, num_beams=3, max_new_tokens=NEW)
    with pytest.raises(RamifyError, match="num_beams=4 asks for another method"):
        generate(lm("llama"), PROMPT, BeamSearch(3), num_beams=4, max_new_tokens=NEW)
    with pytest.raises(RamifyError, match="objects that transformers no longer has"):
        generate(lm("llama"), PROMPT, constraints=[object()], max_new_tokens=NEW)


def test_settings_that_select_nothing() -> None:
    expected = generate(lm("llama"), PROMPT, max_new_tokens=NEW).tokens
    settings: dict[str, Any] = {"num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0.0, "dola_layers": None}
    assert generate(lm("llama"), PROMPT, max_new_tokens=NEW, **settings).tokens == expected
