"""What a method is expected to give: its acceptance on some prompts, its own work, and the machine's cost curve.

A run on the prompts says how many rows every pass had and how many tokens came out, which does not depend on the clock,
and how long the method's own work took. The passes' time then comes from the curve: n rows take ``scale`` · T(n),
where ``scale`` is how much longer than the curve's least the passes of plain decoding took in the midst of decoding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.prompts import Prompt
from ramify.engine.events import Accepted, Drafted, Scored
from ramify.methods.base import Method
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM

CPU, WALL = "CPU time", "wall time"
SPIKE = 3.0  # a step that took longer than so many times
USUAL = 0.9  # what this share of the steps took, at most, counts as that much: the machine did something else


@dataclass(frozen=True)
class Run:
    """One method on all prompts.

    ``tokens``: committed ones. ``passes``: how many passes had so many rows. ``drafting``, ``verifying`` (with the
    drafter's learning), ``scoring``: seconds of all passes' parts. ``rest``: seconds of everything else, reading the
    prompts included.
    """

    tokens: int
    passes: Counter[int] = field(default_factory=Counter)
    drafting: float = 0.0
    verifying: float = 0.0
    scoring: float = 0.0
    rest: float = 0.0

    @property
    def calls(self) -> int:
        return self.passes.total()

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.calls

    @property
    def rows_per_call(self) -> float:
        """Mean rows of a pass, padding included."""
        return sum(rows * count for rows, count in self.passes.items()) / self.calls

    def passing(self, curve: CostCurve) -> float:
        """Seconds of all passes by the curve alone."""
        return sum(count * curve.cost(rows) for rows, count in self.passes.items())

    def scale(self, curve: CostCurve) -> float:
        """How much longer the passes took than the curve says."""
        return self.scoring / self.passing(curve)

    def speed(self, curve: CostCurve, scale: float) -> float:
        """Tokens per second to expect, whole calls counted."""
        return self.tokens / (scale * self.passing(curve) + self.drafting + self.verifying + self.rest)

    def share(self, curve: CostCurve, scale: float) -> float:
        """Share of the method's own work, drafting and verifying, in a step."""
        own = self.drafting + self.verifying
        return own / (own + scale * self.passing(curve))


def clock(lm: CausalLM) -> str:
    """What seconds mean here: CPU time where one thread does all the work, which other programs disturb less."""
    return CPU if lm.device.type == "cpu" and torch.get_num_threads() == 1 else WALL


def run(lm: CausalLM, method: Method, prompts: Sequence[Prompt], seed: int, **settings: Any) -> Run:
    """``method`` on every prompt, once; what it learns it carries from prompt to prompt. Prompt i has seed + i."""
    drafting: list[float] = []
    verifying: list[float] = []
    scoring: list[float] = []
    tokens, rest = 0, 0.0
    passes: Counter[int] = Counter()
    for index, prompt in enumerate(prompts):
        wall, cpu = time.perf_counter(), time.process_time()
        result = generate(lm, prompt.text, method, seed=seed + index, **settings)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pace = cpu / wall if clock(lm) == CPU else 1.0  # waiting for a processor hits every part alike
        parts = result.stats.draft_seconds + result.stats.score_seconds + result.stats.verify_seconds
        rest += pace * (wall - parts)
        tokens += result.stats.generated_tokens
        for event in result.events:
            match event:
                case Drafted():
                    drafting.append(pace * event.seconds)
                case Scored():
                    scoring.append(pace * event.seconds)
                    passes[event.nodes] += 1
                case Accepted():
                    verifying.append(pace * event.seconds)
    return Run(tokens, passes, usual(drafting), usual(verifying), usual(scoring), rest)


def usual(seconds: Iterable[float]) -> float:
    """The sum of ``seconds``, without what spikes have in excess."""
    found = sorted(seconds)
    most = SPIKE * found[int(USUAL * (len(found) - 1))] if found else 0.0
    return sum(min(each, most) for each in found)
