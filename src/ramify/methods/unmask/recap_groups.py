"""ReCAP's groups: what a whole pass chooses for itself and for the local passes behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ramify.engine.feeding import Feeding
from ramify.engine.filling import Filling
from ramify.engine.look import RACE, Look
from ramify.engine.unmask import Choice, Rule
from ramify.methods.unmask.maskgit import gumbel

if TYPE_CHECKING:
    from ramify.methods.unmask.recap import ReCAP

POWER = 2.5


@dataclass(eq=False)
class Group:
    """Targets in order, of which the first ``counts[0]`` are fixed next. ``read``: what local passes evaluate."""

    targets: list[int]
    counts: list[int]
    read: set[int]
    held: bool = False


@dataclass(eq=False)
class Course:
    """The groups of one row's block that are to come, as the counts of their steps. ``groups``: all, ``steps``: passes
    over the canvas."""

    plan: list[list[int]]
    groups: int
    steps: int
    now: Group | None = None


@dataclass(eq=False)
class Groups(Rule, Feeding):
    """One object says what is fixed and what is fed, for a group is both. ``shift``: as of ``Blockwise``."""

    method: ReCAP
    shift: int
    courses: dict[int, Course] = field(default_factory=dict)

    def choose(self, look: Look) -> Choice:
        for row in look.rows:
            if row.step == 0:
                self._begin(row)
        order: Tensor | None = None
        fix = torch.zeros_like(look.open)
        temperatures = []
        for place, row in enumerate(look.rows):
            course = self.courses[row.canvas.index]
            if course.now is None:
                order = self._order(look) if order is None else order
                course.now = self._group(course, row, look.positions[place, order[place]].tolist())
            group = course.now
            taken = group.targets[: group.counts[0]]
            fix[place, torch.tensor(taken) - row.begin] = True
            del group.targets[: group.counts.pop(0)]
            if not group.counts:
                course.now = None
            share = math.sqrt(row.steps / max(course.steps - 1, 1))
            temperatures.append(self.method.last_temperature + (1 - share) * (1 - self.method.last_temperature))
        warm = torch.tensor(temperatures, device=look.logits.device)
        return Choice(fix, replace(look, logits=look.logits / warm[:, None, None]).tokens)

    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        course = self.courses.get(row.canvas.index)
        if course is None or course.now is None:
            return None
        return sorted(course.now.read)

    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        group = self.courses[row.canvas.index].now
        if group is None or group.held:
            return []
        group.held = True
        hidden = set() if self.method.cache_masked else set(row.canvas.open.nonzero()[:, 0].tolist())
        return [place for place in range(len(row.canvas)) if place not in group.read and place not in hidden]

    def _begin(self, row: Filling) -> None:
        """Cut the schedule of a block into groups."""
        counts = power_counts(sum(row.quotas), len(row.quotas)) if self.method.schedule == "power" else row.quotas
        plan = slices(counts, max(self.method.pre_full - row.steps, 0), self.method.local)
        self.courses[row.canvas.index] = Course(plan, len(plan), row.steps + len(row.quotas) + sum(row.plan))

    def _group(self, course: Course, row: Filling, ranked: list[int]) -> Group:
        """The next group of ``row``; ``ranked``: its positions, the open ones first, in order."""
        counts = list(course.plan.pop(0))
        targets = ranked[: sum(counts)]
        sources = {max(target - self.shift, 0) for target in targets}
        prompt = range(row.canvas.start) if self.method.feed_prompt else ()
        return Group(targets, counts, {*targets, *sources, *prompt})

    def _order(self, look: Look) -> Tensor:
        """Columns of the look in the order of a group that begins now: int64 [A, n]."""
        if self.method.order == "random":
            scores = look.uniform()
        else:
            courses = [self.courses[row.canvas.index] for row in look.rows]
            left = [1 - (course.groups - len(course.plan) + 1) / course.groups for course in courses]
            noise = self.method.confidence_noise * torch.tensor(left, dtype=torch.float64, device=look.open.device)
            scores = _drawn_confidence(look).log() + noise[:, None] * gumbel(look)
        return scores.masked_fill(~look.open, -torch.inf).argsort(dim=1, descending=True, stable=True)


def _drawn_confidence(look: Look) -> Tensor:
    """The probability of a draw at every position, or of the likeliest token where the request is greedy: [A, n].

    The draws are not those that are written: they only make the order.
    """
    races = []
    for row in look.rows:
        race = torch.ones(look.law.shape[1:], dtype=torch.float64)
        if not row.request.sampler.greedy:
            race.exponential_(generator=row.noise(RACE))
        races.append(race)
    drawn = (look.law / torch.stack(races).to(look.law.device)).argmax(dim=-1)
    return look.law.gather(-1, drawn[..., None])[..., 0]


def power_counts(count: int, steps: int) -> list[int]:
    """How many of ``count`` positions each of ``steps`` steps fixes, at least 1: few at first, many at the end."""
    left = [math.floor(count * (1 - (step / steps) ** POWER)) for step in range(steps)] + [0]
    counts = [before - after for before, after in itertools.pairwise(left)]
    for step, fixed in enumerate(counts):
        if fixed == 0:
            # Where the last has none to give (hardly more positions than steps), the fullest does.
            giver = steps - 1 if counts[-1] > 1 else max(range(steps), key=lambda other: counts[other])
            counts[step] = 1
            counts[giver] -= 1
    return counts


def slices(counts: Sequence[int], single: int, local: int) -> list[list[int]]:
    """The first ``single`` counts one by one, the others in runs of 1 + ``local``."""
    size = local + 1
    rest = counts[single:]
    return [[count] for count in counts[:single]] + [list(rest[at : at + size]) for at in range(0, len(rest), size)]
