"""Which nodes of a merged tree are worth a row: how often proposals of their kind were right."""

from __future__ import annotations

from collections.abc import Sequence

from ramify.methods.draft.merging import Merged

FIRST, OTHERS = 0.4, 0.05  # how often a first child is right, and any other one, before anything was seen
WEIGHT = 4.0  # proposals that this guess counts for
DEPTHS, RANKS = 3, 8  # what is deeper, or further back among siblings, is told apart no more

Kind = tuple[int, int, int, int, int]


class Usefulness:
    """How often each kind of proposal was right, once its parent was.

    A kind is the part, the size of its tree in powers of two, the node's depth, its place among its siblings, and how
    many parts propose it. The size stands for what the part knows: a lookup drafts more behind a longer match. A node
    is taken to be right as often as the best of its proposals.
    """

    def __init__(self) -> None:
        self.counts: dict[Kind, tuple[float, float]] = {}  # right, seen

    def rates(self, merged: Merged) -> list[float]:
        """For every node, the probability that it is accepted; never above its parent's."""
        rates: list[float] = []
        for kinds, parent in zip(_kinds(merged), merged.parents, strict=True):
            best = 0.0
            for kind in kinds:
                right, seen = self.counts.get(kind) or _guess(kind)
                best = max(best, right / seen)
            rates.append(best * rates[parent] if parent >= 0 else best)
        return rates

    def observe(self, merged: Merged, tokens: Sequence[int]) -> None:
        """Learn that the text went on with ``tokens``, which judges the children of every node on their way."""
        path = merged.along(tokens)
        right = set(path)
        judged = set(path[: len(tokens)])  # what follows the last token is not known yet
        for node, (kinds, parent) in enumerate(zip(_kinds(merged), merged.parents, strict=True)):
            if parent in judged:
                for kind in kinds:
                    hits, seen = self.counts.get(kind) or _guess(kind)
                    self.counts[kind] = hits + (node in right), seen + 1.0


def _guess(kind: Kind) -> tuple[float, float]:
    return WEIGHT * (OTHERS if kind[3] else FIRST), WEIGHT


def _kinds(merged: Merged) -> list[list[Kind]]:
    """The kinds of every node's proposals."""
    sizes = [len(tree).bit_length() for tree in merged.trees]
    return [
        [(part, sizes[part], min(depth, DEPTHS), min(rank, RANKS), len(proposals)) for part, _, rank in proposals]
        for proposals, depth in zip(merged.proposals, merged.depth, strict=True)
    ]
