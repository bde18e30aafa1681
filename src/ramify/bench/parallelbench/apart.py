"""Problems to learn from, apart from the benchmark's own.

The first ``HELD`` problems that the benchmark draws of every task are held out by what they are made of: a training
problem has no full name that stands in one of their lists, no set of symbols of one of their latin squares, none of
their sudokus, and no set of words of one of their sentences. Single given names, family names, symbols and words occur
in both, since a model knows no others.
"""

from __future__ import annotations

import functools
import random

from ramify.bench.parallelbench import lists, puzzles, sentences
from ramify.bench.parallelbench.family import Family, Problem
from ramify.bench.parallelbench.names import NAMES
from ramify.bench.parallelbench.tasks import problems

HELD = 200
Parts = frozenset[str]


@functools.cache
def held() -> tuple[frozenset[str], frozenset[Parts]]:
    """The full names that are held out, and what the other problems that are held out are made of."""
    names: set[str] = set()
    others: set[Parts] = set()
    for task in lists.OPERATIONS:
        drawn = problems(task, HELD)
        for problem in (drawn.example, *drawn.problems):
            names |= {*problem.items, problem.word} - {""}
    for task in (*puzzles.FAMILIES, *sentences.FAMILIES):
        drawn = problems(task, HELD)
        others |= {parts(problem) for problem in (drawn.example, *drawn.problems)}
    return frozenset(names), frozenset(others)


@functools.cache
def families() -> dict[str, Family]:
    """The generated families, lists of names that are not held out among them."""
    free = tuple(name for name in NAMES if name not in held()[0])
    return {**lists.families_of(free), **puzzles.FAMILIES, **sentences.FAMILIES}


def draw(rng: random.Random, task: str) -> Problem:
    """A problem to learn from, of any size that the task has."""
    family = families()[task]
    while True:
        problem = family.draw(rng, rng.choice(family.sizes))
        if parts(problem) not in held()[1]:
            return problem


def parts(problem: Problem) -> Parts:
    """What a problem is made of, in any order; of a sudoku the whole."""
    return frozenset(problem.items or [problem.question])
