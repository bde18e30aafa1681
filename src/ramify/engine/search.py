"""The pool loop: give paths tokens, score all of them in one pass, fork and prune, and decide in the end.

It owns reading the prompt, scoring, stopping and counting for every method of this kind. A policy says which paths grow
by which tokens (expand), what becomes of them afterwards (reduce), and what the answer is (decide).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramify.engine.events import Accepted, Decided, Event, Finished, Noted
from ramify.engine.path import Path
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.roster import Roster
from ramify.engine.step_pool import Choice, StepPool
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM


@dataclass(frozen=True)
class Decision:
    """What a pool came to: the paths that count, best first, the answer, and what each answer weighs."""

    paths: Sequence[Path]
    answer: str | None
    votes: dict[str, float] = field(default_factory=dict)


class Policy(ABC):
    """The rule of one request: it sees the pool and acts on it. What it remembers lives as long as the request.

    ``layers``: the model's layers whose hidden states it wants to see, numbered as for ``Session.score``.
    """

    layers: Sequence[int] = ()

    @abstractmethod
    def begin(self, pool: Pool) -> None:
        """Start the first paths."""

    def expand(self, pool: Pool) -> Sequence[Choice]:
        """Which paths grow by which tokens; a live path without a choice waits. By default each draws one."""
        return pool.sample(pool.live)

    def reduce(self, pool: Pool) -> None:  # noqa: B027 - most policies that only sample have nothing to do here
        """After every step: fork, prune, start or stop."""

    def gives_up(self, path: Path) -> str | None:
        """Why ``path`` is to end though it is not done, asked after each of its tokens; None where it may go on."""
        return None

    @abstractmethod
    def decide(self, pool: Pool) -> Decision:
        """Which paths are best, and what the answer is. All paths have ended; ``pool.ended`` is not empty."""


class StepPolicy(Policy):
    """A policy that sees no more of the model than the laws of next tokens, of which a server gives the likeliest."""

    @abstractmethod
    def begin(self, pool: StepPool) -> None: ...

    def expand(self, pool: StepPool) -> Sequence[Choice]:
        return pool.sample(pool.live)

    def reduce(self, pool: StepPool) -> None: ...

    @abstractmethod
    def decide(self, pool: StepPool) -> Decision: ...


class WholePolicy(Policy):
    """A policy that draws all paths alike and looks at whole ones, so that they may grow anywhere, also on a server."""

    @abstractmethod
    def begin(self, pool: Roster) -> None: ...

    def reduce(self, pool: Roster) -> None:
        """After every step, and after every path that a server sends."""

    @abstractmethod
    def decide(self, pool: Roster) -> Decision: ...


def search(
    lm: CausalLM, request: Request, policy: Policy, *, row: int = 0, budget: int | None = None
) -> Iterator[Event]:
    """Continue one request along many paths, yielding what happens.

    ``row``: what the events call the request. ``budget``: effective tokens after which the live paths are cut. The best
    path's tokens are accepted at the end, so that streams and statistics read them like any other result.
    Where no path comes to its end, the longest one is given and a note says so. Raises ``RamifyError`` for an empty
    prompt, for lengths beyond the context, for several paths on a model whose state cannot be forked, and for a budget
    below 1.
    """
    request.check(lm)
    pool = Pool(lm, request, row, budget, policy.layers)
    yield from grow(pool, policy)
    yield from close(pool, policy)


def grow(pool: Any, policy: Policy) -> Iterator[Event]:
    """Step after step until no path is live or the loop is stopped; ``pool`` is of the kind that ``policy`` sees."""
    policy.begin(pool)
    yield from pool.drain()
    while pool.running:
        choices = policy.expand(pool)
        if choices:
            pool.advance(choices)
        elif pool.live:
            raise RamifyError(f"{type(policy).__name__} lets all of its {len(pool.live)} paths wait; one has to grow")
        for path in list(pool.live):
            if reason := policy.gives_up(path):
                pool.prune(path, reason)
        policy.reduce(pool)
        yield from pool.drain()


def close(pool: Any, policy: Policy) -> Iterator[Event]:
    """Cut the paths that are still live, and let ``policy`` decide."""
    for path in list(pool.live):
        pool.prune(path, pool.stopped or "unused")
    yield from pool.drain()
    yield from conclude(pool, policy.decide(pool) if pool.ended else None)


def conclude(pool: Roster, decision: Decision | None) -> Iterator[Event]:
    """The last events of a request: what was decided, None where no path came to its end, and the best path's text."""
    if decision is None:
        begun = pool.settled
        fits = {path: path.tokens[: len(begun)] == begun for path in pool.paths}
        decision = Decision(sorted(pool.paths, key=lambda path: (not fits[path], -len(path), path.number)), None)
        why = pool.stopped or "all of them were pruned"
        yield Noted(f"none of {len(pool.paths)} paths came to its end ({why}); the longest one is given as it is")
    elif decision.answer is None:
        yield Noted(f"no answer could be parsed from any of {len(pool.ended)} finished paths; look at their texts")
    ranked = set(decision.paths)
    paths = (*decision.paths, *(path for path in pool.paths if path not in ranked))
    yield Decided(pool.row, pool.step, paths, decision.answer, dict(decision.votes))
    best = decision.paths[0]
    yield Accepted(pool.row, pool.step, (), tuple(best.tokens[len(pool.settled) :]), 0.0)
    yield Finished(pool.row, pool.step, best.finish or "length")
