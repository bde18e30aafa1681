"""Search on the demo reasoner: accuracy against effective tokens, for every way to spend them, with intervals.

One pool of sampled paths for each question and seed; self-consistency, its adaptive stop, best-of-N and DeepConf are
what their own policies make of that pool, so they are compared on the same paths. The methods that draw otherwise run
by themselves. Accuracies are means over questions and seeds with 95 % intervals from the spread between questions;
differences are taken question by question, to self-consistency of one size and of as many paths as cost the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any

import torch

from ramify.bench.chart import Chart
from ramify.bench.recipes import Outcome, Table
from ramify.bench.study import Scored, Study, level
from ramify.bench.tasks import read_tasks, tasks
from ramify.bench.tasks.grade import Share
from ramify.methods.base import SearchMethod
from ramify.methods.options import outside
from ramify.methods.search.best_of_n import BestOfN
from ramify.methods.search.deepconf import DeepConf
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import load

TEXTBOOK = "length_penalty=0:early_stopping=never"
LIVE = (
    "cntp",
    *(f"beam-search:num_beams={beams}{how}" for beams in (4, 8) for how in (f":{TEXTBOOK}", "")),
    *(f"diverse-beam-search:num_beams=8:num_beam_groups={groups}" for groups in (4, 8)),
    "routing-ensemble",
)


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
    live: str = ",".join(LIVE),
    keep: str | None = None,
) -> Outcome:
    """Accuracy and tokens of all of them; ``live``: methods with settings, separated by commas, that run by themselves.

    ``data``: a .jsonl file of questions and answers instead of the generated test questions. ``keep``: a folder for the
    sampled pools, which are read from there the next time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model)
        asked = read_tasks(data)[0][:questions] if data else tasks(questions)
        study = Study(lm, asked, temperature, max_new_tokens)
        greedy = study.live("greedy", 1, seed, temperature=0.0)
        records = study.record(paths, seeds, seed, File(keep) if keep else None)
        lengths = [len(path) for pools in records for record in pools for path in record]
        window = max(1, round(statistics.median(lengths) / 8))
        scored = [("greedy", greedy)]
        scored += [(name, study.replayed(records, method)) for name, method in rules(paths, window)]
        for spec in outside(live, ",+"):
            if spec.strip():
                scored.append((spec.strip(), study.live(spec.strip(), seeds, seed)))
    finally:
        torch.set_num_threads(before)
    base = dict(scored)[f"self-consistency, {min(16, paths)} paths"]
    ladder = [study.decided(records, size) for size in range(1, paths + 1)]
    title = f"{lm.name}, {len(asked)} questions × {seeds} seeds, temperature {temperature:g}"
    curves = {name: points for name, points in curve(scored).items() if len(points) > 1}
    return Outcome(
        [Table(title, [row(name, found, base, ladder) for name, found in scored])],
        [
            f"Accuracy: mean over questions and seeds with its 95 % interval. Windows of DeepConf: {window} tokens, "
            f"an eighth of the median path ({statistics.median(lengths):g}).",
            f"Difference: to self-consistency with {min(16, paths)} paths, for each question, with its 95 % interval. "
            f"At equal tokens: to as many paths as cost the same, between two sizes by share, up to {paths}.",
            "Tokens: all that were drawn, and what is read again along other routes.",
            "Oracle: any path that came to its end is right.",
        ],
        [chart(lm.name, curves)] if curves else [],
    )


def chart(model: str, curves: dict[str, list[tuple[float, float]]]) -> Chart:
    """Accuracy against tokens, one line for each kind of method."""
    title = f"{model}: accuracy against tokens"
    return Chart("accuracy", title, "tokens of a question", "accuracy", curves, even=True)


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


def row(name: str, found: Scored, base: Scored, ladder: Sequence[Scored]) -> dict[str, Any]:
    """A line of the table."""
    equal = level(ladder, found.cost)
    return {
        "method": name,
        "accuracy": str(Share.of(found.right)),
        "tokens": round(found.cost, 1),
        "of SC's tokens": f"{found.cost / base.cost:.2f}",
        "difference": found.less(base),
        "at equal tokens": found.less(equal) if equal else "",
        "oracle": f"{100 * statistics.mean(found.oracle):.1f} %",
    }


def curve(scored: Sequence[tuple[str, Scored]]) -> dict[str, list[tuple[float, float]]]:
    """Accuracy against tokens, one line for each kind of method, its sizes from small to large."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, found in scored:
        lines.setdefault(name.rpartition(",")[0] or name, []).append((found.cost, statistics.mean(found.right)))
    return {name: sorted(points) for name, points in lines.items()}
