"""An off switch around any drafter: drafts while they pay in this sequence, and plain decoding where they do not.

A composition of this library, no published system. A step's seconds are counted from the call for its draft to the end
of the drafter's learning, so that drafting, scoring and verifying are all in them, measured as they are. Over the last
``WINDOW`` steps of each way, committed tokens per second with drafts are held against plain decoding's:

    off    after at least ``TRIAL`` steps with drafts, when they give fewer tokens per second
    on     after ``TRIAL`` plain steps that were no faster after all, or after a rest of ``REST`` steps

Every trial that fails doubles the next rest, up to ``LONGEST``. Until plain steps were measured, the cost curve says
what one takes, or ``plain`` where that is known; they are remembered from request to request. A step for which the
drafter had nothing to propose is a plain one, too, but for its drafting and learning: it tells how fast the machine is
now. A speed-up ``expected``
from earlier measurements stands for the first steps of a request: it counts for ``TRIAL`` of them at first, for fewer
as steps are measured, and for none when there are ``WINDOW``. A step that took more than ``SPIKE`` times the median of
its kind counts as that much: the machine did something else. While it is off the drafter goes on learning from every
step, so that lookups and heads know the text when they are asked again. Exact as the method inside is.

Limit: in a batch a step's seconds are those of all rows, so a row is switched off only where that makes the batch
faster.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.engine.verify import Rule
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.parts import Parts, parts_of
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

WINDOW = 32
TRIAL = 8
REST, LONGEST = 32, 512
SPIKE = 3.0


@register(
    name="switched",
    title="An off switch for drafting",
    paper="this library",
    family="draft",
    needs=("logits",),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Switched(DraftMethod):
    """Stop drafting where it does not pay, as measured in each request, and try again now and then.

    ``inner``: what drafts, a name with :option=value where wanted, or an object; the switch takes a copy of it, which
    learns as long as the switch lives. ``margin``: by what share drafting may seem slower before it is switched off; a
    smaller loss is within what the clock cannot tell. ``expected``: the speed-up over plain decoding that is known from
    elsewhere; None where nothing is. ``plain``: seconds of a plain step; None to take them from the cost curve.
    """

    inner: Parts = "token-recycling"
    margin: float = 0.02
    expected: float | None = None
    plain: float | None = None

    def __post_init__(self) -> None:
        if not self.margin >= -1.0:
            raise RamifyError(f"margin must be at least -1, got {self.margin}")
        for name, value in (("expected", self.expected), ("plain", self.plain)):
            if value is not None and not value > 0.0:
                raise RamifyError(f"{name} must be above 0, got {value}")
        self.part()

    @property
    def rule(self) -> Rule:
        return self.part().rule

    def part(self) -> DraftMethod:
        """The method that drafts, the same object every time."""
        found: DraftMethod | None = self.memory.get("part")
        if found is None:
            several = parts_of(self.inner, "a switch")
            if len(several) != 1:
                raise RamifyError(f"a switch needs one method, not {len(several)}; put several into a union")
            found = self.memory["part"] = several[0]
        return found

    def drafter(self, lm: CausalLM, request: Request) -> Drafter | None:
        drafter = self.part().drafter(lm, request)
        if drafter is None:
            return None
        plain = self.memory.get(("plain", lm))
        if plain is None:
            plain = self.memory["plain", lm] = Speed(self.plain or calibrate(lm).cost(1))
        return Switch(drafter, plain, self.margin, expected=self.expected)


class Speed:
    """Committed tokens per second over the last steps; before any, one token in ``expected`` seconds."""

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self.steps: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def add(self, seconds: float, tokens: int) -> None:
        self.steps.append((seconds, tokens))

    def rate(self) -> float:
        if not self.steps:
            return 1.0 / self.expected
        most = SPIKE * median(seconds for seconds, _ in self.steps)
        spent = sum(min(seconds, most) for seconds, _ in self.steps)
        return sum(tokens for _, tokens in self.steps) / max(spent, 1e-9)

    def beside(self, known: float) -> float:
        """``rate``, as far as there are steps, and before that ``known`` tokens per second."""
        weight = TRIAL * (1.0 - len(self.steps) / WINDOW)
        return (weight * known + len(self.steps) * self.rate()) / (weight + len(self.steps))


class Switch(Drafter):
    """``drafter`` while it pays. ``plain``: the speed of steps without it; ``clock``: seconds from anywhere.

    ``expected``: as of ``Switched``.
    """

    def __init__(
        self,
        drafter: Drafter,
        plain: Speed,
        margin: float = 0.02,
        clock: Callable[[], float] = time.perf_counter,
        expected: float | None = None,
    ) -> None:
        self.drafter, self.plain, self.margin, self.clock, self.expected = drafter, plain, margin, clock, expected
        self.wants_prompt_logits, self.hidden_layers = drafter.wants_prompt_logits, drafter.hidden_layers
        self.on = True
        self.steps = 0  # since the last turn
        self.rest = REST
        self.drafting = Speed(plain.expected)
        self.began: float | None = None
        self.drafted = 0.0  # when the draft was there

    def start(self, prompt: Sequence[int]) -> None:
        self.drafter.start(prompt)

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        self.drafter.observe_prompt(tokens, logits, hidden)

    def rewind(self, length: int) -> None:
        self.drafter.rewind(length)

    def draft(self, context: Context) -> TokenTree:
        self.began = self.clock()
        draft = self.drafter.draft(context) if self.on else TokenTree.empty()
        self.drafted = self.clock()
        return draft

    def observe(self, outcome: Outcome) -> None:
        scored = self.clock()
        self.drafter.observe(outcome)
        if self.began is None:  # nobody asked for a draft: text that is read, not written
            return
        if self.on and len(outcome.tree) == 1:
            self.plain.add(scored - self.drafted, len(outcome.tokens))
        speed = self.drafting if self.on else self.plain
        speed.add(self.clock() - self.began, len(outcome.tokens))
        self.began = None
        self.steps += 1
        if self.on:
            self._judge()
        elif self.steps == TRIAL and self._pays():
            self._turn(True)
        elif self.steps >= self.rest:
            self.rest = min(2 * self.rest, LONGEST)
            self._turn(True)

    def _judge(self) -> None:
        if self.steps < TRIAL:
            return
        if not self._pays():
            self._turn(False)
        elif self.steps >= WINDOW:
            self.rest = REST

    def _pays(self) -> bool:
        plain, drafting = self.plain.rate(), self.drafting.rate()
        if self.expected is not None:
            drafting = self.drafting.beside(self.expected * plain)
        return (1.0 + self.margin) * drafting >= plain

    def _turn(self, on: bool) -> None:
        self.on, self.steps = on, 0
        if on:
            self.drafting = Speed(self.plain.expected)
