"""Lookups in the text so far: prompt lookup, the suffix automaton against brute force, and how long a copy pays."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import lm, text
from hypothesis import given
from hypothesis import strategies as st

import ramify.methods.draft.prompt_lookup as prompt_lookup
import ramify.methods.draft.suffix as suffix
from ramify.api import generate
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.sizing import PRIOR, RETRY, ChainLength
from ramify.methods.draft.suffix import Suffix, SuffixAutomaton
from ramify.models.calibrate import CostCurve

FREE = CostCurve("free", [1, 100], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 100], [1.0, 2.0, 100.0])
texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def drafter(method: Any) -> Drafter:
    """The drafter of a method whose length is given, so that no model is asked."""
    made: Drafter = method.drafter(SimpleNamespace(), SimpleNamespace())
    return made


def draft(made: Drafter, tokens: Sequence[int]) -> list[int]:
    context = Context(list(tokens), 99, Sampler(), torch.Generator(), len(tokens))
    proposed = made.draft(context)
    assert proposed.shape.is_chain
    found: list[int] = proposed.tokens.tolist()
    return found


def outcome(drafted: int, accepted: int) -> Outcome:
    return Outcome(TokenTree.chain([0] * (drafted + 1)), torch.zeros(1), range(accepted + 1), ())


def letters(tokens: str) -> list[int]:
    return [ord(letter) for letter in tokens]


# ---------------------------------------------------------------- prompt lookup


@pytest.mark.parametrize(
    ("string", "options", "expected"),
    [
        ("abcXabcYabc", {}, "XabcYabc"),  # three tokens, first occurrence
        ("abcXabcYabc", {"match": "recent"}, "Yabc"),
        ("abcXabcYabc", {"length": 3}, "Xab"),
        ("abcXabcYabc", {"match": "recent", "length": 1}, "Y"),
        ("bcZabcXbcWabc", {}, "XbcWabc"),  # the longer piece "abc" comes before "bc"
        ("bcZabcXbcWabc", {"ngram": 2}, "ZabcXbcW"),
        ("bcZabcXbcWabc", {"ngram": 2, "match": "recent"}, "Wabc"),
        ("cVbcZxbc", {"ngram": 3}, "Zxbc"),  # no "xbc" before, so "bc"
        ("cVbcZxbc", {"ngram": 1}, "VbcZxbc"),
        ("cVbcZaxc", {"ngram": 3}, "VbcZaxc"),  # only "c" occurs before
        ("abcd", {}, ""),
        ("a", {}, ""),
        ("aa", {}, "a"),
        ("aaaa", {}, "a"),  # "aaa" ends at the third letter; one follows
        ("aaaa", {"ngram": 1}, "aaa"),
        ("aaaa", {"ngram": 1, "match": "recent"}, "a"),
    ],
)
def test_prompt_lookup_on_strings(string: str, options: dict[str, Any], expected: str):
    made = drafter(PromptLookup(**{"length": 8} | options))
    assert draft(made, letters(string)) == letters(expected)
    grown = drafter(PromptLookup(**{"length": 8} | options))  # the same, had the text come in pieces
    for end in range(1, len(string)):
        draft(grown, letters(string[:end]))
    assert draft(grown, letters(string)) == letters(expected)


def brute_lookup(tokens: list[int], ngram: int, length: int, match: str) -> list[int]:
    for size in range(min(ngram, len(tokens) - 1), 0, -1):
        ends = [end for end in range(size, len(tokens)) if tokens[end - size : end] == tokens[-size:]]
        if ends:
            end = ends[0 if match == "first" else -1]
            return tokens[end : end + length]
    return []


@given(texts, st.integers(1, 4), st.integers(1, 6), st.sampled_from(["first", "recent"]), st.data())
def test_prompt_lookup_is_a_search(tokens: list[int], ngram: int, length: int, match: Any, data: st.DataObject):
    made = drafter(PromptLookup(ngram=ngram, length=length, match=match))
    for end in sorted(data.draw(st.sets(st.integers(1, len(tokens)), min_size=1))):
        assert draft(made, tokens[:end]) == brute_lookup(tokens[:end], ngram, length, match)


# ---------------------------------------------------------------- suffix automaton


def brute_suffix(tokens: list[int]) -> tuple[int, int]:
    """The longest suffix that also ends earlier, and where it first ends."""
    for size in range(len(tokens) - 1, 0, -1):
        for end in range(size - 1, len(tokens) - 1):
            if tokens[end + 1 - size : end + 1] == tokens[-size:]:
                return size, end
    return 0, -1


@given(texts)
def test_the_automaton_finds_what_a_search_finds(tokens: list[int]):
    automaton = SuffixAutomaton()
    for end, token in enumerate(tokens, 1):
        automaton.extend([token])
        assert automaton.match() == brute_suffix(tokens[:end])
    at_once = SuffixAutomaton()
    at_once.extend(tokens)
    assert at_once.match() == automaton.match()
    assert at_once.text == tokens
    assert len(at_once.longest) <= max(2, 2 * len(tokens))  # states of an automaton of n letters


@given(texts, st.integers(1, 12), st.integers(0, 3), st.integers(1, 3))
def test_suffix_drafts_what_followed(tokens: list[int], length: int, factor: int, min_match: int):
    made = drafter(Suffix(length=length, factor=factor, min_match=min_match))
    for end in range(1, len(tokens) + 1):
        match, first = brute_suffix(tokens[:end])
        count = min(length, 1 + factor * match) if match >= min_match else 0
        assert draft(made, tokens[:end]) == tokens[:end][first + 1 : first + 1 + count]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "klmnopqrs"),  # 1 + 4 · 2
        ({"length": 5}, "klmno"),
        ({"factor": 1}, "klm"),
        ({"factor": 0}, "k"),
        ({"factor": 20}, "klmnopqrstuvwij"),  # as far as the text goes
        ({"min_match": 2}, "klmnopqrs"),
        ({"min_match": 3}, ""),
    ],
)
def test_suffix_lengths(options: dict[str, Any], expected: str):
    made = drafter(Suffix(**{"length": 40} | options))
    assert draft(made, letters("ijklmnopqrstuvwij")) == letters(expected)


@given(texts, st.integers(0, 40), texts)
def test_suffix_goes_back_to_where_it_was(tokens: list[int], length: int, others: list[int]):
    made, fresh = drafter(Suffix(length=9)), drafter(Suffix(length=9))
    draft(made, tokens)
    made.rewind(length)
    known = [*tokens[:length], *others]
    assert draft(made, known) == draft(fresh, known)


# ---------------------------------------------------------------- how long a copy pays


def speed(rate: float, length: int, curve: CostCurve) -> float:
    return sum(rate**i for i in range(length + 1)) / curve.cost(length + 1)


@pytest.mark.parametrize("accepted", [0, 1, 5, 20])
def test_the_length_has_the_most_tokens_per_second(accepted: int):
    curve = CostCurve("some", [1, 2, 4, 5, 9, 20], [1.0, 1.1, 1.2, 2.0, 2.1, 4.0])
    sizing = ChainLength(curve, 12)
    sizing.observe(2, 20, accepted)
    rate = (PRIOR[0] + accepted) / (PRIOR[1] + min(accepted + 1, 20))
    speeds = [speed(rate, length, curve) for length in range(13)]
    assert sizing.choose(2) == speeds.index(max(speeds))


def test_acceptance_is_counted_up_to_the_first_wrong_token():
    sizing = ChainLength(FREE, 10)
    for drafted, accepted in ((4, 0), (4, 2), (4, 4)):
        sizing.observe(1, drafted, accepted)
    assert sizing.accepted[1] == PRIOR[0] + 0 + 2 + 4
    assert sizing.tried[1] == PRIOR[1] + 1 + 3 + 4
    assert (sizing.accepted[2], sizing.tried[2]) == PRIOR  # another kind has learned nothing


def test_certain_acceptance_takes_all_that_is_free():
    sizing = ChainLength(FREE, 7)
    assert sizing.choose(1) == 7
    sizing.accepted[1] = sizing.tried[1] = 5.0
    assert sizing.choose(1) == 7


def test_what_does_not_pay_is_left_out_and_tried_again():
    sizing = ChainLength(STEEP, 10)
    assert [sizing.choose(1) for _ in range(2 * RETRY)] == ([0] * (RETRY - 1) + [1]) * 2
    assert [sizing.choose(2) for _ in range(RETRY)] == [0] * (RETRY - 1) + [1]


def test_a_kind_that_fails_is_dropped_and_comes_back():
    curve = CostCurve("some", [1, 2, 3, 100], [1.0, 1.5, 2.0, 100.0])
    sizing = ChainLength(curve, 10)
    assert sizing.choose(1) > 0
    for _ in range(8):
        sizing.observe(1, 1, 0)
    assert sizing.choose(1) == 0
    assert sizing.choose(2) > 0
    for _ in range(60):
        sizing.observe(1, 1, 1)
    assert sizing.choose(1) > 0


@pytest.mark.parametrize(("method", "place"), [(PromptLookup(), prompt_lookup), (Suffix(), suffix)])
def test_drafters_size_themselves_and_learn(method: Any, place: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(place, "calibrate", lambda lm: FREE)
    made: Any = drafter(method)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    free = draft(made, tokens)
    assert free == tokens[3:]
    kind = made.kind
    assert kind == (3 if isinstance(method, PromptLookup) else 2)  # three tokens; two to three of them
    made.observe(outcome(4, 1))
    assert (made.sizing.accepted[kind], made.sizing.tried[kind]) == (PRIOR[0] + 1, PRIOR[1] + 2)
    made.observe(outcome(0, 0))  # nothing was drafted: nothing is learned
    assert made.sizing.tried[kind] == PRIOR[1] + 2
    monkeypatch.setattr(place, "calibrate", lambda lm: STEEP)
    assert draft(drafter(method), tokens) == []


@pytest.mark.parametrize(("method", "place"), [(PromptLookup(), prompt_lookup), (Suffix(), suffix)])
@pytest.mark.parametrize("curve", [FREE, STEEP])
def test_sized_drafts_change_no_token(method: Any, place: Any, curve: CostCurve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(place, "calibrate", lambda lm: curve)
    prompt = text(15, 4, period=5)
    result = generate(lm("llama"), prompt, method, max_new_tokens=40)
    assert result.tokens == generate(lm("llama"), prompt, "greedy", max_new_tokens=40).tokens
    if curve is FREE:
        assert result.stats.accepted > 0
        assert max(len(step.tree) for step, _ in result.steps if step) > 3
    else:
        assert result.stats.row_steps <= 40 + 40 // RETRY


def test_what_is_wrong_with_the_options_is_said():
    for method, options, message in [
        (PromptLookup, {"ngram": 0}, "ngram and length must be at least 1, got 0 and None"),
        (PromptLookup, {"length": 0}, "got 3 and 0"),
        (PromptLookup, {"match": "latest"}, "unknown match 'latest'; there are: first, recent"),
        (PromptLookup, {"match": "frist"}, "did you mean 'first'"),
        (Suffix, {"length": 0}, "length and min_match must be at least 1"),
        (Suffix, {"min_match": 0}, "length and min_match must be at least 1"),
        (Suffix, {"factor": -1}, "factor at least 0, got None, 1 and -1"),
    ]:
        with pytest.raises(RamifyError, match=message):
            method(**options)
