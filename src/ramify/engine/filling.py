"""Where each row of the masked loop stands: its canvas, its blocks, and what the schedule wants next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ramify.engine.canvas import Canvas
from ramify.engine.request import Request
from ramify.engine.sampling import Noise
from ramify.errors import RamifyError
from ramify.models.masked import MaskedLM


@dataclass(eq=False)
class Filling:
    """Where one row stands: its canvas, its current block [``begin``, ``end``), and what the schedule wants there.

    ``quotas``: positions to fix in each step of the block. ``step``: steps done in this block. ``steps``: in all.
    ``bounds``: the ends of the blocks to come.
    """

    request: Request
    canvas: Canvas
    begin: int
    end: int
    bounds: list[int]
    quotas: list[int]
    plan: list[int]
    step: int = 0
    steps: int = 0

    @property
    def quota(self) -> int:
        """How many positions the schedule wants in the next step; 1 once it has run out."""
        return self.quotas[self.step] if self.step < len(self.quotas) else 1

    @property
    def cleared(self) -> bool:
        """Whether no position of the block is open."""
        return True not in self.canvas.open[self.begin : self.end].tolist()

    @property
    def done(self) -> bool:
        return self.cleared and not self.bounds

    @property
    def text(self) -> tuple[tuple[int, ...], str]:
        """The tokens behind the prompt up to the first stop token, and why they end there."""
        tokens = self.canvas.tokens[self.canvas.start :].tolist()
        for place, token in enumerate(tokens):
            if token in self.request.stop_tokens:
                return tuple(tokens[: place + 1]), "stop"
        return tuple(tokens), "length"

    def noise(self, stream: int) -> torch.Generator:
        """This row's random numbers for its next pass, whatever else is in the batch."""
        return Noise(self.request.sampler.noise.seed, stream).at(self.steps)

    def advance(self) -> None:
        """On to the next block with an open position, once this one has none."""
        while self.cleared and self.bounds:
            self.begin, self.end = self.end, self.bounds.pop(0)
            steps = self.plan.pop(0)
            self.quotas = even(int(self.canvas.open[self.begin : self.end].sum()), steps)
            self.step = 0

    def cut(self, length: int) -> None:
        """The canvas ends at ``length`` from now on; blocks behind it vanish."""
        self.canvas.cut(length)
        self.end = min(self.end, length)
        self.bounds = sorted({min(bound, length) for bound in self.bounds} - set(range(self.end + 1)))


@dataclass(frozen=True)
class Schedule:
    """``block``: positions of a block, None for the model's own, or one block of all where it has none.

    ``steps``: passes in all, None for one a position.
    """

    block: int | None = None
    steps: int | None = None

    def begin(self, lm: MaskedLM, request: Request, index: int) -> Filling:
        """The canvas of ``request`` at its beginning; raises ``RamifyError`` where it does not fit."""
        template = request.canvas or [None] * (request.max_length - len(request.prompt))
        start, length = len(request.prompt), len(request.prompt) + len(template)
        if length == start:
            raise RamifyError("nothing is left to fill in; raise max_new_tokens to at least 1")
        if length > lm.context:
            raise RamifyError(
                f"a canvas of {length} positions ({start} of them the prompt) is longer than the {lm.context} of "
                f"{lm.name}; shorten the prompt or lower max_new_tokens"
            )
        known = [*request.prompt, *(token for token in template if token is not None)]
        if any(not 0 <= token < lm.vocab_size for token in known):
            raise RamifyError(f"the canvas holds a token outside the vocabulary of {lm.name} ({lm.vocab_size} tokens)")
        tokens = torch.tensor([*request.prompt, *(lm.mask_id if token is None else token for token in template)])
        opened = torch.tensor([False] * start + [token is None for token in template])
        count = int(opened.sum())
        if not count:
            raise RamifyError("the canvas has no open position; leave at least one to fill in")
        ends = self._ends(lm, start, length)
        busy = [int(opened[a:b].sum()) for a, b in zip([start, *ends], ends, strict=False)]
        steps = count if self.steps is None else self.steps
        needed = sum(1 for each in busy if each)
        if not needed <= steps <= count:
            raise RamifyError(
                f"{steps} steps cannot fill {count} open positions in {needed} blocks; give {needed} to {count}"
            )
        row = Filling(request, Canvas(index, tokens, opened, start), start, start, ends, [], _shares(busy, steps))
        row.advance()
        return row

    def _ends(self, lm: MaskedLM, start: int, length: int) -> list[int]:
        own = lm.facts.block
        block = self.block or own or length - start
        if own is None:
            return [*range(start + block, length, block), length]
        if block % own and own % block:
            raise RamifyError(
                f"blocks of {block} positions cut across those of {own} in which {lm.name} sees; "
                f"give a multiple of {own}"
            )
        # The model's blocks count from the beginning of the canvas, so the first one may be begun by the prompt.
        return [*range((start // block + 1) * block, length, block), length]


def even(count: int, steps: int) -> list[int]:
    """``count`` positions over ``steps`` steps, the first ones one more: 10 over 4 is 3, 3, 2, 2."""
    base, more = divmod(count, max(steps, 1))
    return [base + (step < more) for step in range(steps)]


def _shares(busy: Sequence[int], steps: int) -> list[int]:
    """Steps of each block, in proportion to its open positions, at least 1 where there are any."""
    shares = [min(1, each) for each in busy]
    total, given = sum(busy), 0
    for index, each in enumerate(busy):
        given += each
        shares[index] = max(shares[index], round(steps * given / total) - sum(shares[:index]))
    while sum(shares) > steps:
        shares[max(range(len(shares)), key=lambda index: (shares[index], index))] -= 1
    return shares
