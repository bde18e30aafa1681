"""Several token trees merged into one trie, of which a part is drafted; every tree finds its own nodes again."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ramify.engine.drafter import Outcome
from ramify.engine.tree import Ghosts, TokenTree, TreeShape
from ramify.errors import RamifyError

Proposal = tuple[int, int, int]  # the part, the node's number in its tree, its place among its siblings there
Kind = tuple[int, int, int, int, int]  # the part, its promise or its tree's size, the depth, the rank, who agrees
DEPTHS, RANKS = 3, 8  # kinds tell no more apart what is deeper, or further back among siblings
PROMISES = 8  # classes of promises, each about two thirds of the one before


@dataclass
class Merged:
    """A trie of the nodes of several trees: siblings with the same token are one node, in the order of the trees.

    ``tokens``, ``parents``, ``depth`` [N]; ``proposals`` [N]: who proposed each node. ``places[p][i]``: where node i of
    tree p is. ``children``: nodes by parent and token. ``luck`` [N]: the class of each token's noise, if it is sampled.
    """

    trees: Sequence[TokenTree]
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    proposals: list[list[Proposal]] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    luck: list[int] | None = None

    @staticmethod
    def of(trees: Sequence[TokenTree]) -> Merged:
        """Merge ``trees``; raises ``RamifyError`` for one that was drawn at random or has soft nodes."""
        merged = Merged(trees)
        for part, tree in enumerate(trees):
            if tree.drawn or tree.soft is not None:
                what = "tokens drawn at random" if tree.drawn else "soft nodes"
                raise RamifyError(f"a tree with {what} cannot be merged with others; draft it alone")
            places: list[int] = []
            shape = tree.shape
            for node, (token, parent, rank) in enumerate(
                zip(tree.tokens.tolist(), shape.parents, shape.ranks, strict=True)
            ):
                above = places[parent] if parent >= 0 else -1
                place = merged.children.get((above, token))
                if place is None:
                    place = merged._enter(token, above)
                places.append(place)
                merged.proposals[place].append((part, node, rank))
            merged.places.append(places)
        return merged

    def __len__(self) -> int:
        return len(self.tokens)

    def _enter(self, token: int, parent: int) -> int:
        place = self.children[parent, token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depth.append(self.depth[parent] + 1 if parent >= 0 else 0)
        self.proposals.append([])
        return place

    @functools.cached_property
    def kinds(self) -> list[list[Kind]]:
        """Of every node's proposals [N], what tells them apart: the promise p as −1 − 1.5 · log2 1/p, rounded, or where
        there is none the size of the part's tree in powers of two, and the rank."""
        promises = [None if tree.promises is None else _classes(tree.promises) for tree in self.trees]
        sizes = [len(tree).bit_length() for tree in self.trees]
        found: list[list[Kind]] = []
        for proposals, deep in zip(self.proposals, self.depth, strict=True):
            depth, agree, kinds = min(deep, DEPTHS), len(proposals), list[Kind]()
            for part, node, rank in proposals:
                promised = promises[part]
                if promised is not None:
                    kinds.append((part, promised[node], depth, 0, agree))
                else:
                    kinds.append((part, sizes[part], depth, min(rank, RANKS), agree))
            found.append(kinds)
        return found

    def rows(self) -> list[int]:
        """How many rows of a pass each node is worth, with the ghosts that descend from it [N]; last, those of none."""
        rows = [1] * len(self) + [0]
        for places, tree in zip(self.places, self.trees, strict=True):
            if tree.ghosts is not None:
                for source in tree.ghosts.on(tree.shape).sources.tolist():
                    rows[places[source] if source >= 0 else -1] += 1
        return rows

    def along(self, text: Sequence[int]) -> list[int]:
        """The nodes that ``text`` runs through, and −1 before them."""
        nodes = [-1]
        for token in text:
            node = self.children.get((nodes[-1], token))
            if node is None:
                break
            nodes.append(node)
        return nodes

    def take(self, nodes: Sequence[int]) -> Taken:
        """The draft of these nodes, each with its parent, and of the ghosts that descend from them."""
        chosen = sorted(nodes)
        at = {node: place for place, node in enumerate(chosen)} | {-1: -1}
        shape = TreeShape.of(at[self.parents[node]] for node in chosen)
        tokens = torch.tensor([self.tokens[node] for node in chosen], dtype=torch.long)
        mine = [[at[node] for node in dict.fromkeys(places) if node in at] for places in self.places]
        ghosts = {}
        for part, (tree, places) in enumerate(zip(self.trees, self.places, strict=True)):
            own = {node: at[place] for node, place in enumerate(places) if place in at}
            moved = tree.ghosts and _moved(tree.ghosts, tree.shape, own, len(chosen))
            if moved is not None:
                ghosts[part] = moved
        return Taken(TokenTree(tokens, shape, ghosts=_together(list(ghosts.values()), len(chosen))), mine, ghosts)


