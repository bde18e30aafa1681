"""Registered means tested: every lossless draft method of the catalogue gives exactly the tokens of plain decoding.

Greedy, and sampled with coupled noise under temperature, top-p and a repetition penalty; alone and in a ragged batch;
with texts that cross the sliding window; on both forward passes, and over packed weights. All of it in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import heads
import pytest
import torch
from families import FAMILIES, FUSED, VOCABULARY, WINDOW, build, lm, text

import ramify
from ramify.api import generate
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod, Method
from ramify.methods.draft import switch
from ramify.methods.draft.chimera_head import ChimeraHead
from ramify.methods.draft.datastore import Datastore
from ramify.methods.draft.hidden_transfer_head import HiddenTransferHead
from ramify.methods.draft.ppd_head import PromptTokens
from ramify.methods.draft.static_automaton import StaticAutomaton
from ramify.methods.draft.switch import Switched
from ramify.methods.draft.union import Union
from ramify.methods.registry import Card, catalogue, create, find
from ramify.models.causal import DEMO, CausalLM, load
from ramify.models.weights import unavailable

PROMPTS = [text(5, 1), text(17, 2, period=6), text(9, 3, period=3)]
NEW = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "greedy, penalised": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "sampled": {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.15, "top_k": 0},
    "sampled hot": {"do_sample": True, "temperature": 1.2, "top_k": 20},
}
# Targets: a family on the forward pass that ``load`` chooses, the fused one where it can; or "family how", see ``lm``.
TARGETS = [*FAMILIES, *(f"{family} transformers" for family in FUSED), "llama packed", "gemma2 packed"]
THOROUGH = ["llama", "mistral", "gemma3"]


def target(name: str) -> CausalLM:
    family, _, how = name.partition(" ")
    if why := unavailable("packed", torch.float32, "cpu") if how == "packed" else "":
        pytest.skip(why)
    loaded = lm(family, how)
    forward = "fused" if family in FUSED and how != "transformers" else "transformers"
    assert (loaded.forward.name, loaded.forward.weights) == (forward, "packed" if how == "packed" else "plain")
    return loaded


@functools.cache
def assistant(family: str) -> Any:
    """The target's own weights, somewhat blurred: right often, not always."""
    model = build(family)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=generator))
    return load(model)


