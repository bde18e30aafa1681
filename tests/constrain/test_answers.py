"""Exact scoring of answer sets: the worked example, brute force on random models, and what masking does instead."""

from __future__ import annotations

import functools
import math
from collections import Counter

import pytest
import torch
from families import CONTEXT, VOCABULARY, build, byte_lm, fresh, lm, model, text
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.testing import assert_close

import ramify.constrain.answers as module
from ramify.constrain import Constrained, Vocabulary, phrases, score_answers, score_phrases, trace
from ramify.constrain.graph import Branches, Graph
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM, load

A, B, C, END = 5, 6, 7, 1
ANSWERS = [[A, B], [A, C], [B]]  # section 4 of the notes on constrained decoding
LAW = {A: 0.5, B: 0.2, C: 0.1, END: 0.2}
EXACT = [0.2857, 0.1429, 0.5714]
LOCAL = [0.4762, 0.2381, 0.2857]


@functools.cache
def independent() -> CausalLM:
    """A model whose next token has the same law everywhere: a .5, b .2, c .1, end .2."""
    constant = build("llama", max_position_embeddings=CONTEXT)
    with torch.no_grad():
        constant.lm_head.weight.zero_()
        bias = torch.full((VOCABULARY,), -60.0)
        for token, probability in LAW.items():
            bias[token] = math.log(probability)
        constant.lm_head.bias = torch.nn.Parameter(bias)
    return load(constant)


def answer_set(answers: list[list[int]], end: int = END) -> Graph:
    branches = Branches()
    ends = [branches.add(answer) for answer in answers]
    return Graph(Vocabulary(VOCABULARY, VOCABULARY, frozenset([end])), branches.steps, ends)


def test_the_worked_example():
    scores = score_answers(independent(), [9, 9], ANSWERS, [END])
    assert_close(scores.probabilities, torch.tensor(EXACT, dtype=torch.float64), atol=1e-4, rtol=0)
    assert scores.mass == pytest.approx(0.07, abs=1e-6)
    assert scores.best == 2
    assert scores.lengths == [3, 3, 2]
    assert_close(scores.per_token, scores.log_probs / torch.tensor([3, 3, 2]))


