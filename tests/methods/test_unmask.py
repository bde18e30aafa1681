"""The rules that fill canvases, on denoisers whose laws are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoisers import MASK, denoiser, request
from families import lm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ramify
from ramify.engine.canvas import Canvas
from ramify.engine.events import Remasked, Unmasked
from ramify.engine.filling import Filling
from ramify.engine.look import Look
from ramify.engine.result import Result
from ramify.engine.unmask import Choice, Rule
from ramify.errors import RamifyError
from ramify.methods.registry import catalogue, create
from ramify.methods.unmask.orders import SCORES, TopK
from ramify.methods.unmask.remasking import Running
from ramify.methods.unmask.threshold import Above, Together

NAMES = ("unmask", "threshold", "factor", "remdm", "rcr")


def look(laws: list[list[float]], opened: list[bool] | None = None, quota: int = 1) -> Look:
    """One row whose positions have ``laws`` (over a vocabulary of that many tokens)."""
    count = len(laws)
    opened = opened or [True] * count
    flags = torch.tensor([opened])
    row = Canvas(0, torch.zeros(count, dtype=torch.long), flags[0].clone(), 0)
    filling = Filling(request([], count), row, 0, count, [], [quota], [])
    logits = torch.tensor([laws]).clamp(min=1e-30).log()
    return Look([filling], torch.arange(count)[None], torch.ones_like(flags), flags, logits)


def fixed(rule: Rule, seen: Look) -> list[int]:
    return rule.choose(seen).fix[0].nonzero()[:, 0].tolist()


LAWS = [[0.5, 0.3, 0.2], [0.46, 0.45, 0.09], [0.6, 0.2, 0.2], [0.55, 0.45, 0.0]]


@pytest.mark.parametrize(("order", "first"), [("confidence", 2), ("margin", 2), ("entropy", 3), ("left-to-right", 0)])
def test_what_each_order_takes_first(order: str, first: int) -> None:
    assert fixed(TopK(SCORES[order]), look(LAWS)) == [first]


def test_random_order_is_uniform_and_of_the_seed() -> None:
    picked = [fixed(TopK(SCORES["random"]), look(LAWS))]
    assert picked * 3 == [fixed(TopK(SCORES["random"]), look(LAWS)) for _ in range(3)]
    counts = torch.zeros(4)
    for seed in range(400):
        seen = look(LAWS)
        seen.rows[0].request.sampler.noise.seed = seed
        counts[fixed(TopK(SCORES["random"]), seen)[0]] += 1
    assert ((counts - 100).abs() < 3 * (400 * 0.25 * 0.75) ** 0.5).all()


@pytest.mark.parametrize(
    ("gamma", "expected"), [(0.0, [0, 1, 2, 3]), (0.5, [0, 2, 3]), (0.55, [2, 3]), (0.9, [2]), (1.5, [2])]
)
def test_threshold(gamma: float, expected: list[int]) -> None:
    assert fixed(Above(gamma), look(LAWS)) == expected


def test_a_threshold_keeps_ties() -> None:
    assert fixed(Above(0.5), look([[0.5, 0.5], [0.25, 0.75]])) == [0, 1]


@pytest.mark.parametrize(
    # Confidences .95, .90, .60: (n + 1)(1 − c_n) is .1, .3, 1.6.
    ("factor", "expected"),
    [(0.05, [0]), (0.2, [0]), (0.31, [0, 1]), (1.5, [0, 1]), (1.7, [0, 1, 2])],
)
def test_factor(factor: float, expected: list[int]) -> None:
    assert fixed(Together(factor), look([[0.95, 0.05], [0.9, 0.1], [0.6, 0.4]])) == expected


def test_factor_takes_the_largest_number_that_holds() -> None:
    """Of the published code's ranks one by one: a later rank may hold where an earlier one does not."""
    laws = [[1 - 0.45, 0.45], [0.9, 0.1], [0.9, 0.1]]  # sorted .9, .9, .55: .2, .3, 1.8
    assert fixed(Together(0.25), look(laws)) == [1]
    assert fixed(Together(0.35), look(laws)) == [1, 2]


def test_the_bound_of_the_theorem() -> None:
    """p(1,1) = .2, p(1,0) = p(0,1) = .4: the product of the argmaxes is no mode of the joint law; f = 1 waits."""
    assert fixed(Together(1.0), look([[0.4, 0.6], [0.4, 0.6]])) == [0]


def test_more_than_is_open_is_clipped() -> None:
    assert fixed(TopK(SCORES["confidence"]), look(LAWS, [True, False, False, True], quota=4)) == [0, 3]