# Options for methods that cannot be built from nothing, or would size themselves by the clock.
OPTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "aded": lambda _: {"nodes": 24},
    "assistant": lambda name: {"model": assistant(name.partition(" ")[0])},
    "auto": lambda _: {"switch": False, "otherwise": "union:methods=(suffix:length=8+aded:nodes=12):nodes=14"},
    "chimera": lambda on: {"head": ChimeraHead.new(target(on), start="target"), "tree": "paper"},
    # Taken from the plain weights: a model object whose layers were converted has none.
    "deer": lambda on: {"head": heads.deer(lm(on.partition(" ")[0])), "nodes": 6},
    "eagle": lambda on: {"head": heads.eagle(target(on)), "nodes": 12, "depth": 3, "k": 4},
    "hidden-transfer": lambda on: {"head": HiddenTransferHead.new(target(on)), "budget": 24},
    "ppd": lambda on: {"head": PromptTokens.new(target(on)), "budget": 40},
    "medusa": lambda on: {"head": heads.medusa(target(on)), "nodes": 24},
    "prompt-lookup": lambda _: {"length": 10},
    "rest": lambda on: {"nodes": 24, "datastore": Datastore.of([*plain(on, "greedy"), *PROMPTS], VOCABULARY)},
    "s2d": lambda on: {"draft": assistant(on.partition(" ")[0]), "exits": (1, 2)},
    "sam": lambda _: {"length": 40, "auxiliary": create("token-recycling", nodes=24)},
    "specmquant": lambda name: {"model": assistant(name.partition(" ")[0])},
    "suffix": lambda _: {"length": 40},
    "suffix-decoding": lambda _: {"length": 24},
    "switched": lambda _: {"inner": "token-recycling:nodes=24", "margin": math.inf},
    "token-recycling": lambda _: {"nodes": 24},
    "union": lambda _: {"methods": "token-recycling:nodes=16,suffix:length=10", "nodes": 20},
}
# Further settings of a method that deserve the matrix too.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("prompt-lookup", {"match": "recent", "ngram": 2, "length": 4}),
    ("prompt-lookup", {"length": None}),
    ("suffix", {"length": 3, "min_match": 2}),
    ("suffix", {"length": None}),
    ("token-recycling", {"template": "paper", "nodes": None, "scope": "request", "seed_from_prompt": False}),
    ("token-recycling", {"nodes": 0}),
    ("token-recycling", {"nodes": None}),
    ("ppd", {"budget": 9}),
    ("ppd", {"budget": 20, "allocation": "naive"}),
    ("ppd", {"budget": 2, "allocation": "chain"}),
    ("assistant", {"schedule": "constant", "length": 2}),
    ("assistant", {"inner": "union:methods=(suffix:length=8+token-recycling:nodes=9):nodes=12", "levels": 2}),
    ("specmquant", {"plain_first": True, "length": 3, "inner": "lookahead"}),
    ("lookahead", {"ngram": 3, "window": 2, "guesses": 3, "advance": "accepted", "seed_from_prompt": True}),
    ("lookahead", {"ngram": 2, "guesses": 0}),
    ("lookahead", {"sized": True}),
    ("sam", {"auxiliary": "lookahead", "threshold": 2}),
    ("sam", {"auxiliary": None, "bias": 0, "corpus": StaticAutomaton.build([PROMPTS[1] * 2], VOCABULARY)}),
    ("aded", {"nodes": None}),
    ("aded", {"search": "full", "scope": "request", "seed_from_prompt": True, "nodes": 60}),
    ("rest", {"nodes": None}),
    ("rest", {"nodes": 64, "matches": 3, "longest": 3, "shortest": 1, "length": 5}),
    ("suffix-decoding", {"mode": "tree", "factor": 4.0, "depth": 12, "requests": 2}),
    ("suffix-decoding", {"length": None}),
    ("union", {"nodes": 5, "share": "turns"}),
    ("union", {"methods": ["suffix:length=8", "prompt-lookup:length=4", "token-recycling:nodes=9"], "share": "order"}),
    ("union", {"methods": "union:methods=(suffix:length=9+token-recycling:nodes=9):nodes=12,aded:nodes=8", "nodes": 9}),
    ("union", {"nodes": None}),
    ("switched", {"margin": -1.0}),
    ("switched", {"inner": "union:methods=(suffix+token-recycling)"}),
    ("auto", {"switch": True}),
    ("sam", {"auxiliary": Union("token-recycling:nodes=9+prompt-lookup:length=5", nodes=12), "threshold": 2}),
    ("deer", {"nodes": None}),
    ("deer", {"nodes": 1}),
    ("deer", {"nodes": 12}),
    ("s2d", {"thresholds": (0.2,), "coupled": True, "schedule": "constant", "length": 3}),
]
CARDS = [card for card in catalogue() if card.family == "draft" and card.lossless]
NAMES = [card.name for card in CARDS]


def make(name: str, on: str, **options: Any) -> Method:
    """The method, verifying by matching where it lets one choose, so that sampled tokens can be compared too."""
    if "verifier" in [field.name for field in fields(find(name))]:
        options = {"verifier": "match"} | options
    try:
        return create(name, **(OPTIONS.get(name, lambda _: {})(on) | options))
    except (RamifyError, TypeError) as error:
        pytest.fail(f"{name!r} is registered as a lossless draft method, but cannot be built here ({error}); give it "
                    f"options in OPTIONS of {__name__}")  # fmt: skip


@functools.cache
def plain(on: str, setting: str) -> list[list[int]]:
    """Plain decoding of every prompt alone, row i with seed + i."""
    chosen = SETTINGS[setting]
    method = "sample" if chosen["do_sample"] else "greedy"
    results = [
        generate(target(on), prompt, method, max_new_tokens=NEW, seed=11 + row, **chosen)
        for row, prompt in enumerate(PROMPTS)
    ]
    return [result.tokens for result in results]


def run(method: Method, on: str, prompts: Any, setting: str, seed: int = 11) -> list[Result]:
    results: list[Result] = generate(target(on), prompts, method, max_new_tokens=NEW, seed=seed, **SETTINGS[setting])
    return results


def check(method: Method, on: str, setting: str) -> None:
    batch = run(method, on, PROMPTS, setting)
    assert [result.tokens for result in batch] == plain(on, setting)
    for row, prompt in enumerate(PROMPTS):  # the same object again: what it learned must not matter
        [alone] = run(method, on, [prompt], setting, seed=11 + row)
        assert alone.tokens == plain(on, setting)[row]
        assert alone.stats.generated_tokens == NEW
        assert alone.stats.target_calls + alone.stats.accepted == NEW
        assert alone.stats.drafted >= alone.stats.accepted


def test_there_are_methods():
    assert {"prompt-lookup", "suffix", "assistant", "token-recycling"} <= set(NAMES)


@pytest.mark.parametrize("on", TARGETS)
@pytest.mark.parametrize("card", CARDS, ids=NAMES)
def test_greedy_tokens_are_the_plain_ones(card: Card, on: str):
    check(make(card.name, on), on, "greedy")


