"""Accuracy against effective tokens on questions with checkable answers: what every search method is measured by.

Means over questions and seeds, 95 % intervals from the spread between questions, differences question by question.
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File

from ramify.bench.kept import Pooled, kept
from ramify.bench.recorded import replay
from ramify.bench.tasks import Task, canonical, parse_answer
from ramify.bench.tasks.grade import Share
from ramify.engine.aggregate import vote
from ramify.engine.events import Refined
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.engine.search import Decision
from ramify.methods.base import SearchMethod
from ramify.methods.options import build_spec
from ramify.models.causal import CausalLM
from ramify.solving import solve

Record = list[Path]


@dataclass
class Scored:
    """Of every question, means over the seeds: ``right``, effective ``tokens``, ``oracle``: any path was right."""

    right: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    oracle: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        return statistics.mean(self.tokens)

    def add(self, task: Task, outcomes: Sequence[tuple[str | None, float, Sequence[Path]]]) -> None:
        """A question's answers, one for each seed, with what they cost and the paths that ended."""
        right = canonical(task.answer)
        self.right.append(statistics.mean(answer == right for answer, _, _ in outcomes))
        self.tokens.append(statistics.mean(tokens for _, tokens, _ in outcomes))
        self.oracle.append(
            statistics.mean(any(each == right for each in (answer, *(path.answer for path in paths)))
                for answer, _, paths in outcomes)
        )  # fmt: skip

    def less(self, other: Scored) -> str:
        """By how many points this is right more often than ``other``, with the interval."""
        difference = Share.of([one - two for one, two in zip(self.right, other.right, strict=True)])
        return f"{100 * difference.mean:+.1f} ± {100 * difference.half:.1f}"


class Study:
    """One model on some questions."""

    def __init__(self, lm: CausalLM, asked: Sequence[Task], temperature: float, new: int) -> None:
        self.lm, self.asked, self.temperature, self.new = lm, asked, temperature, new

    def live(self, spec: str, seeds: int, seed: int, temperature: float | None = None) -> Scored:
        """A method by itself, asked anew for every seed; once where it draws nothing."""
        found = Scored()
        draws = build_spec(spec).pinned.get("do_sample", True)
        for task in self.asked:
            results = [self._ask(task, spec, seed + 1000 * k, temperature) for k in range(seeds if draws else 1)]
            found.add(task, [(answer_of(result), effective(result), result.paths) for result in results])
        return found

    def record(self, paths: int, seeds: int, seed: int, folder: File | None = None) -> list[list[Record]]:
        """For every question and seed the paths of one pool, by number; kept in ``folder`` where one is given."""

        def sampled(task: Task, at: int) -> Pooled:
            result = self._ask(task, f"self-consistency:paths={paths}", at)
            return Pooled(sorted(result.paths, key=lambda path: path.number), effective(result))

        def make() -> list[list[Pooled]]:
            return [[sampled(task, seed + 1000 * k) for k in range(seeds)] for task in self.asked]

        pools = kept(folder, f"{paths} paths", self.about(seeds, seed), make)
        return [[pool.paths for pool in each] for each in pools]

    def about(self, seeds: int, seed: int) -> str:
        """What pools depend on, beside the method that makes them."""
        asked = hashlib.sha256("\n".join(task.prompt for task in self.asked).encode()).hexdigest()[:12]
        return f"{self.lm.name} {asked} {self.temperature:g} {self.new} {seed} {seeds}"

    def replayed(self, records: Sequence[Sequence[Record]], method: SearchMethod) -> Scored:
        """What ``method`` makes of the recorded pools."""
        found = Scored()
        for task, pools in zip(self.asked, records, strict=True):
            request = Request(self.lm.encode(task.prompt), self.lm.context)
            outcomes = [replay(record, method.policy(self.lm, request)) for record in pools]
            found.add(task, [(each.answer, each.tokens, each.ended) for each in outcomes])
        return found

    def decided(
        self, records: Sequence[Sequence[Record]], size: int, rule: Callable[[Sequence[Path]], Decision] = vote
    ) -> Scored:
        """What a ``rule`` makes of the first ``size`` paths of every pool."""
        found = Scored()
        for task, pools in zip(self.asked, records, strict=True):
            first = [record[:size] for record in pools]
            found.add(task, [(rule(paths).answer, sum(map(len, paths)), paths) for paths in first])
        return found

    def _ask(self, task: Task, spec: str, seed: int, temperature: float | None = None) -> Result:
        chosen = self.temperature if temperature is None else temperature
        return solve(
            self.lm, task.prompt, build_spec(spec), template="{question}", temperature=chosen, seed=seed,
            max_new_tokens=self.new,
        )  # fmt: skip


def answer_of(result: Result) -> str | None:
    """The answer that was voted for, or that the text gives where nothing was voted on."""
    return result.answer if result.votes else parse_answer(result.text)


def effective(result: Result) -> int:
    """Tokens drawn for all paths, and the rows of further readings of a token along other routes."""
    again = (len(event.paths) * (1 + event.routes) for event in result.events if isinstance(event, Refined))
    return result.cost.generated_tokens + sum(again)


def level(ladder: Sequence[Scored], cost: float) -> Scored | None:
    """What a method that is measured at growing costs would reach at just ``cost``: between its neighbours, by share.

    None for a ``cost`` beyond the ladder's ends.
    """
    if cost < ladder[0].cost * (1 - 1e-9) or cost > ladder[-1].cost * (1 + 1e-9):
        return None
    for low, high in itertools.pairwise(ladder):
        if cost <= high.cost * (1 + 1e-9):
            share = min(1.0, max(0.0, (cost - low.cost) / (high.cost - low.cost)))
            return Scored(
                *(
                    [(1 - share) * one + share * two for one, two in zip(a, b, strict=True)]
                    for a, b in ((low.right, high.right), (low.tokens, high.tokens), (low.oracle, high.oracle))
                )
            )
    return ladder[0]
