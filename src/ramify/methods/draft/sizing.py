"""How large a draft pays: the acceptance seen so far against the machine's cost curve.

For chains that were copied (``ChainLength``), for trees whose nodes come with a probability (``PromisedSize``), and for
drafts that contain each other (``NestedSize``). What pays most may be nothing, which is plain decoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import accumulate, repeat

from ramify.models.calibrate import CostCurve

PRIOR = (3.0, 4.0)  # three of four tokens accepted, before anything was seen
RETRY = 16  # a kind of draft that does not pay is tried again this often: texts change
TRIAL = 24  # steps of the largest draft from which those that it contains are judged
LASTING = 16  # a judgement holds for so many trials' time: texts change


class ChainLength:
    """Chooses the length of a chain, up to ``longest``, with the most expected tokens per second.

    Drafts are told apart by ``kind`` (for lookups, the length of the match). Within a kind, each token is taken to be
    accepted with the same probability a once its predecessors were, so that n tokens give (1 − a^(n+1)) / (1 − a) per
    pass (arXiv 2211.17192, eq. 1).
    """

    def __init__(self, curve: CostCurve, longest: int) -> None:
        self.costs = _costs(curve, longest)
        self.accepted: defaultdict[Hashable, float] = defaultdict(lambda: PRIOR[0])
        self.tried: defaultdict[Hashable, float] = defaultdict(lambda: PRIOR[1])
        self.skipped: defaultdict[Hashable, int] = defaultdict(int)

    def choose(self, kind: Hashable) -> int:
        """Tokens to draft, 0 when plain decoding is expected to be faster."""
        rate = self.accepted[kind] / self.tried[kind]
        powers = accumulate(repeat(rate, len(self.costs) - 1), lambda power, rate: power * rate, initial=1.0)
        best = _fastest(list(accumulate(powers)), self.costs)
        if best == 0:
            self.skipped[kind] += 1
            if self.skipped[kind] % RETRY == 0:
                return 1
        return best

    def observe(self, kind: Hashable, drafted: int, accepted: int) -> None:
        """Learn that ``accepted`` of ``drafted`` tokens in a row were right; those behind a wrong one tell nothing."""
        self.accepted[kind] += accepted
        self.tried[kind] += min(accepted + 1, drafted)


class PromisedSize:
    """Chooses how many nodes of a tree to draft, likeliest first and up to ``largest``, by expected tokens per second.

    Every node comes with a promise, its probability of being accepted. Within a ``kind`` of draft the promises are
    taken to be wrong by one factor f, accepted over promised so far, so that n nodes give 1 + Σ min(1, f · p_i).
    """

    def __init__(self, curve: CostCurve, largest: int) -> None:
        self.costs = _costs(curve, largest)
        self.accepted: defaultdict[Hashable, float] = defaultdict(lambda: PRIOR[0])
        self.promised: defaultdict[Hashable, float] = defaultdict(lambda: PRIOR[1])
        self.skipped: defaultdict[Hashable, int] = defaultdict(int)

    def choose(self, kind: Hashable, promises: Sequence[float]) -> int:
        """How many of the nodes to draft, 0 when plain decoding is expected to be faster."""
        factor = self.accepted[kind] / self.promised[kind]
        best = _fastest(list(accumulate((min(1.0, factor * p) for p in promises), initial=1.0)), self.costs)
        if best == 0 and promises:
            self.skipped[kind] += 1
            if self.skipped[kind] % RETRY == 0:
                return 1
        return best

    def observe(self, kind: Hashable, promises: Sequence[float], accepted: int) -> None:
        """Learn that ``accepted`` of the nodes with these promises were right."""
        self.promised[kind] += sum(promises)
        self.accepted[kind] += accepted


class NestedSize:
    """Chooses among drafts of size 0, 1, … of which each contains the smaller ones, by what each would have given.

    For ``TRIAL`` steps the largest runs, and it is noted what every size would have committed; then the size with the
    most tokens per second runs, until the next trial. ``rows[s]``: the rows of a step of size s.
    """

    def __init__(self, curve: CostCurve, rows: Sequence[int]) -> None:
        self.costs = [curve.cost(count) for count in rows]
        self.tokens = [0] * len(rows)
        self.steps = self.tried = 0

    def choose(self) -> int:
        """The size of this step."""
        if self.steps == LASTING * TRIAL:
            self.tokens = [0] * len(self.tokens)
            self.steps = self.tried = 0
        self.steps += 1
        return len(self.costs) - 1 if self.tried < TRIAL else _fastest(self.tokens, self.costs)

    def observe(self, tokens: Sequence[int]) -> None:
        """Learn that size s would have committed ``tokens[s]`` in a step of the largest size."""
        if self.tried < TRIAL:
            self.tokens = [known + new for known, new in zip(self.tokens, tokens, strict=True)]
            self.tried += 1


def _costs(curve: CostCurve, largest: int) -> list[float]:
    """Seconds of a step with n draft nodes, for n up to ``largest``; asked for at every step, so computed once."""
    return [curve.cost(nodes + 1) for nodes in range(largest + 1)]


def _fastest(expected: Sequence[float], costs: Sequence[float]) -> int:
    """The size with the most expected tokens per second, the smallest of equals."""
    speeds = [tokens / cost for tokens, cost in zip(expected, costs, strict=False)]
    return speeds.index(max(speeds))
