"""Auto: the method that ``ramify tune`` found fastest for this model on this machine, with an off switch.

A choice of this library, no published system. The profile is that of the model, its dtype and forward pass, the device
and the threads, apart for greedy and for sampled text; ``ramify tune --model …`` makes it. Without a profile
``otherwise`` drafts. What the profile measured stands for the first steps of a text, so that the switch need not find
out by plain steps what tuning knows. A model or a logits processor that allows no drafts is decoded plainly. Every
result says in its notes what ran and why. Exact as the method that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ramify.engine.drafter import Drafter
from ramify.engine.events import Event, Noted
from ramify.engine.request import Request
from ramify.engine.speculate import speculate
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.parts import Parts, parts_of
from ramify.methods.draft.switch import Switched
from ramify.methods.profile import Profile
from ramify.methods.registry import register
from ramify.models.causal import CausalLM


@register(
    name="auto",
    title="The fastest method, as ramify tune measured it",
    paper="this library",
    family="draft",
    needs=("logits",),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Auto(DraftMethod):
    """Whatever ``ramify tune`` found fastest here, switched off where it does not pay.

    ``switch``: whether to watch, in every request, that drafting pays. ``otherwise``: what drafts where nothing was
    tuned yet, a name with :option=value where wanted, or an object.
    """

    switch: bool = True
    otherwise: Parts = "union"

    def __post_init__(self) -> None:
        if len(parts_of(self.otherwise, "auto")) != 1:
            raise RamifyError("otherwise takes one method; put several into a union")

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        method, why = self.choice(lm, requests)
        yield Noted(why)
        if method is None:
            yield from speculate(lm, requests)
        else:
            yield from method.run(lm, requests)

    def drafter(self, lm: CausalLM, request: Request) -> Drafter | None:
        method, _ = self.choice(lm, [request])
        return None if method is None else method.drafter(lm, request)

    def choice(self, lm: CausalLM, requests: Sequence[Request]) -> tuple[DraftMethod | None, str]:
        """What runs these requests (None: plain decoding), and a sentence that says why."""
        try:
            lm.require_trees("drafts")
            for request in requests:
                request.sampler.require_stateless()
        except RamifyError as error:
            return None, f"auto decodes plainly: {str(error).partition(';')[0]}"
        sampled = not requests[0].sampler.greedy
        chosen = self.memory.get((lm, sampled))
        if chosen is None:
            chosen = self.memory[lm, sampled] = self._choose(lm, requests[0])
        method, why = chosen
        return method, why

    def _choose(self, lm: CausalLM, request: Request) -> tuple[DraftMethod | None, str]:
        kind = "greedy" if request.sampler.greedy else "sampled"
        tune = f"ramify tune --model {lm.name}" + ("" if request.sampler.greedy else " --temperature …")
        profile = Profile.of(lm, not request.sampler.greedy)
        if profile is None:
            method = self._with(self.otherwise)
            return method, f"auto runs {named(method)}: {lm.name} has no profile for {kind} text here; {tune} makes one"
        if not profile.spec:
            return None, f"auto decodes plainly: no drafter paid for {kind} text when {tune} measured them"
        try:
            method = self._with(profile.spec, profile)
            method.drafter(lm, request)  # a head, say, may be gone since
        except RamifyError as error:
            method = self._with(self.otherwise)
            return method, f"auto runs {named(method)}: its profile is out of date, since {error}; {tune} renews it"
        return method, f"auto runs {profile.spec}, measured at {profile.measured:.2f} × plain {kind} decoding"

    def _with(self, given: Parts, profile: Profile | None = None) -> DraftMethod:
        [method] = parts_of(given, "auto")
        if not self.switch:
            return method
        return Switched(method) if profile is None else Switched(method, expected=profile.measured, plain=profile.plain)


def named(method: DraftMethod) -> str:
    """The method's name, or that of the one inside its switch."""
    return (method.part() if isinstance(method, Switched) else method).card.name
