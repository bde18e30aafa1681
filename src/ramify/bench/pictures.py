"""Canvases filled in for a measurement: batches of requests, what came out, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.bench.parallelbench import symbols
from ramify.engine.events import Scored
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.methods.base import MaskedMethod
from ramify.models.image_tokens import ImageTokens
from ramify.models.masked import MaskedLM
from ramify.train.denoise_grids import TOKENS
from ramify.train.denoisers import at
from ramify.train.images import balanced


@dataclass(frozen=True)
class Filled:
    """``tokens``: int64 [B, n], behind the prompts. ``positions``: evaluated for each row, over all passes. ``whole``,
    ``local``: passes over everything and over less. ``wall``, ``cpu``: seconds of all rows together."""

    tokens: Tensor
    positions: int
    whole: int
    local: int
    wall: float
    cpu: float


def fill(lm: MaskedLM, method: MaskedMethod, requests: Sequence[Request], batch: int) -> Filled:
    """Fill in canvases of one shape, ``batch`` at a time."""
    results, wall, cpu = [], time.perf_counter(), time.process_time()
    for begin in range(0, len(requests), batch):
        results += method.complete(lm, requests[begin : begin + batch])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    evaluated = [event.nodes for event in results[0].events if isinstance(event, Scored)]
    whole = sum(nodes >= requests[0].max_length for nodes in evaluated)
    tokens = torch.tensor([result.tokens for result in results])
    return Filled(tokens, sum(evaluated), whole, len(evaluated) - whole, wall, cpu)


def grids(count: int, seed: int) -> list[Request]:
    """Empty canvases of the grid model."""
    return [Request([], TOKENS, _drawing(seed, number)) for number in range(count)]


def pictures(tokens: ImageTokens, count: int, seed: int) -> tuple[list[Request], Tensor]:
    """Empty canvases behind the classes in turn, and the classes: int64 [count]."""
    labels = balanced(count)
    requests = [
        Request([tokens.codes + label], 1 + tokens.length, _drawing(seed, number, tokens.only_codes))
        for number, label in enumerate(labels.tolist())
    ]
    return requests, labels


def lists(task: str, count: int, seed: int, items: int = 6) -> list[Request]:
    """Lists of the list model's ``task`` whose ``items`` slots are open, the rest of the answer given."""
    requests = []
    for number in range(count):
        prompt, _ = symbols.sample(task, items, at(seed, number))
        canvas = [None] * items + [symbols.EOS] * (symbols.ANSWER - items)
        requests.append(Request(prompt.tolist(), symbols.LENGTH, _drawing(seed, number), canvas=canvas))
    return requests


def _drawing(seed: int, number: int, *processors: object) -> Sampler:
    return Sampler(processors, greedy=False, noise=Noise(seed * 100_003 + number))  # type: ignore[arg-type]
