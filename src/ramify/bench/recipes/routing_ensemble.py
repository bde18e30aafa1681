"""Other routes through the experts, for unsure tokens or all of them, against plain sampling of one path

A path's noise is that of plain sampling, so what differs is the routes' doing. Whether other routes are as good depends
on how the routers were trained: ``ramify train sum-model -o noise=0.5`` makes a model for which they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ramify.bench.recipes import Outcome, Table
from ramify.bench.rerouted import rerouted, singly, unsure
from ramify.bench.tasks import REASONING, tasks
from ramify.methods.search.routing_ensemble import RoutingEnsemble
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import load

HELD_OUT = 50


def run(
    *,
    seed: int = 0,
    model: str = "demo-reasoner",
    families: str = ",".join(REASONING),
    questions: int = 400,
    paths: int = 6,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_new_tokens: int = 160,
    single: float | Sequence[float] = (0.0, 0.1, 0.2, 0.4),
    every: float | Sequence[float] = (0.2, 0.4),
) -> Outcome:
    """``single``, ``every``: scales of the noise for unsure tokens and for all; ``paths``: of each question."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model)
        kinds = tuple(families.split(","))
        settings = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
        other = tasks(HELD_OUT, "validation", seed, kinds)
        above = unsure(singly(lm, other, SelfConsistency(paths), seed, **settings)[0])
        asked = tasks(questions, "test", seed, kinds)
        rows = rerouted(lm, asked, cases(_several(single), _several(every), above, paths), paths, seed, **settings)
    finally:
        torch.set_num_threads(before)
    title = f"{lm.name}, {questions} questions × {paths} paths, temperature {temperature:g}, top-p {top_p:g}"
    return Outcome(
        [Table(title, rows)],
        [
            "±: 95 % intervals from the spread between questions; differences question by question, on the same noise.",
            f"Unsure: an entropy of {above:.3f} nats or more, 0.8 of the way from the 10th to the 90th percentile of "
            f"all tokens on {HELD_OUT} held-out questions.",
        ],
    )


def cases(single: Sequence[float], every: Sequence[float], above: float, paths: int) -> dict[str, RoutingEnsemble]:
    """HyPER's refinement of unsure tokens, the same for every token, and the routing ensemble."""

    def refined(noise: float, above: float) -> RoutingEnsemble:
        return RoutingEnsemble(2, noise, clean=True, by_confidence=True, reuse=0.1, above=above, paths=paths)

    found: dict[str, Any] = {f"single-token, noise {noise:g}": refined(noise, above) for noise in single}
    found |= {f"the same for every token, noise {noise:g}": refined(noise, 0.0) for noise in every}
    found |= {f"routing ensemble, 4 copies, noise {noise:g}": RoutingEnsemble(4, noise, paths=paths) for noise in every}
    return found


def _several(noises: float | Sequence[float]) -> Sequence[float]:
    return noises if isinstance(noises, Sequence) else (noises,)
