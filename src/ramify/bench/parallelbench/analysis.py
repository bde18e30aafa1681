"""What fixing several tokens at once must lose: total correlation, bounds, and the accuracies of ideal models.

C(Y|X) = Σ H(y_i|X) − H(Y|X) in bits is what a product of marginals cannot express. With Y fixed in sets S_1 … S_T,
in this order, every model has KL(data ‖ model) ≥ L_T = Σ_t E[C(S_t | X, S_<t)], with equality where its marginals are
exact.

Laws are given whole here, as probabilities of all outcomes, so sums over outcomes and partitions are exact, and for
small answers only; the closed forms of the list operations hold for any size. For n items:

- copy, reverse, sort, replace index: C = 0, accuracy 1.
- shuffle (a uniform permutation): C = n log₂ n − log₂ n!; with k_t slots open, L_T = Σ |S_t| log₂ k_t − log₂ n!.
- replace random (one slot takes a new word): C = (n−1)(log₂ n − log₂(n−1)), which goes to log₂ e.

Accuracies are those of an ideal unbiased model: exact marginals with a logit noise that decides ties, but never favours
a slot. ``sizes`` says how many slots each step fixes. They hold for every order that does not look at the tokens drawn.
At temperature 1 the confidence of a drawn token does: it puts off slots that drew the new word, which
``replace_confident`` accounts for (derived here; the paper does not treat it).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

from ramify.errors import RamifyError

Outcome = tuple[int, ...]
Law = Mapping[Outcome, float]

# ---- any law ----


def shuffle_law(n: int) -> Law:
    """Uniform over the permutations of 0 … n − 1."""
    return dict.fromkeys(itertools.permutations(range(n)), 1 / math.factorial(n))


def replace_law(n: int) -> Law:
    """0 … n − 1, one of which, each as likely, became n."""
    return {tuple(n if slot == place else slot for slot in range(n)): 1 / n for place in range(n)}


def entropy(law: Law) -> float:
    """H in bits."""
    return -sum(p * math.log2(p) for p in law.values() if p > 0)


def marginal(law: Law, slots: Sequence[int]) -> Law:
    """The law of some slots, in the order given."""
    found: dict[Outcome, float] = {}
    for outcome, p in law.items():
        part = tuple(outcome[slot] for slot in slots)
        found[part] = found.get(part, 0.0) + p
    return found


def total_correlation(law: Law) -> float:
    """C = Σ H(y_i) − H(Y) in bits: 0 where the slots are independent."""
    width = len(next(iter(law)))
    return sum(entropy(marginal(law, [slot])) for slot in range(width)) - entropy(law)


def bound(law: Law, sets: Sequence[Sequence[int]]) -> float:
    """L_T in bits when the slots are fixed in these ``sets``, one after the other."""
    if sorted(itertools.chain(*sets)) != list(range(len(next(iter(law))))):
        raise RamifyError(f"{[list(each) for each in sets]} are no partition: every slot has to be in one set")
    found, before = 0.0, list[int]()
    for each in sets:
        # C(S | before) = Σ H(y_i, before) − |S| H(before) − (H(S, before) − H(before))
        given = entropy(marginal(law, before))
        found += sum(entropy(marginal(law, [*before, slot])) - given for slot in each)
        before += each
        found -= entropy(marginal(law, before)) - given
    return found


def best_bound(law: Law, steps: int) -> tuple[float, list[list[int]]]:
    """L*_T: the least bound of all ordered partitions into ``steps`` sets, and one that has it.

    Non-increasing in ``steps``; with input-dependent partitions too, the mean over the inputs being taken outside.
    """
    width = len(next(iter(law)))
    if not 1 <= steps <= width:
        raise RamifyError(f"{width} slots can be fixed in 1 to {width} steps, not {steps}")
    return min(((bound(law, sets), sets) for sets in partitions(width, steps)), key=lambda pair: pair[0])


def partitions(width: int, steps: int) -> Iterator[list[list[int]]]:
    """All ordered partitions of ``width`` slots into ``steps`` sets, none of them empty."""
    for places in itertools.product(range(steps), repeat=width):
        if len(set(places)) == steps:
            yield [[slot for slot in range(width) if places[slot] == step] for step in range(steps)]


# ---- closed forms ----


def shuffle_bound(sizes: Sequence[int]) -> float:
    """L_T of shuffle in bits; with one set it is C, with two slots per step log₂(n!! / (n−1)!!)."""
    return sum(size * math.log2(left) for left, size in remaining(sizes)) - math.log2(math.factorial(sum(sizes)))


def replace_correlation(n: int) -> float:
    """C of replace random in bits."""
    return (n - 1) * (math.log2(n) - math.log2(n - 1)) if n > 1 else 0.0


def shuffle_accuracy(sizes: Sequence[int]) -> float:
    """Share of true permutations, greedy or at temperature 1: Π P(m, s) / m^s over the steps, m slots being open."""
    return math.prod(math.perm(left, size) / float(left) ** size for left, size in remaining(sizes))


def replace_accuracy(sizes: Sequence[int]) -> float:
    """Share of lists with exactly one new word at temperature 1, orders that do not look at the tokens drawn.

    While m slots are open and the word has not come, each of the j fixed takes it with 1/m: f(m) = P(one) + P(none)
    f(m − j), for once it has come the rest is certain.
    """
    found, alive = 0.0, 1.0
    for left, size in remaining(sizes):
        kept = (left - 1) / left
        found += alive * size / left * kept ** (size - 1)
        alive *= kept**size
    return found


def replace_confident(sizes: Sequence[int]) -> float:
    """The same when the most confident of the drawn tokens are fixed: those that are the new word come last."""
    found, alive = 0.0, 1.0
    for left, size in remaining(sizes):
        drew = [math.comb(left, words) * (left - 1) ** (left - words) / left**left for words in range(left + 1)]
        if left == 2:  # the word is as likely as the item, so nothing is put off
            drew = [math.comb(size, words) / 2**size for words in range(size + 1)]
            left = size
        found += alive * sum(p for words, p in enumerate(drew) if size - (left - words) == 1)
        alive *= sum(p for words, p in enumerate(drew) if size <= left - words)
    return found


def replace_greedy(sizes: Sequence[int]) -> float:
    """The same by argmax: nobody takes the word as long as three slots are open, so only the last step decides."""
    return {1: 1.0, 2: 0.5}.get(sizes[-1], 0.0)


# ---- how many slots a rule fixes ----


def remaining(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(slots open before the step, slots that it fixes) for every step."""
    left = sum(sizes)
    for size in sizes:
        if size < 1:
            raise RamifyError(f"a step fixes at least one slot, not {size}")
        yield left, size
        left -= size


