"""HyPER's controllers beside plain sampling at equal effective tokens, on pools that share their warm-up."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as File
from typing import Any

from ramify.api import prepare
from ramify.bench.kept import Pooled, kept
from ramify.bench.recorded import replay
from ramify.bench.steered import steer
from ramify.bench.study import Record, Scored, Study, level
from ramify.bench.tasks import Task, parse_answer
from ramify.bench.tasks.grade import Share
from ramify.engine.aggregate import best, vote
from ramify.engine.path import Path
from ramify.engine.search import Decision
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import ACTIONS, NONE
from ramify.methods.search.hyper_vote import how_many, vote_by_length

Rule = Callable[[Sequence[Path]], Decision]
Pools = list[list[Pooled]]
PHASES = ("explore", "balance", "exploit")


class Controllers:
    """``records``: for every question and seed a pool of plain paths, whose first ones are the warm-up.

    ``base``: paths of the self-consistency that all are compared with. ``folder``: where pools are kept, if anywhere.
    """

    def __init__(
        self, study: Study, records: Sequence[Sequence[Record]], base: int, seed: int, folder: File | None = None
    ) -> None:
        self.study, self.records, self.seed, self.folder = study, records, seed, folder
        sizes = range(1, len(records[0][0]) + 1)
        self.votes = [study.decided(records, size) for size in sizes]
        self.likeliest = [study.decided(records, size, best) for size in sizes]
        self.base = self.votes[base - 1]

    def pools(self, name: str, method: HyPER) -> Pools:
        """What the controller of ``method`` makes of every question and seed."""
        found: Pools = [[] for _ in self.records]
        for k in range(len(self.records[0])):
            for pools, [pool] in zip(found, self._seeded(name, method, k), strict=True):
                pools.append(pool)
        return found

    def _seeded(self, name: str, method: HyPER, k: int) -> Pools:
        """The pools of seed number ``k``, which are kept by themselves."""
        seed = self.seed + 1000 * k

        def make() -> Pools:
            asked = zip(self.study.asked, self.records, strict=True)
            return [[self._steered(task, method, records[k], seed)] for task, records in asked]

        return kept(self.folder, f"{name}, seed {k}", f"{self.study.about(1, seed)} {method}", make)

    def _steered(self, task: Task, method: HyPER, record: Record, seed: int) -> Pooled:
        """A pool; where nothing is done but sample and prune, the record tells it."""
        [request] = prepare(
            self.study.lm, [task.prompt], method, seed=seed, answer=parse_answer, do_sample=True,
            temperature=self.study.temperature, max_new_tokens=self.study.new,
        )  # fmt: skip
        if method.actions == (NONE,):
            found = replay(record, method.policy(self.study.lm, request))
            return Pooled(list(found.ended), found.tokens)
        return steer(self.study.lm, request, method, record)

    def rows(self, variants: Mapping[str, HyPER]) -> list[dict[str, Any]]:
        """The table: plain sampling first, then the ``variants``, the first of which the others are compared with."""
        names: dict[HyPER, str] = {}
        scored = {
            name: self._scored(self.pools(names.setdefault(method, name), method), voting(method))
            for name, method in variants.items()
        }
        whole = next(iter(scored.values()))
        plain = {
            f"self-consistency, {size}": self.votes[size - 1] for size in (8, 16, 24, 32) if size <= len(self.votes)
        }
        plain |= {f"best-of-n, {size}": self.likeliest[size - 1] for size in (8, 16) if size <= len(self.votes)}
        return [self._row(name, found, whole) for name, found in [*plain.items(), *scored.items()]]

    def revoted(self, pools: Pools, rules: Mapping[str, Rule]) -> list[dict[str, Any]]:
        """The same pools under other ``rules``."""
        majority = self._scored(pools, vote)
        table = []
        for name, rule in rules.items():
            found = self._scored(pools, rule)
            equal = level(self.votes, found.cost)
            table.append(
                {
                    "vote": name,
                    "accuracy": str(Share.of(found.right)),
                    "over the majority": found.less(majority),
                    "over SC at equal tokens": found.less(equal) if equal else "",
                    "oracle − accuracy": f"{100 * (statistics.mean(found.oracle) - statistics.mean(found.right)):.1f}",
                }
            )
        return table

    def shares(self, pools: Pools) -> tuple[float, ...]:
        """How often each action was taken."""
        counts = _counted(pools)
        found = [sum(counts[f"{phase} {action}"] for phase in PHASES) for action in ACTIONS]
        return tuple(each / (sum(found) or 1) for each in found) if sum(found) else (1.0, 0.0, 0.0, 0.0)

    def taken(self, pools: Pools) -> list[dict[str, Any]]:
        """Actions of a question by phase, and what single-token refinement did."""
        counts = _counted(pools)
        several = sum(map(len, pools))
        table = []
        for phase in PHASES:
            decisions = sum(counts[f"{phase} {action}"] for action in ACTIONS)
            shares = {action: f"{counts[f'{phase} {action}'] / max(1, decisions):.0%}" for action in ACTIONS}
            table.append({"phase": phase, "decisions a question": decisions / several, **shares})
        refined = counts["refined"]
        table[0]["refined tokens"] = refined / several
        table[0]["changed choices"] = f"{counts['changed'] / max(1.0, refined):.0%}"
        return [{"refined tokens": "", "changed choices": "", **row} for row in table]

    def _row(self, name: str, found: Scored, whole: Scored) -> dict[str, Any]:
        equal, likely = level(self.votes, found.cost), level(self.likeliest, found.cost)
        return {
            "decoding": name,
            "accuracy": str(Share.of(found.right)),
            "tokens": round(found.cost),
            "of SC's": f"{found.cost / self.base.cost:.2f}",
            "− SC": found.less(self.base),
            "− SC at equal tokens": found.less(equal) if equal else "",
            "− best-of-n at equal tokens": found.less(likely) if likely else "",
            "− hyper": found.less(whole),
            "oracle": f"{100 * statistics.mean(found.oracle):.1f} %",
        }

    def _scored(self, pools: Pools, rule: Rule) -> Scored:
        found = Scored()
        for task, seeds in zip(self.study.asked, pools, strict=True):
            complete = [[path for path in pool.paths if path.complete] for pool in seeds]
            found.add(
                task,
                [(rule(paths).answer, pool.spent, paths) for pool, paths in zip(seeds, complete, strict=True)],
            )
        return found


def voting(method: HyPER) -> Rule:
    """How ``method`` votes."""

    def decide(paths: Sequence[Path]) -> Decision:
        top = how_many(len(paths), method.rec.top, method.rec.top_least) if method.top_votes else None
        return vote_by_length(paths, method.length_sign or 0, top=top, weights=method.weights, tail=method.rec.tail)

    return decide


def _counted(pools: Pools) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seeds in pools:
        for pool in seeds:
            counts.update(pool.counts)
    return counts
