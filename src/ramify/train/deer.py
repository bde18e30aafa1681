"""DEER's training: a denoiser first, then two stages on texts that the target wrote.

(a) plain denoising of the corpus, which makes a denoiser of the target's layers: pieces of up to 8 tokens of whole
    windows are masked together, each with probability t, and there is no separator. A causal head sees in both
    directions behind a random cut.
(b) stage I: the text before a cut is visible, the tokens behind it up to a separator are masked, each with
    probability t; loss = Σ CE / t. The paper does not say how t is drawn: 1 in half of the blocks, for a draft begins
    with all of them masked, else from U(ε, 1).
(c) stage II: all of the last R ≤ ``last`` tokens are masked, weights α^(R−i): ``DeerHead.refine``.

Losses are means over the tokens of all blocks, where the paper has sums. Stage II runs at half the learning rate of
stage I, as the paper's (5e-5 after 1e-4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ramify.methods.draft.deer_head import DeerHead, losses_of
from ramify.methods.draft.deer_layout import layout, scattered
from ramify.models.causal import CausalLM
from ramify.train.denoisers import at
from ramify.train.denoising import EPSILON, rates
from ramify.train.trainer import Progress, TrainConfig, train

STAGES = ("spans", "continue", "refine")
SPAN = 8  # tokens that are masked together in (a), at most


@dataclass(frozen=True)
class Course:
    """``steps`` of each stage of ``STAGES``, 0 leaves it out; ``batch`` texts a step."""

    steps: tuple[int, int, int] = (200, 300, 100)
    learning_rate: float = 2e-3
    batch: int = 4
    seed: int = 0
    optimizer: str = "muon"

    def config(self, stage: str) -> TrainConfig:
        """How ``stage`` is trained."""
        steps = self.steps[STAGES.index(stage)]
        return TrainConfig(
            steps=steps,
            learning_rate=self.learning_rate * (0.5 if stage == "refine" else 1.0),
            optimizer="adamw" if self.optimizer == "adamw" else "muon",
            warmup=20,
            cooldown=0.5,
            weight_decay=0.0,
            seed=self.seed,
            eval_every=max(1, steps // 4),
            save_every=25,
        )


def study(
    head: DeerHead,
    lm: CausalLM,
    texts_at: Callable[[int], Tensor],
    first: int,
    course: Course,
    stage: str,
    out: Path,
    held: Tensor | None = None,
) -> Iterator[Progress]:
    """Train ``head`` by one stage, with its checkpoint and curve in ``out``.

    ``texts_at(step)`` [B, T]: what a step reads, of which all from ``first`` on may be masked. ``held`` [N, T]: texts
    that measure.
    """
    losses: dict[str, Callable[..., Tensor]] = {"spans": spans, "continue": go_on, "refine": DeerHead.refine}
    seed = len(STAGES) * course.seed + STAGES.index(stage)
    autocast = functools.partial(torch.autocast, lm.device.type, torch.bfloat16, enabled=lm.dtype == torch.bfloat16)

    def loss_at(step: int) -> Tensor:
        with autocast():
            return losses[stage](head, lm, texts_at(step).to(lm.device), first, at(seed, step))

    def evaluate() -> dict[str, float]:
        assert held is not None
        with autocast():
            return {name: round(value, 4) for name, value in head.measure(lm, held.to(lm.device)).items()}

    yield from train(head, loss_at, course.config(stage), out, None if held is None else evaluate)


def spans(head: DeerHead, lm: CausalLM, texts: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """(a): plain denoising of whole windows, from ``first`` on or, of a causal head, from a random cut behind it."""
    length = texts.shape[1]
    causal = head.sizes.sight == "causal"
    cut = int(torch.randint(first, max(first + 1, length // 2), (), generator=generator)) if causal else first
    where = layout([(cut, length - cut)], head.sizes.sight, head.sizes.shift, separated=False)
    chances = rates(len(texts), generator)[:, None]
    masked = mask_spans(chances, length - cut, generator)
    losses = losses_of(head.guess(lm, texts, where, masked), texts[:, where.targets])
    return (losses * masked.to(losses.device) / chances.to(losses.device)).mean()


def go_on(head: DeerHead, lm: CausalLM, texts: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """(b), stage I: blocks behind random cuts in the target's part of the text, masked with probability t."""
    sizes = head.sizes
    count = sizes.blocks if sizes.sight == "causal" else 1
    drawn = torch.randint(1, sizes.most + 1, (count,), generator=generator)
    where = layout(scattered(count, first, texts.shape[1], drawn, generator), sizes.sight, sizes.shift)
    chances = block_chances(len(texts) * count, generator).view(len(texts), count).repeat_interleave(drawn, 1)
    masked = torch.rand(chances.shape, generator=generator) < chances
    losses = losses_of(head.guess(lm, texts, where, masked), texts[:, where.targets])
    return (losses * masked.to(losses.device) / chances.to(losses.device)).mean()


def block_chances(count: int, generator: torch.Generator) -> Tensor:
    """t of so many blocks: 1 in about half of them, else U(ε, 1), stratified."""
    chances = rates(count, generator, EPSILON)
    return chances.masked_fill(torch.rand(count, generator=generator) < 0.5, 1.0)


def mask_spans(chances: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Pieces of 1 to ``SPAN`` neighbours, each masked whole with its row's chance [B, 1]: bool [B, length]."""
    rows = len(chances)
    pieces = torch.randint(1, SPAN + 1, (rows, length), generator=generator).cumsum(1)
    piece = torch.searchsorted(pieces, torch.arange(length).expand(rows, -1).contiguous(), right=True)
    return (torch.rand(rows, length, generator=generator) < chances).gather(1, piece)
