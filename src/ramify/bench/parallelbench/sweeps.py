"""What the benchmark compares: the rules with their settings, what each gets right and costs, and the tables.

The rules are the same on list tasks and on text families (``text_sweeps.py``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ramify.bench.parallelbench import analysis, symbols
from ramify.bench.parallelbench.filling import Prompts, Reading, fill, prompts_of
from ramify.bench.parallelbench.metrics import LEVELS, Point, Sample, oracle, order_preference, parallelizability, pb
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.options import build_spec, outside
from ramify.methods.unmask.orders import SCORES, Unmask
from ramify.methods.unmask.threshold import Factor, Threshold
from ramify.models.masked import MaskedLM

LEARNT = ("copy", "reverse", "replace-random", "shuffle")
SLOTS = (1, 2, 3, 6)  # positions a pass of the infill test
EACH = (1, 2, 3, 4, 6, 12)  # of the 12 positions of an answer
GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FACTORS = (0.7, 1.0, 1.3, 1.6, 1.9)
ADAPTIVE = ("threshold", "factor")


class Answers(Protocol):
    """Answers to the problems of one task: the share that is right, and what each cost."""

    @property
    def samples(self) -> Sequence[Sample]: ...

    @property
    def accuracy(self) -> float: ...


Setting = tuple[str, MaskedMethod]
Sweep = Mapping[str, Mapping[str, Mapping[str, Answers]]]  # by rule, setting and task


def settings(others: str, length: int = symbols.ANSWER, each: Sequence[int] = EACH) -> dict[str, list[Setting]]:
    """Every rule with its settings.

    ``others``: methods with options that are run once each. ``length``: positions of an answer. ``each``: how many of
    them a pass fixes, by a rule that does not decide for itself.
    """
    found: dict[str, list[Setting]] = {
        order: [(f"{k} a pass", Unmask(order=order, steps=math.ceil(length / k))) for k in each] for order in SCORES
    }
    found["threshold"] = [(f"γ = {gamma:g}", Threshold(gamma=gamma)) for gamma in GAMMAS]
    found["factor"] = [(f"f = {factor:g}", Factor(factor=factor)) for factor in FACTORS]
    for spec in outside(others, ",+"):
        method = build_spec(spec)
        if not isinstance(method, MaskedMethod):
            raise RamifyError(f"{method.card.name} fills in no canvas; others takes methods of the masked loop")
        name, _, said = spec.strip().partition(":")
        found.setdefault(name, []).append((said.replace(":", ", "), method))
    return found


def sweep(lm: MaskedLM, prompts: Prompts, others: str, seed: int) -> dict[str, dict[str, dict[str, Reading]]]:
    """All of them, greedy, the whole answer open."""
    return {
        rule: {said: fill(lm, method, prompts, seed=seed) for said, method in listed}
        for rule, listed in settings(others).items()
    }


# ---- closed forms ----


def infill(lm: MaskedLM, tasks: Sequence[str], count: int, seed: int) -> dict[int, dict[str, Reading]]:
    """Lists of six, only their items open, random order at temperature 1, by how many slots a pass fixes."""
    prompts = prompts_of(tasks, count, seed, [symbols.MOST])
    return {
        k: fill(lm, Unmask(order="random", steps=symbols.MOST // k), prompts, infill=True, greedy=False, seed=seed)
        for k in SLOTS
    }


def infill_rows(found: dict[int, dict[str, Reading]]) -> list[dict[str, Any]]:
    """Accuracy, and in brackets an ideal model's."""
    return [
        {"task": task} | {f"{k} a pass": f"{found[k][task].accuracy:.3f} ({ideal(task, k):.4f})" for k in found}
        for task in found[SLOTS[0]]
    ]


def ideal(task: str, k: int) -> float:
    """Accuracy of an ideal model on six slots, ``k`` a pass, at temperature 1."""
    sizes = analysis.by_count(symbols.MOST, k)
    known = {"shuffle": analysis.shuffle_accuracy, "replace-random": analysis.replace_accuracy}
    return known[task](sizes) if task in known else 1.0


