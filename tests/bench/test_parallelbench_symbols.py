"""List tasks of one token per item: layout, targets, the scorer, the infill mask."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ramify.bench.parallelbench import symbols
from ramify.bench.parallelbench.symbols import (
    EOS,
    NONE,
    PAD,
    SEP,
    TASKS,
    given_in,
    infill,
    items_of,
    right,
    sample,
    samples,
)
from ramify.errors import RamifyError

TASK = st.sampled_from(sorted(TASKS))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_vocabulary_has_26_tokens():
    assert symbols.VOCABULARY == 26
    assert sorted([*range(16), PAD, EOS, SEP, symbols.MASK, NONE, *TASKS.values()]) == list(range(26))


@given(TASK, st.integers(1, 6), st.integers(0, 10_000))
def test_the_layout(task: str, n: int, seed: int):
    prompt, answer = sample(task, n, generator(seed))
    assert (prompt.shape, answer.shape) == ((10,), (12,))
    assert prompt[[0, 7, 9]].tolist() == [TASKS[task], NONE, SEP]
    items = items_of(prompt)
    assert len(set(items)) == n
    assert max(items) < (10 if task == "cumsum" else 16)
    assert prompt[1 + n : 7].tolist() == [PAD] * (6 - n)
    assert answer[n:].tolist() == [EOS] * (12 - n)
    assert len(given_in(answer)) == n
    word = int(prompt[8])
    assert (word < 16 and word not in items) if task == "replace-random" else word == NONE
    assert right(prompt, answer)


def test_targets():
    for task, wanted in [("copy", "abcd"), ("reverse", "dcba")]:
        prompt, answer = sample(task, 4, generator(1))
        names = dict(zip(items_of(prompt), "abcd", strict=True))
        assert "".join(names[item] for item in given_in(answer)) == wanted
    prompt = torch.tensor([TASKS["cumsum"], 7, 2, 9, PAD, PAD, PAD, NONE, NONE, SEP])
    assert right(prompt, torch.tensor([7, 9, 8] + [EOS] * 9))
    assert not right(prompt, torch.tensor([7, 9, 18] + [EOS] * 9))


@given(st.sampled_from(["copy", "reverse", "replace-random"]), st.integers(2, 6), st.integers(0, 10_000))
def test_any_swap_of_two_items_scores_zero(task: str, n: int, seed: int):
    prompt, answer = sample(task, n, generator(seed))
    for one, other in itertools.combinations(range(n), 2):
        swapped = answer.clone()
        swapped[[one, other]] = answer[[other, one]]
        assert not right(prompt, swapped)


@given(TASK, st.integers(1, 6), st.integers(0, 10_000), st.integers(0, 5), st.integers(0, 25))
def test_another_item_scores_zero(task: str, n: int, seed: int, place: int, token: int):
    prompt, answer = sample(task, n, generator(seed))
    place %= n
    changed = answer.clone()
    changed[place] = token
    # Of replace-random several answers are right, but none that differs from another in one slot.
    assert right(prompt, changed) == (token == answer[place])


def test_the_end_counts_and_what_stands_behind_it_does_not():
    prompt, answer = sample("copy", 4, generator(0))
    early, late, noise = answer.clone(), answer.clone(), answer.clone()
    early[3], late[4], noise[9] = EOS, answer[0], answer[0]
    assert [right(prompt, each) for each in (early, late, noise)] == [False, False, True]


def test_replace_random_and_shuffle_are_uniform():
    from scipy.stats import chisquare

    for task, outcomes in [("replace-random", 3), ("shuffle", 6)]:
        counts: dict[tuple[int, ...], int] = {}
        source = generator(3)
        for _ in range(3000):
            prompt, answer = sample(task, 3, source)
            names = {item: place for place, item in enumerate(items_of(prompt))}
            key = tuple(names.get(item, 9) for item in given_in(answer))
            counts[key] = counts.get(key, 0) + 1
        assert len(counts) == outcomes
        assert chisquare(list(counts.values())).pvalue > 0.001


def test_a_batch_and_its_infill_mask():
    prompts, answers = samples(200, generator(0))
    assert (prompts.shape, answers.shape) == ((200, 10), (200, 12))
    assert {int(task) for task in prompts[:, 0]} == set(TASKS.values())
    mask = infill(prompts)
    assert mask.shape == (200, 22)
    assert not mask[:, :10].any()
    assert torch.equal(mask[:, 10:], answers != EOS)
    assert set(mask.sum(1).tolist()) == {3, 4, 5, 6}
    again = samples(200, generator(0))
    assert torch.equal(prompts, again[0])
    assert torch.equal(answers, again[1])


def test_bad_input():
    with pytest.raises(RamifyError, match="unknown task 'sort'"):
        sample("sort", 3, generator(0))
    with pytest.raises(RamifyError, match="between 1 and 6 items, not 7"):
        sample("copy", 7, generator(0))