def test_masking_token_by_token_is_another_law():
    """Chi-squared of samples under ``Constrained`` against the products; the exact law is far away."""
    rows = 3000
    prompt = torch.full((rows, 2), 9)
    torch.manual_seed(0)
    ids = independent().model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=4, eos_token_id=END,
        logits_processor=[Constrained(answer_set(ANSWERS), 2)],
    )  # fmt: skip
    said = Counter(tuple(row[2 : 2 + row[2:].index(END)]) for row in ids.tolist())
    assert said.keys() == {tuple(answer) for answer in ANSWERS}
    counts = [said[tuple(answer)] for answer in ANSWERS]
    assert chisquare(counts, [rows * share / sum(LOCAL) for share in LOCAL]).pvalue > 0.01
    assert chisquare(counts, [rows * share / sum(EXACT) for share in EXACT]).pvalue < 1e-9


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "qwen3_moe", "mamba"])
def test_one_tree_pass_is_every_answer_by_itself(family: str):
    prompt = text(12, 3, period=5)
    answers = [[5], [5, 6], [5, 6, 7], [5, 8], [9, 9, 9, 9], [40, 41], [40]]
    ends = [1, 2]
    expected = []
    for answer in answers:
        logp = torch.log_softmax(fresh(family, [*prompt, *answer]).double(), dim=-1)[len(prompt) - 1 :]
        parts = logp[range(len(answer)), answer].sum()
        expected.append(parts + torch.logsumexp(logp[len(answer), ends], dim=0))
    scores = score_answers(lm(family), prompt, answers, ends)
    assert_close(scores.log_probs, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert float(scores.probabilities.sum()) == pytest.approx(1.0, abs=1e-9)
    assert 0 < scores.mass < 1


def test_many_answers_run_in_several_tries(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    answers = [
        list(each) for each in {tuple(torch.randint(2, 8, (4,), generator=generator).tolist()) for _ in range(60)}
    ]
    whole = score_answers(lm("llama"), text(7, 1), answers, [1])
    monkeypatch.setattr(module, "NODES", 9)
    assert len(module._trees([tuple(answer) for answer in answers], 3, True)) > 20
    assert_close(score_answers(lm("llama"), text(7, 1), answers, [1]).log_probs, whole.log_probs, atol=1e-5, rtol=1e-5)


def test_all_strings_of_a_length_have_all_the_mass():
    """Without an end, p is the probability of a beginning: those of one length sum to 1."""
    every = [[token] for token in range(VOCABULARY)]
    scores = score_answers(lm("llama"), text(5, 2), every, ())
    assert scores.mass == pytest.approx(1.0, abs=1e-5)
    assert_close(scores.probabilities, torch.softmax(fresh("llama", text(5, 2))[-1].double(), -1), atol=1e-6, rtol=1e-4)


def test_a_single_answer_has_probability_one():
    scores = score_answers(lm("llama"), text(5, 2), [[3, 4]], [1])
    assert scores.probabilities.tolist() == [1.0]


@given(st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8, unique=True))
@settings(max_examples=25)
def test_the_order_of_answers_means_nothing(answers: list[tuple[int, ...]]):
    forth = score_answers(lm("gpt2"), [7, 8], answers, [1])
    back = score_answers(lm("gpt2"), [7, 8], answers[::-1], [1])
    assert_close(forth.log_probs, back.log_probs.flip(0), atol=1e-5, rtol=1e-5)


def test_a_wide_beam_without_renormalising_finds_the_likeliest_answer():
    """Rule (iii): beams over the raw log-probabilities, masked."""
    answers = [[5, 6, 7], [5, 6], [8], [9, 10, 11, 12], [5, 13], [8, 14, 15]]
    for seed in range(4):
        prompt = text(6, seed)
        found = model("llama").generate(
            torch.tensor([prompt]), num_beams=8, max_new_tokens=6, eos_token_id=1, length_penalty=0.0,
            logits_processor=[Constrained(answer_set(answers), 6)],
        )[0, 6:].tolist()  # fmt: skip
        assert found[: found.index(1)] == answers[score_answers(lm("llama"), prompt, answers, [1]).best]


def test_texts_and_their_spellings():
    prompt = "Where? "
    scores = score_phrases(byte_lm(), prompt, ["Rome", "Oslo"])
    ids = byte_lm().encode(prompt)
    end = sorted(Vocabulary.of(byte_lm()).ends)
    for place, name in enumerate(["Rome", "Oslo"]):
        both = score_answers(byte_lm(), ids, [list(name.encode()), list(b" " + name.encode())], end)
        assert float(scores.log_probs[place]) == pytest.approx(math.log(both.mass), abs=1e-5)
    assert scores.answers == ("Rome", "Oslo")
    prior = score_phrases(byte_lm(), "?", ["Rome", "Oslo"])
    assert_close(scores.beyond(prior), scores.log_probs - prior.log_probs)
    begun = score_phrases(byte_lm(), prompt, ["Rome", "Oslo"], ended=False)
    assert bool((begun.log_probs > scores.log_probs).all())
    with pytest.raises(RamifyError, match="other answers"):
        scores.beyond(score_phrases(byte_lm(), "?", ["Rome", "Bern"]))


def test_what_a_constraint_kept():
    constraint = answer_set(ANSWERS)
    found = trace(independent(), [9, 9], [A, B], constraint)
    assert found.masses == pytest.approx((0.7, 0.3, 0.2), abs=1e-6)
    assert math.exp(found.log_prob) == pytest.approx(0.5 * 0.2 * 0.2, abs=1e-6)
    cut = trace(independent(), [9, 9], [A], constraint)
    assert cut.masses == pytest.approx((0.7,), abs=1e-6)
    assert math.exp(cut.log_prob) == pytest.approx(0.5, abs=1e-6)


def test_bad_answer_sets():
    for answers in ([], [[]], [[5], []]):
        with pytest.raises(RamifyError, match="at least one answer, and each at least one token"):
            score_answers(lm("llama"), [3], answers, [1])
    with pytest.raises(RamifyError, match="names one answer twice"):
        score_answers(lm("llama"), [3], [[5], [5]], [1])
    with pytest.raises(RamifyError, match="prompt is empty"):
        score_answers(lm("llama"), [], [[5]], [1])
    with pytest.raises(RamifyError, match="makes nothing of the answer"):
        score_phrases(byte_lm(), "Where?", ["Rome", ""])
    with pytest.raises(RamifyError, match="do not fit the context"):
        score_answers(lm("llama"), text(CONTEXT - 2), [[5, 6, 7]], [1])
    with pytest.raises(RamifyError, match="empty"):
        phrases(Vocabulary.of(byte_lm()), [])
