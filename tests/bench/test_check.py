"""``verify``: lossless methods pass, changed tokens are found, and nothing is promised that cannot be held."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from families import VOCABULARY, build, fresh, lm, text

from ramify.api import generate
from ramify.bench.check import Check, Verification, verify
from ramify.engine.events import Accepted, Event
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods import registry
from ramify.methods.base import Method
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.autoregressive import Greedy
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM, load
from ramify.models.weights import unavailable

PROMPTS = [text(5, 1), text(17, 2, period=6), text(9, 3, period=3)]
NEW = 20


def check(method: Any, model: CausalLM | None = None, **settings: Any) -> Verification:
    return verify(model or lm("llama"), method, PROMPTS, max_new_tokens=NEW, **settings)


@pytest.fixture
def wrong() -> Iterator[type[Method]]:
    """A method that promises to be lossless, but changes token ``at`` of every second prompt."""

    @registry.register(
        name="wrong", title="A Wrong Method", paper="none", family="draft", needs=("logits",), lossless=True
    )
    @dataclass(frozen=True)
    class Wrong(Greedy):
        """Greedy decoding with one token changed."""

        at: int = 7
        every: int = 2

        def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
            seen = self.memory["calls"] = self.memory.get("calls", 0) + 1
            place = 0
            for event in super().run(lm, requests):
                if isinstance(event, Accepted):
                    if place == self.at and (seen - 1) % self.every == self.every - 1:
                        event = replace(event, tokens=((event.tokens[0] + 1) % VOCABULARY,))
                    place += 1
                yield event

    yield Wrong
    registry._registered.pop("wrong")


@pytest.mark.parametrize("method", [PromptLookup(length=5), Suffix(length=20), TokenRecycling(nodes=16), "greedy"])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.8, "repetition_penalty": 1.2}])
def test_lossless_methods_pass(method: Any, settings: dict[str, Any]):
    if method == "greedy" and settings:
        method = "sample"
    heard: list[tuple[int, int]] = []
    found = check(method, seed=3, progress=lambda done, total: heard.append((done, total)), **settings)
    assert found.ok
    assert [(one.name, one.ok) for one in found.checks] == [
        ("token trees", True),
        ("forward", True),
        ("same output", True),
    ]
    assert found.checks[1].detail == "fused, plain weights"
    assert found.checks[2].detail == f"3 of 3 prompts identical to plain decoding over {NEW} tokens"
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert found.model == "LlamaForCausalLM"


def test_a_wrong_token_is_found(wrong: Any):
    found = check("wrong")
    assert not found.ok
    assert found.method == "wrong"
    trees, _, second, same = found.checks
    assert (trees.ok, second.ok, same.ok) == (True, False, False)
    assert second.name == "prompt 2"
    assert same.detail.startswith("2 of 3 prompts identical")
    # The gap of the logits there, by transformers' own pass.
    before = generate(lm("llama"), PROMPTS[1], "greedy", max_new_tokens=NEW).tokens[:7]
    logits = fresh("llama", PROMPTS[1] + before)[-1]
    said = re.fullmatch(
        r"differs at token 7, where the two best logits are (\S+) apart \(all logits spread by (\S+)\)", second.detail
    )
    assert said
    best = logits.topk(2).values
    assert float(said[1]) == pytest.approx(float(best[0] - best[1]), rel=0.01)
    assert float(said[2]) == pytest.approx(float(logits.std()), rel=0.01)


def test_the_first_token_counts_as_well(wrong: Any):
    found = check(wrong(at=0, every=1))
    assert [one.detail[:18] for one in found.checks[2:5]] == ["differs at token 0"] * 3
    assert found.checks[-1].detail.startswith("0 of 3")


def test_a_sampled_difference_has_no_gap(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wrong, "pinned", {})
    found = check(wrong(every=1), do_sample=True, temperature=0.7)
    assert not found.ok
    assert [one.detail for one in found.checks[2:5]] == ["differs at token 7"] * 3


def test_too_few_tokens_are_a_difference(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    def short(self: Any, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        for place, event in enumerate(Greedy().run(lm, requests)):
            if place < 9:
                yield event

    monkeypatch.setattr(wrong, "run", short)
    found = check("wrong")
    assert not found.ok
    assert "differs at token 4" in found.checks[2].detail  # prefill, then two events a token


needs_int8 = pytest.mark.skipif(bool(unavailable("int8", torch.float32, "cpu")), reason="no int8 products here")


def int8() -> CausalLM:
    model = load(build("llama"), weights="int8")
    model.notes.clear()
    return model


@functools.cache
def half() -> CausalLM:
    return load(build("llama").to(torch.bfloat16))


def test_half_precision_is_not_promised(wrong: Any):
    found = check("wrong", half())
    assert [one.ok for one in found.checks] == [True, True, None, None]
    assert found.ok
    assert "differs at token 7" in found.checks[2].detail
    assert check("greedy", half()).checks[-1].ok is True


def test_lossy_methods_promise_nothing(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wrong, "card", replace(wrong.card, lossless=False))
    found = check("wrong")
    assert [one.ok for one in found.checks] == [True, True, None, None]
    assert found.ok


def test_a_model_without_trees_says_why():
    found = verify(lm("mamba"), "greedy", PROMPTS[:1], max_new_tokens=4)
    assert found.ok
    trees = found.checks[0]
    assert (trees.name, trees.ok, trees.detail) == ("token trees", None, lm("mamba").reason)
    with pytest.raises(RamifyError, match="cannot run drafts"):
        verify(lm("mamba"), PromptLookup(length=3), PROMPTS[:1], max_new_tokens=4)


def test_the_forward_that_runs_is_named_with_its_reason():
    def forward(model: CausalLM) -> Check:
        [one] = [one for one in verify(model, "greedy", PROMPTS[:1], max_new_tokens=2).checks if one.name == "forward"]
        return one

    own = "transformers, plain weights; "
    assert forward(lm("llama", "transformers")) == Check(
        "forward", True, f"{own}transformers' forward pass was asked for"
    )
    declined = forward(lm("gpt2"))
    assert declined.ok is True
    assert declined.detail.startswith(f"{own}no fused forward pass: GPT2LMHeadModel is none of the families")
    # Hooked after loading: what runs now is said, not what ran then.
    hooked = load(build("llama"))
    hooked.model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert "hooks are registered" in forward(hooked).detail


@needs_int8
def test_rounded_weights_are_exact_with_respect_to_themselves(wrong: Any):
    rounded = int8()
    found = check(PromptLookup(length=5), rounded)
    assert found.ok
    weights = found.checks[2]
    assert (weights.name, weights.ok) == ("weights", None)
    assert weights.detail == "exact with respect to the int8 model, not to the one it was rounded from"
    assert found.checks[-1].ok is True
    assert not check("wrong", rounded).ok
    rounded.notes.append("o_proj stays as it was: too wide")  # asked for, and not had everywhere
    found = check("greedy", rounded)
    assert found.checks[1] == Check("forward", None, "fused, int8 weights; o_proj stays as it was: too wide")
    assert found.ok


@needs_int8
def test_transformers_own_loops_decode_the_model_itself():
    other = build("llama", seed=9)
    rounded = int8()
    rounded.again = lambda: other
    found = check("hf-greedy", rounded)
    assert found.ok
    assert [one.ok for one in found.checks][-1] is None
    assert found.checks[-1].detail.startswith("0 of 3")


def test_greedy_and_sampled_decoding_are_compared_with_their_like():
    assert check("sample", seed=5).ok  # a method that always samples
    assert check("greedy", do_sample=True, temperature=0.7).ok  # one that never does
    sampling = build("llama")
    sampling.generation_config.do_sample = True  # as many published models have it
    assert check(PromptLookup(length=4), load(sampling)).ok


def test_own_noise_cannot_be_compared_token_by_token():
    sampled = {"do_sample": True, "temperature": 0.7}
    for verifier in ("speculative", "block"):
        method = Assistant(model=lm("llama"), verifier=verifier)  # type: ignore[arg-type]
        with pytest.raises(RamifyError, match="draws its own noise when it samples"):
            check(method, **sampled)
        assert check(method).ok
    assert check(Assistant(model=lm("llama"), verifier="match"), **sampled).ok
    with pytest.raises(RamifyError, match="hf-prompt-lookup draws its own noise when it samples"):
        check("hf-prompt-lookup", **sampled)
    assert check("hf-prompt-lookup").ok
    assert check("hf-greedy", **sampled).ok


def test_findings_as_json():
    found = Verification("m", "x", [Check("a", True, "fine"), Check("b", None, "open")])
    assert found.ok
    assert json.loads(json.dumps(found.to_dict())) == {
        "model": "m",
        "method": "x",
        "ok": True,
        "checks": [{"name": "a", "ok": True, "detail": "fine"}, {"name": "b", "ok": None, "detail": "open"}],
    }
    found.checks.append(Check("c", False, "bad"))
    assert found.to_dict()["ok"] is False
