"""Search on the demo reasoner: accuracy against effective tokens, for every way to spend them, with intervals.

One pool of sampled paths for each question and seed; self-consistency, its adaptive stop, best-of-N and DeepConf are
what their own policies make of that pool, so they are compared on the same paths. The methods that draw otherwise run
by themselves. Accuracies are means over questions and seeds with 95 % intervals from the spread between questions;
differences are taken question by question.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ramify.bench.chart import Chart
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recorded import replay
from ramify.bench.tasks import Task, canonical, parse_answer, read_tasks, tasks
from ramify.bench.tasks.grade import Share
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.methods.base import SearchMethod
from ramify.methods.options import build_spec, outside
from ramify.methods.search.best_of_n import BestOfN
from ramify.methods.search.deepconf import DeepConf
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import CausalLM, load
from ramify.solving import solve

Record = list[Path]


def run(
    *,
    seed: int = 0,
    seeds: int = 3,
    model: str = "demo-reasoner",
    data: str | None = None,
    questions: int = 400,
    paths: int = 32,
    temperature: float = 0.7,
    max_new_tokens: int = 160,
    live: str = "cntp",
) -> Outcome:
    """Accuracy and tokens of all of them; ``live``: methods with settings, separated by commas, that run by themselves.

    ``data``: a .jsonl file of questions and answers instead of the generated test questions.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model)
        asked = read_tasks(data)[0][:questions] if data else tasks(questions)
        study = Study(lm, asked, temperature, max_new_tokens)
        greedy = study.live("greedy", 1, seed, temperature=0.0)
        records = study.record(paths, seeds, seed)
        lengths = [len(path) for pools in records for record in pools for path in record]
        window = max(1, round(statistics.median(lengths) / 8))
        scored = [("greedy", greedy), *study.replayed(records, paths, window)]
        for spec in outside(live, ",+"):
            if spec.strip():
                scored.append((spec.strip(), study.live(spec.strip(), seeds, seed)))
    finally:
        torch.set_num_threads(before)
    base = dict(scored)[f"self-consistency, {min(16, paths)} paths"]
    title = f"{lm.name}, {len(asked)} questions × {seeds} seeds, temperature {temperature:g}"
    curves = {name: points for name, points in curve(scored).items() if len(points) > 1}
    return Outcome(
        [Table(title, [row(name, found, base) for name, found in scored])],
        [
            f"Accuracy: mean over questions and seeds with its 95 % interval. Windows of DeepConf: {window} tokens, "
            f"an eighth of the median path ({statistics.median(lengths):g}).",
            f"Difference: to self-consistency with {min(16, paths)} paths, for each question, with its 95 % interval.",
            "Oracle: any path that came to its end is right.",
        ],
        [chart(lm.name, curves)] if curves else [],
    )


def chart(model: str, curves: dict[str, list[tuple[float, float]]]) -> Chart:
    """Accuracy against tokens, one line for each kind of method."""
    title = f"{model}: accuracy against tokens"
    return Chart("accuracy", title, "tokens of a question", "accuracy", curves, even=True)


@dataclass
class Scored:
    """Of every question, means over the seeds: ``right``, ``tokens`` drawn, ``oracle``: any path was right."""

    right: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    oracle: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        return statistics.mean(self.tokens)


