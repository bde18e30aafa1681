"""HyPER on the demo reasoner: votes on fixed pools, the controller with and without its parts, and why it pays or not.

Everything is compared at equal effective tokens: with self-consistency and best-of-N of as many paths as cost the same,
question by question. The warm-up's paths are those of pools that were sampled once. The direction of the length and all
sizes come from held-out questions; no setting was chosen by what it makes of the test questions.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import torch

from ramify.bench.controlled import Controllers, Rule
from ramify.bench.recipes import Outcome, Table
from ramify.bench.signals import kin, pruned, signals
from ramify.bench.study import Record, Study
from ramify.bench.tasks import Task, tasks
from ramify.engine.aggregate import best, vote
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import ACTIONS, BRANCH, MULTI, NONE, SINGLE, HyperRec
from ramify.methods.search.hyper_vote import calibrate_length, how_many, vote_by_length
from ramify.models.causal import load

SIZES = (4, 8, 16, 32)
BASE = 16  # paths of the self-consistency that HyPER is without any of its parts
# Branches in the first third of a path, nothing in the second, single-token refinement in the last.
BY_HAND: dict[str, Any] = {"branch": (0.675, 0.0, 0.0, 0.0), "single": (0.0, 0.675, 0.0), "multi": (0.0, 0.0, -1.0)}


def scaled(median: float, sign: int) -> HyPER:
    """HyPER for texts of ``median`` tokens.

    Half as many paths as the paper has, so that 8 + 8 of them without any part are self-consistency of 16. An interval
    is an eighth of the median path, as DeepConf's windows are here, and at least 2 tokens; a trial of multi-token is a
    whole interval, since a quarter of it is one token, before which all trials are equally confident. Shares stay.
    """
    interval = max(2, round(median / 8))
    rec = HyperRec(start=8, stretch=interval, agreeing=4)
    return HyPER(length_sign=sign, interval=interval, warmup=8, limit=40, rec=rec)


def run(
    *,
    seed: int = 0,
    seeds: int = 3,
    ablated: int = 3,
    model: str = "demo-reasoner",
    questions: int = 400,
    held_out: int = 100,
    temperature: float = 0.7,
    max_new_tokens: int = 160,
    keep: str | None = None,
) -> Outcome:
    """All tables. ``ablated``: seeds of what is left out or done otherwise. ``held_out``: questions for sizes and sign.

    ``keep``: a folder for all pools, which are read from there the next time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model)
        folder = File(keep) if keep else None
        other = Study(lm, tasks(held_out, "validation"), temperature, max_new_tokens)
        known = [pool for [pool] in other.record(BASE, 1, seed, folder / "held-out" if folder else None)]
        sign = calibrate_length([(pool, task.right) for pool, task in zip(known, other.asked, strict=True)])
        method = scaled(statistics.median(len(path) for pool in known for path in pool), sign)
        study = Study(lm, tasks(questions), temperature, max_new_tokens)
        records = study.record(max(SIZES), seeds, seed, folder)
        controllers = Controllers(study, records, BASE, seed, folder)
        parts = Controllers(study, [pools[:ablated] for pools in records], BASE, seed, folder)
        whole = controllers.pools("hyper", method)
        others = variants(method, parts.shares(parts.pools("hyper", method)))
        replayed = {name: found for name, found in others.items() if name == "hyper" or found.actions == (NONE,)}
        unrefined = parts.pools("without single-token", others["without single-token"])
        tables = [
            Table(f"Votes on fixed pools of N paths, {questions} questions × {seeds}", votes(study, records, sign)),
            Table(f"The controller, {questions} questions × {seeds}", controllers.rows(replayed)),
            Table(
                f"Its parts, and other controllers, {questions} questions × {min(seeds, ablated)}", parts.rows(others)
            ),
            Table("Other votes on the controller's own pools", controllers.revoted(whole, rules(sign))),
            Table("Actions taken, by phase", controllers.taken(whole)),
            Table("Actions taken without single-token refinement", parts.taken(unrefined)),
            Table("What tells right paths from wrong ones of the same question", signals(study.asked, records, method)),
            Table("What the bar cuts", pruned(study.asked, records, method)),
            Table("Children of branches", kin(study.asked, whole, records)),
        ]
    finally:
        torch.set_num_threads(before)
    return Outcome(tables, [_calibrated(other.asked, known, method), *NOTES])


