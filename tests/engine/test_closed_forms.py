"""Exact denoisers under every rule: accuracies are the closed forms, and one position a step samples the joint law.

A rule sees 20,000 canvases at once here, by looks whose noise is drawn for all of them together; the loop itself, which
keeps count of every row by itself, is held to the same figures with fewer runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from ramify.bench.parallelbench.analysis import (
    Law,
    by_count,
    by_factor,
    by_threshold,
    replace_accuracy,
    replace_confidence,
    replace_confident,
    replace_greedy,
    replace_law,
    shuffle_accuracy,
    shuffle_confidence,
    shuffle_law,
)
from ramify.bench.parallelbench.denoisers import Denoiser, Enumerated, Symbols
from ramify.bench.parallelbench.exact import exact_lm
from ramify.bench.parallelbench.symbols import EOS, MASK, right, samples
from ramify.engine.events import Accepted, Unmasked
from ramify.engine.look import ORDER, Look
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.unmask import Rule
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.orders import SCORES, TopK, Unmask
from ramify.methods.unmask.threshold import Above, Factor, Threshold, Together

RUNS = 20_000
NOISE = 1e-4
LAWS: dict[str, Law] = {"copy": {(0, 1, 2, 3): 1.0}, "replace-random": replace_law(4), "shuffle": shuffle_law(4)}


@dataclass(eq=False)
class Flock(Look):
    """A look at many rows, whose candidates, noise and quota are made for all of them in one go."""

    sampled: bool = False
    wanted: int = 1
    source: torch.Generator = field(default_factory=torch.Generator)

    @functools.cached_property
    def tokens(self) -> Tensor:
        if not self.sampled:
            return self.logits.argmax(-1)
        return (self.law / torch.empty_like(self.law).exponential_(generator=self.source)).argmax(-1)

    @functools.cached_property
    def quota(self) -> Tensor:
        return self.open.sum(1).clamp(max=self.wanted)

    def uniform(self, stream: int = ORDER) -> Tensor:
        return torch.rand(self.open.shape, dtype=torch.float64, generator=self.source)


def decode(
    denoiser: Denoiser, ids: Tensor, rule: Rule, sampled: bool, sizes: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Fill ``ids`` [B, L], all of it open, ``sizes`` positions step by step; also the steps of every row."""
    source = torch.Generator().manual_seed(99)  # not the seed of the denoiser's noise
    ids, open = ids.clone(), torch.ones_like(ids, dtype=torch.bool)
    steps, step = torch.zeros(len(ids), dtype=torch.long), 0
    while len(rows := open.any(1).nonzero()[:, 0]):
        logits = denoiser.logits(ids[rows], open[rows])
        positions = torch.arange(ids.shape[1]).expand(len(rows), -1)
        wanted = sizes[step] if step < len(sizes) else 1
        everywhere = torch.ones_like(open[rows])
        look = Flock((), positions, everywhere, open[rows], logits, sampled=sampled, wanted=wanted, source=source)
        fix = rule.choose(look).fix
        assert fix.any(1).all()
        assert not (fix & ~open[rows]).any()
        ids[rows] = torch.where(fix, look.tokens, ids[rows])
        open[rows] &= ~fix
        steps[rows] += 1
        step += 1
    return ids, steps


def open_canvases(task: str) -> tuple[Enumerated, Tensor]:
    """The exact denoiser of a task, noise deciding its ties, and RUNS canvases [B, n]."""
    law = LAWS[task]
    return Enumerated(law, 5, NOISE), torch.zeros(RUNS, len(next(iter(law))), dtype=torch.long)


def accuracy(task: str, ids: Tensor) -> float:
    """Share of the rows that the law of the task can give."""
    kinds, counts = ids.unique(dim=0, return_counts=True)
    good = sum(count for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True) if tuple(kind) in LAWS[task])
    return good / len(ids)


def near(found: float, p: float, runs: int = RUNS) -> None:
    assert abs(found - p) <= 3 * math.sqrt(p * (1 - p) / runs) + 1e-12, f"{found} is not {p}"


def closed(task: str, sizes: Sequence[int], sampled: bool, order: str) -> float:
    if task == "shuffle":
        return shuffle_accuracy(sizes)
    if task != "replace-random":
        return 1.0
    if not sampled:
        return replace_greedy(sizes)
    return replace_confident(sizes) if order == "confidence" else replace_accuracy(sizes)


# ---- closed forms ----


@pytest.mark.parametrize("order", SCORES)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("task", LAWS)
def test_every_order_by_count(task: str, sampled: bool, order: str) -> None:
    denoiser, ids = open_canvases(task)
    n = ids.shape[1]
    for k in (1, 2, 3, 4) if task != "copy" else (n,):
        sizes = by_count(n, k)
        found, steps = decode(denoiser, ids, TopK(SCORES[order]), sampled, sizes)
        near(accuracy(task, found), closed(task, sizes, sampled, order))
        assert steps.unique().tolist() == [len(sizes)]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.45, 0.55, 0.7, 0.81, 0.9, 0.95, 1.01])
