"""Samplers that take tokens back: what was fixed may be opened again.

ReMDM: Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling", arXiv 2503.00307, in the form
that ParallelBench (arXiv 2510.04767) tests: positions are fixed by confidence; once 7/8 of a block are, the
``revisit`` ones that were least confident when they were fixed are opened again, once, and predicted anew.

RCR, running confidence remasking: He et al., "MDPO: Overcoming the Training-Inference Divide of Masked Diffusion
Language Models", arXiv 2508.13148. Every position keeps the confidence with which it was fixed. After each step the
schedule's number of positions stands, those with the highest confidence, recorded or new; the others are open.

ParallelBench found that neither helps. What was given in the canvas is never opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ramify.engine.filling import Filling
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.models.masked import MaskedLM


class Recording(Rule):
    """A rule that knows how confident it was at every position that it fixed."""

    def __init__(self) -> None:
        self._recorded: dict[int, Tensor] = {}  # by row, of all positions of its canvas

    def recorded(self, look: Look) -> Tensor:
        """The confidence at fixing: float64 [A, n], infinite where this rule fixed nothing."""
        found = pad_sequence([self._of(row) for row in look.rows], batch_first=True, padding_value=torch.inf)
        return found.to(look.open.device).masked_fill(look.open, torch.inf)

    def record(self, look: Look, fix: Tensor) -> None:
        """Remember the confidences of what is fixed now."""
        fix, confidence = fix.cpu(), look.confidence.cpu()
        for place, row in enumerate(look.rows):
            own = self._of(row)
            own.copy_(confidence[place, : len(own)].where(fix[place, : len(own)], own))

    def _of(self, row: Filling) -> Tensor:
        """What is recorded of the row's current block, to be written to."""
        index = row.canvas.index
        if index not in self._recorded:
            self._recorded[index] = torch.full((len(row.canvas),), torch.inf, dtype=torch.float64)
        return self._recorded[index][row.begin : row.end]


@register(
    name="remdm",
    title="Remasking Discrete Diffusion Models with Inference-Time Scaling",
    paper="arXiv 2503.00307",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class ReMDM(MaskedMethod):
    """Fix by confidence, and open the least confident tokens again once most of a block is there.

    ``after``: the share of a block's positions that are fixed when it looks back (ParallelBench: 7/8). ``revisit``: how
    many it opens again (ParallelBench: 1).
    """

    after: float = 0.875
    revisit: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.after <= 1:
            raise RamifyError(f"after is {self.after:g}; it is a share above 0, and 1 at most")
        if self.revisit < 1:
            raise RamifyError(f"revisit is {self.revisit}; open at least 1 position again")

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Revising:
        return Revising(self.after, self.revisit)


class Revising(Recording):
    """The schedule's most confident positions; once in every block the least confident are opened again."""

    def __init__(self, after: float, revisit: int) -> None:
        super().__init__()
        self.after, self.revisit = after, revisit
        self._revised: set[tuple[int, int]] = set()

    def choose(self, look: Look) -> Choice:
        fix = look.best(look.confidence, look.quota)
        recorded = self.recorded(look)
        self.record(look, fix)
        reopen = torch.zeros_like(fix)
        for place, row in enumerate(look.rows):
            block = (row.canvas.index, row.begin)
            standing = int((~look.open[place] & look.inside[place] | fix[place]).sum())
            own = int(recorded[place].isfinite().sum())
            if block in self._revised or not own or standing < self.after * int(look.inside[place].sum()):
                continue
            self._revised.add(block)
            reopen[place, recorded[place].argsort(stable=True)[: min(self.revisit, own)]] = True
        return Choice(fix, reopen=reopen)


@register(
    name="rcr",
    title="MDPO: Overcoming the Training-Inference Divide of Masked Diffusion Language Models",
    paper="arXiv 2508.13148",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class RCR(MaskedMethod):
    """Keep the schedule's number of tokens, the most confident of all so far, and reopen the others."""

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Running:
        return Running()


class Running(Recording):
    """The most confident positions of the block, whether they were fixed before or not."""

    def choose(self, look: Look) -> Choice:
        fixed = look.inside & ~look.open
        scores = torch.where(look.open, look.confidence, self.recorded(look)).masked_fill(~look.inside, -torch.inf)
        count = fixed.sum(dim=1) + look.quota
        ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stand = ranks < count[:, None]
        fix = stand & look.open
        self.record(look, fix)
        return Choice(fix, reopen=fixed & ~stand)
