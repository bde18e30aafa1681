"""What a method is expected to give: its acceptance on some prompts, its own work, and what passes cost.

A run on the prompts says how many rows every pass had and how many tokens came out, which does not depend on the clock,
and how long the method's own work took. What a pass over n rows takes comes from the machine's cost curve T(n), which
is measured with nothing else going on, behind a short text. In the midst of decoding it takes longer, the more so the
more rows: (a + b · log2 n) · T(n), with a and b fitted to the passes of all runs together.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
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
class Passes:
    """What a pass takes in the midst of decoding: ``level`` + ``slope`` · log2(rows) times what the curve says."""

    curve: CostCurve
    level: float = 1.0
    slope: float = 0.0

    def seconds(self, rows: int) -> float:
        return (self.level + self.slope * math.log2(rows)) * self.curve.cost(rows)

    @staticmethod
    def of(curve: CostCurve, runs: Iterable[Run]) -> Passes:
        """Fitted to the passes of ``runs``: least squares over the medians for every number of rows."""
        seconds: defaultdict[int, list[float]] = defaultdict(list)
        for run in runs:
            for rows, times in run.passes.items():
                seconds[rows] += times
        points = [(math.log2(rows), median(times) / curve.cost(rows), len(times)) for rows, times in seconds.items()]
        total = sum(weight for *_, weight in points)
        across = sum(weight * x for x, _, weight in points) / total
        up = sum(weight * y for _, y, weight in points) / total
        spread = sum(weight * (x - across) ** 2 for x, _, weight in points)
        slope = sum(weight * (x - across) * (y - up) for x, y, weight in points) / spread if spread else 0.0
        return Passes(curve, up - slope * across, slope)


@dataclass(frozen=True)
class Run:
    """One method on all prompts.

    ``tokens``: committed ones. ``passes``: seconds of every pass, by its rows, padding included. ``drafting``,
    ``verifying`` (with the drafter's learning): seconds of all steps' parts. ``rest``: seconds of everything else,
    reading the prompts included.
    """

    tokens: int
    passes: Mapping[int, Sequence[float]] = field(default_factory=dict)
    drafting: float = 0.0
    verifying: float = 0.0
    rest: float = 0.0

    @property
    def calls(self) -> int:
        return sum(map(len, self.passes.values()))

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.calls

    @property
    def rows_per_call(self) -> float:
        return sum(rows * len(times) for rows, times in self.passes.items()) / self.calls

    def passing(self, passes: Passes) -> float:
        """Seconds to expect of all passes together."""
        return sum(len(times) * passes.seconds(rows) for rows, times in self.passes.items())

    def speed(self, passes: Passes) -> float:
        """Tokens per second to expect, whole calls counted."""
        return self.tokens / (self.passing(passes) + self.drafting + self.verifying + self.rest)

    def step(self, passes: Passes) -> float:
        """Seconds to expect of a step, reading the prompt left out."""
        return (self.passing(passes) + self.drafting + self.verifying) / self.calls

    def share(self, passes: Passes) -> float:
        """Share of the method's own work, drafting and verifying, in a step."""
        own = self.drafting + self.verifying
        return own / (own + self.passing(passes))


def clock(lm: CausalLM) -> str:
    """What seconds mean here: CPU time where one thread does all the work, which other programs disturb less."""
    return CPU if lm.device.type == "cpu" and torch.get_num_threads() == 1 else WALL


def run(lm: CausalLM, method: Method, prompts: Sequence[Prompt], seed: int, **settings: Any) -> Run:
    """``method`` on every prompt, once; what it learns it carries from prompt to prompt. Prompt i has seed + i."""
    drafting: list[float] = []
    verifying: list[float] = []
    passes: defaultdict[int, list[float]] = defaultdict(list)
    tokens, rest = 0, 0.0
    for index, prompt in enumerate(prompts):
        wall, cpu = time.perf_counter(), time.process_time()
        result = generate(lm, prompt.text, method, seed=seed + index, **settings)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pace = cpu / wall if clock(lm) == CPU else 1.0  # waiting for a processor hits every part alike
        stats = result.stats
        rest += pace * (wall - stats.draft_seconds - stats.score_seconds - stats.verify_seconds)
        tokens += stats.generated_tokens
        for event in result.events:
            match event:
                case Drafted():
                    drafting.append(pace * event.seconds)
                case Scored():
                    passes[event.nodes].append(pace * event.seconds)
                case Accepted():
                    verifying.append(pace * event.seconds)
                case _:
                    pass
    return Run(tokens, passes, usual(drafting), usual(verifying), rest)


def usual(seconds: Iterable[float]) -> float:
    """The sum of ``seconds``, without what spikes have in excess."""
    found = sorted(seconds)
    most = SPIKE * found[int(USUAL * (len(found) - 1))] if found else 0.0
    return sum(min(each, most) for each in found)