def threshold_rows(lm: MaskedLM, tasks: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """The same lists by argmax under thresholds: accuracy and passes, and in brackets an ideal model's accuracy."""
    prompts = prompts_of(tasks, count, seed, [symbols.MOST])
    found = {gamma: fill(lm, Threshold(gamma=gamma), prompts, infill=True, seed=seed) for gamma in (0.5, 0.7, 0.9)}
    return [
        {"task": task}
        | {
            f"γ = {gamma:g}": f"{read[task].accuracy:.3f} ({ideal_threshold(task, gamma):g}) in {read[task].passes:.2f}"
            for gamma, read in found.items()
        }
        for task in tasks
    ]


def ideal_threshold(task: str, gamma: float) -> float:
    """Accuracy of an ideal model on six slots by argmax under a threshold."""
    n = symbols.MOST
    if task == "shuffle":
        return analysis.shuffle_accuracy(analysis.by_threshold(n, gamma, analysis.shuffle_confidence))
    if task == "replace-random":
        return analysis.replace_greedy(analysis.by_threshold(n, gamma, analysis.replace_confidence))
    return 1.0


# ---- sweeps ----


def point(read: Mapping[str, Answers], padded: bool = True, tasks: Sequence[str] = LEARNT) -> Point:
    """Over ``tasks`` together."""
    return Point.of([sample for task in tasks for sample in read[task].samples], padded)


def rule_rows(found: Sweep, tasks: Sequence[str] = LEARNT) -> list[dict[str, Any]]:
    """Every rule with every setting: tokens per pass, accuracy on each task, and their mean over ``tasks``."""
    return [
        {"rule": rule, "setting": said}
        | {"tokens per pass": point(read, True, tasks).tps, "no padding": point(read, False, tasks).tps}
        | {task: f"{each.accuracy:.3f}" for task, each in read.items()}
        | {"mean": point(read, True, tasks).score}
        for rule, listed in found.items()
        for said, read in listed.items()
    ]


def level_rows(found: Sweep, tasks: Sequence[str] = LEARNT) -> list[dict[str, Any]]:
    """PBx of every rule, and of the oracle over the thresholds."""
    rows = []
    for rule, listed in found.items():
        points = [point(read, True, tasks) for read in listed.values()]
        levels = {f"PB{level}": pb(points, level, rule in ADAPTIVE) for level in LEVELS}
        rows.append({"rule": rule, "settings": len(points)} | levels | _best(points))
    chosen = oracle([[s for task in tasks for s in read[task].samples] for read in found["threshold"].values()])
    levels = {f"PB{level}": pb([chosen], level, False) for level in LEVELS}
    return [*rows, {"rule": "oracle over γ", "settings": len(found["threshold"])} | levels | _best([chosen])]


def _best(points: Sequence[Point]) -> dict[str, Any]:
    best = max(points, key=lambda point: (point.score, point.tps))
    return {"best accuracy": best.score, "at tokens per pass": best.tps}


def task_rows(
    lm: MaskedLM, found: Mapping[str, Mapping[str, Mapping[str, Reading]]], prompts: Prompts, seed: int
) -> list[dict[str, Any]]:
    """What tells the tasks apart: parallelizability, order preference, and the order that confidence takes."""
    alone = found["confidence"]["1 a pass"]
    blocks = (2, 4, 6, 12)
    halves = {b: fill(lm, Unmask(block=b, steps=symbols.ANSWER // 2), prompts, seed=seed) for b in blocks}
    rows = []
    for task in prompts:
        each = {k: found["confidence"][f"{k} a pass"][task].accuracy for k in EACH}
        slope = order_preference({b: read[task].accuracy for b, read in halves.items()})
        padded, plain = alone[task].order(padded=True), alone[task].order(padded=False)
        rows.append(
            {
                "task": task,
                "parallelizability": parallelizability(each),
                **{f"blocks of {b}": read[task].accuracy for b, read in halves.items()},
                "order preference": f"{round(slope, 3) + 0.0:+.3f}",  # no −0.000
                "Kendall": f"{plain.kendall:.2f}",
                "Spearman": f"{plain.spearman:.2f}",
                "with padding": f"{padded.kendall:.2f}, {padded.spearman:.2f}",
            }
        )
    return rows


def cache_rows(lm: MaskedLM, prompts: Prompts, seed: int) -> list[dict[str, Any]]:
    """γ = 0.9 in blocks of 4 with every cache: accuracy, and positions evaluated for one answer."""
    cases: list[tuple[str, MaskedMethod]] = [
        ("none", Threshold(block=4)),
        ("prefix", Threshold(block=4, cache="prefix")),
        ("prefix, renewed every step", Threshold(block=4, cache="prefix", refresh=1)),
        ("dual", Threshold(block=4, cache="dual")),
        ("dual, renewed every 2 steps", Threshold(block=4, cache="dual", refresh=2)),
        ("delayed", Threshold(block=4, cache="delayed")),
        ("delayed, renewed every 2 steps", Threshold(block=4, cache="delayed", refresh=2)),
    ]
    rows = []
    for name, method in cases:
        read = fill(lm, method, prompts, seed=seed, batch=1)
        shares = {task: f"{each.accuracy:.3f} at {each.positions:.0f}" for task, each in read.items()}
        rows.append({"cache": name} | shares | {"positions": statistics.mean(each.positions for each in read.values())})
    return rows
