"""Which nodes of a merged tree are worth a row: how often proposals of their kind were right, and who wins the noise.

A sampled token is the one of largest p(w) / e_w, where the e are exponential variables that the seed gives to every
position (``Noise``), known before the model is asked. A token of probability p whose variable is e therefore wins with
probability exp(−e (1 − p) / p), which is p on average over e: what the others leave of the race is exponential, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ramify.methods.draft.merging import Kind, Merged

FIRST, OTHERS = 0.4, 0.05  # how often a first child is right, and any other one, before anything was seen
WEIGHT = 4.0  # proposals that this guess counts for
LUCK = (-5, 3)  # powers of two between which variables of the noise are told apart


def luck(variable: float) -> int:
    """The class of a variable e of the noise: log2 e rounded down, within ``LUCK``."""
    return min(max(math.frexp(variable)[1] - 1, LUCK[0]), LUCK[1])


def winning(rate: float, luck: int) -> float:
    """How often a token of this probability is chosen where its variable has this class."""
    return math.exp(-(2.0 ** (luck + 0.5)) * (1.0 - rate) / rate)


def guess(kind: Kind) -> float:
    """How often proposals of a kind are right, before any was seen: as promised, else by their place."""
    _, promise, _, rank, _ = kind
    if promise < 0:
        return min(max(math.exp2((promise + 1) / 1.5), 0.02), 0.8)
    return OTHERS if rank else FIRST


class Usefulness:
    """How often each kind of proposal was right, once its parent was.

    A kind is the part, what it promises (or the size of its tree in powers of two, which stands for what the part
    knows: a lookup drafts more behind a longer match), the node's depth, its place among its siblings unless there is a
    promise, and how many parts propose it. Where text is sampled, kinds are told apart by the noise as well, with what
    ``winning`` expects as the first guess. A node is taken to be right as often as the best of its proposals.
    """

    def __init__(self) -> None:
        self.counts: dict[Kind, tuple[float, float]] = {}  # right, seen
        self.known: dict[Kind, float] = {}  # their quotient
        self.lucky: dict[tuple[Kind, int], tuple[int, int, float]] = {}  # right, seen, rate by the class of the noise

    def rates(self, merged: Merged) -> list[float]:
        """For every node, the probability that it is accepted; never above its parent's."""
        if merged.luck is None:
            best = [max(map(self._rate, kinds)) for kinds in merged.kinds]
        else:
            best = [
                max([self._lucky(kind, luck) for kind in kinds])
                for kinds, luck in zip(merged.kinds, merged.luck, strict=True)
            ]
        rates: list[float] = []
        for rate, parent in zip(best, merged.parents, strict=True):
            rates.append(rate * rates[parent] if parent >= 0 else rate)
        return rates

    def observe(self, merged: Merged, tokens: Sequence[int]) -> None:
        """Learn that the text went on with ``tokens``, which judges the children of every node on their way."""
        path = merged.along(tokens)
        right = set(path)
        judged = set(path[: len(tokens)])  # what follows the last token is not known yet
        for node, parent in enumerate(merged.parents):
            if parent in judged:
                hit = node in right
                for kind in merged.kinds[node]:
                    hits, seen = self.counts.get(kind) or (WEIGHT * guess(kind), WEIGHT)
                    hits, seen = self.counts[kind] = hits + hit, seen + 1.0
                    self.known[kind] = hits / seen
                    if merged.luck is not None:
                        cell = kind, merged.luck[node]
                        won, drawn, _ = self.lucky.get(cell, (0, 0, 0.0))
                        won, drawn = won + hit, drawn + 1
                        rate = (won + WEIGHT * winning(hits / seen, cell[1])) / (drawn + WEIGHT)
                        self.lucky[cell] = won, drawn, rate

    def _rate(self, kind: Kind) -> float:
        return self.known.get(kind) or guess(kind)

    def _lucky(self, kind: Kind, luck: int) -> float:
        cell = self.lucky.get((kind, luck))
        return cell[2] if cell is not None else winning(self._rate(kind), luck)
