"""MaskGIT: few tokens at first, more and more at once, the most confident ones, with noise that dies away.

Chang et al., "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200 (CVPR 2022). Every pass draws a candidate
x for every open position. Of N positions so many stay open after step s = 0 … T − 1,

    max(1, min(open − 1, ⌊N cos(πr/2)⌋)),   r = (s + 1)/T,   and none after the last,

and those are fixed that have the highest  log p(x) + τ_c (1 − r) · Gumbel.  (64 positions in 8 steps: 2, 3, 6, 8, 10,
11, 12, 12.) Without the noise, τ_c = 0, what is likely everywhere goes first and pictures become alike: their entropy
falls. With endless noise the order is random. The published τ_c is 4.5.

Our choices: the published code keeps a position open even at the end and returns its candidates all the same; here the
last step fixes it. x is drawn from the law that the request's temperature and truncation make, p is the model's own.
Float64, for Gumbel noise in less is a lower temperature. Guidance may grow linearly over the steps, as published
implementations have it. Cost: T passes over the whole canvas. Limit: what is fixed in one pass was drawn without seeing
each other; the order can make that rarer, not undo it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.events import Event
from ramify.engine.filling import Schedule
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule, unmask
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.models.masked import MaskedLM

STEPS = 12


@register(
    name="maskgit",
    title="MaskGIT: Masked Generative Image Transformer",
    paper="arXiv 2202.04200",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class MaskGIT(MaskedMethod):
    """Fix positions by noisy confidence on a cosine schedule.

    ``steps``: passes over a canvas; None for the published 12, or one a position of a smaller canvas.
    ``confidence_noise``: τ_c. ``guidance_from``: the weight of the first step, from which it grows linearly to
    ``guidance``; None for the same weight in all.
    """

    confidence_noise: float = 4.5
    guidance_from: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise(self.confidence_noise)
        check_ramp(self.guidance_from, self.guidance)

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Annealed:
        return Annealed(self.confidence_noise)

    def run(self, lm: MaskedLM, requests: Sequence[Request]) -> Iterator[Event]:
        steps = self.steps or published(STEPS, requests)
        yield from unmask(
            lm,
            requests,
            self.rule(lm, requests),
            schedule=Schedule(self.block, steps),
            feeding=self.feeding(lm),
            guidance=ramp(self.guidance_from, self.guidance, steps),
        )


@dataclass
class Annealed(Rule):
    """The cosine schedule's number of positions with the highest log p(x) + ``noise`` (1 − r) · Gumbel."""

    noise: float

    def choose(self, look: Look) -> Choice:
        counts, left = [], []
        for row, opened in zip(look.rows, look.open, strict=True):
            steps, now = len(row.quotas), int(opened.sum())
            stay = cosine_left(int(sum(row.quotas)), steps)
            counts.append(now - min(stay[row.step], now - 1) if row.step < steps - 1 else now)
            left.append(1 - (row.step + 1) / steps)
        noise = self.noise * torch.tensor(left, dtype=torch.float64, device=look.open.device)
        scores = look.confidence.log() + noise[:, None] * gumbel(look)
        return Choice(look.best(scores, torch.tensor(counts, device=look.open.device)))


def cosine_left(count: int, steps: int) -> list[int]:
    """How many of ``count`` positions are open after each of ``steps`` steps."""
    left = [max(1, math.floor(count * math.cos(math.pi / 2 * (step + 1) / steps))) for step in range(steps - 1)]
    return [*left, 0]


def gumbel(look: Look) -> Tensor:
    """Gumbel noise for every position: float64 [A, n], of the row's seed and step alone."""
    return -torch.log(-torch.log(look.uniform().clamp_min(torch.finfo(torch.float64).tiny)))


def published(steps: int, requests: Sequence[Request]) -> int:
    """The published number of ``steps``, or fewer where a canvas has fewer open positions."""
    sizes = (list(r.canvas).count(None) if r.canvas else r.max_length - len(r.prompt) for r in requests)
    return max(1, min([steps, *sizes]))


def ramp(first: float | None, last: float, steps: int) -> float | Callable[[int], float]:
    """The weight of guidance at every step: ``last``, or linearly from ``first`` to it."""
    if first is None:
        return last
    return lambda step: first + (last - first) * min(step / max(steps - 1, 1), 1.0)


def check_noise(noise: float) -> None:
    """Raise ``RamifyError`` for a weight of the noise that is none."""
    if not 0.0 <= noise < math.inf:
        raise RamifyError(f"confidence_noise is {noise:g}; it is 0 for none, or more (paper: 4.5)")


def check_ramp(first: float | None, last: float) -> None:
    """Raise ``RamifyError`` for weights of guidance between which there is no way."""
    if first is not None and (first < 0.0 or last <= 0.0):
        raise RamifyError(f"guidance grows from guidance_from={first:g} to guidance={last:g}; give 0 or more, and more")
