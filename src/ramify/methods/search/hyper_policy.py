"""HyPER's policy: the warm-up, the ticks of the controller, and what becomes of its actions."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ramify.engine.aggregate import agreement, diversity
from ramify.engine.events import Noted
from ramify.engine.path import Path, mean
from ramify.engine.pool import Pool
from ramify.engine.search import Decision, Policy
from ramify.engine.step_pool import Choice
from ramify.methods.search.hyper_controller import (
    ACTIONS,
    BRANCH,
    MULTI,
    NONE,
    SINGLE,
    Scale,
    Standing,
    State,
    branches,
    choose,
    scaled,
)
from ramify.methods.search.hyper_vote import how_many, vote_by_length
from ramify.methods.search.routes import Routes, merged

if TYPE_CHECKING:
    from ramify.methods.search.hyper import HyPER


@dataclass(eq=False)
class Hypothesis:
    """A path of the pool: ``path``, which the winner of its ``trials`` replaces.

    ``since``: its tokens at the last tick. ``start``: those that its trials have in common.
    """

    path: Path
    since: int = 0
    action: str = NONE
    trials: tuple[Path, ...] = ()
    start: int = 0

    @property
    def live(self) -> bool:
        return bool(self.trials) or self.path.finish is None


class Controlled(Policy):
    """The policy of one request.

    ``taken``: how often each action was chosen, by phase. ``routes``: None without single-token refinement; ``note``
    says why.
    """

    def __init__(self, options: HyPER, routes: Routes | None, note: str = "") -> None:
        self.options, self.rec, self.routes, self.note = options, options.rec, routes, note
        possible = [action for action in options.actions if action != SINGLE or routes is not None]
        self.actions = tuple(possible)
        self.members: list[Hypothesis] = []
        self.scale: Scale | None = None
        self.taken: Counter[tuple[str, str]] = Counter()
        self._children: dict[Path, Path] = {}

    def begin(self, pool: Pool) -> None:
        if self.note:
            pool.events.append(Noted(self.note))
        self.members = [Hypothesis(path) for path in pool.start(self.options.warmup)]

    def expand(self, pool: Pool) -> list[Choice]:
        growing = [path for member in self.members for path in self._growing(member) if path not in self._children]
        choices = pool.sample(growing)
        token_of = {choice.path: choice.token for choice in choices}
        without = {child: token_of[parent] for child, parent in self._children.items()}
        self._children = {}
        return choices + (pool.sample(list(without), without) if without else [])

    def reduce(self, pool: Pool) -> None:
        if self.scale is None:
            if not pool.live:
                self._warmed_up(pool)
            return
        for member in self.members:
            if member.trials and not self._growing(member):
                self._adopt(pool, member)
        if self._agreed():
            pool.stop("agreement")
            return
        due = [each for each in self._live() if not each.trials and self._elapsed(each) >= self.options.interval]
        if due:
            self._tick(pool, self._pruned(pool, due) if self.options.prune else due)
        self._refine(pool)

    def decide(self, pool: Pool) -> Decision:
        finished = self._finished()
        top = how_many(len(finished), self.rec.top, self.rec.top_least) if self.options.top_votes else None
        return vote_by_length(
            finished or pool.ended,  # trials that ended, where the budget cut everything else
            self.options.length_sign or 0,
            top=top,
            weights=self.options.weights,
            tail=self.rec.tail,
        )

    # ---- the pool ----

    def _live(self) -> list[Hypothesis]:
        return [member for member in self.members if member.live]

    def _finished(self) -> list[Path]:
        return [member.path for member in self.members if not member.trials and member.path.complete]

    @property
    def size(self) -> int:
        """n: paths that are live or came to their end."""
        return len(self._live()) + len(self._finished())

    def _elapsed(self, member: Hypothesis) -> int:
        return len(member.path) - member.since

    def _agreed(self) -> bool:
        finished = self._finished()
        return len(finished) >= self.rec.agreeing and agreement(finished) >= self.rec.agree

    def _warmed_up(self, pool: Pool) -> None:
        self.scale = Scale.of(pool.ended, self.options.interval, self.options.eta, self.rec)
        if not self._agreed():
            room = min(self.rec.start, self.options.limit - self.size)
            self.members += [Hypothesis(path) for path in pool.start(room)]

    # ---- a tick ----

    def _pruned(self, pool: Pool, due: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Those of ``due`` that stay: the others have lost the confidence of the warm-up."""
        assert self.scale is not None
        window = self.rec.window * self.options.interval
        staying = []
        for member in due:
            path = member.path
            low = len(path) >= window and mean(path.confidences[-window:]) < self.scale.bar
            if low and self.size > self.rec.least:
                pool.prune(path, "confidence")
            else:
                staying.append(member)
        return staying

    def _tick(self, pool: Pool, due: Sequence[Hypothesis]) -> None:
        assert self.scale is not None
        if not due:
            return
        live = [member.path for member in self._live()]
        progress = min(1.0, statistics.median(map(len, live)) / max(1.0, self.scale.length))
        state = State(progress, diversity(live, window=self.options.interval), self.size, self.options.limit)
        standings = [
            self._standing(pool, each.path, more) for each, more in zip(due, self._open_ended(pool, due), strict=True)
        ]
        if self.options.random is None:
            actions = choose(state, standings, self.actions, self.rec)
        else:
            actions = self._drawn(pool, state, due, standings)
        for member, action in zip(due, actions, strict=True):
            self.taken[state.phase, action] += 1
            member.since, member.action = len(member.path), action
            if action == BRANCH:
                child = pool.fork(member.path)
                self._children[child] = member.path
                self.members.append(Hypothesis(child, len(child)))
            elif action == MULTI:
                self._try(pool, member)

    def _open_ended(self, pool: Pool, due: Sequence[Hypothesis]) -> list[bool]:
        """Behind which of them a child could take another token; nobody asks where nothing may branch."""
        if BRANCH not in self.actions:
            return [False] * len(due)
        found: list[bool] = (pool.laws([member.path for member in due]).amax(dim=-1) < 1 - 1e-6).tolist()
        return found

    def _standing(self, pool: Pool, path: Path, more: bool) -> Standing:
        """``more``: whether more than one token is possible behind ``path``."""
        assert self.scale is not None
        recent = self.options.interval
        left = None if pool.budget is None else pool.budget - pool.spent
        enough = left is None or left >= self.scale.length - len(path)
        return Standing(
            scaled(mean(path.confidences[-recent:]), self.scale.confidence),
            scaled(mean(path.entropies[-recent:]), self.scale.entropy),
            more and enough,
        )

    def _drawn(self, pool: Pool, state: State, due: Sequence[Hypothesis], standings: Sequence[Standing]) -> list[str]:
        """Actions by chance, within the bounds that hold for chosen ones."""
        room, actions = branches(state, self.rec), []
        for member, standing in zip(due, standings, strict=True):
            seed = f"{pool.request.sampler.noise.seed} {member.path.number} {len(member.path)}"
            [action] = random.Random(seed).choices(ACTIONS, self.options.random)
            if action not in self.actions or (action == BRANCH and not (room and standing.may_branch)):
                action = NONE
            room -= action == BRANCH
            actions.append(action)
        return actions

    # ---- actions ----

    def _growing(self, member: Hypothesis) -> list[Path]:
        if not member.trials:
            return [member.path] if member.path.finish is None else []
        end = min(member.start + self.rec.stretch, member.since + self.options.interval)
        return [path for path in member.trials if path.finish is None and len(path) < end]

    def _try(self, pool: Pool, member: Hypothesis) -> None:
        member.start = len(member.path)
        member.trials = (member.path, *(pool.fork(member.path) for _ in range(self.rec.tries - 1)))

    def _adopt(self, pool: Pool, member: Hypothesis) -> None:
        """Go on with the most confident trial; within the interval, try again."""
        best = max(member.trials, key=lambda path: mean(path.confidences[member.start :]))
        for path in member.trials:
            if path is not best:
                pool.prune(path, "less confident")
        member.path, member.trials = best, ()
        if best.finish is None and self._elapsed(member) < self.options.interval:
            self._try(pool, member)

    def _refine(self, pool: Pool) -> None:
        """Hear more opinions on the next token of the paths that are to be refined and unsure of it."""
        if self.routes is None or self.scale is None:
            return
        asked = [each.path for each in self._live() if each.action == SINGLE and each.path.finish is None]
        unsure = [path for path in asked if scaled(pool.entropy(path), self.scale.token) > self.rec.refine_above]
        if unsure:
            logits = merged(self.routes(pool, unsure), clean=True, by_confidence=True, top=pool.top)
            for path, row in zip(unsure, logits, strict=True):
                pool.set_logits(path, row)
