"""What a family of tasks is: how problems are drawn, and how an answer is scored."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """``question``: what stands behind the instruction. ``label``: a right answer, not always the only one.

    ``size``: of its bucket, the items of a list say. ``items``, ``word``, ``index``: what the scorer needs.
    ``slots``: the label in pieces for the infill mode, the pieces with odd places being what is asked for.
    """

    family: str
    question: str
    label: str
    size: int
    items: tuple[str, ...] = ()
    word: str = ""
    index: int = -1
    slots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """``lenient``: what the answer says; ``strict``: in the form asked for too; ``inclusion``: of the words wanted."""

    lenient: float
    strict: float
    inclusion: float = 1.0

    @property
    def whole(self) -> float:
        """Right, with everything that was to be in it."""
        return self.lenient * self.inclusion


@dataclass(frozen=True)
class Family:
    """``instruction``: what to do. ``sizes``: the buckets. ``draw``: a problem of a size. ``score``: of an answer."""

    name: str
    instruction: str
    sizes: tuple[int, ...]
    draw: Callable[[random.Random, int], Problem]
    score: Callable[[Problem, str], Score]
