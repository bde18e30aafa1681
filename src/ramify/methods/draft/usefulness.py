"""Which nodes of a merged tree are worth a row: how often proposals of their kind were right."""

from __future__ import annotations

from collections.abc import Sequence

from ramify.methods.draft.merging import Kind, Merged

FIRST, OTHERS = 0.4, 0.05  # how often a first child is right, and any other one, before anything was seen
WEIGHT = 4.0  # proposals that this guess counts for


class Usefulness:
    """How often each kind of proposal was right, once its parent was.

    A kind is the part, the size of its tree in powers of two, the node's depth, its place among its siblings, and how
    many parts propose it. The size stands for what the part knows: a lookup drafts more behind a longer match. A node
    is taken to be right as often as the best of its proposals.
    """

    def __init__(self) -> None:
        self.counts: dict[Kind, tuple[float, float]] = {}  # right, seen
        self.known: dict[Kind, float] = {}  # their quotient

    def rates(self, merged: Merged) -> list[float]:
        """For every node, the probability that it is accepted; never above its parent's."""
        known, rates = self.known, list[float]()
        for kinds, parent in zip(merged.kinds, merged.parents, strict=True):
            best = 0.0
            for kind in kinds:
                rate = known.get(kind)
                if rate is None:
                    rate = OTHERS if kind[3] else FIRST
                if rate > best:
                    best = rate
            rates.append(best * rates[parent] if parent >= 0 else best)
        return rates

    def observe(self, merged: Merged, tokens: Sequence[int]) -> None:
        """Learn that the text went on with ``tokens``, which judges the children of every node on their way."""
        path = merged.along(tokens)
        right = set(path)
        judged = set(path[: len(tokens)])  # what follows the last token is not known yet
        for node, parent in enumerate(merged.parents):
            if parent in judged:
                for kind in merged.kinds[node]:
                    hits, seen = self.counts.get(kind) or (WEIGHT * (OTHERS if kind[3] else FIRST), WEIGHT)
                    hits, seen = self.counts[kind] = hits + (node in right), seen + 1.0
                    self.known[kind] = hits / seen
