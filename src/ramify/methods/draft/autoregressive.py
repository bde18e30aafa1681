"""Plain decoding, one token a forward pass: what every other method is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.request import Request
from ramify.methods.base import DraftMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM


@register(
    name="greedy",
    title="Greedy decoding",
    paper="baseline",
    family="baseline",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Greedy(DraftMethod):
    """The most likely token, one at a time; ties go to the lowest id."""

    pinned = {"do_sample": False}  # noqa: RUF012 - a constant of the class, no option

    def drafter(self, lm: CausalLM, request: Request) -> None:
        return None


@register(
    name="sample",
    title="Ancestral sampling",
    paper="baseline",
    family="baseline",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Sample(DraftMethod):
    """One sampled token at a time, under the caller's temperature and truncation."""

    pinned = {"do_sample": True}  # noqa: RUF012 - a constant of the class, no option

    def drafter(self, lm: CausalLM, request: Request) -> None:
        return None
