"""The grid model: images in miniature, whose quality can be counted.

An image has 8 × 8 tokens of 8 colours: 16 cells of 2 × 2, each of one colour drawn evenly, and every token replaced by
an evenly drawn one with probability 0.02. So the four tokens of a cell agree with probability 0.93, and the colours'
entropy is ln 8 = 2.079 nats. A sampler that fixes dependent tokens at once breaks cells; one without randomness loses
colours. The model learns with MaskGIT's loss, without smoothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.train.denoisers import at, curve, fill_at_random, small_decoder
from ramify.train.denoising import Denoise, full_pass, maskgit_loss, sight
from ramify.train.heads import estimate, same_run
from ramify.train.trainer import Progress, TrainConfig, train

SIDE, CELL, COLOURS, NOISE = 8, 2, 8, 0.02
TOKENS, CELLS = SIDE * SIDE, (SIDE // CELL) ** 2
MASK = COLOURS
FLOOR = 1.31  # expected loss of the exact conditional law, nats per masked token; a test computes it
PASSES = (64, 32, 16, 8, 4)


@dataclass(frozen=True)
class GridModelConfig:
    """Training settings. ``trials``: how many images measure the quality."""

    batch: int = 48
    trials: int = 200
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=2500,
            learning_rate=2e-3,
            optimizer="adamw",
            warmup=200,
            cooldown=0.7,
            weight_decay=0.01,
            eval_every=500,
            save_every=250,
        )
    )


def grids(count: int, generator: torch.Generator) -> Tensor:
    """``count`` images, rows of pixels one behind the other: [count, 64]."""
    cells = torch.randint(COLOURS, (count, SIDE // CELL, SIDE // CELL), generator=generator)
    pixels = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2).flatten(1)
    other = torch.randint(COLOURS, pixels.shape, generator=generator)
    return torch.where(torch.rand(pixels.shape, generator=generator) < NOISE, other, pixels)


def cells_of(images: Tensor) -> Tensor:
    """The four tokens of every cell of ``images`` [B, 64]: [B, 16, 4]."""
    across = SIDE // CELL
    return images.view(-1, across, CELL, across, CELL).transpose(2, 3).reshape(len(images), CELLS, CELL * CELL)


def agreement(images: Tensor) -> float:
    """Share of cells whose four tokens are equal."""
    cells = cells_of(images)
    return float((cells == cells[..., :1]).all(-1).double().mean())


def colour_entropy(images: Tensor) -> float:
    """Entropy of the cells' colours (each cell's most frequent token) in nats: ln 8 where all are as frequent."""
    shares = torch.bincount(cells_of(images).mode(-1).values.flatten(), minlength=COLOURS).double()
    return float(torch.special.entr(shares / shares.sum()).sum())


def train_grid_model(out: Path, config: GridModelConfig, dry: bool = False) -> Iterator[Progress]:
    """Train into ``out/model``, resuming from ``out`` if it holds a checkpoint."""
    torch.manual_seed(config.train.seed)
    model = small_decoder(COLOURS + 1, TOKENS, MASK)
    denoise = full_pass(model, MASK, sight(TOKENS))

    def loss_at(step: int) -> Tensor:
        generator = at(config.train.seed, step)
        return maskgit_loss(denoise, grids(config.batch, generator), MASK, generator, smoothing=0.0)

    if dry:
        yield from estimate(model, loss_at, config.train)
        return
    same_run(out, {"recipe": "grid-model", **asdict(config)})

    def evaluate() -> dict[str, float]:
        return {"agreement in 16 passes": agreement(drawn(denoise, 16, min(50, config.trials), config.train.seed))}

    yield from train(model, loss_at, config.train, out, evaluate)
    model.save_pretrained(out / "model")
    _write_card(out / "model", model, denoise, config)


def drawn(denoise: Denoise, passes: int, count: int, seed: int) -> Tensor:
    """``count`` images in random order, as many tokens in each of ``passes``: [count, 64]."""
    canvas = torch.full((count, TOKENS), MASK)
    generator = torch.Generator().manual_seed(seed)
    return fill_at_random(denoise, canvas, canvas == MASK, TOKENS // passes, generator)


def _write_card(folder: Path, model: Any, denoise: Denoise, config: GridModelConfig) -> None:
    """Measure the model; write ``training.json`` and ``README.md`` beside it."""
    seed, points = config.train.seed, curve(folder.parent / "curve.jsonl", "agreement in 16 passes")
    found = {passes: drawn(denoise, passes, config.trials, seed) for passes in PASSES}
    data = grids(10_000, at(seed, -1))
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": [agreement(data), colour_entropy(data)],
        "random_order": {passes: [agreement(images), colour_entropy(images)] for passes, images in found.items()},
        "loss": points[-1][1],
        "config": asdict(config),
    }
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(_card(figures, points))


def _card(figures: dict[str, Any], points: list[tuple[int, float, float]]) -> str:
    config, schedule = figures["config"], figures["config"]["train"]
    share, entropy = figures["data"]
    paragraphs = [
        f"A masked denoiser of {figures['parameters']} parameters: GPT-2 of width 64, 3 layers, 4 heads, with full "
        f"attention, {TOKENS} positions and {COLOURS + 1} tokens ({COLOURS} colours and MASK). It draws images of "
        f"{SIDE} × {SIDE} tokens in which every cell of {CELL} × {CELL} has one colour, and is the test bench of what "
        "samples images.",
        f"**Data.** Generated as training goes on; {100 * NOISE:.0f} % of the tokens are replaced by any colour. In "
        f"the data {share:.3f} of the cells have four equal tokens, and the colours' entropy is {entropy:.3f} nats.",
        f"**Recipe.** `ramify train grid-model`: {schedule['steps']} steps of {config['batch']} images, MaskGIT's "
        f"loss without smoothing, AdamW, learning rate {schedule['learning_rate']} (warm-up {schedule['warmup']} "
        f"steps, linear decay over the last {100 * schedule['cooldown']:.0f} %), weight decay "
        f"{schedule['weight_decay']}, clipping at {schedule['clip_norm']}, float32, seed {schedule['seed']}. "
        f"The loss of an exact model is {FLOOR} nats per masked token.",
        f"**Quality**: {config['trials']} images for each line, tokens drawn at temperature 1 in random order, as many "
        "in every pass.",
    ]
    tables = ["| passes | cells of four equal tokens | entropy of colours (nats) |", "|---|---|---|"]
    tables += [f"| {passes} | {one:.3f} | {other:.3f} |" for passes, (one, other) in figures["random_order"].items()]
    tables += ["", "| step | mean training loss since the line before | cells in 16 passes |", "|---|---|---|"]
    tables += [f"| {step} | {loss:.3f} | {one:.3f} |" for step, loss, one in points]
    text = "\n\n".join(textwrap.fill(part, 118, break_on_hyphens=False) for part in paragraphs)
    return f"# The grid model of ramify\n\n{text}\n\n" + "\n".join(tables) + "\n"
