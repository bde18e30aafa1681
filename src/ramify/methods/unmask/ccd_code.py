"""Coherent contextual decoding as its authors' code has it, which is not what the paper says: see ``ccd``.

tonyckc/CCD-DLM-code (Dream). It looks back one step, compares words, and averages nothing:

    the first 5 steps fix the b most certain positions (by entropy), as plain decoding does
    watched   the n most certain open positions of the step before that it left open
    then, if one of the b most certain is watched: of the n most certain, those that are watched and whose argmax is
          that of the step before are coherent; the first b of them are fixed, or all (``adaptive``: "seek mode")
    with fewer than b coherent ones, or none watched, plain decoding: the most certain one is never rejected

n is 1 in the first four steps, then grows by one a step to b + ⌊b · ``expand``⌋; it is 2 once a tenth of the positions
is left. So "seek mode" fixes up to 5 a step at b = 1, with no bound on the entropy.

What is left out: the draft buffer, which nothing reads. What is not copied: a look-ahead beyond the open positions,
which could write MASK over a fixed one; the code's single row and single block (here each block begins anew); steps
counted from 0. Cost: as ``unmask``; n tokens a row are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.filling import Filling
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.methods.unmask.orders import SCORES
from ramify.models.masked import MaskedLM

SPARSE = 0.1  # share of the positions left at which the code stops looking far


@register(
    name="ccd-code",
    title="Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models",
    paper="arXiv 2512.02044",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class CCDCode(MaskedMethod):
    """The released code of ccd: fix what was among the surest a step ago and is the same word now.

    ``adaptive``: fix all of it ("seek mode"), not the schedule's number. ``expand``: how many more positions than the
    schedule's number are looked at, as its multiple. ``warmup``: plain steps at the beginning.
    """

    adaptive: bool = False
    expand: float = 4.0
    warmup: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expand < 0 or self.warmup < 1:
            raise RamifyError(
                f"expand is {self.expand:g} and warmup {self.warmup}; expand is 0 or more, and warmup at least 1, "
                "for the first step has nothing to compare with"
            )

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Released:
        return Released(self, len(requests))


class Released(Rule):
    """The code's rule. By row: ``watched``, positions with the argmax that they had, and ``reach``, the n above."""

    def __init__(self, method: CCDCode, rows: int) -> None:
        self.method = method
        self.watched: list[dict[int, int]] = [{} for _ in range(rows)]
        self.reach = [1] * rows

    def choose(self, look: Look) -> Choice:
        ranks = SCORES["entropy"](look).masked_fill(~look.open, -torch.inf)
        order = ranks.argsort(dim=1, descending=True, stable=True)
        likeliest = look.logits.argmax(-1)
        fix = torch.zeros_like(look.open)
        for place, row in enumerate(look.rows):
            chosen = self._row(row, int(look.quota[place]), look.positions[place], order[place], likeliest[place])
            fix[place, chosen] = True
        return Choice(fix & look.open)

    def _row(self, row: Filling, wanted: int, positions: Tensor, order: Tensor, likeliest: Tensor) -> list[int]:
        """Which offsets of the block are fixed, most certain first in ``order``."""
        index, opened = row.canvas.index, int(row.canvas.open[row.begin : row.end].sum())
        reach = self._reach(row, wanted, opened)
        ranked = order[:opened].tolist()
        now = {offset: (int(positions[offset]), int(likeliest[offset])) for offset in ranked}
        before = self.watched[index]
        chosen = ranked[:wanted]
        if row.step >= self.method.warmup and any(now[offset][0] in before for offset in chosen):
            coherent = [offset for offset in ranked[:reach] if before.get(now[offset][0]) == now[offset][1]]
            if len(coherent) >= wanted:
                chosen = coherent if self.method.adaptive else coherent[:wanted]
        self.watched[index] = dict([now[offset] for offset in ranked if offset not in chosen][:reach])
        return chosen

    def _reach(self, row: Filling, wanted: int, opened: int) -> int:
        """n of this step: 1 in the warm-up but for its last step, where it begins to grow."""
        index = row.canvas.index
        if opened <= SPARSE * sum(row.quotas) or row.step < self.method.warmup - 1:
            self.reach[index] = 1
        if row.step >= max(self.method.warmup - 1, 1):
            self.reach[index] = min(self.reach[index] + 1, wanted + int(wanted * self.method.expand))
        return self.reach[index]
