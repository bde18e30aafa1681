"""Which positions of a canvas a pass evaluates, and which it reads from what earlier passes held.

``Whole`` evaluates all of them and ``Sequential`` all that a model which sees in blocks can see: both are exact. The
others save positions under full attention, where everything depends on everything: they are approximations, and a
model that carries what has been written so far in the features of its prompt loses it (``docs/evidence/parallel.md``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ramify.engine.filling import Filling


class Feeding(ABC):
    """What a pass is fed for each row."""

    @abstractmethod
    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        """The positions that the next pass evaluates for ``row``; None for all, after which nothing older is held."""

    @abstractmethod
    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        """Of the positions just evaluated, those to hold; ``fixed`` are the ones that this step wrote."""


class Whole(Feeding):
    """Every pass evaluates the whole canvas."""

    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        return None

    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        return []


@dataclass(frozen=True)
class Sequential(Feeding):
    """For a model that sees blocks of ``own`` positions and those before: nothing behind the current one is read.

    ``keeps``: hold a block once all of it is written and it has been read so (BD3-LM, arXiv 2503.09573). ``shift`` as
    in ``Blockwise``.
    """

    own: int
    keeps: bool = False
    shift: bool = False

    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        end = min(-(-row.end // self.own) * self.own, len(row.canvas))
        return [position for position in range(end) if position not in held]

    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        complete = (row.begin - self.shift) // self.own * self.own if self.keeps else 0
        return [position for position in range(complete) if position not in held]


@dataclass(frozen=True)
class Blockwise(Feeding):
    """Fast-dLLM (arXiv 2505.22618): the first pass of a block evaluates all, the others what is not held.

    ``dual`` holds everything outside the block, otherwise only what stands before it. ``refresh``: a whole pass every
    so many steps of a block as well. ``shift``: the logits of the block's first position come from the one before it,
    which is therefore never held.
    """

    dual: bool = False
    refresh: int | None = None
    shift: bool = False

    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        due = row.step == 0 or (self.refresh is not None and row.step % self.refresh == 0)
        if due or not held:
            return None
        return list(range(max(row.begin - self.shift, 0), row.end if self.dual else len(row.canvas)))

    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        if held:
            return []
        before = list(range(max(row.begin - self.shift, 0)))
        return before + list(range(row.end, len(row.canvas))) if self.dual else before


@dataclass(frozen=True)
class Delayed(Feeding):
    """dKV-Cache (arXiv 2505.15781): hold a position one step after it was written, when it has been read as a token.

    ``refresh``: a whole pass every so many steps; 1 is no cache. ``shift`` as in ``Blockwise``.
    """

    refresh: int = 8
    shift: bool = False

    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        if row.steps % self.refresh == 0 or not held:
            return None
        return [position for position in range(len(row.canvas)) if position not in held]

    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        opened = set(row.canvas.open.nonzero()[:, 0].tolist())
        needed = {position - 1 for position in opened} if self.shift else set()
        waits = held | opened | needed | set(fixed)
        return [position for position in range(len(row.canvas)) if position not in waits]
