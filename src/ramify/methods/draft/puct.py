"""Searches of a tri-gram table for paths that are worth a guess: PUCT, and what it is compared with.

Each yields paths (token ids behind the pair that it starts from), the best first and none before its own beginning.
"""

from __future__ import annotations

import functools
import heapq
import math
from bisect import bisect
from collections.abc import Iterator
from random import Random

from ramify.methods.draft.trigrams import Adapted, Row

Tokens = tuple[int, ...]


def exploration(visits: int, c1: float, c2: float) -> float:
    """(C1 + ln((N + C2 + 1)/C2)) · sqrt(N): what p/(1 + n) counts for below a node of N visits."""
    return (c1 + math.log((visits + c2 + 1) / c2)) * math.sqrt(visits)


@functools.lru_cache(maxsize=64)
def _explorations(iterations: int, c1: float, c2: float) -> tuple[float, ...]:
    return tuple(exploration(visits, c1, c2) for visits in range(iterations))


class Node:
    """An expanded state: the ``pair`` of tokens that it ends in, the ``path`` to it and that path's weights, ``gain``.

    Of its children, side by side: ``visits`` n, ``sums`` W, ``values`` W/n, ``pulls`` p/(1 + n), and their own nodes.
    """

    __slots__ = ("children", "fresh", "gain", "pair", "path", "pulls", "row", "sums", "values", "visits")

    def __init__(self, pair: int, row: Row, path: Tokens, gain: float) -> None:
        size = len(row.tokens)
        self.pair, self.row, self.path, self.gain = pair, row, path, gain
        self.visits, self.sums, self.values, self.pulls = [0] * size, [0.0] * size, [0.0] * size, [0.0] * size
        self.children: list[Node | None] = [None] * size
        self.fresh = -1  # the next child without a visit: first the last one, as place −1, then from 0 up

    def select(self, factor: float) -> int:
        """The child of largest W/n + factor · p/(1 + n), infinite for those without a visit."""
        if self.fresh < len(self.visits) - 1:
            self.fresh += 1
            return self.fresh - 1
        scores = [value + factor * pull for value, pull in zip(self.values, self.pulls, strict=True)]
        return scores.index(max(scores))

    def record(self, child: int, reward: float) -> None:
        visits = self.visits[child] = self.visits[child] + 1
        total = self.sums[child] = self.sums[child] + reward
        self.values[child] = total / visits
        self.pulls[child] = self.row.weights[child] / (1 + visits)

    def expand(self, child: int, table: Adapted) -> Node | None:
        """The node of a child, None where the table knows no successor."""
        token = self.row.tokens[child]
        pair = table.next(self.pair, token)
        row = table.row(pair)
        if row is None:
            return None
        node = self.children[child] = Node(pair, row, (*self.path, token), self.gain + self.row.weights[child])
        return node


def explore(
    table: Adapted, pair: int, *, iterations: int, depth: int, c1: float, c2: float, generator: Random | None
) -> list[Node]:
    """PUCT from ``pair``, ``depth`` tokens deep: the nodes that it expanded, the root first.

    ``generator`` draws the roll-outs, whose reward is 1 + the weights of the whole path; without it the reward is 1.
    """
    row = table.row(pair)
    if row is None:
        return []
    nodes = [Node(pair, row, (), 0.0)]
    factors = _explorations(iterations, c1, c2)
    for visits in range(iterations):
        node, trail = nodes[0], []
        while True:
            new = node.fresh < 0
            child = node.select(factors[visits])
            trail.append((node, child))
            if new or len(node.path) + 1 == depth:
                break
            visits, below = node.visits[child], node.children[child]
            if below is None:
                below = node.expand(child, table)
                if below is None:
                    break
                nodes.append(below)
            node = below
        reward = 1.0 if generator is None else 1.0 + _weights(table, node, child, depth, generator)
        for node, child in trail:
            node.record(child, reward)
    return nodes


def _weights(table: Adapted, node: Node, child: int, depth: int, generator: Random) -> float:
    """The weights on the path to a child and on a random one, w ∝ M, from there to the full depth."""
    total = node.gain + node.row.weights[child]
    pair = table.next(node.pair, node.row.tokens[child])
    for _ in range(len(node.path) + 1, depth):
        row = table.row(pair)
        if row is None:
            break
        sums = row.cumulative
        place = bisect(sums, generator.random() * sums[-1], 0, len(sums) - 1)
        total += row.weights[place]
        pair = table.next(pair, row.tokens[place])
    return total


def most_visited(table: Adapted, nodes: list[Node], paths: int) -> Iterator[Tokens]:
    """The ``paths`` most visited paths, each followed by itself with the likeliest token behind it.

    Among equals the shorter comes first, then the one whose last token is likelier.
    """
    visited = [
        (-visits, len(node.path), -node.row.weights[child], place, child)
        for place, node in enumerate(nodes)
        for child, visits in enumerate(node.visits)
        if visits
    ]
    for *_, place, child in heapq.nsmallest(paths, visited):
        node, token = nodes[place], nodes[place].row.tokens[child]
        path = (*node.path, token)
        yield path
        row = table.row(table.next(node.pair, token))
        if row is not None:
            yield (*path, row.best)


def likeliest(table: Adapted, pair: int, depth: int) -> Iterator[Tokens]:
    """The chain of likeliest successors, as it grows to ``depth`` tokens."""
    path: Tokens = ()
    while len(path) < depth and (row := table.row(pair)):
        path = (*path, row.best)
        pair = table.next(pair, path[-1])
        yield path


def ranked(table: Adapted, pair: int, depth: int) -> Iterator[Tokens]:
    """All paths of up to ``depth`` tokens by the product of their weights, a row being scaled to a sum of at most 1."""
    waiting: list[tuple[float, int, Tokens, int, Row, int]] = []
    count = 0

    def enter(worth: float, path: Tokens, pair: int, row: Row, place: int) -> None:
        """Wait with the path to a row's successor; its lighter ones need not wait before it has had its turn."""
        nonlocal count
        if place < len(row.tokens):
            count += 1
            share = row.weights[row.order[place]] / max(1.0, row.cumulative[-1])
            heapq.heappush(waiting, (worth * share, count, path, pair, row, place))

    row = table.row(pair)
    if row is not None:
        enter(-1.0, (), pair, row, 0)
    while waiting:
        worth, _, above, pair, row, place = heapq.heappop(waiting)
        chosen = row.order[place]
        token, share = row.tokens[chosen], row.weights[chosen] / max(1.0, row.cumulative[-1])
        path = (*above, token)
        yield path
        enter(worth / share, above, pair, row, place + 1)
        below = table.next(pair, token)
        following = table.row(below) if len(path) < depth else None
        if following is not None:
            enter(worth, path, below, following, 0)
