"""ReCAP: after a whole pass, some cheap ones that evaluate the next targets only and reuse all other features.

Liu et al., "Plug-and-Play Context Feature Reuse for Efficient Masked Generation", arXiv 2505.19089 (NeurIPS 2025). T
steps fix k_1 … k_T positions. The first ``pre_full`` steps are whole passes. The others come in groups of 1 + u, each
fixing K positions together, its target set S:

    whole pass    on all N positions; S = the K best open positions by the group's order; the first k of them are fixed
    hold          keys and values of all positions outside S, decoded ones and masks alike
    u local ones  on the prompt and S, which attend to what is held and to themselves; the next k of S are fixed

So a local pass evaluates K + |prompt| positions instead of N. With u = 0, or K = k, it is the base sampler, exactly;
where S is everything, a local pass is a whole one, exactly. Otherwise it is an approximation: good where what is fixed
changes its neighbours in S, bad where it is passed on through features outside S, which are frozen (a model that keeps
count in its prompt: ``docs/evidence/recap.md``; similar features do not imply that reuse is safe).

Schedule "power": m_i = ⌊N (1 − (i/T)^2.5)⌋ positions are open before step i, a step that would fix none takes one from
the last. 256 in 16 steps: 1, 1, 2, 4, 6, 9, 10, 13, 15, 19, 21, 24, 28, 31, 34, 38. "even": as many in every step.
Order "confidence": log p(x) + τ (1 − (i + 1)/G) · Gumbel for a draw x at each position, in group i of G, τ = 5.5. It is
drawn once, at the beginning of the group; the tokens are drawn anew in every step at a temperature that falls from 1 to
``last_temperature``: t = t_last + (1 − √(step/(T − 1))) (1 − t_last). It multiplies the request's own.

Where paper and code disagree: for u ≥ 2 the code's grouping skips one entry of the schedule and uses another twice; we
cut the schedule into slices. Its guidance counts a local step one too low; we count all steps alike. The paper speaks
of any u, everything reported has u = 1. What the masks outside S look like is kept from the whole pass, as in the code;
``cache_masked=False`` hides them from local passes. The prompt (a class token) is evaluated again in local passes, as
in the code; ``feed_prompt=False`` treats it as context, without which long prompts leave no saving. The published
system for continuous tokens (MAR) needs a model with a diffusion head; there is none here.

Cost: N a whole pass, K + |prompt| a local one, 0.56 of all whole passes for 8 + 8 over 256 positions. Late groups have
many targets and save less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ramify.engine.events import Event
from ramify.engine.filling import Schedule
from ramify.engine.request import Request
from ramify.engine.unmask import unmask
from ramify.errors import RamifyError, unknown
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.methods.unmask.maskgit import check_noise, check_ramp, published, ramp
from ramify.methods.unmask.recap_groups import Groups
from ramify.models.masked import MaskedLM

STEPS = 16
SCHEDULES, ORDERS = ("power", "even"), ("confidence", "random")


@register(
    name="recap",
    title="Plug-and-Play Context Feature Reuse for Efficient Masked Generation",
    paper="arXiv 2505.19089",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class ReCAP(MaskedMethod):
    """Groups of a whole pass and ``local`` cheap ones over the group's targets.

    ``steps``: passes over a canvas, local ones included; None for the published 16, or one a position of a smaller
    canvas. ``local``: u, local passes behind each whole one; 0 for the base sampler. ``pre_full``: so many first passes
    are whole ones. ``schedule``: how many positions a step fixes, "power" or "even". ``order``: "confidence" or
    "random". ``confidence_noise``: τ. ``last_temperature``: of tokens in the last step. ``cache_masked``: local passes
    see the masks outside the group. ``feed_prompt``: they evaluate the prompt again. ``guidance_from``: as of MaskGIT.
    """

    local: int = 1
    pre_full: int = 0
    schedule: str = "power"
    order: str = "confidence"
    confidence_noise: float = 5.5
    last_temperature: float = 0.65
    cache_masked: bool = True
    feed_prompt: bool = True
    guidance_from: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache != "none":
            raise RamifyError("recap is a cache of its own; leave out cache")
        if self.local < 0 or self.pre_full < 0:
            raise RamifyError(f"local={self.local} and pre_full={self.pre_full} count passes; give 0 or more")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS)
        if not 0.0 < self.last_temperature <= 1.0:
            raise RamifyError(f"last_temperature is {self.last_temperature:g}; give one above 0 and at most 1")
        check_noise(self.confidence_noise)
        check_ramp(self.guidance_from, self.guidance)

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Groups:
        if lm.facts.block is not None:
            raise RamifyError(f"{lm.name} sees in blocks, where method='unmask' with cache='prefix' is exact; use that")
        return Groups(self, int(lm.facts.shift))

    def run(self, lm: MaskedLM, requests: Sequence[Request]) -> Iterator[Event]:
        steps, groups = self.steps or published(STEPS, requests), self.rule(lm, requests)
        yield from unmask(
            lm,
            requests,
            groups,
            schedule=Schedule(self.block, steps),
            feeding=groups,
            guidance=ramp(self.guidance_from, self.guidance, steps),
        )
