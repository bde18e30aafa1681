"""A suffix tree of several growing texts: how often every string of up to ``depth`` tokens occurred in them.

A string that occurred once is a leaf, which holds its place in its text and no more, and so grows with the text by
itself. Only suffixes that occurred before are walked along when a token comes: one step each. Texts can be taken out
again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


class Node:
    """A string: ``count`` occurrences, ``token`` its last token, ``depth`` its length.

    ``children`` by token, ``best`` the most frequent of them. A leaf has None, and goes on in ``text`` at ``at``.
    """

    __slots__ = ("at", "best", "children", "count", "depth", "text", "token")

    def __init__(self, token: int, depth: int, text: Text, at: int) -> None:
        self.token, self.depth, self.count = token, depth, 1
        self.text, self.at = text, at
        self.children: dict[int, Node] | None = None
        self.best: Node | None = None


@dataclass(eq=False)
class Text:
    """``tokens`` of one text in a tree, and ``active``, the nodes at which its suffixes of 1, 2, … tokens end."""

    tokens: list[int] = field(default_factory=list)
    active: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A string in the tree that may end ``beyond`` tokens behind the leaf ``node``."""

    node: Node
    beyond: int = 0


@dataclass(frozen=True)
class Speculation:
    """Likely continuations as a tree, each node with its probability as the tree counts it, the likeliest first."""

    tokens: list[int]
    parents: list[int]
    probabilities: list[float]
    match: int

    @property
    def score(self) -> float:
        """Tokens expected to be right."""
        return sum(self.probabilities)


class SuffixTree:
    """Strings of up to ``depth`` tokens."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.root = Node(-1, 0, Text(), 0)
        self.root.children = {}

    def extend(self, text: Text, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to ``text``, a new one or one of the tree's."""
        for token in tokens:
            text.tokens.append(token)
            ends, text.active = [self.root, *text.active], []
            for node in ends:
                child = self._enter(node, token, text)
                if child.count > 1 and child.depth < self.depth:
                    text.active.append(child)

    def _enter(self, node: Node, token: int, text: Text) -> Node:
        assert node.children is not None
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = Node(token, node.depth + 1, text, len(text.tokens))
        else:
            self._open(child)
            child.count += 1
        if node.best is None or child.count >= node.best.count:
            node.best = child
        return child

    def _open(self, leaf: Node) -> None:
        """Make a leaf an inner node, for it will occur a second time; what followed it becomes its child."""
        if leaf.children is not None:
            return
        leaf.children = {}
        if leaf.depth == self.depth:
            return
        if leaf.at < len(leaf.text.tokens):
            token = leaf.text.tokens[leaf.at]
            leaf.best = leaf.children[token] = Node(token, leaf.depth + 1, leaf.text, leaf.at + 1)
        else:  # it ends where its text does, and no longer grows by itself
            leaf.text.active.append(leaf)

    def remove(self, text: Text) -> None:
        """Take all occurrences of strings in ``text`` out of the tree."""
        for start in range(len(text.tokens)):
            node = self.root
            for token in text.tokens[start : start + self.depth]:
                assert node.children is not None
                child = node.children[token]
                child.count -= 1
                if not child.count:
                    del node.children[token]
                if node.best is child:
                    node.best = max(node.children.values(), key=lambda child: child.count, default=None)
                if not child.count:
                    break
                node = child

    def find(self, string: Sequence[int]) -> Place | None:
        """Where ``string`` is, None when it is not in the tree or nothing can follow it there."""
        node = self.root
        for known, token in enumerate(string):
            if node.children is None:
                rest = len(string) - known
                same = node.text.tokens[node.at : node.at + rest] == list(string[known:])
                return Place(node, rest) if same and self._follows(node, rest) else None
            child = node.children.get(token)
            if child is None:
                return None
            node = child
        return Place(node) if node.children or self._follows(node, 0) else None

    def _follows(self, leaf: Node, beyond: int) -> bool:
        return leaf.children is None and leaf.depth + beyond < self.depth and leaf.at + beyond < len(leaf.text.tokens)

    def speculate(self, place: Place, match: int, nodes: int, floor: float, branch: bool) -> Speculation:
        """Up to ``nodes`` tokens behind ``place``, likeliest first, none below the probability ``floor``.

        A child's probability is its parent's, times the ratio of their counts. ``branch``: all children compete;
        otherwise each node goes on with its most frequent child alone.
        """
        found = Speculation([], [], [], match)
        entered = 0
        waiting: list[tuple[float, int, int, Place, int]] = []  # −probability, order, token, place, parent
        probability, parent = 1.0, -1
        while len(found.tokens) < nodes:
            for share, token, following in self._next(place, probability, floor, branch):
                heapq.heappush(waiting, (-share, entered, token, following, parent))
                entered += 1
            if not waiting:
                break
            probability, _, token, place, before = heapq.heappop(waiting)
            probability, parent = -probability, len(found.tokens)
            found.tokens.append(token)
            found.parents.append(before)
            found.probabilities.append(probability)
        return found

    def _next(self, place: Place, probability: float, floor: float, branch: bool) -> Iterator[tuple[float, int, Place]]:
        node = place.node
        if node.children is None:
            if self._follows(node, place.beyond):
                yield probability, node.text.tokens[node.at + place.beyond], Place(node, place.beyond + 1)
            return
        if node.best is None or probability * node.best.count < floor * node.count:
            return
        others = [child for child in node.children.values() if child is not node.best] if branch else []
        for child in (node.best, *others):
            share = probability * child.count / node.count
            if share >= floor:
                yield share, child.token, Place(child)