@dataclass(frozen=True)
class Taken:
    """A drafted part of a merged trie. ``mine[p]``: the nodes of part p in it. ``ghosts[p]``: its ghosts beside it."""

    tree: TokenTree
    mine: Sequence[Sequence[int]]
    ghosts: Mapping[int, Ghosts]

    @staticmethod
    def nothing(parts: int) -> Taken:
        return Taken(TokenTree.empty(), [[]] * parts, {})

    def places(self, outcome: Outcome) -> dict[int, int]:
        """Where the drafted nodes are in a scored tree, −1 standing for the pending token.

        Those for which a union around this one had no row are left out; empty where none is there.
        """
        if outcome.mine is None:
            return {node: node + 1 for node in range(-1, len(self.tree))}
        if len(outcome.mine) == 1:
            return {}
        scored = outcome.tree
        parents = scored.shape.parents
        children = {
            (parent, token): node
            for node, (parent, token) in enumerate(zip(parents, scored.tokens.tolist(), strict=True))
        }
        at = {-1: parents[outcome.mine[1]]}  # a parent comes before its children, so this one hangs at the top
        for node, (parent, token) in enumerate(zip(self.tree.shape.parents, self.tree.tokens.tolist(), strict=True)):
            place = children.get((at[parent], token)) if parent in at else None
            if place is not None:
                at[node] = place
        return at

    def outcomes(self, outcome: Outcome) -> list[Outcome]:
        """``outcome`` as each part is to see it: where its own nodes are, and what came of its own ghosts."""
        at = self.places(outcome)
        seen = []
        for part, mine in enumerate(self.mine):
            ghosts, logits = self._ghosts(part, outcome)
            nodes = [0, *(at[node] for node in mine if node in at)]
            tree = outcome.tree if ghosts is outcome.tree.ghosts else replace(outcome.tree, ghosts=ghosts)
            seen.append(replace(outcome, tree=tree, ghosts=logits, mine=nodes))
        return seen

    def _ghosts(self, part: int, outcome: Outcome) -> tuple[Ghosts | None, Tensor | None]:
        """The ghosts of a part that are beside a scored tree, and their logits; their kinds tell them from others."""
        scored = outcome.tree.ghosts
        if scored is None or outcome.ghosts is None or part not in self.ghosts:
            return None, None
        count, own, size = len(self.ghosts), list(self.ghosts).index(part), len(outcome.tree)
        kept = [ghost for ghost, kind in enumerate(scored.kinds) if kind % count == own]
        if not kept:
            return None, None
        at = {size + ghost: size + place for place, ghost in enumerate(kept)}
        parents = tuple(at.get(parent, parent) for parent in (scored.parents[ghost] for ghost in kept))
        kinds = tuple(scored.kinds[ghost] // count for ghost in kept)
        return replace(self.ghosts[part], parents=parents, kinds=kinds), outcome.ghosts[kept]


def _classes(promises: Sequence[float]) -> list[int]:
    found = 1.5 * np.log2(np.maximum(promises, 1e-6)) - 1.0
    return np.rint(np.maximum(found, -1 - PROMISES)).astype(np.int64).tolist()  # type: ignore[no-any-return]


def _moved(ghosts: Ghosts, shape: TreeShape, at: Mapping[int, int], size: int) -> Ghosts | None:
    """``ghosts`` beside a tree of ``shape``, moved to one of ``size`` nodes where node i is ``at[i]``; those below a
    node that is not there are gone."""
    sources = ghosts.on(shape).sources.tolist()
    kept = [ghost for ghost, source in enumerate(sources) if source < 0 or source in at]
    if not kept:
        return None
    place = {-1: -1, **at, **{len(shape) + ghost: size + index for index, ghost in enumerate(kept)}}
    parents = tuple(place[ghosts.parents[ghost]] for ghost in kept)
    return replace(ghosts, parents=parents, kinds=tuple(ghosts.kinds[ghost] for ghost in kept))


def _together(parts: Sequence[Ghosts], size: int) -> Ghosts | None:
    """The ghosts of several parts beside one tree of ``size`` nodes; kind k of part p of n becomes kind k · n + p.

    Raises ``RamifyError`` when they join the pass at different layers.
    """
    if not parts:
        return None
    layers = sorted({ghosts.layer for ghosts in parts})
    if len(layers) > 1:
        raise RamifyError(f"ghost nodes that join at layers {layers} cannot share a pass; keep one of these methods")
    count = len(parts)
    parents: list[int] = []
    kinds: list[int] = []
    for part, ghosts in enumerate(parts):
        before = len(parents)
        parents += [parent + before if parent >= size else parent for parent in ghosts.parents]
        kinds += [kind * count + part for kind in ghosts.kinds]

    def states(sources: Tensor, kinds: Tensor) -> Tensor:
        given = torch.zeros_like(sources)
        for part, ghosts in enumerate(parts):
            own = (kinds % count == part).nonzero()[:, 0]
            if len(own):
                given[own] = ghosts.states(sources[own], kinds[own] // count).to(given)
        return given

    return Ghosts(tuple(parents), tuple(kinds), layers[0], states)