def by_count(n: int, k: int) -> list[int]:
    """``k`` slots per step; the last one may have fewer."""
    return [min(k, n - done) for done in range(0, n, k)]


def by_threshold(n: int, gamma: float, confidence: Callable[[int], Fraction]) -> list[int]:
    """All slots of at least ``gamma``, else one; ``confidence``: that of every slot while so many are open."""
    return _adaptive(n, lambda left: left if confidence(left) >= gamma else 1)


def by_factor(n: int, factor: float, confidence: Callable[[int], Fraction]) -> list[int]:
    """The largest j with (j + 1)(1 − c) < ``factor``, at least one."""

    def size(left: int) -> int:
        lost = 1 - confidence(left)
        return max([1, *(j for j in range(1, left + 1) if (j + 1) * lost < factor)])

    return _adaptive(n, size)


def shuffle_confidence(left: int) -> Fraction:
    """Of the likeliest token of any slot while ``left`` are open; a fraction, since rules compare on the boundary."""
    return Fraction(1, left)


def replace_confidence(left: int) -> Fraction:
    """The same while the new word has not come."""
    return Fraction(max(left - 1, 1), left)


def _adaptive(n: int, size: Callable[[int], int]) -> list[int]:
    sizes = list[int]()
    while (left := n - sum(sizes)) > 0:
        sizes.append(size(left))
    return sizes
