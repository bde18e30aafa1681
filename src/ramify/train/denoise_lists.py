"""The list model: a masked denoiser on list tasks of one token per item, the test bench of every unmasking rule.

It is trained on ``bench/parallelbench/symbols.py`` with LLaDA's loss on answers. Copy and reverse need no order at all,
replace-random and shuffle fail where dependent slots are filled at once, cumsum is not learnt at this size. Its card
compares it with the closed forms of an ideal denoiser.
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

from ramify.bench.parallelbench import symbols
from ramify.bench.parallelbench.analysis import by_count, replace_accuracy, shuffle_accuracy
from ramify.errors import RamifyError
from ramify.train.denoisers import at, curve, fill_at_random, fill_where_sure, small_decoder
from ramify.train.denoising import Denoise, block_loss, block_pass, full_pass, sft_loss, sight
from ramify.train.heads import estimate, same_run
from ramify.train.trainer import Progress, TrainConfig, train

LEARNT = ("copy", "reverse", "replace-random", "shuffle")
EACH = (1, 2, 3, 6)  # positions a pass
THRESHOLDS = (0.5, 0.7, 0.9)
IDEAL = {  # of six items, so many at once, by an exact denoiser
    "copy": (1.0, 1.0, 1.0, 1.0),
    "reverse": (1.0, 1.0, 1.0, 1.0),
    "replace-random": tuple(replace_accuracy(by_count(6, each)) for each in EACH),
    "shuffle": tuple(shuffle_accuracy(by_count(6, each)) for each in EACH),
}


@dataclass(frozen=True)
class ListModelConfig:
    """Data and training settings.

    ``prefix_causal``: the control whose prompt may not look at the answer. ``block``: attention in blocks of so many
    positions and BD3-LM's loss, None for full attention. ``pool``: how many examples there are. ``trials``: how many
    lists of a task measure the quality.
    """

    prefix_causal: bool = False
    block: int | None = None
    batch: int = 64
    pool: int = 60_000
    trials: int = 400
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=6000,
            learning_rate=3e-3,
            warmup=100,
            cooldown=0.8,
            weight_decay=0.01,
            eval_every=1000,
            save_every=500,
        )
    )

    def __post_init__(self) -> None:
        if self.block is not None and self.prefix_causal:
            raise RamifyError("block hides the answer from the prompt already; give block or prefix_causal, not both")
        if self.block is not None and not 1 <= self.block <= symbols.LENGTH:
            raise RamifyError(f"block is {self.block}; take between 1 and {symbols.LENGTH} positions")

    @property
    def seen(self) -> Tensor:
        """Which position sees which."""
        return sight(symbols.LENGTH, self.block, symbols.PROMPT if self.prefix_causal else 0)


def train_list_model(out: Path, config: ListModelConfig, dry: bool = False) -> Iterator[Progress]:
    """Train into ``out/model``, resuming from ``out`` if it holds a checkpoint."""
    torch.manual_seed(config.train.seed)
    model = small_decoder(symbols.VOCABULARY, symbols.LENGTH, symbols.MASK, config.block, initial=0.1)
    if config.prefix_causal:
        model.config.denoiser["prefix_causal"] = symbols.PROMPT
    prompts, answers = symbols.samples(config.pool, at(config.train.seed, -1))
    pool = torch.cat([prompts, answers], 1)
    answer = (torch.arange(symbols.LENGTH) >= symbols.PROMPT).expand(config.batch, -1)
    denoise = full_pass(model, symbols.MASK, config.seen)

    def loss_at(step: int) -> Tensor:
        generator = at(config.train.seed, step)
        ids = pool[torch.randint(config.pool, (config.batch,), generator=generator)]
        if config.block is None:
            return sft_loss(denoise, ids, answer, symbols.MASK, generator)
        blocks = block_pass(model, symbols.MASK, ids, config.block)
        return block_loss(blocks, ids, config.block, symbols.MASK, generator, answer)

    if dry:
        yield from estimate(model, loss_at, config.train)
        return
    same_run(out, {"recipe": "list-model", **asdict(config)})

    def evaluate() -> dict[str, float]:
        return {
            f"{task}, {each} a pass": infill(denoise, task, each, min(100, config.trials), config.train.seed)
            for task, each in (("shuffle", 1), ("replace-random", 1), ("reverse", 6))
        }

    yield from train(model, loss_at, config.train, out, evaluate)
    model.save_pretrained(out / "model")
    _write_card(out / "model", model, denoise, config)


def infill(denoise: Denoise, task: str, each: int, count: int, seed: int) -> float:
    """Share of ``count`` lists of six that are right, filled in random order, ``each`` slots a pass."""
    generator = torch.Generator().manual_seed(seed)
    prompts, ids, opened = _canvases(task, count, generator)
    return _share(prompts, fill_at_random(denoise, ids, opened, each, generator))


def infill_where_sure(denoise: Denoise, task: str, threshold: float, count: int, seed: int) -> tuple[float, float]:
    """The same with the likeliest tokens, those of at least ``threshold`` at once; and the mean number of passes."""
    prompts, ids, opened = _canvases(task, count, torch.Generator().manual_seed(seed))
    filled, passes = fill_where_sure(denoise, ids, opened, threshold)
    return _share(prompts, filled), passes.double().mean().item()


def _canvases(task: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, canvases with masked item slots, and where these are."""
    prompts, answers = symbols.samples(count, generator, [task], [symbols.MOST])
    opened = symbols.infill(prompts)
    return prompts, torch.cat([prompts, answers], 1).masked_fill(opened, symbols.MASK), opened


