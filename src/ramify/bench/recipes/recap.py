"""ReCAP: local passes against whole ones on the grid, list and image models; when they are as good, and what they save.

Every schedule is compared with the base sampler of as many commits (the same positions fixed together) and with that of
as many whole passes. The list model is the negative control. Times are taken in turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ramify.bench.chart import Chart
from ramify.bench.parallelbench import symbols
from ramify.bench.pictures import Filled, fill, grids, lists, pictures
from ramify.bench.recipes import Outcome, Table
from ramify.bench.similarity import key_similarity
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.recap import ReCAP
from ramify.models.causal import BUNDLED
from ramify.models.image_tokens import ImageTokens
from ramify.models.masked import MaskedLM, load_masked
from ramify.train.denoise_grids import CELLS, agreement, colour_entropy
from ramify.train.images import balanced, require_extra
from ramify.train.images_quality import Judge, Quality

EVEN: dict[str, Any] = {"schedule": "even", "order": "random", "last_temperature": 1.0}
# commits, local passes behind each whole one
SCHEDULES = (
    (64, 0), (32, 0), (16, 0), (32, 1), (8, 0), (16, 1), (32, 3), (4, 0), (8, 1), (16, 3), (32, 7), (1, 0), (16, 15),
)  # fmt: skip
BATCH = 40


def run(
    *,
    seed: int = 0,
    grid: int = 200,
    items: int = 300,
    images: int = 120,
    temperature: float = 0.65,
    repeats: int = 3,
    batch: int = 8,
) -> Outcome:
    """``grid`` grids, ``items`` lists of each task, ``images`` pictures; ``repeats`` timings of ``batch`` pictures.

    0 leaves a part out. ``temperature``: the last one of pictures that are judged.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = Outcome()
    try:
        if grid:
            _grids(outcome, load_masked("grid-model"), grid, seed)
        if items:
            _lists(outcome, load_masked("list-model"), items, seed)
        if images or repeats:
            require_extra()
            lm, tokens = load_masked("demo-masked-image"), ImageTokens.load(BUNDLED["demo-masked-image"])
            if images:
                _images(outcome, lm, tokens, images, temperature, seed)
            if repeats:
                _times(outcome, lm, tokens, repeats, batch, seed)
    finally:
        torch.set_num_threads(before)
    return outcome


