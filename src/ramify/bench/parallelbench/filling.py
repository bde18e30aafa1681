"""Decoding the list tasks of ``symbols.py`` by any method of the masked loop, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ramify.bench.parallelbench import symbols
from ramify.bench.parallelbench.metrics import Order, Sample, decoding_order
from ramify.engine.events import Accepted, Scored, Unmasked
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.models.masked import MaskedLM

Prompts = dict[str, Tensor]


@dataclass
class Filled:
    """One answer. ``positions``: evaluated by all passes. ``first``: the step at which each was fixed first."""

    tokens: tuple[int, ...] = ()
    passes: int = 0
    positions: int = 0
    first: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """Answers to the prompts of one task. ``right``: for each, whether it is."""

    filled: Sequence[Filled]
    right: Sequence[bool]
    samples: Sequence[Sample]

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.right)

    @property
    def passes(self) -> float:
        return statistics.mean(each.passes for each in self.filled)

    @property
    def positions(self) -> float:
        return statistics.mean(each.positions for each in self.filled)

    def order(self, padded: bool) -> Order:
        """How the order of decoding goes with left to right, mean over the answers; ``padded``: end tokens too."""
        orders = []
        for each in self.filled:
            steps = [each.first[position] for position in sorted(each.first)]
            padding = None if padded else [token == symbols.EOS for token in each.tokens[: len(steps)]]
            orders.append(decoding_order(steps, padding))
        return Order(_known(one.kendall for one in orders), _known(one.spearman for one in orders))


def prompts_of(tasks: Sequence[str], count: int, seed: int, lengths: Sequence[int] = symbols.LENGTHS) -> Prompts:
    """``count`` prompts [count, 10] of each task."""
    return {
        task: symbols.samples(count, torch.Generator().manual_seed(seed + place), [task], lengths)[0]
        for place, task in enumerate(tasks)
    }


def fill(
    lm: MaskedLM,
    method: MaskedMethod,
    prompts: Prompts,
    *,
    infill: bool = False,
    greedy: bool = True,
    seed: int = 0,
    batch: int | None = None,
) -> dict[str, Reading]:
    """Answers of ``lm`` to all of ``prompts``, by task.

    ``infill``: only the items are open, the end tokens are given. Not ``greedy``: drawn at temperature 1. ``batch``:
    so many together, by default all; passes of a batch are as wide as its widest row, which counts as positions.
    """
    require(lm)
    rows = [(task, prompt) for task, each in prompts.items() for prompt in each]
    requests = [
        Request(
            prompt.tolist(),
            symbols.LENGTH,
            Sampler(greedy=greedy, noise=Noise(seed * len(rows) + place)),
            canvas=template(prompt, infill),
        )
        for place, (_, prompt) in enumerate(rows)
    ]
    size = batch or len(requests)
    filled = [
        each for start in range(0, len(requests), size) for each in _filled(lm, method, requests[start : start + size])
    ]
    found: dict[str, list[tuple[Filled, bool, Sample]]] = {task: [] for task in prompts}
    for (task, prompt), request, each in zip(rows, requests, filled, strict=True):
        # A method that cuts the canvas at the end of the text leaves out what would be end tokens.
        answer = torch.tensor([*each.tokens, *[symbols.EOS] * (symbols.ANSWER - len(each.tokens))])
        right = symbols.right(prompt, answer)
        real = len(symbols.given_in(answer))
        found[task].append((each, right, Sample(float(right), each.passes, list(request.canvas).count(None), real)))
    return {task: Reading(*map(list, zip(*each, strict=True))) for task, each in found.items()}


def _filled(lm: MaskedLM, method: MaskedMethod, requests: Sequence[Request]) -> list[Filled]:
    found = [Filled() for _ in requests]
    for event in method.run(lm, requests):
        match event:
            case Scored():
                for row in event.rows:
                    found[row].passes += 1
                    found[row].positions += event.nodes
            case Unmasked():
                for position in event.positions:
                    found[event.row].first.setdefault(position, event.step)
            case Accepted():
                found[event.row].tokens += event.tokens
            case _:
                pass
    return found


def template(prompt: Tensor, infill: bool) -> list[int | None]:
    """What stands behind the prompt: all 12 positions open, or those of the items only."""
    count = len(symbols.items_of(prompt)) if infill else symbols.ANSWER
    return [None] * count + [symbols.EOS] * (symbols.ANSWER - count)


def require(lm: MaskedLM) -> None:
    """Raise ``RamifyError`` for a model of another vocabulary."""
    if (lm.vocab_size, lm.mask_id) != (symbols.VOCABULARY, symbols.MASK):
        raise RamifyError(
            f"the list tasks have {symbols.VOCABULARY} tokens and the mask token {symbols.MASK}, {lm.name} has "
            f"{lm.vocab_size} and {lm.mask_id}; give a model that `ramify train list-model` has trained"
        )


def _known(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return statistics.mean(known) if known else float("nan")
