"""Constrained beam search: the phrases are there, at the best place that enough beams can find."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from families import VOCABULARY, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.api import generate
from ramify.bench.table_model import table_lm
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.search.beam_search import BeamSearch
from ramify.methods.search.constrained_beam_search import ConstrainedBeamSearch, helpful, need

NEW = 14
STOP = 2
MISSING = "no beam came to contain all phrases within the length; give it more tokens or fewer phrases"


def contains(tokens: Any, phrase: list[int]) -> bool:
    return any(list(tokens[place : place + len(phrase)]) == phrase for place in range(len(tokens)))


@pytest.mark.parametrize(
    "words", [[[5, 6], [50]], [[[5, 6], [70]], [50]], [[5, 6], [6, 5]], [[9, 9, 9]], [[41, 2, 3, 44], [44, 41]]]
)
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("ends", [[], list(range(1, 40, 3))])
def test_the_phrases_are_there(words: Any, num_beams: int, ends: list[int]) -> None:
    method = ConstrainedBeamSearch(words, num_beams)
    result = generate(lm("llama"), text(7, 1), method, max_new_tokens=NEW, eos_token_id=ends or None)
    finished = [path for path in result.paths[:num_beams] if path.complete]
    assert finished
    for path in finished:
        for constraint in words:
            choices = constraint if isinstance(constraint[0], list) else [constraint]
            assert any(contains(path.tokens, phrase) for phrase in choices)
    assert MISSING not in result.notes


@settings(deadline=None, max_examples=6, derandomize=True)
@given(st.integers(0, 999), st.lists(st.integers(0, 3), min_size=1, max_size=2), st.integers(0, 3))
def test_enough_beams_find_the_likeliest_text_with_them(seed: int, phrase: list[int], other: int) -> None:
    def law(prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, prefix)) % (1 << 31))
        return torch.softmax(2 * torch.randn(4, generator=generator, dtype=torch.float64), dim=0)

    words: Any = [phrase, [[other], [3, 3]]]
    method = ConstrainedBeamSearch(words, 64, length_penalty=0.0, early_stopping="never")
    result = method.complete(table_lm(4, law), [Request([0], 5, stop_tokens=frozenset([STOP]))])[0]
    whole = set()
    for tokens in itertools.product(range(4), repeat=4):
        tokens = tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens
        if contains(tokens, phrase) and (contains(tokens, [other]) or contains(tokens, [3, 3])):
            whole.add(tokens)
    if not whole:
        assert MISSING in result.notes
        return
    best = max(whole, key=lambda tokens: sum(math.log(law((0, *tokens[:n]))[token]) for n, token in enumerate(tokens)))
    assert tuple(result.tokens) == best


def test_what_comes_anyway_is_beam_search() -> None:
    expected = generate(lm("llama"), text(7, 1), BeamSearch(4), max_new_tokens=NEW)
    method = ConstrainedBeamSearch([expected.tokens[3:5]], 24)
    assert generate(lm("llama"), text(7, 1), method, max_new_tokens=NEW).tokens == expected.tokens


def test_need_falls_by_one_with_every_helpful_token() -> None:
    words = [[(5, 6, 7)], [(5, 8), (9, 9, 9)]]
    assert [need(tokens, words) for tokens in ([], [5], [5, 6], [5, 6, 7], [5, 6, 7, 5], [5, 6, 7, 5, 8])] == [
        5, 4, 3, 2, 1, 0,
    ]  # fmt: skip
    assert need([5, 6, 4], words) == 5
    assert need([9, 9, 9], words) == 3
    assert helpful([5], words) == {5, 6, 8, 9}
    assert helpful([5, 6, 7], words) == {5, 9}
    assert helpful([9, 9, 9, 5, 6], words) == {5, 7}


def test_phrases_that_do_not_fit_are_said() -> None:
    method = ConstrainedBeamSearch([[1, 2, 3, 4, 5]])
    result = generate(lm("llama"), text(7, 1), method, max_new_tokens=3)
    assert len(result.tokens) == 3
    assert MISSING in result.notes


@pytest.mark.parametrize("words", [(), [], [[]], [[[]]], 5, [5], [[1], [[]]]])
def test_bad_words(words: Any) -> None:
    with pytest.raises(RamifyError, match="give lists of token ids"):
        ConstrainedBeamSearch(words)


def test_bad_options() -> None:
    with pytest.raises(RamifyError, match="num_beams must be at least 1"):
        ConstrainedBeamSearch([[1]], 0)
    with pytest.raises(RamifyError, match=f"token {VOCABULARY} of force_words_ids is outside"):
        generate(lm("llama"), [1, 2], ConstrainedBeamSearch([[VOCABULARY]]), max_new_tokens=4)
