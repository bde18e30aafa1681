"""The benchmark's tasks by name, and sets of problems of them.

Problems are generated, with the published benchmark's seeding and balance: (SHA-256 of the task's name + seed) mod
65535 seeds Python's ``random``, sizes are drawn evenly until each has its share, and one more problem from the same
generator is the example in the prompt. The words are ours, so the problems are others than the published ones.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ramify.bench.parallelbench import lists, puzzles, sentences, texts
from ramify.bench.parallelbench.family import Family, Problem, Score
from ramify.errors import RamifyError, unknown

SEED = 42
FAMILIES: dict[str, Family] = {**lists.families(), **puzzles.FAMILIES, **sentences.FAMILIES, **texts.FAMILIES}
GENERATED = tuple(name for name in FAMILIES if name not in texts.FAMILIES)


@dataclass(frozen=True)
class Problems:
    """``example``: the one that stands in every prompt."""

    family: Family
    example: Problem
    problems: tuple[Problem, ...]

    def score(self, answers: Sequence[str]) -> list[Score]:
        """Of one answer to each problem."""
        return [self.family.score(problem, text) for problem, text in zip(self.problems, answers, strict=True)]


def seed_of(name: str, seed: int = SEED) -> int:
    """The seed of a task's generator: its name is hashed with underscores, as the published tasks write theirs."""
    return (int(hashlib.sha256(name.replace("-", "_").encode()).hexdigest(), 16) + seed) % 65535


def problems(
    name: str, count: int = 100, *, sizes: Sequence[int] | None = None, seed: int = SEED, items: str = "names"
) -> Problems:
    """``count`` problems of a task, as many of each size as can be; ``sizes``: others than the task's own.

    ``items``: what lists are made of, ``names`` or ``letters``. Raises ``RamifyError`` for an unknown task or pool, and
    for a size that the task does not have.
    """
    known = FAMILIES | lists.families(items)
    if name not in known:
        raise unknown("task", name, known)
    if count < 1:
        raise RamifyError(f"{count} problems were asked for; ask for at least 1")
    family = known[name]
    chosen = list(family.sizes if sizes is None else sizes) or [0]
    rng = random.Random(seed_of(name, seed))
    example = family.draw(rng, rng.choice(chosen))
    room = {size: count // len(chosen) + (place < count % len(chosen)) for place, size in enumerate(chosen)}
    found: list[Problem] = []
    while len(found) < count:
        problem = family.draw(rng, rng.choice(chosen))
        if room[problem.size]:
            room[problem.size] -= 1
            found.append(problem)
    return Problems(family, example, tuple(found))
