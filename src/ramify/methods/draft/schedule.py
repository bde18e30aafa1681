"""How many tokens an assistant drafts: always as many, by transformers' heuristic, or what pays most here.

``Fastest`` expects (1 − a^(n+1)) / (1 − a) tokens from n drafted ones, where a is the share of tokens that were
accepted after an accepted one, in this sequence and lately; it begins with what earlier sequences gave. A step costs
what verifying n + 1 rows costs on the target's curve, and n times what a drafted token has cost lately on the
assistant's: one pass where it decodes plainly, a part of a larger one where it has a drafter of its own. Nothing is
timed while decoding: equal curves, equal drafts.
"""

from __future__ import annotations

from itertools import accumulate, repeat

from ramify.methods.draft.sizing import PRIOR, RETRY
from ramify.models.calibrate import CostCurve

LONGEST = 20  # tokens of a draft
TRIAL = 3  # tokens of the draft that is tried now and then where none pays,
PATIENCE = 8 * RETRY  # after ever more plain steps, up to so many
FADE = 0.9  # what a draft counts for in the estimates of its sequence, in units of the next one,
FADE_ALL = 0.99  # and in those of all sequences


class Schedule:
    """Always ``length`` tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def choose(self) -> int:
        """Tokens to draft now, 0 for plain decoding."""
        return self.length

    def ran(self, rows: int) -> None:
        """Learn that the assistant ran a pass over so many rows."""

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn that ``accepted`` of ``drafted`` tokens in a row were right."""


class Heuristic(Schedule):
    """Two more after a draft that was accepted whole, one less after any other, at least one."""

    def observe(self, drafted: int, accepted: int) -> None:
        if drafted:
            self.length = self.length + 2 if accepted == drafted else max(1, self.length - 1)


class Agreement:
    """How often a token was accepted after an accepted one, of drafts that fade."""

    def __init__(self, fade: float, rate: float = PRIOR[0] / PRIOR[1]) -> None:
        self.fade = fade
        self.accepted, self.tried = PRIOR[1] * rate, PRIOR[1]

    @property
    def rate(self) -> float:
        return self.accepted / self.tried

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn that ``accepted`` of ``drafted`` tokens in a row were right; those behind a wrong one tell nothing."""
        self.accepted = self.fade * (self.accepted + accepted)
        self.tried = self.fade * (self.tried + min(accepted + 1, drafted))


class Fastest(Schedule):
    """The length with the most expected tokens per second, up to ``longest``; 0, with a trial now and then, where plain
    decoding is faster. ``target``, ``own``: the cost curves of the model that verifies and of the one that drafts.
    ``before``: the agreement of all sequences, which goes on from this one."""

    def __init__(
        self, target: CostCurve, own: CostCurve, longest: int = LONGEST, before: Agreement | None = None
    ) -> None:
        super().__init__(longest)
        self.own = own
        self.verifying = [target.cost(drafted + 1) for drafted in range(longest + 1)]
        self.before = before or Agreement(FADE_ALL)
        self.agreement = Agreement(FADE, self.before.rate)
        self.seconds, self.drafted = own.cost(1), 1.0
        self.skipped, self.patience = 0, RETRY

    def choose(self) -> int:
        rate = self.agreement.rate
        powers = accumulate(repeat(rate, len(self.verifying) - 1), lambda power, rate: power * rate, initial=1.0)
        each = self.seconds / self.drafted
        speeds = [
            tokens / (cost + length * each)
            for length, (tokens, cost) in enumerate(zip(accumulate(powers), self.verifying, strict=True))
        ]
        best = speeds.index(max(speeds))
        if best > 0:
            self.skipped, self.patience = 0, RETRY
            return best
        self.skipped += 1
        if self.skipped < self.patience:
            return 0
        self.skipped, self.patience = 0, min(2 * self.patience, PATIENCE)
        return min(TRIAL, self.length)

    def ran(self, rows: int) -> None:
        self.seconds += self.own.cost(rows)

    def observe(self, drafted: int, accepted: int) -> None:
        if drafted == 0:
            return
        for agreement in (self.agreement, self.before):
            agreement.observe(drafted, accepted)
        self.seconds, self.drafted = FADE * self.seconds, FADE * (self.drafted + drafted)
