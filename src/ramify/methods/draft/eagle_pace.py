"""How far an EAGLE tree pays: the head's own confidence, the acceptance seen so far, and the machine's cost curve.

The product of confidences along a way is what the head promises for a node. Promises are taken to be wrong by one
factor, accepted over promised so far, so n nodes give 1 + Σ min(1, factor · promise) tokens; the target's pass over
them costs what the curve says, and every level that was drafted costs one pass of the head, measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ramify.methods.draft.eagle_tree import Growth
from ramify.models.calibrate import CostCurve

PRIOR = (6.0, 8.0)  # three of four promised tokens, before anything was seen
REST = 16  # steps without a draft after one that did not pay: texts change
ROUNDS = 9  # of which the fastest counts


class Pace:
    """Chooses, up to ``largest`` nodes, how many to keep and whether another level pays. ``level``: seconds of one."""

    def __init__(self, curve: CostCurve, level: float, largest: int) -> None:
        self.costs = np.array([curve.cost(nodes + 1) for nodes in range(largest + 1)])
        self.level = level
        self.row = (self.costs[-1] - self.costs[0]) / largest
        self.accepted, self.promised = PRIOR
        self.rest = 0

    def starts(self) -> bool:
        """Whether this step is worth a draft at all; after a step that was not, some go without."""
        self.rest = max(0, self.rest - 1)
        return self.rest == 0

    def choose(self, growth: Growth) -> tuple[int, float, bool]:
        """How many candidates to keep so far, the least value among them, and whether another level is likely to pay.

        The last level's kept candidates hold a share of the promises, and the next one is taken to lose as much again.
        """
        values = np.concatenate(growth.values)
        ordered = np.sort(values)[::-1][: len(self.costs) - 1]
        expected = np.concatenate([[0.0], np.cumsum(self._promise(ordered))]) + 1.0
        speeds = expected / (self.costs[: len(expected)] + self.level * len(growth.values))
        nodes = int(speeds.argmax())
        if nodes == 0:
            return 0, np.inf, False
        least, speed = float(ordered[nodes - 1]), float(speeds[nodes])
        last = growth.values[-1]
        held = self._promise(last[last >= least])
        before = 1.0
        if len(growth.values) > 1:
            before = max(1e-9, float(self._promise(growth.values[-2][growth.values[-2] >= least]).sum()))
        gain = float(held.sum()) * min(1.0, float(held.sum()) / before)
        return nodes, least, gain > speed * (self.level + len(held) * self.row)

    def plain(self) -> None:
        """Learn that nothing was worth drafting."""
        self.rest = REST

    def observe(self, values: np.ndarray, accepted: int) -> None:
        """Learn that ``accepted`` of the nodes with these values were right."""
        self.promised += float(np.exp(values).sum())
        self.accepted += accepted

    def _promise(self, values: np.ndarray) -> np.ndarray:
        promised: np.ndarray = np.minimum(1.0, self.accepted / self.promised * np.exp(values))
        return promised


def relative(work: Callable[[], object], unit: Callable[[], object]) -> float:
    """How long ``work`` takes beside ``unit``: the fastest of some turns each, so that a busy machine is no matter."""
    fastest = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, run in enumerate((work, unit)):
            began = time.perf_counter()
            run()
            fastest[place] = min(fastest[place], time.perf_counter() - began)
    return fastest[0] / fastest[1]
