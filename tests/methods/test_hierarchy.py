"""A drafter inside the drafter: exact at every depth, with the chains and the cached text that it should have."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from families import build, lm, text
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper

from methods.test_assistant import Shared, blurred, table_lm
from methods.test_lossless import CARDS, NAMES, make
from ramify.api import generate
from ramify.engine.drafter import Context, Drafter
from ramify.engine.events import Accepted, Drafted
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.assistant import Assistant, Chain
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.methods.registry import find
from ramify.models.causal import CausalLM, load
from ramify.models.fused import FusedForward

PROMPTS = [text(11, 6, period=4), text(5, 1), text(17, 2, period=6)]
GREEDY: dict[str, Any] = {}
SAMPLED = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.15, "seed": 7}
SETTINGS = pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
M, LEVELS, NEW = 6, 3, 50
RECYCLING = TokenRecycling(template="paper", nodes=29)


def hierarchy(model: CausalLM, **options: Any) -> Assistant:
    given: dict[str, Any] = {"length": M, "levels": LEVELS, "schedule": "constant", "verifier": "match"}
    return Assistant(model=model, **({"inner": RECYCLING} | given | options))


@functools.cache
def more_blurred() -> CausalLM:
    model = build("llama")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.12 * weight.std() * torch.randn(weight.shape, generator=generator))
    return load(model)


def plain(settings: dict[str, Any]) -> list[list[int]]:
    return _plain(bool(settings))


@functools.cache
def _plain(sampled: bool) -> list[list[int]]:
    settings = SAMPLED if sampled else GREEDY
    name = "sample" if settings else "greedy"
    return [each.tokens for each in generate(lm("llama"), PROMPTS, name, max_new_tokens=NEW, **settings)]


def run(method: Assistant, settings: dict[str, Any]) -> list[Result]:
    results: list[Result] = generate(lm("llama"), PROMPTS, method, max_new_tokens=NEW, **settings)
    return results


# ---------------------------------------------------------------- invariants


@SETTINGS
def test_chains_have_m_to_m_plus_levels_tokens(settings: dict[str, Any]):
    results = run(hierarchy(blurred()), settings)
    assert [each.tokens for each in results] == plain(settings)
    sizes = Counter[int]()
    for result in results:
        drafts = [draft for draft, _ in result.steps if draft]
        assert all(draft.tree.shape.is_chain for draft in drafts)
        left = NEW
        for draft, accepted in result.steps:
            if draft and left > M + LEVELS:
                sizes[len(draft.tree)] += 1
            left -= len(accepted.tokens)
    assert set(sizes) <= set(range(M, M + LEVELS + 1))
    assert len(sizes) >= 3


@SETTINGS
@pytest.mark.parametrize("verifier", ["match", "speculative", "block"])
def test_of_itself_everything_is_accepted(verifier: Any, settings: dict[str, Any]):
    for result in run(hierarchy(lm("llama"), verifier=verifier), settings):
        assert result.stats.accepted == result.stats.drafted
        assert result.stats.target_calls <= -(-NEW // (M + 1))


@SETTINGS
def test_with_its_drafter_off_it_is_a_plain_chain(settings: dict[str, Any]):
    without = run(hierarchy(blurred(), inner=None), settings)
    off = run(hierarchy(blurred(), inner="token-recycling:nodes=0"), settings)
    for mine, theirs in zip(without, off, strict=True):
        assert [step.tree.tokens.tolist() for step in mine.events if isinstance(step, Drafted)] == [
            step.tree.tokens.tolist() for step in theirs.events if isinstance(step, Drafted)
        ]
        assert {len(step.tree) for step in mine.events if isinstance(step, Drafted)} <= set(range(M + 1))


@dataclass(frozen=True)
class Guessing(DraftMethod):
    """Random chains or trees, drawn from the randomness that the loop hands out."""

    card = find("token-recycling").card

    tokens: int = 96
    depth: int = 3
    width: int = 1

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        return _Guess(self)


class _Guess(Drafter):
    def __init__(self, options: Guessing) -> None:
        self.options = options
        self.seen: list[int] = []

    def draft(self, context: Context) -> TokenTree:
        self.seen.append(context.levels)
        shape = (self.options.width, self.options.depth)
        guesses = torch.randint(self.options.tokens, shape, generator=context.generator)
        return TokenTree.from_paths(guesses.tolist())


def test_with_one_token_a_chain_within_is_two_level_speculation():
    """Then every draft is one step of the inner loop: what its chain got right, and one token more."""
    inner = hierarchy(more_blurred(), inner=None, length=2)
    outer = hierarchy(blurred(), inner=inner, length=1)
    drafter = outer.drafter(lm("llama"), Request(PROMPTS[0], 200))
    context = Context(list(PROMPTS[0]), 20, Sampler(), torch.Generator(), len(PROMPTS[0]))
    sizes = set()
    for _ in range(12):
        tree = drafter.draft(context)
        own = generate(blurred(), context.tokens, "greedy", max_new_tokens=len(tree)).tokens
        low = generate(more_blurred(), context.tokens, "greedy", max_new_tokens=2).tokens
        assert tree.tokens.tolist() == own
        right = next((place for place, token in enumerate(low) if place >= len(own) or token != own[place]), 2)
        assert len(tree) == right + 1
        sizes.add(len(tree))
        context.tokens += own[:1]
        context.position += 1
    assert sizes == {1, 2, 3}


@SETTINGS
def test_after_a_refusal_the_cache_is_that_of_a_fresh_reading(settings: dict[str, Any], monkeypatch: Any):
    compared = Counter[str]()

    def draft(self: Chain, context: Context) -> TokenTree:
        before = list(self.decoder.row.tokens) if self.decoder else []
        tree = original(self, context)
        if self.decoder is None or not len(tree):
            return tree
        compared["refused" if before[: len(context.tokens)] != context.tokens[: len(before)] else "whole"] += 1
        session, fresh = self.decoder.session, Session(self.lm)
        wanted = [*context.tokens, *tree.tokens.tolist()][: session.lengths[0]]
        fresh.prefill([wanted])
        assert session.lengths[0] == len(context.tokens) + len(tree) - 1
        for mine, theirs in zip(session._cache.row_layers, fresh._cache.row_layers, strict=True):
            for one, other in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                assert one is not None
                assert other is not None
                torch.testing.assert_close(one[:, :, : len(wanted)], other[:, :, : len(wanted)], atol=1e-4, rtol=1e-4)
        return tree

    original = Chain.draft
    monkeypatch.setattr(Chain, "draft", draft)
    run(hierarchy(blurred()), settings)
    assert compared["refused"] > 5
    assert compared["whole"] > 3


def test_after_a_whole_acceptance_no_pass_is_lost(monkeypatch: Any):
    """The last drafted token, which has no entry in the cache yet, is read along with the next tree."""
    passes = Counter[CausalLM]()
    forward = FusedForward.__call__

    def counted(self: Any, nodes: Any, cache: Any) -> Any:
        passes[self.model] += 1
        return forward(self, nodes, cache)

    target, small = load(build("llama")), load(build("llama"))  # equal weights
    assert isinstance(target.forward, FusedForward)
    monkeypatch.setattr(FusedForward, "__call__", counted)
    method = Assistant(model=small, length=4, schedule="constant", verifier="match")
    result = generate(target, PROMPTS[0], method, max_new_tokens=20)
    assert result.stats.target_calls == 4
    assert passes[small.model] == 1 + 3 * 4 + 4  # its prefill and a pass for every drafted token, no more


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("verifier", ["speculative", "block"])
def test_the_first_tokens_follow_the_targets_law(verifier: Any):
    """Whatever the inner drafter guesses, and although it shares its randomness with the draws that judge it."""
    vocabulary, samples = 4, 1000
    target, assistant = table_lm(vocabulary, 1, Shared()), table_lm(vocabulary, 2, Shared())
    processors: Any = [TemperatureLogitsWarper(0.8), TopKLogitsWarper(3)]
    requests = [Request([2], 5, Sampler(processors, greedy=False, noise=Noise(seed))) for seed in range(samples)]
    inner = Guessing(vocabulary, depth=2, width=2)
    method = hierarchy(assistant, inner=inner, length=2, levels=2, verifier=verifier)
    tokens: dict[int, list[int]] = {row: [] for row in range(samples)}
    for event in method.run(target, requests):
        if isinstance(event, Accepted):
            tokens[event.row].extend(event.tokens)
    counts = Counter((row[0], row[1], row[2]) for row in tokens.values())

    def law(position: int, token: int) -> torch.Tensor:
        prefix = torch.full((position + 1,), token)
        return requests[0].sampler.law(prefix, target.forward.logits[position % 3, token]).double()  # type: ignore[attr-defined]

    exact = {
        (a, b, c): float(law(0, 2)[a] * law(1, a)[b] * law(2, b)[c])
        for a in range(vocabulary)
        for b in range(vocabulary)
        for c in range(vocabulary)
    }
    likely = sorted((p, triple) for triple, p in exact.items() if p > 0)
    assert set(counts) <= {triple for _, triple in likely}
    # Cells of few expected samples are put together.
    rare = [triple for p, triple in likely if p * samples < 8]
    common = [triple for p, triple in likely if p * samples >= 8]
    seen = [*(counts[triple] for triple in common), sum(counts[triple] for triple in rare)]
    expected = [*(exact[triple] for triple in common), sum(exact[triple] for triple in rare)]
    total = sum(expected)
    assert chisquare(seen, [samples * p / total for p in expected]).pvalue > 1e-3


def test_the_chain_itself_follows_the_assistants_law():
    """Its tokens are draws of q, each recorded with its law, wherever the chain ends."""
    vocabulary, samples = 4, 1000
    assistant = table_lm(vocabulary, 2, Shared())
    method = hierarchy(assistant, inner=Guessing(vocabulary, 2, 2), length=1, levels=2, verifier="speculative")
    counts = Counter[int]()
    lengths = Counter[int]()
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler([], greedy=False)
    for _ in range(samples):
        drafter = method.drafter(table_lm(vocabulary, 1, Shared()), Request([2], 9, sampler))
        tree = drafter.draft(Context([2], 6, sampler, generator, 1))
        lengths[len(tree)] += 1
        for place in range(len(tree)):
            token = int(tree.tokens[place - 1]) if place else 2
            law = sampler.law(torch.tensor([token]), assistant.forward.logits[place % 3, token])  # type: ignore[attr-defined]
            torch.testing.assert_close(tree.drawn[place - 1].law, law)
        counts[int(tree.tokens[0])] += 1
    law = sampler.law(torch.tensor([2]), assistant.forward.logits[0, 2])  # type: ignore[attr-defined]
    assert (
        chisquare([counts[t] for t in range(4)], (samples * law.double() / law.double().sum()).tolist()).pvalue > 1e-3
    )  # type: ignore[index]
    assert set(lengths) == {1, 2, 3}


# ---------------------------------------------------------------- composition


@pytest.mark.parametrize("card", CARDS, ids=NAMES)
def test_every_drafter_works_inside_an_assistant(card: Any):
    """Also those that keep things by position: the text is taken back from them again and again."""
    inner = make(card.name, "llama")
    results = run(hierarchy(blurred(), inner=inner), SAMPLED)
    assert [each.tokens for each in results] == plain(SAMPLED)
    assert sum(each.stats.accepted for each in results) > 20


@pytest.mark.parametrize("which", ["first", "recent"])
def test_prompt_lookup_forgets_what_was_taken_back(which: Any):
    drafter: Any = PromptLookup(ngram=2, length=3, match=which).drafter(lm("llama"), Request([1], 40))

    def draft(tokens: list[int]) -> list[int]:
        found: list[int] = drafter.draft(Context(tokens, 9, Sampler(), torch.Generator(), len(tokens))).tokens.tolist()
        return found

    assert draft([1, 2, 3, 4, 5, 6, 3, 4]) == [5, 6, 3]
    drafter.rewind(3)
    assert draft([1, 2, 3, 7, 3, 4]) == []
    drafter.rewind(5)
    assert draft([1, 2, 3, 7, 3]) == ([7, 3] if which == "first" else [])  # the latest 3 is the last one again
    assert draft([1, 2, 3, 7, 3, 8, 7, 3]) == [8, 7, 3]


@SETTINGS
@pytest.mark.parametrize("verifier", ["match", "speculative", "block"])
def test_assistants_of_assistants(verifier: Any, settings: dict[str, Any]):
    lowest = hierarchy(more_blurred(), length=3, verifier=verifier)
    middle = hierarchy(more_blurred(), inner=lowest, length=4, verifier=verifier)
    results = run(hierarchy(blurred(), inner=middle, verifier=verifier), settings)
    assert all(len(each.tokens) == NEW for each in results)
    if verifier == "match" or not settings:
        assert [each.tokens for each in results] == plain(settings)
    assert sum(each.stats.accepted for each in results) > 20


@SETTINGS
def test_a_plain_token_first(settings: dict[str, Any]):
    """After a refusal the first token of a chain comes without a tree: then it often takes a pass more."""
    results = run(hierarchy(blurred(), plain_first=True, length=1), settings)
    assert [each.tokens for each in results] == plain(settings)
    for result in results:
        refused = False
        for draft, accepted in result.steps:
            if refused and draft:
                assert len(draft.tree) <= 1
            refused = bool(draft) and len(accepted.path) < len(draft.tree)


@SETTINGS
def test_one_object_serves_batches_and_remembers(settings: dict[str, Any]):
    method = hierarchy(blurred())
    first = run(method, settings)
    assert [each.tokens for each in run(method, settings)] == [each.tokens for each in first] == plain(settings)
    assert method.memory["inner"].memory
    assert not RECYCLING.memory  # of which it took a copy, so that nothing is learned twice
    fresh = replace(method)
    assert not fresh.memory


def test_what_cannot_draft_is_refused():
    with pytest.raises(RamifyError, match="hf-greedy makes no drafts, so it cannot be part of an assistant"):
        hierarchy(blurred(), inner="hf-greedy")
    with pytest.raises(RamifyError, match="unknown method 'token-recyclin'; did you mean 'token-recycling'"):
        hierarchy(blurred(), inner="token-recyclin")
    with pytest.raises(RamifyError, match="one method, not 2; put several into a union"):
        hierarchy(blurred(), inner="token-recycling,suffix")
    with pytest.raises(RamifyError, match="levels must be at least 1, got 0"):
        hierarchy(blurred(), levels=0)
