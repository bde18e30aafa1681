"""Templates: token trees laid out by the ranks of candidates, the most useful nodes first."""

from __future__ import annotations

import functools
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError


@dataclass(frozen=True)
class Template:
    """A tree as paths of candidate ranks, in an order of which every beginning is prefix-closed.

    ``ranks[i]``: the ranks from the top to node i. ``rates[i]``: how often per step the node was right where that was
    measured, so that n nodes are expected to give 1 + sum(rates[:n]) tokens a pass.
    """

    ranks: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rates and len(self.rates) != len(self.ranks):
            raise RamifyError(f"the template has {len(self.ranks)} nodes but {len(self.rates)} rates")
        seen: set[tuple[int, ...]] = {()}
        for path in self.ranks:
            if not path or min(path) < 0:
                raise RamifyError(f"{path} is no node of a template: give its ranks, counted from 0")
            if path[:-1] not in seen:
                raise RamifyError(f"the template lists node {path} before its parent")
            seen.add(path)

    @staticmethod
    def read(file: Path) -> Template:
        """The template that ``save`` wrote; raises ``RamifyError`` for a file that is none."""
        try:
            return Template.of(json.loads(file.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RamifyError(f"{file} is no template file: {error}") from error

    @staticmethod
    def of(entry: dict[str, list[Any]]) -> Template:
        """A template from its JSON form."""
        return Template(tuple(map(tuple, entry["ranks"])), tuple(entry.get("rates", ())))

    @staticmethod
    def likeliest(accuracy: Sequence[Sequence[float]], nodes: int) -> Template:
        """The ``nodes`` most probable paths, where guess r at depth k is right with probability ``accuracy[k][r]``.

        Depths are taken to be independent, so a path's rate is the product along it and a parent's is never lower:
        every beginning is prefix-closed. Ties go to shallower paths, then to lower ranks.
        """
        found: list[tuple[int, ...]] = []
        rates: list[float] = []
        waiting: list[tuple[float, int, tuple[int, ...]]] = []

        def enter(path: tuple[int, ...], rate: float) -> None:
            if len(path) < len(accuracy):
                for rank, share in enumerate(accuracy[len(path)]):
                    if share > 0.0:
                        heapq.heappush(waiting, (-rate * share, len(path) + 1, (*path, rank)))

        enter((), 1.0)
        while waiting and len(found) < nodes:
            rate, _, path = heapq.heappop(waiting)
            found.append(path)
            rates.append(-rate)
            enter(path, -rate)
        return Template(tuple(found), tuple(rates))

    def fill(self, guesses: Tensor) -> TokenTree:
        """The tree whose node of rank r at depth k carries ``guesses[k, r]`` (int64 [depth, ranks]); siblings of
        different parents share their guesses."""
        index = [(len(path) - 1) * guesses.shape[1] + path[-1] for path in self.ranks]
        return TokenTree(guesses.flatten()[index], self.shape)

    def save(self, file: Path) -> None:
        """Write the template as JSON; ``read`` and ``TokenRecycling(template=str(file))`` read it."""
        file.write_text(json.dumps({"ranks": self.ranks, "rates": self.rates}))

    def narrow(self, k: int) -> Template:
        """Without nodes whose path needs a rank of ``k`` or more."""
        fits = [max(path) < k for path in self.ranks]
        return Template(
            tuple(path for path, fit in zip(self.ranks, fits, strict=True) if fit),
            tuple(rate for rate, fit in zip(self.rates, fits, strict=False) if fit),
        )

    def first(self, nodes: int) -> Template:
        """The first ``nodes`` nodes."""
        if nodes > len(self.ranks):
            raise RamifyError(f"the template has {len(self.ranks)} nodes, fewer than the {nodes} asked for")
        return Template(self.ranks[:nodes], self.rates[:nodes])

    def expected(self, nodes: int) -> float:
        """Expected tokens a pass with the first ``nodes`` nodes."""
        return 1.0 + sum(self.rates[:nodes])

    @functools.cached_property
    def shape(self) -> TreeShape:
        place = {path: node for node, path in enumerate(self.ranks)} | {(): -1}
        return TreeShape.of(place[path[:-1]] for path in self.ranks)

    @functools.cached_property
    def slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Every node's parent (counted with the pending token as 0) and its rank."""
        return np.array(self.shape.parents, dtype=np.int64) + 1, np.array([path[-1] for path in self.ranks], np.int64)

    @functools.cached_property
    def levels(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By level: the nodes, their parents (counted with the pending token as 0) and their ranks."""
        depth = np.array(self.shape.depth, dtype=np.int64)
        parents, last = self.slots
        levels = []
        for level in range(int(depth.max(initial=-1)) + 1):
            nodes = np.flatnonzero(depth == level)
            levels.append((nodes + 1, parents[nodes], last[nodes]))
        return levels
