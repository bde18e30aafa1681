"""A pool that was sampled once, and what any policy would have made of it.

A path's tokens depend on its number and on nothing else, so a policy that only samples, prunes and starts paths would
have met exactly these. Its own code runs here on the record; no model is asked again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ramify.engine.path import Path
from ramify.engine.pool import Pool
from ramify.engine.roster import Roster
from ramify.engine.search import Decision, Policy, grow
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError


@dataclass(frozen=True)
class Replayed:
    """What a policy decided on a record, how many ``tokens`` it would have drawn, and the paths that ``ended``."""

    answer: str | None
    tokens: int
    ended: tuple[Path, ...]


class Recorded(Roster):
    """The pool of one request whose paths are those of ``record``, by number, each finished."""

    def __init__(self, record: Sequence[Path], budget: int | None = None) -> None:
        super().__init__(budget=budget)
        self.record = list(record)

    def _enter(self, path: Path) -> Path:
        if path.number >= len(self.record):
            raise RamifyError(f"{len(self.record)} paths were recorded, and the policy asks for more; lower paths")
        return super()._enter(path)

    def sample(self, paths: Sequence[Path]) -> list[Choice]:
        """The next recorded token of each of ``paths``."""
        return [Choice(path, self.record[path.number].tokens[len(path)]) for path in paths]

    def advance(self, choices: Sequence[Choice]) -> None:
        """Give the paths their next recorded tokens."""
        for choice in choices:
            path, known = choice.path, self.record[choice.path.number]
            place = len(path)
            path.tokens.append(choice.token)
            path.log_probs.append(known.log_probs[place])
            path.sampled_log_probs.append(known.sampled_log_probs[place])
            path.confidences.append(known.confidences[place])
            path.entropies.append(known.entropies[place])
            if len(path) == len(known):
                self._end(path, known.finish or "length")
                path.text, path.answer = known.text, known.answer
        self._grew(len(choices))


def replay(record: Sequence[Path], policy: Policy, budget: int | None = None) -> Replayed:
    """What ``policy`` makes of ``record``, the finished paths of one pool by number."""
    pool = Recorded(record, budget)
    deque(grow(pool, policy), maxlen=0)  # it has all of a pool that a policy of sampled paths uses
    decision = policy.decide(cast(Pool, pool)) if pool.ended else Decision([], None)
    return Replayed(decision.answer, pool.spent, tuple(pool.ended))
