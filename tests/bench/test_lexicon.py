"""The synthetic language: its words, its law, and what a small model learns of it."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from ramify.bench.lexicon import CHANCES, HELD_OUT, Lexicon, build, fit
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError

LANGUAGE = Lexicon.of()


def words_of(tokens: list[int], starts: list[bool]) -> list[tuple[int, ...]]:
    places = [place for place, start in enumerate(starts) if start]
    return [tuple(tokens[begin:end]) for begin, end in itertools.pairwise(places)]


def test_words_are_different_and_of_one_to_five_tokens():
    assert len(set(LANGUAGE.words)) == len(LANGUAGE.words) == len(LANGUAGE.successors) == 80
    assert {len(word) for word in LANGUAGE.words} == {1, 2, 3, 4, 5}
    assert {token for word in LANGUAGE.words for token in word} <= set(range(64))
    assert all(len(set(following)) == 4 for following in LANGUAGE.successors)


def test_texts_follow_the_law():
    passage = LANGUAGE.passage(60_000)
    assert len(passage.tokens) == len(passage.starts) == 60_000
    place = {word: index for index, word in enumerate(LANGUAGE.words)}
    spelled = [place[word] for word in words_of(passage.tokens, passage.starts)]
    ranks = Counter(LANGUAGE.successors[one].index(other) for one, other in itertools.pairwise(spelled))
    total = sum(ranks.values())
    for rank, chance in enumerate(CHANCES):
        assert ranks[rank] / total == pytest.approx(chance, abs=0.02)


def test_seeds_alone_decide():
    assert Lexicon.of() == LANGUAGE != Lexicon.of(1)
    assert LANGUAGE.passage(100, 3) == LANGUAGE.passage(100, 3) != LANGUAGE.passage(100, 4)
    contexts = LANGUAGE.contexts(5, 32)
    assert [len(context) for context in contexts] == [32] * 5
    assert len({tuple(context) for context in [*contexts, *LANGUAGE.contexts(5, 32, seed=1)]}) == 10
    assert build(LANGUAGE).state_dict()["lm_head.weight"].equal(build(LANGUAGE).state_dict()["lm_head.weight"])


def test_a_small_model_learns_words():
    """A few steps teach it how most words go on, and not which word comes next, which nobody can know."""
    lm = fit(build(LANGUAGE, width=48, layers=2), LANGUAGE.passage(20_000).tokens, steps=150, context=64)
    passage = LANGUAGE.passage(64, HELD_OUT)
    right = Session(lm).score(TokenTree.chain(passage.tokens)).logits[0].argmax(dim=-1)[:-1] == torch.tensor(
        passage.tokens[1:]
    )
    starts = torch.tensor(passage.starts[1:])
    assert right[~starts].float().mean() > 0.5
    assert right[starts].float().mean() < 0.5


def test_what_is_refused():
    with pytest.raises(RamifyError, match="needs 4 words"):
        Lexicon.of(words=3)
    with pytest.raises(RamifyError, match="too few for 80 different words"):
        Lexicon.of(vocabulary=4)
    with pytest.raises(RamifyError, match="multiple of 24"):
        build(LANGUAGE, width=40)
    with pytest.raises(RamifyError, match="too few for windows of 128"):
        fit(build(LANGUAGE, width=24, layers=1), [1] * 128)
