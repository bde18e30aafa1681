"""Token trees: several continuations that share prefixes, flattened for one forward pass.

A ``TreeShape`` is the structure alone, interned, so that depths and masks of a shape are computed once. A
``TokenTree`` is a shape with a token at every node. Nodes are in topological order (a parent before its children);
parent −1 means "child of the last committed token".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ramify.engine.drawn import Drawn
from ramify.errors import RamifyError


@dataclass(frozen=True)
class TreeShape:
    """Structure of a token tree of N nodes; build with ``TreeShape.of``, which interns it.

    ``mutual``: the last so many nodes, one below the other, also see those below them: a block of masks and what bounds
    it, which a masked denoiser fills in one pass. Such a shape is scored as it is, and never stands in another one.
    """

    parents: tuple[int, ...]
    mutual: int = 0

    @staticmethod
    def of(parents: Iterable[int]) -> TreeShape:
        """The shape with these parents [N]; raises ``RamifyError`` when a parent does not come before its child."""
        return _intern(tuple(parents))

    @staticmethod
    def chain(length: int) -> TreeShape:
        """A single path of ``length`` nodes."""
        return _chain(length)

    @staticmethod
    def block(before: int, size: int) -> TreeShape:
        """A path of ``before`` nodes, and behind it ``size`` more that see all of it and each other."""
        return _block(before, size)

    def __len__(self) -> int:
        return len(self.parents)

    @functools.cached_property
    def depth(self) -> tuple[int, ...]:
        """Depth of every node [N]; 0 for children of the last committed token."""
        depth: list[int] = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return tuple(depth)

    @functools.cached_property
    def depth_tensor(self) -> Tensor:
        return torch.tensor(self.depth, dtype=torch.long)

    @functools.cached_property
    def ancestors(self) -> Tensor:
        """Bool [N, N]: entry (i, j) tells whether node j is i or an ancestor of i."""
        n = len(self.parents)
        if self.is_chain or self.mutual:
            seen_by = torch.ones(n, n, dtype=torch.bool).tril_()
            seen_by[n - self.mutual :, n - self.mutual :] = True
            return seen_by
        seen = np.eye(n, dtype=np.bool_)  # numpy, whose calls on a row cost a tenth of torch's
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return torch.from_numpy(seen)

    @functools.cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of every node in order [N + 1]; the last entry holds those of the last committed token."""
        lists: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        for node, parent in enumerate(self.parents):
            lists[parent].append(node)
        return tuple(map(tuple, lists))

    @functools.cached_property
    def ranks(self) -> tuple[int, ...]:
        """Place of every node among its siblings [N]."""
        seen = [0] * (len(self.parents) + 1)
        ranks: list[int] = []
        for parent in self.parents:
            ranks.append(seen[parent])
            seen[parent] += 1
        return tuple(ranks)

    @functools.cached_property
    def is_chain(self) -> bool:
        return not self.mutual and all(parent == node - 1 for node, parent in enumerate(self.parents))

    @functools.cached_property
    def rooted(self) -> TreeShape:
        """The same shape below one new node 0 (the pending token)."""
        return TreeShape.of((-1, *(parent + 1 for parent in self.parents)))

    def path(self, node: int) -> tuple[int, ...]:
        """Nodes from the top to ``node``, both included; empty for −1."""
        nodes: list[int] = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return tuple(reversed(nodes))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - shapes are interned and few
    def cut(self, levels: int) -> tuple[int, ...]:
        """The nodes of the first ``levels`` levels, in order."""
        return tuple(node for node, depth in enumerate(self.depth) if depth < levels)


@functools.lru_cache(maxsize=1024)
def _intern(parents: tuple[int, ...]) -> TreeShape:
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise RamifyError(f"a token tree lists parents before children, but node {node} has parent {parent}")
    return TreeShape(parents)


@functools.lru_cache(maxsize=1024)
def _chain(length: int) -> TreeShape:
    return _intern(tuple(range(-1, length - 1)))