def _grids(outcome: Outcome, lm: MaskedLM, count: int, seed: int) -> None:
    requests = grids(count, seed)

    def measure(method: MaskedMethod) -> Filled:
        return fill(lm, method, requests, BATCH)

    found = {(steps, local): measure(ReCAP(steps=steps, local=local, **EVEN)) for steps, local in SCHEDULES}
    share = {schedule: agreement(filled.tokens) for schedule, filled in found.items()}
    rows = []
    for (steps, local), filled in found.items():
        whole = -(-steps // (local + 1))
        rows.append(
            {
                "whole + local": f"{whole} + {steps - whole}",
                "fixed together": 64 // steps,
                "cells that agree": f"{share[steps, local]:.3f}",
                "− as many commits": _points(share, (steps, local), (steps, 0)),
                "− as many whole passes": _points(share, (steps, local), (whole, 0)),
                "positions": filled.positions,
                "÷ as many commits": f"{filled.positions / found[steps, 0].positions:.2f}" if local else "",
                "entropy": f"{colour_entropy(filled.tokens):.2f}",
                "CPU s": round(filled.cpu, 1),
            }
        )
    outcome.tables.append(Table(f"grid-model, {count} grids, random order, temperature 1", rows))
    error = 100 * math.sqrt(0.9 * 0.1 / (count * CELLS))
    outcome.notes.append(
        f"Differences in points; the standard error of a share is {error:.1f} points. In the data 0.930 of the cells "
        "agree and the entropy of their colours is 2.08 nats."
    )
    lines = {
        name: sorted((found[each].positions, share[each]) for each in found if each[1] == local and each[0] > 1)
        for name, local in (("whole only", 0), ("1 local", 1), ("3 local", 3))
    }
    outcome.charts.append(
        Chart("grid", "The grid model: cells that agree", "positions evaluated", "share", lines, even=True)
    )
    _ablations(outcome, measure, found[16, 0], found[16, 1], count)


def _ablations(outcome: Outcome, measure: Any, base: Filled, usual: Filled, count: int) -> None:
    """What each part of the method does, at 16 commits."""
    confident = EVEN | {"order": "confidence"}
    variants: dict[str, Filled] = {
        "all whole": base,
        "u = 1": usual,
        "u = 2": measure(ReCAP(steps=16, local=2, **EVEN)),
        "u = 3": measure(ReCAP(steps=16, local=3, **EVEN)),
        "u = 1, first 4 whole": measure(ReCAP(steps=16, pre_full=4, **EVEN)),
        "u = 1, first 8 whole": measure(ReCAP(steps=16, pre_full=8, **EVEN)),
        "u = 1, masks outside hidden": measure(ReCAP(steps=16, cache_masked=False, **EVEN)),
        "by confidence, all whole": measure(ReCAP(steps=16, local=0, **confident)),
        "by confidence, u = 1": measure(ReCAP(steps=16, **confident)),
        "blocks of 8, no cache": measure(Unmask(order="random", steps=16, block=8)),
        "blocks of 8, dual cache": measure(Unmask(order="random", steps=16, block=8, cache="dual")),
    }
    rows = [
        {
            "16 commits of 4": name,
            "whole + local": f"{filled.whole} + {filled.local}",
            "cells that agree": f"{agreement(filled.tokens):.3f}",
            "entropy": f"{colour_entropy(filled.tokens):.2f}",
            "positions": filled.positions,
        }
        for name, filled in variants.items()
    ]
    outcome.tables.append(Table(f"grid-model, {count} grids, parts of the method", rows))


def _points(share: dict[tuple[int, int], float], own: tuple[int, int], other: tuple[int, int]) -> str:
    if own == other or other not in share:
        return ""
    return f"{100 * (share[own] - share[other]):+.1f}"


def _lists(outcome: Outcome, lm: MaskedLM, count: int, seed: int) -> None:
    rows = []
    for steps, local in ((6, 0), (6, 1), (6, 2), (3, 0), (2, 0)):
        row: dict[str, Any] = {"whole + local": "", "fixed together": 6 // steps}
        for task in ("copy", "replace-random", "shuffle"):
            requests = lists(task, count, seed)
            for feed in (False, True) if local else (False,):
                method = ReCAP(steps=steps, local=local, feed_prompt=feed, **EVEN)
                filled = fill(lm, method, requests, BATCH)
                pairs = zip(requests, filled.tokens, strict=True)
                right = [symbols.right(torch.tensor(request.prompt), answer) for request, answer in pairs]
                name = f"{task}, prompt fed again" if feed else task
                row[name] = f"{sum(right) / count:.3f}"
                row["whole + local"] = f"{filled.whole} + {filled.local}"
        rows.append(row)
    columns = list(rows[1])
    complete = [{column: row.get(column, "") for column in columns} for row in rows]
    title = f"list-model, six items to fill in, {count} lists of each task, random order, temperature 1: share right"
    outcome.tables.append(Table(title, complete))
    similar = {
        "list-model, shuffle": key_similarity(lm, lists("shuffle", 20, seed), 6),
        "grid-model": key_similarity(load_masked("grid-model"), grids(20, seed), 16),
    }
    outcome.notes.append(
        "Mean cosine between the keys of a position that nothing was written to, one pass and the next: "
        + "; ".join(f"{name} {value:.3f}" for name, value in similar.items())
        + "."
    )


IMAGE_METHODS = {
    "16 + 0": ReCAP(local=0),
    "8 + 0": ReCAP(steps=8, local=0),
    "8 + 8": ReCAP(),
    "12 + 4 (first 8 whole)": ReCAP(pre_full=8),
    "4 + 12 (u = 3)": ReCAP(local=3),
    "4 + 0": ReCAP(steps=4, local=0),
}


def _images(outcome: Outcome, lm: MaskedLM, tokens: ImageTokens, count: int, temperature: float, seed: int) -> None:
    judge = Judge(tokens)
    requests, labels = pictures(tokens, count, seed)
    rows: list[dict[str, Any]] = []
    for name, method in IMAGE_METHODS.items():
        filled = fill(lm, replace(method, last_temperature=float(temperature)), requests, 8)
        found = {"positions": filled.positions, **_cells(judge.of(filled.tokens, labels))}
        rows.append({"whole + local": name, **found, "CPU s a picture": f"{filled.cpu / count:.3f}"})
    empty = {"positions": "", "CPU s a picture": ""}
    for split, name in (("train", "real training crops"), ("test", "real held-out crops")):
        seen = _cells(judge.of(judge.real[split][-count:], balanced(len(judge.real[split]))[-count:]))
        cells: dict[str, Any] = empty | seen
        rows.append({"whole + local": name} | {key: cells[key] for key in list(rows[0])[1:]})
    outcome.tables.append(
        Table(
            f"demo-masked-image, {count} pictures, by confidence, power schedule, last temperature {temperature:g}",
            rows,
        )
    )


def _cells(quality: Quality) -> dict[str, str]:
    return {
        "Fréchet to training crops": f"{quality.train:.2f}",
        "to held-out crops": f"{quality.test:.2f}",
        "class told": f"{100 * quality.right:.0f} %",
        "seams": f"{quality.seams:.2f}",
        "token entropy": f"{quality.entropy:.2f}",
    }


def _times(outcome: Outcome, lm: MaskedLM, tokens: ImageTokens, repeats: int, batch: int, seed: int) -> None:
    rows = []
    for size in (1, batch):
        requests, _ = pictures(tokens, size, seed)
        found: dict[str, list[Filled]] = {name: [] for name in IMAGE_METHODS}
        for _ in range(repeats):
            for name, method in IMAGE_METHODS.items():
                found[name].append(fill(lm, method, requests, size))
        base = found["16 + 0"]
        for name, runs in found.items():
            rows.append(
                {
                    "whole + local": name,
                    "pictures at once": size,
                    "wall ms a picture": round(1000 * statistics.median(run.wall for run in runs) / size),
                    "speed-up, wall": _ratios([a.wall / b.wall for a, b in zip(base, runs, strict=True)]),
                    "speed-up, CPU": _ratios([a.cpu / b.cpu for a, b in zip(base, runs, strict=True)]),
                    "÷ positions": f"{base[0].positions / runs[0].positions:.2f}",
                }
            )
    outcome.tables.append(Table(f"demo-masked-image, times, median of {repeats} in turn [lowest, highest]", rows))


def _ratios(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
