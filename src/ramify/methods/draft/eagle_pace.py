"""How far an EAGLE tree pays: the head's own confidence, the acceptance seen so far, and the machine's cost curve.

The product of confidences along a way is what the head promises for a node. Promises are taken to be wrong by one
factor, accepted over promised so far, so n nodes give 1 + Σ min(1, factor · promise) tokens; the target's pass over
them costs what the curve says, and every level that was drafted costs one pass of the head, measured here.
"""

from __future__ import annotations

import itertools
import math
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
        self.costs = [curve.cost(nodes + 1) for nodes in range(largest + 1)]
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
        # Plain numbers: on so few of them a loop costs a third of numpy's calls.
        levels, drafting = [values.tolist() for values in growth.values], self.level * len(growth.values)
        ordered = sorted(itertools.chain.from_iterable(levels), reverse=True)[: len(self.costs) - 1]
        nodes, expected, speed = 0, 1.0, 1.0 / (self.costs[0] + drafting)
        for count, value in enumerate(ordered, 1):
            expected += self._promise(value)
            if expected > speed * (self.costs[count] + drafting):
                nodes, speed = count, expected / (self.costs[count] + drafting)
        if nodes == 0:
            return 0, math.inf, False
        least = ordered[nodes - 1]
        last = [self._promise(value) for value in levels[-1] if value >= least]
        before = 1.0
        if len(levels) > 1:
            before = max(1e-9, sum(self._promise(value) for value in levels[-2] if value >= least))
        gain = sum(last) * min(1.0, sum(last) / before)
        return nodes, least, gain > speed * (self.level + len(last) * self.row)

    def plain(self) -> None:
        """Learn that nothing was worth drafting."""
        self.rest = REST

    def observe(self, values: np.ndarray, accepted: int) -> None:
        """Learn that ``accepted`` of the nodes with these values were right."""
        self.promised += float(np.exp(values).sum())
        self.accepted += accepted

    def _promise(self, value: float) -> float:
        return min(1.0, self.accepted / self.promised * math.exp(value))


def relative(work: Callable[[], object], unit: Callable[[], object]) -> float:
    """How long ``work`` takes beside ``unit``: the fastest of some turns each, so that a busy machine is no matter."""
    fastest = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, run in enumerate((work, unit)):
            began = time.perf_counter()
            run()
            fastest[place] = min(fastest[place], time.perf_counter() - began)
    return fastest[0] / fastest[1]
