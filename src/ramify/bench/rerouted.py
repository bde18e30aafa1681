"""What other routes through the experts make of sampled answers, against plain sampling with the same noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ramify.api import prepare
from ramify.bench.tasks import Task, canonical, parse_answer
from ramify.bench.tasks.grade import Share
from ramify.engine.events import Decided
from ramify.engine.path import Path
from ramify.engine.search import search
from ramify.methods.base import SearchMethod
from ramify.methods.search.routing_ensemble import Ensemble, RoutingEnsemble
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import CausalLM


def singly(
    lm: CausalLM, asked: Sequence[Task], method: SearchMethod, seed: int, **settings: Any
) -> tuple[list[list[Path]], float, float]:
    """The paths of every question, the share of tokens read along other routes, and of choices that these changed."""
    pools, read, changed = [], 0, 0.0
    for task in asked:
        [request] = prepare(lm, [task.prompt], method, seed=seed, answer=parse_answer, do_sample=True, **settings)
        policy = method.policy(lm, request)
        [decided] = [event for event in search(lm, request, policy) if isinstance(event, Decided)]
        pools.append(list(decided.paths))
        if isinstance(policy, Ensemble):
            read += policy.routes.read
            changed += policy.routes.read * policy.routes.changed
    tokens = sum(len(path) for paths in pools for path in paths)
    return pools, read / tokens, changed / read if read else 0.0


def rerouted(
    lm: CausalLM, asked: Sequence[Task], cases: Mapping[str, RoutingEnsemble], paths: int, seed: int, **settings: Any
) -> list[dict[str, Any]]:
    """Accuracy of one path for every case, as the mean of ``paths`` a question, beside that of plain sampling."""
    plain, _, _ = singly(lm, asked, SelfConsistency(paths), seed, **settings)
    base = _right(asked, plain)
    rows = [_row("plain sampling", base, base, 0.0, 0.0)]
    for name, method in cases.items():
        pools, read, changed = singly(lm, asked, method, seed, **settings)
        rows.append(_row(name, _right(asked, pools), base, read, changed))
    return rows


def unsure(pools: Sequence[Sequence[Path]], share: float = 0.8, low: float = 10.0, high: float = 90.0) -> float:
    """The entropy above which HyPER refines a token: ``share`` of the way between two percentiles of all of them."""
    values = sorted(value for paths in pools for path in paths for value in path.entropies)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    least, most = cuts[round(low) - 1], cuts[round(high) - 1]
    return least + share * (most - least)


def _right(asked: Sequence[Task], pools: Sequence[Sequence[Path]]) -> list[float]:
    return [
        statistics.mean(path.answer == canonical(task.answer) for path in paths)
        for task, paths in zip(asked, pools, strict=True)
    ]


def _row(name: str, right: list[float], base: list[float], read: float, changed: float) -> dict[str, Any]:
    less = Share.of([one - other for one, other in zip(right, base, strict=True)])
    return {
        "routes": name,
        "accuracy of one path": str(Share.of(right)),
        "points over plain sampling": f"{100 * less.mean:+.1f} ± {100 * less.half:.1f}",
        "tokens read along them": f"{read:.0%}",
        "choices changed there": f"{changed:.0%}",
    }
