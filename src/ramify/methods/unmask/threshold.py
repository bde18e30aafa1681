"""Fast-dLLM's parallel decoding: fix everything that is certain enough.

Wu et al., "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding", arXiv
2505.22618 (ICLR 2026). With c the confidence of a position's candidate, a step fixes

    threshold   every open position of the block with c ≥ γ (published γ = 0.9)
    factor      the n most confident ones, n the largest with (n + 1)(1 − c_(n)) < f

and always the most confident one, without which the loop might never end. Their theorem: where n marginals exceed
1 − ε and (n + 1) ε ≤ 1, the product of the argmaxes is the argmax of the joint law, and the bound is tight; the factor
rule asks for that directly, with f in the place of 1.

Where paper and code disagree: the paper says "exceeds γ", the code keeps ties, and so do we; the code's factor rule
tests each rank alone and adds the last rank even where it fails, we follow the paper. Float64 confidences, so that
γ = 1 asks for certainty to that precision; γ > 1 is one position a step. The caches of the paper are the option
``cache``. Their extra pass over a block that its first step had cleared is not made.

What such a rule cannot see: whether positions that are each certain are certain together. A slot that is one of two
equally likely words waits under γ > 0.5, while two slots that are each 5/6 sure of the same word do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.methods.unmask.orders import always_best
from ramify.models.masked import MaskedLM


@register(
    name="threshold",
    title="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    paper="arXiv 2505.22618",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class Threshold(MaskedMethod):
    """Fix every open position that the model is sure enough of, and at least the surest.

    ``gamma``: the confidence γ that is sure enough (paper: 0.9).
    """

    gamma: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0:
            raise RamifyError(f"gamma is {self.gamma:g}; it is a probability (above 1: one position a step)")

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Above:
        return Above(self.gamma)


@dataclass
class Above(Rule):
    """Everything with a confidence of at least ``gamma``."""

    gamma: float

    def choose(self, look: Look) -> Choice:
        return Choice(always_best(look, look.open & (look.confidence >= self.gamma)))


@register(
    name="factor",
    title="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    paper="arXiv 2505.22618",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class Factor(MaskedMethod):
    """Fix as many of the surest positions as are sure enough together.

    ``factor``: f of the condition (n + 1)(1 − c_(n)) < f (1 is what the theorem asks for).
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 0:
            raise RamifyError(f"factor is {self.factor:g}; it is 0 (one position a step) or more")

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Together:
        return Together(self.factor)


@dataclass
class Together(Rule):
    """The largest n with (n + 1)(1 − c_(n)) < ``factor``."""

    factor: float

    def choose(self, look: Look) -> Choice:
        sorted_ = look.confidence.masked_fill(~look.open, -torch.inf).sort(dim=1, descending=True).values
        ranks = torch.arange(1, sorted_.shape[1] + 1, device=sorted_.device)
        passing = (ranks + 1) * (1.0 - sorted_) < self.factor
        largest = (passing * ranks).amax(dim=1).clamp(min=1)
        return Choice(look.best(look.confidence, largest))