@pytest.mark.parametrize("on", TARGETS)
@pytest.mark.parametrize("card", CARDS, ids=NAMES)
def test_sampled_tokens_are_the_plain_ones(card: Card, on: str):
    method = make(card.name, on)
    rule = getattr(method, "rule", None)
    if rule is not None and rule.function.__name__ != "match":
        pytest.skip(f"{card.name} verifies by {rule.function.__name__}: exact in law, not token by token")
    check(method, on, "sampled")


@pytest.mark.parametrize("on", [name for name in TARGETS if " " in name])
def test_the_text_is_that_of_the_other_forward_pass(on: str):
    for setting in SETTINGS:
        assert plain(on, setting) == plain(on.partition(" ")[0], setting)


@pytest.mark.parametrize("setting", ["greedy, penalised", "sampled hot"])
@pytest.mark.parametrize("family", THOROUGH)
@pytest.mark.parametrize("card", CARDS, ids=NAMES)
def test_under_other_settings(card: Card, family: str, setting: str):
    check(make(card.name, family), family, setting)


@pytest.mark.parametrize("setting", ["greedy", "sampled"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{name} {given}" for name, given in VARIANTS])
def test_variants(name: str, options: dict[str, Any], setting: str):
    for family in THOROUGH:
        check(make(name, family, **options), family, setting)


@pytest.mark.parametrize("setting", ["greedy", "sampled"])
@pytest.mark.parametrize("card", CARDS, ids=NAMES)
def test_beside_others_and_behind_a_switch(card: Card, setting: str, monkeypatch: pytest.MonkeyPatch):
    method = make(card.name, "qwen3")
    assert isinstance(method, DraftMethod)
    check(Union([method, "prompt-lookup:length=4", "token-recycling:nodes=9"], nodes=10), "qwen3", setting)
    monkeypatch.setattr(switch, "TRIAL", 2)
    monkeypatch.setattr(switch, "REST", 3)
    check(Switched(method, margin=-1.0), "qwen3", setting)  # two steps on, three off, two on, six off, …


@pytest.mark.parametrize("verifier", ["speculative", "block"])
def test_rejection_rules_are_greedy_at_temperature_zero(verifier: str):
    for card in CARDS:
        if "verifier" in [field.name for field in fields(find(card.name))]:
            for setting in ("greedy", "greedy, penalised"):
                check(make(card.name, "mistral", verifier=verifier), "mistral", setting)


@pytest.mark.skipif(not (DEMO / "config.json").exists(), reason="the demo model is not in the package")
@pytest.mark.parametrize("setting", ["greedy", "sampled"])
@pytest.mark.parametrize("card", CARDS, ids=NAMES)
def test_the_demo_model(card: Card, setting: str):
    demo = demo_lm()
    prompts = ["def read(path):\n    with open(", "class Queue:\n    def __init__(self"]
    given = {"max_new_tokens": 40, "seed": 2, **SETTINGS[setting]}
    own: dict[str, dict[str, Any]] = {
        "assistant": {"model": demo},
        "specmquant": {"model": demo},
        "rest": {"datastore": None},
        "s2d": {"draft": None, "exits": None},
    }
    trained: dict[str, Any] = {} if find(card.name).trains is None else {"head": None}  # the bundled one
    method = make(card.name, "llama", **trained, **own.get(card.name, {}))
    plain = generate(demo, prompts, "sample" if given["do_sample"] else "greedy", **given)
    assert [each.tokens for each in generate(demo, prompts, method, **given)] == [each.tokens for each in plain]


@functools.cache
def demo_lm() -> CausalLM:
    return load("demo", dtype="float32")


def test_the_matrix_means_something():
    """Texts cross the window, are not one token over and over, and drafts are accepted as well as rejected."""
    assert min(map(len, PROMPTS)) < WINDOW < min(map(len, PROMPTS)) + NEW
    for setting in SETTINGS:
        texts = [row for family in FAMILIES for row in plain(family, setting)]
        assert sum(len(set(row)) >= 5 for row in texts) >= 0.8 * len(texts)
    for name in NAMES:
        results = [
            result
            for family in ("qwen3", "phi3", "gpt_neox")
            for result in run(make(name, family), family, PROMPTS, "greedy")
        ]
        assert sum(result.stats.accepted for result in results) > 20
        assert sum(result.stats.drafted - result.stats.accepted for result in results) > 20


def test_seeds_matter_and_repeat():
    first, again, other = (
        generate(lm("llama"), PROMPTS[1], "prompt-lookup", max_new_tokens=NEW, seed=seed, **SETTINGS["sampled"]).tokens
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_methods_are_the_same_from_the_package():
    assert [card.name for card in ramify.methods() if card in CARDS] == NAMES
