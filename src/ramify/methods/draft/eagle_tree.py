"""EAGLE-2's dynamic tree: grown level by level below what the head is sure of, then cut to its best nodes.

Every candidate has a value, the sum of the log-confidences on its way from the top: their product is how likely the
head takes the whole way to be right. It never exceeds its parent's. The next level grows below the best candidates of
the last, and at the end the best of all levels are kept. Of equal values the shallower one goes first, then the earlier
one, so that what is kept is always a tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ramify.engine.tree import TokenTree, TreeShape


@dataclass
class Growth:
    """The candidates so far, by level: ``tokens``, ``values`` and ``parents`` (counted over all; −1: the top)."""

    tokens: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    parents: list[np.ndarray] = field(default_factory=list)
    size: int = 0

    def add(self, tokens: np.ndarray, confidences: np.ndarray, places: np.ndarray | None = None) -> None:
        """A level: tokens [w, k] with log-confidences, below the candidates at ``places`` [w] of the last level."""
        if places is None:
            self.parents.append(np.full(tokens.size, -1))
            self.values.append(confidences.ravel())
        else:
            begin = self.size - len(self.values[-1])
            self.parents.append(np.repeat(begin + places, tokens.shape[1]))
            self.values.append((self.values[-1][places, None] + confidences).ravel())
        self.tokens.append(tokens.ravel())
        self.size += tokens.size

    def frontier(self, width: int, least: float = -np.inf) -> np.ndarray:
        """Places in the last level of its ``width`` best candidates with a value of at least ``least``, best first."""
        places = best(self.values[-1], width)
        found: np.ndarray = places[self.values[-1][places] >= least]
        return found

    def kept(self, nodes: int) -> tuple[TokenTree, np.ndarray]:
        """The tree of the ``nodes`` best candidates of all, which promises their confidences, and their values."""
        values, parents = np.concatenate(self.values), np.concatenate(self.parents)
        chosen = np.sort(best(values, nodes))
        place = np.full(len(values) + 1, -1)  # the last entry is what parent −1 finds
        place[chosen] = np.arange(len(chosen))
        tokens = torch.from_numpy(np.concatenate(self.tokens)[chosen])
        above = np.append(values, 0.0)[parents[chosen]]  # parent −1 finds the last entry here, too
        shape = TreeShape.of(place[parents[chosen]].tolist())
        return TokenTree(tokens, shape, promises=np.exp(values[chosen] - above).tolist()), values[chosen]


def best(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the ``count`` greatest values, greatest first, the earlier of equals first; none that is -inf."""
    found = np.argsort(-values, kind="stable")[:count]
    return found[values[found] > -np.inf]