@functools.lru_cache(maxsize=64)  # few, for where all see each other every length of the text is a shape of its own
def _block(before: int, size: int) -> TreeShape:
    return TreeShape(tuple(range(-1, before + size - 1)), size)


@dataclass(frozen=True, eq=False)
class Ghosts:
    """Nodes that are scored beside a tree and can never be accepted; their logits guess what comes later.

    They see the cached text, their ancestors and themselves; no node of the tree sees them. They join the pass behind
    layer ``layer`` (0: in place of embeddings), with states of their own making, and leave no entry in the cache.

    ``parents`` [G]: −1 for the pending token, i for node i of the tree of n nodes, n + g for ghost g (an earlier one).
    ``kinds`` [G]: what each is, as ``states`` counts them. ``states(sources, kinds)``: the ghosts' states [G, D] at
    that layer, from the states [G, D] of the real nodes that they descend from and the kinds (int64 [G]).
    ``strangers``: they do not see each other; one below another only stands a position behind it.
    """

    parents: tuple[int, ...]
    kinds: tuple[int, ...]
    layer: int
    states: Callable[[Tensor, Tensor], Tensor]
    strangers: bool = False

    def __len__(self) -> int:
        return len(self.parents)

    def rooted(self) -> Ghosts:
        """The same ghosts of a tree below a new node 0."""
        return replace(self, parents=tuple(parent + 1 for parent in self.parents))

    def on(self, shape: TreeShape) -> GhostShape:
        """Where the ghosts stand beside ``shape``."""
        return _ghost_shape(shape, self.parents, self.kinds, self.strangers)


@dataclass(frozen=True)
class GhostShape:
    """``depth`` [G] as the tree counts it, ``sources`` [G] (the real node each descends from, −1 the pending token),
    ``ancestors`` bool [G, n + G] over the tree's nodes and the ghosts, ``kinds`` [G]; all but ``ancestors`` int64."""

    depth: Tensor
    sources: Tensor
    ancestors: Tensor
    kinds: Tensor


@functools.lru_cache(maxsize=256)
def _ghost_shape(shape: TreeShape, parents: tuple[int, ...], kinds: tuple[int, ...], strangers: bool) -> GhostShape:
    n, count = len(shape), len(parents)
    depth: list[int] = []
    sources: list[int] = []
    seen = torch.zeros(count, n + count, dtype=torch.bool)
    for ghost, parent in enumerate(parents):
        if not -1 <= parent < n + ghost:
            raise RamifyError(f"ghosts list parents before children, but ghost {ghost} has parent {parent}")
        if parent >= n:
            depth.append(depth[parent - n] + 1)
            sources.append(sources[parent - n])
            seen[ghost] = seen[parent - n]
        else:
            depth.append(shape.depth[parent] + 1 if parent >= 0 else 0)
            sources.append(parent)
            if parent >= 0:
                seen[ghost, :n] = shape.ancestors[parent]
        if strangers:
            seen[ghost, n:] = False
        seen[ghost, n + ghost] = True
    return GhostShape(torch.tensor(depth), torch.tensor(sources), seen, torch.tensor(kinds))