def test_running_confidence_takes_back_what_was_unsure() -> None:
    rule = Running()
    first = look([[0.6, 0.4], [0.55, 0.45], [0.5, 0.5]])
    assert fixed(rule, first) == [0]
    second = look([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [False, True, True])
    choice: Choice = rule.choose(second)
    assert choice.fix[0].nonzero()[:, 0].tolist() == [1, 2]
    assert choice.reopen is not None
    assert choice.reopen[0].nonzero()[:, 0].tolist() == [0]


def run(name: str, new: int = 12, seed: int = 0, **options: Any) -> Result:
    return create(name, **options).complete(denoiser(), [request([3, 14, 15], new, seed=seed)])[0]


def test_one_position_a_step_in_blocks_of_one_is_left_to_right() -> None:
    assert run("unmask", block=1).tokens == run("unmask", order="left-to-right").tokens


@pytest.mark.parametrize("name", ["threshold", "factor"])
def test_asking_for_more_than_certainty_is_one_position_a_step(name: str) -> None:
    option = {"gamma": 1.5} if name == "threshold" else {"factor": 0.0}
    result = run(name, **option)
    assert result.tokens == run("unmask").tokens
    assert result.stats.target_calls == 12


@pytest.mark.parametrize("name", ["threshold", "factor"])
def test_asking_for_nothing_is_one_step(name: str) -> None:
    option = {"gamma": 0.0} if name == "threshold" else {"factor": 100.0}
    assert run(name, **option).stats.target_calls == 1


@settings(max_examples=15)
@given(block=st.integers(1, 12), gamma=st.floats(0, 1.1))
def test_more_confidence_never_takes_fewer_steps(block: int, gamma: float) -> None:
    strict = run("threshold", block=block, gamma=1.5).stats.target_calls
    assert -(-12 // block) <= run("threshold", block=block, gamma=gamma).stats.target_calls <= strict == 12


def test_looking_back_once() -> None:
    result = run("remdm", revisit=2)
    back = [event for event in result.events if isinstance(event, Remasked)]
    assert len(back) == 1
    assert len(back[0].positions) == 2
    written = [event for event in result.events if isinstance(event, Unmasked)]
    before = written[: back[0].step]
    confidences = {p: c for event in before for p, c in zip(event.positions, event.confidences, strict=True)}
    assert set(back[0].positions) == set(sorted(confidences, key=confidences.__getitem__)[:2])
    assert result.stats.target_calls == 14


def test_the_number_that_stands_follows_the_schedule() -> None:
    result = run("rcr", steps=6)
    standing = 0
    for step in range(6):
        for event in result.events:
            if isinstance(event, Unmasked) and event.step == step:
                standing += len(event.positions)
            if isinstance(event, Remasked) and event.step == step:
                standing -= len(event.positions)
        assert standing == 2 * (step + 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "delayed"])
def test_every_rule_under_every_cache(name: str, cache: str) -> None:
    asked = [request([3, 14, 15], 9), request([7, 8], 12)]
    for result, new in zip(create(name, block=4, cache=cache).complete(denoiser(), asked), (9, 12), strict=True):
        assert len(result.tokens) == new
        assert MASK not in result.tokens


def test_guidance_of_nothing_is_none() -> None:
    assert run("unmask", guidance=0.0).tokens == run("unmask").tokens
    assert run("unmask", guidance=2.0).tokens != run("unmask").tokens


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("unmask", {"order": "entropi"}, "entropy"),
        ("unmask", {"block": 0}, "at least 1"),
        ("unmask", {"steps": 0}, "at least 1"),
        ("unmask", {"cache": "triple"}, "unknown cache"),
        ("unmask", {"refresh": 4}, "name a cache"),
        ("unmask", {"guidance": -1.0}, "0 for none"),
        ("threshold", {"gamma": -0.1}, "probability"),
        ("factor", {"factor": -1.0}, "or more"),
        ("remdm", {"after": 0.0}, "share above 0"),
        ("remdm", {"revisit": 0}, "at least 1"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RamifyError, match=says):
        create(name, **options)


@pytest.mark.parametrize("cache", ["dual", "delayed"])
def test_caches_that_a_model_in_blocks_has_no_use_for(cache: str) -> None:
    with pytest.raises(RamifyError, match="cache='prefix' is exact"):
        create("unmask", cache=cache).complete(denoiser(block=4), [request([1], 4)])


def test_the_two_kinds_of_models_are_not_mixed_up() -> None:
    with pytest.raises(RamifyError, match=r"reads from left to right.*load_masked"):
        ramify.generate(lm("llama"), [1, 2, 3], method="unmask", max_new_tokens=4)
    with pytest.raises(RamifyError, match="is a masked denoiser; use method='unmask'"):
        ramify.generate(denoiser(), [1, 2, 3], method="greedy", max_new_tokens=4)


def test_generate_and_unmask_agree() -> None:
    it = denoiser()
    generated = ramify.generate(it, [3, 14, 15], method="threshold", max_new_tokens=8)
    assert generated.tokens == ramify.unmask(it, [3, 14, 15], max_new_tokens=8).tokens
    assert generated.tokens == ramify.unmask(it, [3, 14, 15, *[None] * 8]).tokens


def test_inside_transformers() -> None:
    it = denoiser("gpt2")
    model = it.model
    model.config.denoiser = {"mask_token_id": MASK}
    try:
        ids = torch.tensor([[3, 14, 15]])
        found: Tensor = model.generate(ids, custom_generate=create("unmask"), max_new_tokens=6, do_sample=False)
    finally:
        del model.config.denoiser
    assert found[0].tolist() == [3, 14, 15, *ramify.unmask(it, [3, 14, 15], "unmask", max_new_tokens=6).tokens]


def test_the_family_is_in_the_catalogue() -> None:
    assert set(NAMES) <= {card.name for card in catalogue() if card.family == "unmask"}
