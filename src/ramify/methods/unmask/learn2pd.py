"""Learn2PD: a small trained filter says which predictions of a block are final; and the text is cut at its end.

Bao et al., "Learning to Parallel: Accelerating Diffusion Large Language Models via Learnable Parallel Decoding", arXiv
2509.25188 (ICLR 2026). Of a block of B positions the confidences c (of all, the fixed ones too) give logits z = f(c). A
step fixes every open position with σ(z_i) > τ, and the most confident ones that the schedule wants in any case. The
filter f was trained to say where plain decoding, one position a step, would end up with the token that is predicted now
(``learn2pd_oracle``, ``ramify train learn2pd``); the model itself stays as it is.

End-of-text prediction (``eotp``), which works without a filter too:

    A  the paper: once an end-of-text token is fixed, everything behind it is dropped
    B  the code: everything is dropped behind the first position that the filter accepts as end of text; else behind the
       open position, in any block, that most certainly is predicted to be one, whether it is fixed or not

B cuts on a guess, the kept position may become another token, and the answer lose its end. The saving is in positions
evaluated, not in steps. A position that the caller has filled in is never dropped.

Exact: τ = 1 without ``eotp`` is ``unmask`` (confidence). Rule A changes nothing in the blocks before that of
the end where the model sees in blocks. Under full attention what stays was reading what is dropped: an approximation.

Where the paper is silent: a block cut short is filled up with confidences of 1 for the filter. The schedule's number is
fixed in every step, as in the code; without ``steps`` it is one. End-of-text tokens are the request's stop tokens.
After a cut the dual cache is filled anew.

Cost: a pass a step; f has 2 (B² + B) parameters. A filter fits one model and one block length, sees no words, and lets
dependent positions through together that are each certain, like a threshold (``threshold``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ramify.engine.filling import Filling, Schedule
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule
from ramify.errors import RamifyError, unknown
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.methods.unmask.learn2pd_filter import Filter, find_filter
from ramify.models.masked import MaskedLM

CUTS = ("A", "B", "off")


@register(
    name="learn2pd",
    title="Learning to Parallel: Accelerating Diffusion Large Language Models via Learnable Parallel Decoding",
    paper="arXiv 2509.25188",
    family="unmask",
    needs=("logits", "training"),
    lossless=False,
)
@dataclass(frozen=True)
class Learn2PD(MaskedMethod):
    """Fix what a trained filter takes for final, and cut the canvas at the end of the text.

    ``filter``: a filter or its folder, "bundled" for that of a bundled model, None for end-of-text prediction alone.
    ``tau``: τ, how sure of a position the filter has to be (paper: 0.96); 1 accepts nothing. ``eotp``: by rule "A" (the
    paper's) or "B" (the code's), or "off". ``block``: None for the filter's own.
    """

    filter: Filter | str | Path | None = "bundled"
    tau: float = 0.96
    eotp: Literal["A", "B", "off"] = "A"

    trains = Filter

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tau <= 1:
            raise RamifyError(f"tau is {self.tau:g}; it is a probability, from 0 (all at once) to 1 (nothing more)")
        if self.eotp not in CUTS:
            raise unknown("eotp", self.eotp, CUTS)

    def plan(self, lm: MaskedLM) -> Schedule:
        found = self._filter(lm)
        if found is None:
            return Schedule(self.block, self.steps)
        own = found.sizes.block
        if self.block not in (None, own):
            raise RamifyError(
                f"the filter was trained for blocks of {own} positions, not {self.block}; leave out block, or train "
                f"one with 'ramify train learn2pd -o block={self.block}'"
            )
        return Schedule(own, self.steps)

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Rule:
        return Filtered(self._filter(lm), self.tau, self.eotp)

    def _filter(self, lm: MaskedLM) -> Filter | None:
        if self.filter is None:
            return None
        if ("filter", lm) not in self.memory:
            self.memory["filter", lm] = find_filter(self.filter, lm)
        found: Filter = self.memory["filter", lm]
        return found


class Filtered(Rule):
    """What ``filter`` accepts and the schedule's most confident, then the cut by ``eotp``."""

    def __init__(self, filter: Filter | None, tau: float, eotp: str) -> None:
        self.filter, self.eotp = filter, eotp
        self.beyond = eotp == "B"
        self.least = math.inf if tau == 1 else -math.inf if tau == 0 else math.log(tau / (1 - tau))

    @torch.inference_mode()
    def choose(self, look: Look) -> Choice:
        accepted = torch.zeros_like(look.open)
        if self.filter is not None:
            sure = look.confidence.where(look.open, look.greatest(look.inside & ~look.open))
            accepted = look.open & (self.filter(sure) > self.least)
        fix = accepted | look.best(look.confidence, look.quota)
        return Choice(fix, cut=[self._cut(look, row, accepted, fix) for row in range(len(fix))])

    def _cut(self, look: Look, place: int, accepted: Tensor, fix: Tensor) -> int | None:
        """The length of the row's canvas from now on, None to leave it."""
        row = look.rows[place]
        ends = row.request.stop_tokens
        if self.eotp == "off" or not ends:
            return None
        sure = (fix if self.eotp == "A" else accepted)[place].tolist()
        here = [column for column, token in enumerate(look.tokens[place].tolist()) if token in ends]
        certain = [column for column in here if sure[column]]
        if certain:
            last = row.begin + certain[0]
        elif self.eotp == "B":
            last = _likeliest(look, place, here)
        else:
            return None
        return last + 1 if max(_given(row), 0) <= last < len(row.canvas) - 1 else None


def _likeliest(look: Look, place: int, here: Sequence[int]) -> int:
    """The open position most certainly predicted to be the end, of this block's ``here`` or behind it; −1 for none."""
    row, opened, sure = look.rows[place], look.open[place].tolist(), look.confidence[place].tolist()
    chances = {row.begin + column: sure[column] for column in here if opened[column]}
    later, logits = look.beyond[place]
    if len(later):
        chance, token = torch.softmax(logits.double(), dim=-1).max(dim=-1)
        ends = row.request.stop_tokens
        said = zip(later.tolist(), chance.tolist(), token.tolist(), strict=True)
        chances |= {position: value for position, value, word in said if word in ends}
    return max(chances, key=lambda position: chances[position], default=-1)


def _given(row: Filling) -> int:
    """The last position that the caller has filled in."""
    given = [place for place, token in enumerate(row.request.canvas) if token is not None]
    return row.canvas.start + (given[-1] if given else -1)