@dataclass(frozen=True, eq=False)
class TokenTree:
    """Tokens on a shape.

    ``tokens``: int64 [N]. ``drawn``: for drafters that sample, the draws that made the children of a node, by node
    (−1 for the last committed token); a node without an entry has deterministic children. ``embeddings``: float
    [N, D] together with ``soft`` (bool [N]) for nodes whose input embedding is given directly; their token is not
    looked up. ``ghosts``: nodes that are scored beside these and never kept. ``promises`` [N]: what the drafter takes
    for each token's probability behind its parent, where it has an opinion; nothing but other drafters reads them.
    """

    tokens: Tensor
    shape: TreeShape
    drawn: dict[int, Drawn] = field(default_factory=dict)
    embeddings: Tensor | None = None
    soft: Tensor | None = None
    ghosts: Ghosts | None = None
    promises: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.tokens.shape != (len(self.shape),):
            raise RamifyError(f"a tree of {len(self.shape)} nodes needs as many tokens, got {list(self.tokens.shape)}")
        if (self.embeddings is None) != (self.soft is None):
            raise RamifyError("soft nodes need both their embeddings and the mask that marks them")
        if self.promises is not None and len(self.promises) != len(self.shape):
            raise RamifyError(f"a tree of {len(self.shape)} nodes needs as many promises, got {len(self.promises)}")

    def __len__(self) -> int:
        return len(self.shape)

    @staticmethod
    def chain(tokens: Sequence[int] | Tensor) -> TokenTree:
        """A single path."""
        flat = torch.as_tensor(tokens, dtype=torch.long)
        return TokenTree(flat, TreeShape.chain(len(flat)))

    @staticmethod
    def empty() -> TokenTree:
        """No draft at all: plain decoding."""
        return TokenTree.chain([])

    @staticmethod
    def from_paths(paths: Iterable[Sequence[int]]) -> TokenTree:
        """Merge token paths into a tree (a trie); earlier paths keep earlier places among siblings."""
        tokens: list[int] = []
        parents: list[int] = []
        places: dict[tuple[int, int], int] = {}
        for path in paths:
            node = -1
            for token in path:
                child = places.get((node, token))
                if child is None:
                    child = places[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = child
        return TokenTree(torch.tensor(tokens, dtype=torch.long), TreeShape.of(parents))

    def rooted(self, token: int) -> TokenTree:
        """This tree below a new node 0 that carries ``token`` (the pending one)."""
        if len(self) == 0 and self.ghosts is None:
            return TokenTree.chain([token])
        root = torch.tensor([token], dtype=torch.long, device=self.tokens.device)
        drawn = {node + 1: draw for node, draw in self.drawn.items()}
        embeddings = soft = None
        if self.embeddings is not None and self.soft is not None:
            embeddings = torch.cat([self.embeddings.new_zeros(1, self.embeddings.shape[1]), self.embeddings])
            soft = torch.cat([self.soft.new_zeros(1), self.soft])
        ghosts = self.ghosts and self.ghosts.rooted()
        return TokenTree(torch.cat([root, self.tokens]), self.shape.rooted, drawn, embeddings, soft, ghosts)

    def cut(self, levels: int) -> TokenTree:
        """The tree without nodes and ghosts deeper than ``levels`` levels."""
        deepest = max(self.shape.depth, default=-1)
        if self.ghosts is not None:
            deepest = max(deepest, int(self.ghosts.on(self.shape).depth.max()))
        if deepest < levels:
            return self
        nodes = self.shape.cut(levels)
        place = {node: index for index, node in enumerate(nodes)} | {-1: -1}
        shape = TreeShape.of(place[self.shape.parents[node]] for node in nodes)
        index = torch.tensor(nodes, dtype=torch.long, device=self.tokens.device)
        return TokenTree(
            self.tokens[index],
            shape,
            {place[node]: draw for node, draw in self.drawn.items() if node in place and shape.children[place[node]]},
            None if self.embeddings is None else self.embeddings[index],
            None if self.soft is None else self.soft[index],
            self._ghosts_within(levels, place),
            None if self.promises is None else [self.promises[node] for node in nodes],
        )

    def _ghosts_within(self, levels: int, place: dict[int, int]) -> Ghosts | None:
        if self.ghosts is None:
            return None
        kept = [ghost for ghost, depth in enumerate(self.ghosts.on(self.shape).depth.tolist()) if depth < levels]
        if not kept:
            return None
        size = len(self)
        place = place | {size + ghost: len(place) - 1 + index for index, ghost in enumerate(kept)}
        parents = tuple(place[self.ghosts.parents[ghost]] for ghost in kept)
        return replace(self.ghosts, parents=parents, kinds=tuple(self.ghosts.kinds[ghost] for ghost in kept))
