"""How long a copied chain pays: the acceptance seen so far against the machine's cost curve."""

from __future__ import annotations

from collections import defaultdict

from ramify.models.calibrate import CostCurve

PRIOR = (3.0, 4.0)  # three of four tokens accepted, before anything was seen
RETRY = 16  # a kind of draft that does not pay is tried again this often: texts change


class ChainLength:
    """Chooses the length of a chain with the most expected tokens per second.

    Drafts are told apart by ``kind`` (for lookups, the length of the match). Within a kind, each token is taken to be
    accepted with the same probability a once its predecessors were, so that n tokens give (1 − a^(n+1)) / (1 − a) per
    pass (arXiv 2211.17192, eq. 1).
    """

    def __init__(self, curve: CostCurve, longest: int) -> None:
        self.curve, self.longest = curve, longest
        self.accepted: defaultdict[int, float] = defaultdict(lambda: PRIOR[0])
        self.tried: defaultdict[int, float] = defaultdict(lambda: PRIOR[1])
        self.skipped: defaultdict[int, int] = defaultdict(int)

    def choose(self, kind: int) -> int:
        """Tokens to draft, 0 when plain decoding is expected to be faster."""
        rate = self.accepted[kind] / self.tried[kind]
        best = self.curve.best(
            lambda n: (1 - rate ** (n + 1)) / (1 - rate) if rate < 1 else n + 1.0, range(1, self.longest + 1)
        )
        if best == 0:
            self.skipped[kind] += 1
            if self.skipped[kind] % RETRY == 0:
                return 1
        return best

    def observe(self, kind: int, drafted: int, accepted: int) -> None:
        """Learn that ``accepted`` of ``drafted`` tokens in a row were right; those behind a wrong one tell nothing."""
        self.accepted[kind] += accepted
        self.tried[kind] += min(accepted + 1, drafted)