NOTES = (
    "±: 95 % intervals from the spread between questions; differences question by question. Tokens: effective ones, "
    "all that were drawn and all rows of refined tokens. At equal tokens: as many paths as cost the same, between two "
    "sizes by share.",
    "Oracle: any path that came to its end is right.",
)


def _calibrated(asked: Sequence[Task], pools: Sequence[Record], method: HyPER) -> str:
    right = {
        sign: sum(task.right(vote_by_length(pool, sign).answer or "") for pool, task in zip(pools, asked, strict=True))
        for sign in (1, -1)
    }
    lengths = [len(path) for pool in pools for path in pool]
    return (
        f"On {len(asked)} held-out questions with {BASE} paths each: length_sign {method.length_sign:+d} ({right[1]} "
        f"right with +1, {right[-1]} with −1), a median path of {statistics.median(lengths):g} tokens, "
        f"{method.interval} of them to an interval."
    )


def rules(sign: int) -> dict[str, Rule]:
    """The votes that are compared."""
    sure, long, both = (0.0, 1.0), (1.0, 0.0), (0.6, 0.4)

    def by(weights: tuple[float, float], direction: int = sign, *, few: bool = False, tail: float = 0.25) -> Rule:
        return lambda paths: vote_by_length(
            paths, direction, weights=weights, tail=tail, top=how_many(len(paths), 4, 3) if few else None
        )

    return {
        "majority": vote,
        "weighted by mean confidence": lambda paths: vote(paths, lambda path: path.confidence),
        "HyPER's: length and confidence, the best quarter": by(both, few=True),
        "the best quarter, the other sign": by(both, -sign, few=True),
        "length and confidence, all paths": by(both),
        "all paths, the other sign": by(both, -sign),
        "all paths, confidence of the whole path": by(both, tail=1.0),
        "length only, all paths": by(long),
        "length only, the best quarter": by(long, few=True),
        "confidence only, all paths": by(sure),
        "confidence only, the best quarter": by(sure, few=True),
        "best by mean log-probability": lambda paths: best(paths),
    }


def votes(study: Study, records: Sequence[Sequence[Record]], sign: int) -> list[dict[str, Any]]:
    """Every rule on the first N paths of every pool: accuracy, and points over the majority."""
    majority = {size: study.decided(records, size) for size in SIZES}
    table: list[dict[str, Any]] = []
    for name, rule in rules(sign).items():
        row: dict[str, Any] = {"vote": name}
        for size in SIZES:
            found = study.decided(records, size, rule)
            row[f"N = {size}"] = f"{100 * statistics.mean(found.right):.1f} ({found.less(majority[size])})"
        table.append(row)
    oracle = {f"N = {size}": f"{100 * statistics.mean(found.oracle):.1f}" for size, found in majority.items()}
    return [*table, {"vote": "any path is right", **oracle}]


def variants(method: HyPER, shares: tuple[float, ...]) -> dict[str, HyPER]:
    """HyPER, without each of its parts, and with other controllers. ``shares``: of the actions that it takes."""
    found = {"hyper": method, "without pruning": replace(method, prune=False)}
    for part in (SINGLE, BRANCH, MULTI):
        never = shares[ACTIONS.index(part)] == 0  # then it is the same without it
        others = method.actions if never else tuple(action for action in ACTIONS if action != part)
        found[f"without {part}"] = replace(method, actions=others)
    return found | {
        "without any action": replace(method, actions=(NONE,)),
        "without action and pruning": replace(method, actions=(NONE,), prune=False),
        "actions by chance, of the same shares": replace(method, random=shares),
        "branches early, refinement late, by hand": replace(
            method, actions=(NONE, BRANCH, SINGLE), rec=replace(method.rec, **BY_HAND)
        ),
    }
