"""What rules that fill canvases are compared by: answers, steps, and the positions that their passes evaluated.

The quality of the list model's tasks is known exactly. That of texts is agreement with decoding one position a step,
and the likelihood under an autoregressive model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ramify.bench.parallelbench import symbols
from ramify.bench.prompts import held_out_prompts
from ramify.engine.events import Accepted, Unmasked
from ramify.engine.feeding import Feeding
from ramify.engine.filling import Filling
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.sampling import Sampler
from ramify.engine.unmask import Choice, Rule, unmask
from ramify.methods.base import MaskedMethod
from ramify.methods.head import teach
from ramify.models.causal import CausalLM
from ramify.models.masked import MaskedLM
from ramify.train.data import separator


@dataclass
class Filled:
    """One decoding of some canvases.

    ``texts``: what stands behind each prompt, up to its first stop token. ``steps``: passes of each row. ``positions``:
    what they evaluated for it, no padding of the batch. ``seconds``: of everything. ``events``: what was fixed when.
    """

    texts: list[list[int]]
    steps: list[int]
    positions: list[int]
    seconds: float
    events: list[Unmasked] = field(default_factory=list)


class Counted(Feeding):
    """``inner``, and how many positions it fed to the passes of every row."""

    def __init__(self, inner: Feeding) -> None:
        self.inner = inner
        self.positions: dict[int, int] = {}

    def fed(self, row: Filling, held: set[int]) -> list[int] | None:
        own = self.inner.fed(row, held)
        index = row.canvas.index
        self.positions[index] = self.positions.get(index, 0) + len(row.canvas if own is None else own)
        return own

    def hold(self, row: Filling, held: set[int], fixed: Sequence[int]) -> list[int]:
        return self.inner.hold(row, held, fixed)


class Shaken(Rule):
    """``inner`` as if the model's logits had Gaussian noise of ``sigma``, drawn anew in every step."""

    def __init__(self, inner: Rule, sigma: float, seed: int) -> None:
        self.inner, self.sigma = inner, sigma
        self.beyond = inner.beyond
        self.generator = torch.Generator().manual_seed(seed)

    def choose(self, look: Look) -> Choice:
        noise = torch.randn(look.logits.shape, generator=self.generator)
        seen = replace(look, logits=look.logits + self.sigma * noise.to(look.logits.device))
        choice = self.inner.choose(seen)
        return choice if choice.tokens is not None else replace(choice, tokens=seen.tokens)


def fill(
    lm: MaskedLM,
    method: MaskedMethod,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    ends: frozenset[int] = frozenset(),
    batch: int = 100,
    sampler: Callable[[int], Sampler] | None = None,
    sigma: float = 0.0,
    seed: int = 0,
) -> Filled:
    """Fill ``length`` positions behind each prompt.

    ``ends``: tokens that end a text. ``sampler``: of the prompt of that number, by default greedy. ``sigma``: noise on
    the logits.
    """
    found = Filled([], [], [], 0.0)
    for start in range(0, len(prompts), batch):
        requests = [
            Request(prompt, len(prompt) + length, sampler(row) if sampler else Sampler(), ends)
            for row, prompt in enumerate(prompts[start : start + batch], start)
        ]
        counted, rule = Counted(method.feeding(lm)), method.rule(lm, requests)
        if sigma:
            rule = Shaken(rule, sigma, seed + start)
        began = time.perf_counter()
        run = unmask(lm, requests, rule, schedule=method.plan(lm), feeding=counted, guidance=method.guidance)
        events = list(run)
        found.seconds += time.perf_counter() - began
        texts = {event.row: list(event.tokens) for event in events if isinstance(event, Accepted)}
        fixed = [event for event in events if isinstance(event, Unmasked)]
        steps = Counter(event.row for event in fixed)
        for row in range(len(requests)):
            found.texts.append(texts[row])
            found.steps.append(steps[row])
            found.positions.append(counted.positions[row])
        found.events += [replace(event, row=event.row + start) for event in fixed]
    return found


def list_tasks(tasks: Sequence[str], each: int, seed: int) -> dict[str, Tensor]:
    """``each`` prompts [each, 10] of every task."""
    generator = torch.Generator().manual_seed(seed)
    return {task: symbols.samples(each, generator, [task])[0] for task in tasks}


def share_right(prompts: Tensor, texts: Sequence[Sequence[int]]) -> float:
    """Share of the texts that solve their list task; what is missing behind a cut does not matter."""
    answers = [torch.tensor([*text, *[symbols.EOS] * (symbols.ANSWER - len(text))]) for text in texts]
    return sum(symbols.right(p, a) for p, a in zip(prompts, answers, strict=True)) / len(prompts)


def agreement(texts: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> float:
    """Share of tokens that stand at the same place in both, of the longer one's."""
    same = sum(a == b for one, two in zip(texts, others, strict=True) for a, b in zip(one, two, strict=False))
    return same / sum(max(len(one), len(two)) for one, two in zip(texts, others, strict=True))


@torch.no_grad()
def likelihood(lm: CausalLM, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> float:
    """Mean log-probability of a token of the texts behind their prompts, in nats, under an autoregressive ``lm``."""
    total, count = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([[*prompt, *text]], device=lm.device)
        laws = teach(lm, ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        total += laws.gather(-1, ids[0, len(prompt) :, None]).sum().item()
        count += len(text)
    return total / count


def text_rows(
    lm: MaskedLM, judge: CausalLM, plans: dict[str, MaskedMethod], asked: Sequence[Sequence[int]], length: int
) -> list[dict[str, Any]]:
    """A row for every plan; the first one is what the others should agree with."""
    ends = frozenset({separator(lm.base)})
    reference: list[list[int]] = []
    rows: list[dict[str, Any]] = []
    for name, method in plans.items():
        found = fill(lm, method, asked, length, ends=ends)
        reference = reference or found.texts
        rows.append(
            {
                "decoding": name,
                "agreement": agreement(found.texts, reference),
                "log-likelihood a token": likelihood(judge, asked, found.texts),
                "steps": mean(found.steps),
                "positions": mean(found.positions),
                "seconds": found.seconds,
            }
        )
    return rows


def excerpts(lm: MaskedLM, count: int, size: int, seed: int) -> list[list[int]]:
    """The last ``size`` tokens of held-out prompts."""
    asked = [lm.encode(prompt.text)[-size:] for prompt in held_out_prompts(count, seed=seed, size=8 * size)]
    return [prompt for prompt in asked if len(prompt) == size]


def mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).mean().item()
