"""Lexical unit decoding: its units, its rows in training held to decoding, its bounds, and what it leaves untouched."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.session import Session
from ramify.engine.tree import Ghosts, TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.draft.lud import LUD, TRUST, UnitDrafter, temperature
from ramify.methods.draft.lud_head import LudHead
from ramify.methods.draft.lud_units import following, layout, units
from ramify.methods.head import load_head, teach
from ramify.models.causal import CausalLM, load

WINDOW = torch.tensor([text(20, 1), text(20, 2)])
PROMPTS = [text(5, 1), text(17, 2, period=6), text(1)]


def shaken(model: CausalLM, **options: Any) -> LudHead:
    """A head with changes in every matrix and a [PAD] of its own."""
    torch.manual_seed(0)
    head = LudHead.new(model, **options)
    with torch.no_grad():
        head.pad.add_(torch.randn_like(head.pad))
        for name, weight in head.named_parameters():
            if name.endswith(("up", "whole")):
                weight.add_(0.1 * torch.randn_like(weight))
    return head.requires_grad_(False)


@functools.cache
def head_of(family: str) -> LudHead:
    return shaken(lm(family), rank=4)


def test_the_worked_units():
    p = (0.1, 0.95, 0.6, 0.2, 0.99)
    assert units(p, 0.9, 4) == [[0, 1], [2], [3, 4]]
    assert units(p, 0.5, 4) == [[0, 1, 2], [3, 4]]
    assert units(p, 0.0, 1) == [[0, 1], [2, 3], [4]]
    assert units((0.99, 0.1), 0.5, 4) == [[0], [1]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_units_cover_the_text_and_their_tails_are_what_follows(p: list[float], alpha: float, longest: int):
    found = units(p, alpha, longest)
    assert [place for unit in found for place in unit] == list(range(len(p)))
    assert all(len(unit) <= longest + 1 and all(p[place] >= alpha for place in unit[1:]) for unit in found)
    counts = following(torch.tensor([[probability >= alpha for probability in p]]), longest)[0].tolist()
    for unit in found:
        for place in unit:
            assert counts[place] >= unit[-1] - place
    for place, count in enumerate(counts):
        ahead = p[place + 1 : place + 1 + count]
        assert all(probability >= alpha for probability in ahead)
        end = place + 1 + count
        assert count == longest or end == len(p) or p[end] < alpha


def test_the_layout_in_full():
    positions, seen = layout(4, torch.tensor([[3, 1]]), 2)
    assert positions.tolist() == [[0, 1, 2, 3, 3, 4, 1, 2]]
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0],  # behind x_2, predicts x_4
        [1, 1, 1, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 1, 1],
    ]


def pads(head: LudHead, count: int) -> Ghosts:
    return UnitDrafter(LUD(head=head, k=count), head.pad).draft(context([1, 2])).ghosts


def context(tokens: list[int], sampler: Sampler | None = None) -> Context:
    return Context(tokens, 99, sampler or Sampler(), torch.Generator(), len(tokens))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2"])
def test_training_sees_what_decoding_sees(family: str):
    """[PAD]s behind every place: the training layout on the model of changes, a session on the merged model."""
    model, head = lm(family), head_of(family)
    starts = torch.arange(1, 19).expand(2, -1)
    own, guesses = head.guess(model, WINDOW, starts)
    merged = tuned(family)
    for row, tokens in enumerate(WINDOW.tolist()):
        session = Session(merged)
        for s in range(1, 19):
            tree = TokenTree(torch.tensor([], dtype=torch.long), TreeShape.of([]), ghosts=pads(head, 4))
            scores = session.score(tree.rooted(tokens[s - 1]))
            session.keep([[0]])
            torch.testing.assert_close(scores.ghosts[0], guesses[row, s - 1], atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(scores.logits[0, 0], own[row, s - 1], atol=2e-4, rtol=1e-4)


def test_pads_change_nothing_and_stay_nowhere():
    head, merged = head_of("llama"), tuned("llama")
    with_pads, plain = Session(merged), Session(merged)
    for session in (with_pads, plain):
        session.prefill([text(9)])
    tree = TokenTree(torch.tensor([4, 5]), TreeShape.chain(2), ghosts=Ghosts((1, 2), (0, 0), 0, pads(head, 2).states))
    one, other = with_pads.score(tree.rooted(3)), plain.score(TokenTree.chain([3, 4, 5]))
    torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-5)
    with_pads.keep([[0, 1, 2]])
    plain.keep([[0, 1, 2]])
    fresh = Session(merged)
    fresh.prefill([[*text(9), 3, 4, 5]])
    assert with_pads.lengths == fresh.lengths == [12]
    after = [session.score(TokenTree.chain([7])).logits for session in (with_pads, plain, fresh)]
    torch.testing.assert_close(after[0], after[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[0], after[2], atol=1e-5, rtol=1e-5)


SETTINGS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3},
    {"do_sample": True, "temperature": 0.7},
    {"do_sample": True, "temperature": 0.2},
]


@functools.cache
def tuned(family: str) -> CausalLM:
    return head_of(family).merged(lm(family))


def plain(family: str, setting: dict[str, Any]) -> list[list[int]]:
    """Plain decoding of the fine-tuned model."""
    method = "sample" if setting["do_sample"] else "greedy"
    return [r.tokens for r in generate(tuned(family), PROMPTS, method, max_new_tokens=16, seed=5, **setting)]


CASES = [("llama", setting) for setting in SETTINGS]
CASES += [(family, SETTINGS[place]) for family, place in (("mistral", 2), ("gemma2", 0), ("gpt2", 3), ("mixtral", 0))]


@pytest.mark.parametrize(("family", "setting"), CASES)
def test_what_is_exact_with_respect_to_the_tuned_model(family: str, setting: dict[str, Any]):
    expected = plain(family, setting)
    for options in ({"beta": 1.01}, {"k": 0}, {"verify": True, "beta": 0.05}, {"verify": True, "k": 1, "beta": 0.02}):
        method = LUD(head=head_of(family), **options)
        found = generate(lm(family), PROMPTS, method, max_new_tokens=16, seed=5, **setting)
        assert [each.tokens for each in found] == expected
        assert (sum(each.stats.drafted for each in found) > 15) == (options.get("verify") is True)


def test_spans_are_emitted_and_bounded():
    model, head = lm("llama"), head_of("llama")
    expected = plain("llama", SETTINGS[0])
    rates = []
    for beta in (0.02, 0.2, 0.35, 0.9):
        found = generate(model, PROMPTS, LUD(head=head, beta=beta, k=3), max_new_tokens=16, do_sample=False)
        for each in found:
            assert all(1 <= len(accepted.tokens) <= 4 for _, accepted in each.steps)
            assert each.stats.accepted == each.stats.drafted
        rates.append(sum(16 / each.stats.target_calls for each in found) / 3)
    assert [each.tokens for each in found] != expected or rates[-1] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 2.0 < rates[0] <= 4.0
    assert rates[-1] < 1.2


def test_a_span_is_the_chain_of_the_next_step_as_in_the_paper():
    """The loop of the paper, written out: c_0 at the last token, c_q at [PAD] q, commit while sure."""
    model, head = lm("qwen3"), head_of("qwen3")
    beta, k = 0.3, 4
    session = Session(tuned("qwen3"))
    tokens = text(8)
    session.prefill([tokens[:-1]])
    waiting, expected, calls = [tokens[-1]], [], 0
    while len(expected) < 30:
        n = len(waiting)
        ghosts = Ghosts(tuple(range(n - 1, n + k - 1)), (0,) * k, 0, pads(head, k).states)
        scores = session.score(TokenTree(torch.tensor(waiting), TreeShape.chain(n), ghosts=ghosts))
        session.keep([range(n)])
        calls += 1
        waiting = [int(scores.logits[0, -1].argmax())]
        for c in torch.softmax(scores.ghosts[0], dim=-1):
            if float(c.max()) < beta or int(c.argmax()) == waiting[-1]:
                break
            waiting.append(int(c.argmax()))
        expected += waiting
    method = LUD(head=head, beta=beta)
    found = generate(model, tokens, method, max_new_tokens=30, do_sample=False)
    assert found.tokens == expected[:30]
    assert found.stats.target_calls <= calls + 1


def guessing(options: LUD, *rows: dict[int, float]) -> UnitDrafter:
    """A drafter whose [PAD]s gave these probabilities."""
    drafter = UnitDrafter(options, torch.zeros(2))
    logits = torch.full((len(rows), 12), -30.0)
    for q, row in enumerate(rows):
        for token, probability in row.items():
            logits[q, token] = torch.tensor(probability).log()
    tree = TokenTree.chain([1])
    drafter.observe(Outcome(tree, torch.zeros(1, 12), [0], [3], {}, logits))
    return drafter


def test_a_span_ends_where_confidence_does_or_a_token_repeats():
    sure = ({4: 0.95, 5: 0.05}, {5: 0.92, 6: 0.08}, {6: 0.7, 7: 0.3}, {7: 1.0})
    assert guessing(LUD(), *sure).draft(context([1, 3])).tokens.tolist() == [4, 5]
    assert guessing(LUD(beta=0.93), *sure).draft(context([1, 3])).tokens.tolist() == [4]
    assert guessing(LUD(beta=0.5), *sure).draft(context([1, 3])).tokens.tolist() == [4, 5, 6, 7]
    twice = ({4: 0.95, 5: 0.05}, {4: 0.95, 5: 0.05}, {6: 1.0})
    assert guessing(LUD(), *twice).draft(context([1, 3])).tokens.tolist() == [4]
    assert guessing(LUD(), *twice).draft(context([1, 4])).tokens.tolist() == []
    assert guessing(LUD(repetition=False), *twice).draft(context([1, 4])).tokens.tolist() == [4, 4, 6]


def test_pads_stand_behind_the_span():
    tree = guessing(LUD(k=3), {4: 1.0}, {5: 1.0}, {6: 0.4, 7: 0.6}).draft(context([1, 3]))
    assert tree.shape.parents == (-1, 0)
    assert tree.ghosts.parents == (1, 2, 3)
    assert tree.ghosts.on(tree.shape).depth.tolist() == [2, 3, 4]
    assert guessing(LUD(k=2), {4: 0.5, 5: 0.5}, {4: 1.0}).draft(context([1, 3])).ghosts.parents == (-1, 0)


def test_guesses_behind_a_refused_span_are_dropped():
    drafter = guessing(LUD(verify=True), {4: 1.0})
    tree = TokenTree.chain([1, 4])
    drafter.observe(Outcome(tree, torch.zeros(2, 12), [0], [3], {}, torch.zeros(1, 12)))
    assert drafter.draft(context([1, 3])).tokens.tolist() == []
    drafter = guessing(LUD(verify=True), {4: 1.0})
    drafter.rewind(1)
    assert drafter.draft(context([1])).tokens.tolist() == []


def test_sampling_above_a_temperature_emits_no_spans():
    from transformers import TemperatureLogitsWarper

    for degrees, expected in ((0.3, [4]), (0.31, []), (1.5, [])):
        sampler = Sampler([TemperatureLogitsWarper(degrees)], greedy=False)
        assert temperature(sampler) == degrees
        drafted = guessing(LUD(), {4: 0.95, 5: 0.05}).draft(context([1, 3], sampler))
        assert drafted.tokens.tolist() == expected
        assert (drafted.ghosts is None) == (not expected)
        assert guessing(LUD(verify=True), {4: 0.95}).draft(context([1, 3], sampler)).tokens.tolist() == [4]
    assert temperature(Sampler()) == 0.0
    assert temperature(Sampler(greedy=False)) == 1.0


def test_processors_are_heard():
    """What they forbid is not emitted, and what they leave is only as sure as the model was of it."""

    def forbid(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.tensor([4 if int(ids[0, -1]) == 3 else 5]), -torch.inf)

    sampler = Sampler([forbid])
    assert guessing(LUD(beta=0.3), {4: 0.6, 6: 0.4}, {5: 0.9, 7: 0.1}).draft(
        context([1, 3], sampler)
    ).tokens.tolist() == [6]
    assert guessing(LUD(), {4: 0.95, 6: 0.05}).draft(context([1, 3], sampler)).tokens.tolist() == []


def test_the_rule_of_trust_takes_the_chain_and_is_marked():
    assert not TRUST.lossless
    assert LUD(head=None).rule is TRUST
    assert LUD(verify=True).rule.lossless
    target: Any = SimpleNamespace(pick=lambda node: 70 + node)
    verdict = TRUST.function(TokenTree.chain([1, 2, 3]), target, torch.Generator())
    assert (verdict.path, verdict.token) == ((0, 1, 2), 72)
    assert not LUD.card.lossless


@functools.cache
def frozen() -> CausalLM:
    """The target of training, as loading a folder gives it."""
    return load(build("llama").requires_grad_(False))


def learn(head: LudHead, model: CausalLM, steps: int = 40, window: Tensor = WINDOW) -> list[float]:
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = head.loss(model, window)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("options", [{"rank": 3}, {}], ids=str)
def test_it_learns_and_leaves_the_target_alone(options: dict[str, Any]):
    model = frozen()
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    # alpha 0: every token continues a unit, so this random model has something to learn from.
    torch.manual_seed(0)
    head = LudHead.new(model, **{"alpha": 0.0, "longest": 2} | options)
    window = torch.tensor([text(24, period=6), text(24, 1, period=6)])
    losses = learn(head, model, 40, window)
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    figures = head.measure(model, window)
    assert figures["nats a token"] < 0.8 * figures["nats a token of the base"]
    assert figures["right at [PAD] 1"] > 0.2
    # The merged model is the one that was trained.
    own, _ = head.guess(model, window, torch.ones(2, 1, dtype=torch.long))
    torch.testing.assert_close(teach(head.merged(model), window).logits, own, atol=1e-4, rtol=1e-4)


def test_branches_are_units_of_the_base_model():
    model = lm("llama")
    p = torch.softmax(teach(model, WINDOW).logits, dim=-1)
    p = p[:, :-1].gather(-1, WINDOW[:, 1:, None])[..., 0]
    alpha = float(p.quantile(0.6))
    head = LudHead.new(model, rank=1, alpha=alpha, longest=3, starts=0.4)
    starts, wanted = head.branches(model, WINDOW)
    assert starts.shape == (2, 8)
    assert wanted.any(dim=-1).float().mean() > 0.6
    for row in range(2):
        assert len(set(starts[row][wanted[row].any(-1)].tolist())) == int(wanted[row].any(-1).sum())
        for s, marks in zip(starts[row].tolist(), wanted[row].tolist(), strict=True):
            for q, mark in enumerate(marks, 1):
                continues = all(s + ahead < 20 and float(p[row, s + ahead - 1]) >= alpha for ahead in range(1, q + 1))
                assert mark == continues or not any(marks)
    again = head.branches(model, WINDOW)
    assert torch.equal(starts, again[0])  # a pure function of the window
    full = LudHead.new(model, rank=1, alpha=1.0, longest=3, starts=0.4, full=1.0)
    starts, wanted = full.branches(model, WINDOW)
    assert wanted.sum(-1).tolist() == (19 - starts).clamp(max=3).tolist()


def test_a_saved_head_merges_the_same(tmp_path: Path):
    model = lm("llama")
    for options in ({"rank": 4}, {}):
        head = shaken(model, **options)
        head.save(tmp_path)
        again = load_head(LudHead, tmp_path, model)
        assert again.sizes == head.sizes
        one, other = (teach(each.merged(model), WINDOW).logits for each in (head, again))
        assert torch.equal(one, other)
        assert not torch.allclose(one, teach(model, WINDOW).logits, atol=1e-2)


def test_the_copy_runs_as_the_target_does():
    plain_, packed = lm("llama", "transformers"), lm("gemma2")
    for model in (plain_, packed):
        merged = head_of("llama" if model is plain_ else "gemma2").merged(model)
        assert merged.how == model.how
        assert merged.model is not model.model
    method = LUD(head=head_of("llama"))
    assert method.model(lm("llama")) is method.model(lm("llama"))


def test_bad_input():
    model = lm("llama")
    for make, sentence in (
        (lambda: LUD(k=-1), "k must be at least 0, got -1"),
        (lambda: LUD(beta=0.0), "beta must be above 0"),
        (lambda: LudHead.new(model, rank=0), "rank must be at least 1, got 0"),
        (lambda: LudHead.new(model, longest=0), "longest must be at least 1"),
        (lambda: LudHead.new(model, alpha=1.5), "alpha lies between 0 and 1"),
        (lambda: LudHead.new(model, full=-0.1), "full lies between 0 and 1"),
        (lambda: LudHead.new(model, starts=0.0), "starts is a number of branches per token"),
        (lambda: LudHead.new(model, rnak=3), "unknown size of a lud head: 'rnak'; did you mean 'rank'"),
        (lambda: head_of("llama").loss(model, WINDOW[:, :5]), "windows of 5 tokens are too short"),
        (lambda: generate(model, text(4), "lud"), "there is no lud head for"),
        (
            lambda: generate(lm("phi3"), text(4), LUD(head=head_of("llama"))),
            "changes other matrices than Phi3ForCausalLM",
        ),
    ):
        with pytest.raises(RamifyError, match=sentence):
            make()
