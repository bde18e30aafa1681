"""Decoding a masked denoiser by a schedule: so many positions a step, the best by some score.

What LLaDA (Nie et al., arXiv 2502.09992), Dream (Ye et al., arXiv 2508.15487) and MDLM (Sahoo et al., arXiv 2406.07524)
decode with, and the baselines of ParallelBench (arXiv 2510.04767). With p the law at an open position and x its
candidate (the argmax, or a draw), the score is

    random          u ~ U(0, 1)             confidence   p(x)  (LLaDA's low_confidence, Dream's maskgit_plus)
    left-to-right   minus the position      margin       the greatest p minus the second greatest
                                            entropy      Σ p log p

A block of M open positions and s steps fixes ⌊M/s⌋ a step, the first M mod s steps one more. With one position a step
an exact denoiser samples its joint law in any order; fixing several draws them from the product of their marginals,
which loses what they know of each other. ``block=1`` and "left-to-right" are autoregressive decoding.

Our choices: candidates are drawn from the law that the request's temperature and truncation make, the score is read off
the model's own law at temperature 1 (LLaDA; Dream scores the warped law). Confidences are float64, for in half
precision they tie and the order becomes positional. Positions are fixed for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule
from ramify.errors import unknown
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.models.masked import MaskedLM

SCORES: dict[str, Callable[[Look], Tensor]] = {
    "random": Look.uniform,
    "left-to-right": lambda look: -look.positions.to(look.open.device).double(),
    "confidence": lambda look: look.confidence,
    "margin": lambda look: look.margin,
    "entropy": lambda look: -look.entropy,
}


@register(
    name="unmask",
    title="Large Language Diffusion Models",
    paper="arXiv 2502.09992",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class Unmask(MaskedMethod):
    """Fix as many positions a step as the schedule says, the best by confidence or another order.

    ``order``: "confidence" (LLaDA), "random", "left-to-right", "margin" or "entropy" (Dream).
    """

    order: str = "confidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in SCORES:
            raise unknown("order", self.order, SCORES)

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> TopK:
        return TopK(SCORES[self.order])


@dataclass
class TopK(Rule):
    """The schedule's number of open positions with the highest ``score``."""

    score: Callable[[Look], Tensor]

    def choose(self, look: Look) -> Choice:
        return Choice(look.best(self.score(look), look.quota))


def always_best(look: Look, fix: Tensor) -> Tensor:
    """``fix``, or where it is nothing the most confident position: a threshold alone might never be met."""
    one = torch.ones(len(fix), dtype=torch.long, device=fix.device)
    return fix | look.best(look.confidence, one)
