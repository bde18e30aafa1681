"""Trees whose nodes are ranked, and how many of them pay: the rates seen so far against the machine's cost curve."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ramify.engine.tree import TokenTree, TreeShape
from ramify.methods.draft.sizing import RETRY
from ramify.models.calibrate import CostCurve

PRIOR = 32.0  # steps that the first guess of the rates counts for


class Ranked:
    """A trie whose nodes are numbered in the order of their worth, so that the first n of them are a tree for any n."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.places: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, path: Iterable[int]) -> bool:
        """Enter what of ``path`` is new; False where it no longer fits the limit."""
        node = -1
        for token in path:
            child = self.places.get((node, token))
            if child is None:
                if len(self.tokens) >= self.limit:
                    return False
                child = self.places[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = child
        return True

    def first(self, nodes: int) -> TokenTree:
        """The tree of the first ``nodes`` nodes."""
        return TokenTree(torch.tensor(self.tokens[:nodes], dtype=torch.long), TreeShape.of(self.parents[:nodes]))

    def along(self, text: Iterable[int]) -> list[int]:
        """The nodes that ``text`` runs through."""
        nodes: list[int] = []
        node = -1
        for token in text:
            child = self.places.get((node, token))
            if child is None:
                break
            nodes.append(child)
            node = child
        return nodes


class TreeSize:
    """How many nodes of a ranked tree have the most expected tokens per second.

    Node i is right in a share r_i of the steps that have it, so that n nodes give 1 + r_0 + … + r_{n−1} tokens a pass.
    The shares are those seen so far; ``first`` [limit] stands for the first ``PRIOR`` steps.
    """

    def __init__(self, curve: CostCurve, first: Sequence[float]) -> None:
        self.costs = np.array([curve.cost(nodes + 1) for nodes in range(len(first) + 1)])
        self.right, self.seen = PRIOR * np.array(first), np.full(len(first), PRIOR)

    def best(self, available: int) -> int:
        """Nodes to draft of as many, 0 when plain decoding is expected to be faster."""
        expected = 1.0 + np.concatenate([[0.0], np.cumsum(self.right[:available] / self.seen[:available])])
        return int(np.argmax(expected / self.costs[: available + 1]))

    def observe(self, nodes: int, right: Sequence[int]) -> None:
        """Learn that of a tree of ``nodes`` nodes those in ``right`` were right."""
        self.seen[:nodes] += 1
        self.right[list(right)] += 1


class Sizing:
    """Sizes the trees of one sequence and finds out which of their nodes were right, drafted or not.

    That is known once the text has grown by ``depth`` tokens, the depth of a tree. Where no draft pays, only every
    ``RETRY``-th step looks at a tree, and the others need not make one.
    """

    def __init__(self, size: TreeSize, depth: int) -> None:
        self.size, self.depth = size, depth
        self.waiting: deque[tuple[int, Ranked]] = deque()
        self.idle = 0

    def wanted(self, tokens: Sequence[int]) -> int:
        """Nodes that a tree should have before the next step on ``tokens``; 0 for none at all."""
        while self.waiting and len(tokens) - self.waiting[0][0] >= self.depth:
            length, tree = self.waiting.popleft()
            self.size.observe(len(tree), tree.along(tokens[length : length + self.depth]))
        limit = len(self.size.seen)
        nodes = self.size.best(limit)
        if nodes == 0:
            self.idle += 1
            if self.idle % RETRY:
                return 0
        return min(limit, 2 * nodes + 8)  # more than will be drafted, to see whether more would pay

    def draft(self, tree: Ranked, tokens: Sequence[int]) -> TokenTree:
        """As much of ``tree`` as pays."""
        self.waiting.append((len(tokens), tree))
        return tree.first(self.size.best(len(tree)))