def test_thresholds(gamma: float) -> None:
    for task, confidence in [("shuffle", shuffle_confidence), ("replace-random", replace_confidence)]:
        denoiser, ids = open_canvases(task)
        found, steps = decode(denoiser, ids, Above(gamma), False)
        sizes = by_threshold(ids.shape[1], gamma, confidence)
        near(accuracy(task, found), closed(task, sizes, False, "confidence"))
        assert steps.unique().tolist() == [len(sizes)]


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.1, 1.3, 1.9, 99.0])
def test_factors(factor: float) -> None:
    for task, confidence in [("shuffle", shuffle_confidence), ("replace-random", replace_confidence)]:
        denoiser, ids = open_canvases(task)
        found, steps = decode(denoiser, ids, Together(factor), False)
        sizes = by_factor(ids.shape[1], factor, confidence)
        near(accuracy(task, found), closed(task, sizes, False, "confidence"))
        assert steps.unique().tolist() == [len(sizes)]


# ---- one position a step ----

# Greedy parallel decoding gives (1, 1), the joint law's likeliest answers are the others.
TWO: Law = {(1, 1): 0.2, (1, 0): 0.4, (0, 1): 0.4}
THREE: Law = {(0, 0, 0): 0.4, (0, 1, 2): 0.25, (1, 1, 1): 0.2, (2, 0, 1): 0.1, (2, 2, 2): 0.05}


def p_value(law: Law, order: str) -> float:
    """Of 20,000 answers filled one position a step, that they come from ``law``."""
    width = len(next(iter(law)))
    ids = torch.zeros(RUNS, width, dtype=torch.long)
    found, _ = decode(Enumerated(law, 4, NOISE), ids, TopK(SCORES[order]), True)
    kinds, counts = found.unique(dim=0, return_counts=True)
    seen = {tuple(kind): count for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)}
    assert seen.keys() <= law.keys()
    return float(chisquare([seen.get(kind, 0) for kind in law], [p * RUNS for p in law.values()]).pvalue)


@pytest.mark.parametrize("law", [TWO, THREE, shuffle_law(4)], ids=["two", "three", "shuffle"])
@pytest.mark.parametrize("order", sorted(SCORES.keys() - {"confidence"}))
def test_one_position_a_step_samples_the_joint_law(order: str, law: Law) -> None:
    assert p_value(law, order) > 0.001


def test_the_confidence_of_drawn_tokens_does_not() -> None:
    """It fixes first what drew a likely token, so such tokens come too often; where all look alike, no harm is done."""
    assert p_value(TWO, "confidence") < 1e-9
    assert p_value(shuffle_law(4), "confidence") > 0.001


def test_greedy_parallel_decoding_is_not_the_likeliest_answer() -> None:
    """Two marginals of 0.6, so ε = 0.4 and (n + 1) ε > 1: outside the bound of Fast-dLLM's theorem."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    assert decode(Enumerated(TWO, 2), ids, TopK(SCORES["confidence"]), False, [2])[0].tolist() == [[1, 1]]
    assert decode(Enumerated(TWO, 2), ids, Together(1.0), False)[0].tolist() in [[[1, 0]], [[0, 1]]]


# ---- through the loop ----

LOOP = 200


def filled(task: str, method: MaskedMethod, greedy: bool, runs: int = LOOP) -> tuple[float, int]:
    """Share of right answers with lists of 6 symbols, and passes."""
    prompts, _ = samples(runs, torch.Generator().manual_seed(1), [task], [6])
    requests = [
        Request(prompt, 22, Sampler(greedy=greedy, noise=Noise(seed)), canvas=[None] * 6 + [EOS] * 6)
        for seed, prompt in enumerate(prompts.tolist())
    ]
    events = list(method.run(exact_lm(Symbols(NOISE), MASK, 22), requests))
    answers = {event.row: torch.tensor(event.tokens) for event in events if isinstance(event, Accepted)}
    good = sum(right(prompt, answers[row]) for row, prompt in enumerate(prompts))
    return good / runs, max(event.step for event in events if isinstance(event, Unmasked)) + 1


@pytest.mark.parametrize(
    ("task", "method", "greedy", "p"),
    [
        ("shuffle", Unmask(order="random", steps=3), False, shuffle_accuracy([2, 2, 2])),
        ("replace-random", Unmask(order="random", steps=2), False, replace_accuracy([3, 3])),
        ("replace-random", Unmask(order="confidence", steps=3), False, replace_confident([2, 2, 2])),
        ("shuffle", Unmask(order="entropy", block=3, steps=4), True, shuffle_accuracy([2, 1, 2, 1])),
        ("replace-random", Threshold(gamma=0.7), True, 0.0),
        ("shuffle", Factor(factor=1.9), True, shuffle_accuracy(by_factor(6, 1.9, shuffle_confidence))),
    ],
)
def test_the_loop_gives_the_same(task: str, method: MaskedMethod, greedy: bool, p: float) -> None:
    near(filled(task, method, greedy)[0], p, LOOP)


def test_limits_of_the_rules() -> None:
    for task in ("shuffle", "replace-random"):  # the two want opposite thresholds; above all confidences both are right
        assert filled(task, Threshold(gamma=0.9), True, 20) == (1, 6)
    assert filled("copy", Threshold(gamma=1.01), True, 5) == (1, 6)
    assert filled("copy", Threshold(gamma=0.0), True, 5) == (1, 1)
    assert filled("copy", Factor(factor=0.0), True, 5) == (1, 6)
    assert filled("reverse", Unmask(block=1), True, 5) == (1, 6)


@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
def test_caches_lose_nothing_where_entries_are_only_tokens(cache: str) -> None:
    """What goes wrong under a cache is what its features say of other positions; tokens themselves do not grow old."""
    for task in ("shuffle", "replace-random"):
        assert filled(task, Threshold(gamma=0.9, block=3, cache=cache), True, 20) == (1, 6)
