"""What could tell right paths from wrong ones, and how well it does: the questions behind a controller's figures."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ramify.bench.kept import Pooled
from ramify.bench.tasks import Task, canonical
from ramify.bench.tasks.grade import Share
from ramify.engine.aggregate import lowest
from ramify.engine.path import Path, mean
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import Scale

Signal = Callable[[Path], float | None]
ETAS = (10.0, 50.0, 90.0)


def auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Chance that one of ``right`` is greater than one of ``wrong``, equal ones counted half; neither may be empty."""
    wins = sum((one > other) + 0.5 * (one == other) for one in right for other in wrong)
    return wins / (len(right) * len(wrong))


def signals(asked: Sequence[Task], records: Sequence[Sequence[Sequence[Path]]], method: HyPER) -> list[dict[str, Any]]:
    """The AUC of each signal among the paths of one question, over the questions that have both kinds."""
    window = method.rec.window * method.interval
    known: dict[str, Signal] = {
        f"confidence of the {window} tokens before token {at}": _window(at, window)
        for at in (window, 2 * window, 3 * window)
    }
    known |= {
        "confidence of the least confident window": lambda path: lowest(path, window),
        "mean confidence": lambda path: path.confidence,
        "confidence of the last quarter": lambda path: mean(path.confidences[-max(1, math.ceil(len(path) / 4)) :]),
        "length": lambda path: float(len(path)),
        "mean log-probability": lambda path: path.mean_log_prob,
    }
    table = []
    for name, signal in known.items():
        found, counts = [], {True: [0, 0], False: [0, 0]}
        for task, pools in zip(asked, records, strict=True):
            values: dict[bool, list[float]] = {True: [], False: []}
            for path in itertools.chain(*pools):
                value, right = signal(path), path.answer == canonical(task.answer)
                counts[right][1] += 1
                if value is not None:
                    counts[right][0] += 1
                    values[right].append(value)
            if values[True] and values[False]:
                found.append(auc(values[True], values[False]))
        share = Share.of(found or [0.5])
        row: dict[str, Any] = {"signal": name, "AUC": f"{share.mean:.3f} ± {share.half:.3f}", "questions": len(found)}
        table.append(
            row | {f"of {kind} paths": _share(*counts[right]) for kind, right in (("right", True), ("wrong", False))}
        )
    return table


def _window(at: int, window: int) -> Signal:
    """Mean confidence of the ``window`` before token ``at``; None for paths that are over by then."""
    return lambda path: mean(path.confidences[at - window : at]) if len(path) > at else None


def pruned(asked: Sequence[Task], records: Sequence[Sequence[Sequence[Path]]], method: HyPER) -> list[dict[str, Any]]:
    """What a warm-up's bar does to the paths after it, for several ``eta``."""
    first, later = method.warmup, method.warmup + method.rec.start
    window = method.rec.window * method.interval
    table = []
    for eta in ETAS:
        cut: list[bool] = []
        spared: list[bool] = []
        saved = drawn = 0
        for task, pools in zip(asked, records, strict=True):
            for paths in pools:
                bar = Scale.of(paths[:first], method.interval, eta, method.rec).bar
                for path in paths[first:later]:
                    at = cut_at(path, bar, method.interval, window)
                    (spared if at is None else cut).append(path.answer == canonical(task.answer))
                    saved += 0 if at is None else len(path) - at
                    drawn += len(path)
        right, wrong = sum(cut), len(cut) - sum(cut)
        table.append(
            {
                "eta": eta,
                "of later paths cut": _share(len(cut), len(cut) + len(spared)),
                "of right ones": _share(right, right + sum(spared)),
                "of wrong ones": _share(wrong, wrong + len(spared) - sum(spared)),
                "right among the cut": _share(right, len(cut)),
                "right among the others": _share(sum(spared), len(spared)),
                "of their tokens saved": _share(saved, drawn),
            }
        )
    return table


def cut_at(path: Path, bar: float, interval: int, window: int) -> int | None:
    """After how many tokens pruning at every ``interval`` ends ``path``: its latest ``window`` is below ``bar``."""
    ticks = (at for at in range(interval, len(path), interval) if at >= window)
    return next((at for at in ticks if mean(path.confidences[at - window : at]) < bar), None)


def kin(
    asked: Sequence[Task], pools: Sequence[Sequence[Pooled]], records: Sequence[Sequence[Sequence[Path]]]
) -> list[dict[str, Any]]:
    """Parents and children that came to their ends, beside two plain paths of the same question."""
    related = [list(itertools.chain(*(families(pool.paths) for pool in seeds))) for seeds in pools]
    plain = [list(itertools.chain(*(itertools.pairwise(paths) for paths in seeds))) for seeds in records]
    starts = [child.start / len(child) for pairs in related for _, child in pairs]
    rows = [
        {"pairs": "parent and child of a branch", **_pairs(asked, related)},
        {"pairs": "two plain paths of a question", **_pairs(asked, plain)},
    ]
    # Of the questions that had branches only: those differ from the others.
    some = [place for place, pairs in enumerate(related) if pairs]
    among = _pairs([asked[place] for place in some], [plain[place] for place in some])
    rows.append({"pairs": "two plain paths, where there were branches", **among})
    shared = [f"{statistics.mean(starts):.0%}" if starts else "", "", ""]
    return [row | {"shared beginning": each} for row, each in zip(rows, shared, strict=True)]


def families(paths: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Parents with their children, both at their ends."""
    by_number = {path.number: path for path in paths}
    for child in by_number.values():
        if child.parent is not None and child.complete and (parent := by_number[child.parent]).complete:
            yield parent, child


def _pairs(asked: Sequence[Task], pairs: Sequence[Sequence[tuple[Path, Path]]]) -> dict[str, Any]:
    same = count = 0
    after = {True: [0, 0], False: [0, 0]}
    for task, found in zip(asked, pairs, strict=True):
        for one, two in found:
            right = one.answer == canonical(task.answer)
            count += 1
            same += one.answer is not None and one.answer == two.answer
            after[right][0] += two.answer == canonical(task.answer)
            after[right][1] += 1
    return {
        "number": count,
        "same answer": _share(same, count),
        "second right if the first is": _share(*after[True]),
        "if it is not": _share(*after[False]),
    }


def _share(some: int, all_of_them: int) -> str:
    return f"{some / all_of_them:.0%}" if all_of_them else ""
