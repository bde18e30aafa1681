"""Total correlation, bounds and closed forms; denoisers that are right by construction."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ramify.bench.parallelbench.analysis import (
    Law,
    best_bound,
    bound,
    by_count,
    by_factor,
    by_threshold,
    entropy,
    partitions,
    replace_accuracy,
    replace_confidence,
    replace_confident,
    replace_correlation,
    replace_greedy,
    replace_law,
    shuffle_accuracy,
    shuffle_bound,
    shuffle_confidence,
    shuffle_law,
    total_correlation,
)
from ramify.bench.parallelbench.denoisers import Enumerated, Symbols, canvas
from ramify.bench.parallelbench.symbols import EOS, NEW, PROMPT, TASKS, infill, items_of, right, sample, samples
from ramify.errors import RamifyError

# ---- worked values ----


@pytest.mark.parametrize(
    # The formula gives .1235 for n = 6, k = 3; the enumeration below agrees.
    ("n", "k", "accuracy"),
    [
        (4, 2, 0.375),
        (4, 4, 0.09375),
        (6, 2, 0.3125),
        (6, 3, 0.12346),
        (6, 6, 0.01543),
        (10, 2, 0.24609),
        (10, 10, 0.00036),
    ],
)
def test_shuffle_accuracy(n: int, k: int, accuracy: float):
    assert shuffle_accuracy(by_count(n, k)) == pytest.approx(accuracy, abs=5e-6)
    assert shuffle_accuracy(by_count(n, 1)) == 1
    assert shuffle_accuracy([n]) == pytest.approx(math.factorial(n) / n**n)


def test_correlations():
    for n, shuffle, replace in [(4, 3.4150, 1.2451), (6, 6.0179, 1.3152), (10, 11.4282, 1.3680)]:
        assert shuffle_bound([n]) == pytest.approx(shuffle, abs=5e-5)
        assert replace_correlation(n) == pytest.approx(replace, abs=5e-5)
    assert replace_correlation(1) == 0
    assert replace_correlation(100_000) == pytest.approx(math.log2(math.e), abs=1e-4)
    for n in (2, 4, 5):
        assert total_correlation(shuffle_law(n)) == pytest.approx(shuffle_bound([n]))
        assert total_correlation(replace_law(n)) == pytest.approx(replace_correlation(n))


def test_two_slots_per_step_of_shuffle_have_no_bound():
    for n in (2, 4, 8, 16):
        double = math.prod(range(n, 0, -2)) / math.prod(range(n - 1, 0, -2))
        assert shuffle_bound(by_count(n, 2)) == pytest.approx(math.log2(double))


@pytest.mark.parametrize(
    ("sizes", "bits"),
    [
        ([4], 3.4150),
        ([2, 2], 1.4150),
        ([3, 1], 1.4150),
        ([1, 1, 2], 1.0),
        ([1, 2, 1], 0.5850),
        ([2, 1, 1], 0.4150),
        ([1] * 4, 0),
    ],
)
def test_the_bound_of_shuffle_by_partition(sizes: list[int], bits: float):
    assert shuffle_bound(sizes) == pytest.approx(bits, abs=5e-5)
    slots = iter(range(4))
    assert bound(shuffle_law(4), [list(itertools.islice(slots, size)) for size in sizes]) == pytest.approx(
        bits, abs=5e-5
    )


def test_replace_random_at_temperature_one():
    for n, accuracy in [(3, 0.4444), (6, 0.4019), (10, 0.3874)]:
        assert replace_accuracy([n]) == pytest.approx(accuracy, abs=5e-5)
        assert replace_accuracy([n]) == pytest.approx(((n - 1) / n) ** (n - 1))
        assert replace_accuracy(by_count(n, 1)) == pytest.approx(1)
        assert replace_confident([n]) == pytest.approx(replace_accuracy([n]))
        assert replace_confident(by_count(n, 1)) == pytest.approx(1)


def test_replace_random_by_argmax():
    assert [replace_greedy(by_count(6, k)) for k in (1, 2, 3, 6)] == [1, 0.5, 0, 0]


def test_the_two_tasks_want_opposite_thresholds():
    for gamma in (0.51, 0.7, 0.8, 0.95):
        assert by_threshold(6, gamma, shuffle_confidence) == [1] * 6
        sizes = by_threshold(6, gamma, replace_confidence)
        assert sizes == ([6] if gamma < 5 / 6 else [1] * 6)
        assert replace_greedy(sizes) == (0 if gamma < 5 / 6 else 1)
    assert by_threshold(6, 0.5, shuffle_confidence) == [1, 1, 1, 1, 2]
    assert by_threshold(6, 0.0, shuffle_confidence) == [6]
    assert by_threshold(6, 1.01, replace_confidence) == [1] * 6


def test_the_factor_rule():
    # (j + 1)(1 − c) < f: shuffle with two open has 1 − c = 1/2, replace random with six open 1/6.
    assert by_factor(2, 1.5, shuffle_confidence) == [1, 1]  # 3 · ½ is not less than 1.5
    assert by_factor(2, 1.6, shuffle_confidence) == [2]
    assert by_factor(6, 1.0, replace_confidence) == [4, 1, 1]
    assert by_factor(6, 1.3, replace_confidence) == [6]


# ---- any law ----


def laws() -> st.SearchStrategy[Law]:
    def law(weights: list[int]) -> Law:
        total = sum(weights)
        return {
            tuple(outcome): w / total for outcome, w in zip(itertools.product(range(2), repeat=3), weights, strict=True)
        }

    return st.lists(st.integers(0, 9), min_size=8, max_size=8).filter(any).map(law)


@given(laws())
def test_bounds_of_any_law(law: Law):
    assert bound(law, [[0, 1, 2]]) == pytest.approx(total_correlation(law), abs=1e-9)
    assert bound(law, [[2], [0], [1]]) == pytest.approx(0, abs=1e-9)
    assert all(bound(law, sets) >= -1e-9 for steps in (1, 2, 3) for sets in partitions(3, steps))
    best = [best_bound(law, steps)[0] for steps in (1, 2, 3)]
    assert best[0] >= best[1] - 1e-9 >= best[2] - 2e-9


@given(laws())
def test_the_bound_is_the_divergence_of_exact_marginals(law: Law):
    """Sampling the sets from exact marginals gives a law whose KL divergence from the data is L_T."""
    for sets in partitions(3, 2):
        found: dict[tuple[int, ...], float] = {}
        for outcome in law:
            p, before = 1.0, list[int]()
            for each in sets:
                fits = {o: q for o, q in law.items() if all(o[slot] == outcome[slot] for slot in before)}
                mass = sum(fits.values())
                for slot in each:
                    p *= sum(q for o, q in fits.items() if o[slot] == outcome[slot]) / mass if mass else 0
                before += each
            found[outcome] = p
        divergence = sum(p * math.log2(p / found[outcome]) for outcome, p in law.items() if p)
        assert bound(law, sets) == pytest.approx(divergence, abs=1e-9)


def test_a_partition_has_every_slot_once():
    with pytest.raises(RamifyError, match="no partition"):
        bound(shuffle_law(3), [[0, 1], [1]])
    with pytest.raises(RamifyError, match="1 to 3 steps, not 4"):
        best_bound(shuffle_law(3), 4)
    with pytest.raises(RamifyError, match="at least one slot, not 0"):
        shuffle_accuracy([2, 0])


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_accuracies_by_enumeration(sizes: list[int]):
    """The product of marginals, summed over what is right."""
    n = sum(sizes)
    if n > 5:
        return
    ends = list(itertools.accumulate(sizes))
    sets = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    for law, closed in [(shuffle_law(n), shuffle_accuracy(sizes)), (replace_law(n), replace_accuracy(sizes))]:
        total = 0.0
        for outcome in law:
            p, before = 1.0, list[int]()
            for each in sets:
                fits = [o for o in law if all(o[slot] == outcome[slot] for slot in before)]
                for slot in each:
                    p *= sum(o[slot] == outcome[slot] for o in fits) / len(fits)
                before += each
            total += p
        assert closed == pytest.approx(total)


def test_the_confidence_of_drawn_tokens_by_simulation():
    """Slots that drew the new word come last: rarer in early steps, and in the end all at once."""
    source = random.Random(0)
    for sizes in ([2, 2, 2], [3, 3], [4, 2], [2, 4]):
        hits, runs = 0, 20_000
        for _ in range(runs):
            left, words = sum(sizes), 0
            for size in sizes:
                if not words:
                    drew = sorted((source.random() < 1 / left for _ in range(left)), key=lambda word: word and left > 2)
                    words += sum(drew[:size])
                left -= size
            hits += words == 1
        p = replace_confident(sizes)
        assert abs(hits / runs - p) < 4 * math.sqrt(p * (1 - p) / runs)
    assert replace_confident([2, 2, 2]) < replace_accuracy([2, 2, 2])


# ---- denoisers ----


def relabelled(task: str, prompt: torch.Tensor) -> Law:
    """The law of the answers of a prompt, in its own symbols."""
    items = items_of(prompt)
    law = {"copy": {tuple(range(len(items))): 1.0}, "reverse": {tuple(reversed(range(len(items)))): 1.0}}.get(task)
    if task == "cumsum":
        return {tuple(sum(items[: end + 1]) % 10 for end in range(len(items))): 1.0}
    names = [*items, int(prompt[NEW])]
    law = law or (shuffle_law if task == "shuffle" else replace_law)(len(items))
    return {tuple(names[place] for place in outcome): p for outcome, p in law.items()}


@given(st.sampled_from(sorted(TASKS)), st.integers(1, 5), st.integers(0, 9999), st.integers(0, 63))
def test_symbols_know_the_conditionals(task: str, n: int, seed: int, bits: int):
    prompt, answer = sample(task, n, torch.Generator().manual_seed(seed))
    open = torch.tensor([[bool(bits >> slot & 1) for slot in range(n)]])
    wide = torch.cat([torch.zeros(1, PROMPT, dtype=torch.bool), open, torch.zeros(1, 12 - n, dtype=torch.bool)], 1)
    found = Symbols().logits(torch.cat([prompt, answer])[None], wide)[:, PROMPT : PROMPT + n]
    wanted = Enumerated(relabelled(task, prompt), 26).logits(answer[None, :n], open)
    assert torch.allclose(found.exp(), wanted.exp(), atol=1e-12)


@given(st.integers(0, 9999))
def test_the_chain_rule_gives_the_law(seed: int):
    source = random.Random(seed)
    outcomes = [tuple(source.randrange(3) for _ in range(3)) for _ in range(6)]
    weights = [source.random() for _ in outcomes]
    law: dict[tuple[int, ...], float] = {}
    for outcome, weight in zip(outcomes, weights, strict=True):
        law[outcome] = law.get(outcome, 0) + weight / sum(weights)
    denoiser = Enumerated(law, 3)
    order = source.sample(range(3), 3)
    for outcome, p in law.items():
        found, open = 1.0, torch.ones(1, 3, dtype=torch.bool)
        for slot in order:
            found *= float(denoiser.logits(torch.tensor([outcome]), open)[0, slot, outcome[slot]].exp())
            open[0, slot] = False
        assert found == pytest.approx(p)


def test_rows_of_all_tasks_and_lengths_beside_each_other():
    prompts, answers = samples(100, torch.Generator().manual_seed(0))
    logits = Symbols().logits(canvas(prompts), infill(prompts))
    assert logits.shape == (100, 22, 26)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(100, 22, dtype=torch.float64))
    assert (logits[:, PROMPT:].gather(-1, answers[..., None]) > -10).all()
    everything = torch.ones(100, 22, dtype=torch.bool) & (torch.arange(22) >= PROMPT)
    ends = Symbols().logits(canvas(prompts), everything).argmax(-1)[:, PROMPT:]
    assert torch.equal(ends == EOS, answers == EOS)
    exact = torch.isin(prompts[:, 0], torch.tensor([TASKS["copy"], TASKS["reverse"], TASKS["cumsum"]]))
    assert all(right(p, a) for p, a in zip(prompts[exact], ends[exact], strict=True))


def test_noise_decides_ties_and_nothing_else():
    prompt, _ = sample("shuffle", 4, torch.Generator().manual_seed(1))
    prompts = prompt.repeat(400, 1)
    logits = Symbols(noise=1e-4).logits(canvas(prompts), infill(prompts))
    counts = logits[:, PROMPT].argmax(-1).bincount(minlength=26)
    assert sorted(counts.nonzero().flatten().tolist()) == sorted(items_of(prompt))
    assert int(counts[counts > 0].min()) > 60
    again = Symbols(noise=1e-4).logits(canvas(prompts), infill(prompts))
    assert torch.equal(logits, again)


def test_answers_that_cannot_be_right_any_more():
    prompt, _ = sample("shuffle", 3, torch.Generator().manual_seed(1))
    ids, open = canvas(prompt[None]), infill(prompt[None])
    ids[0, PROMPT : PROMPT + 2] = prompt[1]  # an item twice
    open[0, PROMPT : PROMPT + 2] = False
    law = Symbols().logits(ids, open)[0, PROMPT + 2].exp()
    assert law[prompt[2]] == law[prompt[3]] == pytest.approx(0.5)
    impossible = Enumerated(shuffle_law(3), 3).logits(torch.tensor([[1, 1, 0]]), torch.tensor([[False, False, True]]))
    assert torch.allclose(impossible[0, 2].exp(), torch.full((3,), 1 / 3, dtype=torch.float64))
    with pytest.raises(RamifyError, match="the law has token 2, the vocabulary 2 tokens"):
        Enumerated(shuffle_law(3), 2)


def test_entropy():
    assert entropy({(0,): 0.5, (1,): 0.25, (2,): 0.25, (3,): 0.0}) == 1.5