class Study:
    """One model on some questions."""

    def __init__(self, lm: CausalLM, asked: Sequence[Task], temperature: float, new: int) -> None:
        self.lm, self.asked, self.temperature, self.new = lm, asked, temperature, new

    def live(self, spec: str, seeds: int, seed: int, temperature: float | None = None) -> Scored:
        """A method by itself, asked anew for every seed."""
        found = Scored()
        for task in self.asked:
            results = [self._ask(task, spec, seed + 1000 * k, temperature) for k in range(seeds)]
            right = canonical(task.answer)
            found.right.append(statistics.mean(answer_of(r) == right for r in results))
            found.tokens.append(statistics.mean(r.cost.generated_tokens for r in results))
            found.oracle.append(statistics.mean(right in {answer_of(r), *(p.answer for p in r.paths)} for r in results))
        return found

    def record(self, paths: int, seeds: int, seed: int) -> list[list[Record]]:
        """For every question and seed the paths of one pool, by number."""
        return [
            [
                sorted(
                    self._ask(task, f"self-consistency:paths={paths}", seed + 1000 * k).paths,
                    key=lambda path: path.number,
                )
                for k in range(seeds)
            ]
            for task in self.asked
        ]

    def replayed(self, records: Sequence[Sequence[Record]], paths: int, window: int) -> Iterator[tuple[str, Scored]]:
        """What policies make of the recorded pools."""
        for name, method in rules(paths, window):
            yield name, self._score(records, method)

    def _score(self, records: Sequence[Sequence[Record]], method: SearchMethod) -> Scored:
        found = Scored()
        for task, pools in zip(self.asked, records, strict=True):
            right = canonical(task.answer)
            request = Request(self.lm.encode(task.prompt), self.lm.context)
            outcomes = [replay(record, method.policy(self.lm, request)) for record in pools]
            found.right.append(statistics.mean(outcome.answer == right for outcome in outcomes))
            found.tokens.append(statistics.mean(outcome.tokens for outcome in outcomes))
            found.oracle.append(statistics.mean(any(path.answer == right for path in each.ended) for each in outcomes))
        return found

    def _ask(self, task: Task, spec: str, seed: int, temperature: float | None = None) -> Result:
        chosen = self.temperature if temperature is None else temperature
        return solve(
            self.lm, task.prompt, build_spec(spec), template="{question}", temperature=chosen, seed=seed,
            max_new_tokens=self.new,
        )  # fmt: skip


def rules(paths: int, window: int) -> list[tuple[str, SearchMethod]]:
    """The methods that only sample, prune and start paths, for pools of ``paths``."""
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= paths]
    warm = max(1, paths // 4)
    found: list[tuple[str, SearchMethod]] = [(f"self-consistency, {n} paths", SelfConsistency(n)) for n in sizes]
    agreed = SelfConsistency(paths, agree=0.95, batch=warm)
    found.append((f"self-consistency to 95 % agreement, {paths} paths", agreed))
    found += [(f"best-of-n, {n} paths", BestOfN(n)) for n in sizes[1:]]
    for n in sizes[1:]:
        everyone = DeepConf(n, online=False, eta=100, score="mean", window=window)
        found.append((f"deepconf offline by mean confidence, {n} paths", everyone))
    for eta in (10, 90):
        offline = DeepConf(paths, online=False, eta=eta, window=window)
        found.append((f"deepconf offline, eta {eta}, {paths} paths", offline))
    for eta in (10, 50, 90):
        online = DeepConf(paths, eta=eta, window=window, warmup=warm, batch=warm, agree=None)
        found.append((f"deepconf online, eta {eta}, {paths} paths", online))
    return found


def answer_of(result: Result) -> str | None:
    """The answer that was voted for, or that the text gives where nothing was voted on."""
    return result.answer if result.votes else parse_answer(result.text)


def row(name: str, found: Scored, base: Scored) -> dict[str, Any]:
    """A line of the table."""
    difference = Share.of([one - other for one, other in zip(found.right, base.right, strict=True)])
    return {
        "method": name,
        "accuracy": str(Share.of(found.right)),
        "tokens": round(found.cost, 1),
        "of SC's tokens": f"{found.cost / base.cost:.2f}",
        "difference": f"{100 * difference.mean:+.1f} ± {100 * difference.half:.1f}",
        "oracle": f"{100 * statistics.mean(found.oracle):.1f} %",
    }


def curve(scored: Sequence[tuple[str, Scored]]) -> dict[str, list[tuple[float, float]]]:
    """Accuracy against tokens, one line for each kind of method, its sizes from small to large."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, found in scored:
        lines.setdefault(name.rpartition(",")[0] or name, []).append((found.cost, statistics.mean(found.right)))
    return {name: sorted(points) for name, points in lines.items()}
