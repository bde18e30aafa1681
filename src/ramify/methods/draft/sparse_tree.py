"""Dynamic sparse trees: how many prompt tokens every guess carries, and how large the trees are (arXiv 2405.18628).

A guess of ranks (r_1, …, r_k) is right with probability P(v) = Π a_j[r_j], and the last right one of its path with
p(v) = P(v) − Σ P(children). In state d the last accepted node carried d prompt tokens, so guesses reach d deep: T_d
holds the N_d likeliest of them, f(d, N) = Σ P(v). Every guess starts with c(v) = n prompt tokens; while guesses and
prompt tokens exceed the budget B, one is taken from the guess that loses least by it,

    ΔF(v) = p(v) · (f(c, N_c) − f(c − 1, N_{c−1})),   c = c(v) > 1, the first of equals.

The accepted node decides the next state: P(d → c) = Σ_{c(v) = c} p(v), and what is left goes to state n, since the
root always carries n prompt tokens. With π stationary, E = Σ π_d f(d, N_d) guesses are accepted a pass. (The official
code counts "nothing accepted" as a state that earns nothing. E is then too low; the best sizes are the same at its
shipped B = 50, 60 and 105, and up to 0.7 % worse at some budgets between.)

Sizes: N_1 = 10, the others by grid search over [B/(n + 1), B/2]. Ours: N_1 = B/2 where that is less than 10 or n = 1;
the third and all later states share a size, so that the grid stays two-dimensional. A pass has up to B + 1 + n rows:
the pending token and its own n prompt tokens are not counted in B.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ramify.errors import RamifyError, unknown
from ramify.methods.draft.template import Template

RANKS = 10
# How often the guess of rank r was right at distance 2, 3, 4 for Vicuna-7B, recovered from the published trees.
VICUNA_7B = (
    (0.48335, 0.14342, 0.07360, 0.04540, 0.03087, 0.02155, 0.01658, 0.01323, 0.00932, 0.00845),
    (0.26272, 0.14556, 0.08142, 0.05754, 0.04276, 0.03238, 0.02577, 0.02147, 0.01902, 0.01549),
    (0.16422, 0.11731, 0.08072, 0.05797, 0.04598, 0.03664, 0.03133, 0.02316, 0.02373, 0.01790),
)
Accuracy = tuple[tuple[float, ...], ...]  # by distance and rank
ALLOCATIONS = ("pruned", "naive", "random", "chain")


@dataclass(frozen=True)
class SparseTree:
    """One T_d: ``paths`` by depth and then by rank, ``stops`` p(v), ``prompts`` c(v), ``expected`` f(d, N_d)."""

    paths: tuple[tuple[int, ...], ...]
    stops: tuple[float, ...]
    prompts: tuple[int, ...]
    expected: float

    @staticmethod
    def of(accuracy: Accuracy, depth: int, nodes: int) -> SparseTree:
        """The ``nodes`` likeliest guesses at most ``depth`` deep, each with one prompt token for every distance."""
        found = Template.likeliest(accuracy[:depth], nodes)
        chance = dict(zip(found.ranks, found.rates, strict=True))
        stops = dict(chance)
        for path in found.ranks:
            if len(path) > 1:
                stops[path[:-1]] -= chance[path]
        paths = tuple(sorted(found.ranks, key=lambda path: (len(path), path)))
        return SparseTree(paths, tuple(stops[p] for p in paths), (len(accuracy),) * len(paths), sum(found.rates))

    @property
    def spent(self) -> int:
        """Guesses and prompt tokens."""
        return len(self.paths) + sum(self.prompts)


@dataclass(frozen=True)
class DynamicTree:
    """``trees``: T_1 … T_n. ``steady``: π of the states 1 … n. ``expected``: E, accepted guesses a pass."""

    trees: tuple[SparseTree, ...]
    steady: tuple[float, ...]
    expected: float

    @staticmethod
    def of(trees: Sequence[SparseTree]) -> DynamicTree:
        """The trees with their stationary state and expectation."""
        steady = stationary(transitions(trees))
        expected = sum(share * tree.expected for share, tree in zip(steady, trees, strict=True))
        return DynamicTree(tuple(trees), tuple(steady), expected)

    @property
    def rows(self) -> int:
        """Rows of the largest pass: the pending token, its prompt tokens, guesses and theirs."""
        return 1 + len(self.trees) + max(tree.spent for tree in self.trees)


def transitions(trees: Sequence[SparseTree]) -> np.ndarray:
    """P(d → c) [n, n], states counted from 1."""
    chances = np.zeros((len(trees), len(trees)))
    for state, tree in enumerate(trees):
        for stop, prompts in zip(tree.stops, tree.prompts, strict=True):
            chances[state, prompts - 1] += stop
        chances[state, -1] += 1.0 - chances[state].sum()
    return chances


def stationary(chances: np.ndarray) -> list[float]:
    """π with π = π P; unique, since state n follows every state."""
    states = len(chances)
    system = np.vstack([chances.T - np.eye(states), np.ones(states)])
    solved: list[float] = np.linalg.lstsq(system, np.eye(states + 1)[-1], rcond=None)[0].clip(0.0).tolist()
    return solved


def dynamic_tree(accuracy: Sequence[Sequence[float]], budget: int, allocation: str = "pruned") -> DynamicTree:
    """The trees of at most ``budget`` guesses and prompt tokens; guess r at distance k is right ``accuracy[k][r]``.

    ``allocation``: "pruned" is the paper's, the others are its ablations. "naive": n prompt tokens for every guess;
    "random": the sizes of "pruned", prompt tokens taken away at random; "chain": the likeliest guess of every distance,
    n prompt tokens each, whatever the budget.
    """
    if allocation not in ALLOCATIONS:
        raise unknown("allocation", allocation, ALLOCATIONS)
    if budget < 2:
        raise RamifyError(f"a budget of {budget} holds no guess with a prompt token; give at least 2")
    return _dynamic_tree(tuple(map(tuple, accuracy)), budget, allocation)


@functools.lru_cache(maxsize=256)  # half a second for a large budget
def _dynamic_tree(accuracy: Accuracy, budget: int, allocation: str) -> DynamicTree:
    states = range(1, len(accuracy) + 1)
    full = functools.cache(functools.partial(SparseTree.of, accuracy))
    if allocation == "chain":
        best = tuple(guesses[:1] for guesses in accuracy)
        return DynamicTree.of([SparseTree.of(best, depth, depth) for depth in states])
    if allocation == "naive":
        return DynamicTree.of([full(depth, max(1, budget // (len(accuracy) + 1))) for depth in states])
    tried = (_pruned([full(*tree) for tree in enumerate(sizes, 1)], budget) for sizes in _sizes(len(accuracy), budget))
    found = max(tried, key=lambda tree: tree.expected)
    if allocation == "pruned":
        return found
    numbers = random.Random(0)
    whole = [full(depth, len(tree.paths)) for depth, tree in enumerate(found.trees, 1)]
    return DynamicTree.of([_take(tree, budget, lambda node, left: numbers.random()) for tree in whole])


def _pruned(trees: Sequence[SparseTree], budget: int) -> DynamicTree:
    """Stage 1 for trees of given sizes."""
    gain = [later - earlier for earlier, later in pairwise([0.0, *(tree.expected for tree in trees)])]
    return DynamicTree.of([_take(tree, budget, functools.partial(_loss, tree, gain)) for tree in trees])


def _loss(tree: SparseTree, gain: Sequence[float], node: int, prompts: int) -> float:
    """ΔF of the node's last prompt token."""
    return tree.stops[node] * gain[prompts - 1]


def _take(tree: SparseTree, budget: int, loss: Callable[[int, int], float]) -> SparseTree:
    """``tree`` within ``budget``: prompt tokens taken where ``loss(node, prompts)`` is least, never a node's last."""
    prompts = list(tree.prompts)
    waiting = [(loss(node, count), node) for node, count in enumerate(prompts) if count > 1]
    heapq.heapify(waiting)
    for _ in range(tree.spent - budget):
        if not waiting:
            break
        _, node = heapq.heappop(waiting)
        prompts[node] -= 1
        if prompts[node] > 1:
            heapq.heappush(waiting, (loss(node, prompts[node]), node))
    return replace(tree, prompts=tuple(prompts))


def _sizes(states: int, budget: int) -> list[tuple[int, ...]]:
    """The (N_1, …, N_n) that are tried."""
    most = budget // 2
    if states == 1:
        return [(most,)]
    span = range(max(1, budget // (states + 1)), most + 1)
    later = span if states > 2 else range(1)
    return [(min(RANKS, most), second, *[third] * (states - 2)) for second in span for third in later]