def _share(prompts: Tensor, filled: Tensor) -> float:
    answers = filled[:, symbols.PROMPT :]
    found = [symbols.right(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return sum(found) / len(found)


def _write_card(folder: Path, model: Any, denoise: Denoise, config: ListModelConfig) -> None:
    """Measure the model; write ``training.json`` and ``README.md`` beside it."""
    seed, count = config.train.seed, config.trials
    points = curve(folder.parent / "curve.jsonl", "shuffle, 1 a pass")
    random = {task: [infill(denoise, task, each, count, seed) for each in EACH] for task in LEARNT}
    sure = {task: [infill_where_sure(denoise, task, one, count, seed) for one in THRESHOLDS] for task in LEARNT}
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "random_order": random,
        "threshold": sure,
        "cumsum": infill(denoise, "cumsum", 1, count, seed),
        "loss": points[-1][1],
        "config": asdict(config),
    }
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(_card(figures, points))


def _card(figures: dict[str, Any], points: list[tuple[int, float, float]]) -> str:
    config, schedule = figures["config"], figures["config"]["train"]
    attention = f"attention in blocks of {config['block']}" if config["block"] else "full attention"
    if config["prefix_causal"]:
        attention = "attention from which the prompt's positions do not see the answer"
    objective = "BD3-LM's loss on answers" if config["block"] else "LLaDA's loss on answers, divided by their length"
    options = [f" -o {name}={str(config[name]).lower()}" for name in ("prefix_causal", "block") if config[name]]
    paragraphs = [
        f"A masked denoiser of {figures['parameters']} parameters: GPT-2 of width 64, 3 layers, 4 heads, with "
        f"{attention}, 22 positions and 26 tokens (16 symbols, PAD, EOS, SEP, MASK, NONE, 5 tasks). It answers the "
        "list tasks of `ramify.bench.parallelbench.symbols`, and is the test bench of the unmasking rules.",
        f"**Data.** {config['pool']} generated examples of copy, reverse, replace-random, shuffle and cumsum, of 3 "
        "to 6 items each.",
        f"**Recipe.** `ramify train list-model{''.join(options)}`: {schedule['steps']} steps of {config['batch']} "
        f"sequences, {objective}, stratified t, Muon for the matrices and AdamW for the rest, learning rate "
        f"{schedule['learning_rate']} (warm-up {schedule['warmup']} steps, linear decay over the last "
        f"{100 * schedule['cooldown']:.0f} %), weight decay {schedule['weight_decay']}, clipping at "
        f"{schedule['clip_norm']}, float32, seed {schedule['seed']}.",
        f"**Quality**, {config['trials']} lists of six items for each figure, only their slots masked. In random order "
        "at temperature 1, share of right answers by how many slots are filled a pass; in brackets an exact denoiser. "
        f"Of cumsum, one slot a pass, {figures['cumsum']:.3f} are right: it is not learnt at this size.",
    ]
    tables = ["| task | " + " | ".join(f"{each} a pass" for each in EACH) + " |", "|---|" + "---|" * len(EACH)]
    for task, found in figures["random_order"].items():
        cells = [f"{one:.3f} ({ideal:.3f})" for one, ideal in zip(found, IDEAL[task], strict=True)]
        tables.append(f"| {task} | {' | '.join(cells)} |")
    tables += [
        "",
        "The likeliest tokens, all of at least a threshold at once: share of right answers, mean passes.",
        "",
        "| task | " + " | ".join(f"{one}" for one in THRESHOLDS) + " |",
        "|---|" + "---|" * len(THRESHOLDS),
    ]
    for task, pairs in figures["threshold"].items():
        tables.append(f"| {task} | " + " | ".join(f"{share:.3f}, {passes:.2f}" for share, passes in pairs) + " |")
    tables += ["", "| step | mean training loss since the line before | shuffle, one slot a pass |", "|---|---|---|"]
    tables += [f"| {step} | {loss:.3f} | {share:.2f} |" for step, loss, share in points]
    text = "\n\n".join(textwrap.fill(part, 118, break_on_hyphens=False) for part in paragraphs)
    return f"# The list model of ramify\n\n{text}\n\n" + "\n".join(tables) + "\n"
