"""The one recipe for every trained drafter: windows of text, a frozen target that teaches, a head that learns.

What the target says is computed when it is needed and never stored. On a GPU nothing changes but the device.
"""

from __future__ import annotations

import contextlib
import functools
import json
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ramify.errors import RamifyError
from ramify.methods.head import Head, Regime
from ramify.methods.registry import find
from ramify.models.causal import CausalLM
from ramify.train.data import Windows, documents, held_out_documents, separator, split_off
from ramify.train.job import Job
from ramify.train.trainer import Progress, TrainConfig, train

EVALUATIONS = 8  # windows that measure
SETTLING = 8  # batches of training text on which a head may measure itself, once it is trained
SAVE_EVERY = 25
TRIAL = 3  # steps of a dry run


def head_class(name: str) -> type[Head]:
    """The head that the method ``name`` trains."""
    head: type[Head] = find(name).trains
    return head


def train_head(name: str, job: Job) -> Iterator[Progress]:
    """Train the head of method ``name`` into ``job.out/head``, resuming from ``job.out`` if a checkpoint is there."""
    lm = job.lm(weights="plain" if head_class(name).regime.through else None)
    lm.require_trees(f"the training of {name}")
    with _frozen(lm.model):
        yield from _train(name, job, lm)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Keep gradients from gathering on the target's weights where a head trains through its layers."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


def _train(name: str, job: Job, lm: CausalLM) -> Iterator[Progress]:
    cls = head_class(name)
    regime = cls.regime
    torch.manual_seed(job.seed)
    head = cls.new(lm, **job.options).to(lm.device)
    context = min(regime.context, lm.context)
    texts, held_out = documents(lm, job.data), held_out_documents(lm) if job.data is None else None
    if held_out is None:
        texts, held_out = split_off(texts, EVALUATIONS * (context + 1))
    head.read(lm, texts)
    windows = Windows(texts, separator(lm), context, regime.batch, job.seed)
    config = TrainConfig(
        steps=job.steps or regime.steps,
        learning_rate=job.learning_rate or regime.learning_rate,
        optimizer="adamw" if regime.optimizer == "adamw" else "muon",
        warmup=regime.warmup,
        cooldown=0.5,
        weight_decay=regime.weight_decay,
        seed=job.seed,
        eval_every=max(1, (job.steps or regime.steps) // 10),
        save_every=SAVE_EVERY,
    )

    def loss_at(step: int) -> Tensor:
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=lm.dtype == torch.bfloat16):
            return head.loss(lm, windows(step).to(lm.device))

    if job.dry:
        yield from estimate(head, loss_at, config)
        return
    described = {
        "method": name,
        "sizes": asdict(head.sizes),
        "fit": asdict(head.fit),
        "data": str(job.data),
        "seed": job.seed,
        "model": lm.name,
    }
    same_run(job.out, described)
    evaluate = functools.partial(_measure, head, lm, _cut(held_out, separator(lm), context).to(lm.device))
    last = None
    for last in train(head, loss_at, config, job.out, evaluate):
        yield last
    head.eval()
    with torch.no_grad(), torch.autocast(lm.device.type, torch.bfloat16, enabled=lm.dtype == torch.bfloat16):
        head.settle(lm, torch.cat([windows(config.steps + extra) for extra in range(SETTLING)]).to(lm.device))
    head.save(job.out / "head")
    figures = last.evaluation if last is not None else evaluate()
    (job.out / "head" / "README.md").write_text(_card(name, job, head, lm, regime, config, figures or {}))


def _cut(texts: list[list[int]], end: int, context: int) -> Tensor:
    """Windows [8, context + 1] that measure, evenly over the held-out texts."""
    flat = torch.tensor([token for text in texts for token in [end, *text]])
    last = len(flat) - context - 1
    return torch.stack([flat[start : start + context + 1] for start in torch.linspace(0, last, EVALUATIONS).long()])


@torch.no_grad()
def _measure(head: Head, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=lm.dtype == torch.bfloat16):
        return {name: round(value, 4) for name, value in head.measure(lm, tokens).items()}


def same_run(out: Path, described: dict[str, Any]) -> None:
    """Note in ``out`` what is trained there; raises ``RamifyError`` where that is something else."""
    file = out / "run.json"
    if file.exists() and json.loads(file.read_text()) != described:
        raise RamifyError(
            f"{out} holds another run ({file.name} tells which); choose another --out, or remove that folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described, indent=2) + "\n")


def estimate(model: nn.Module, loss_at: Callable[[int], Tensor], config: TrainConfig) -> Iterator[Progress]:
    """Some steps that are thrown away: how long a run would take, and how much memory."""
    process = psutil.Process()
    seconds, resident = [], 0
    for step in range(TRIAL):
        began = time.perf_counter()
        loss_at(step).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
        resident = max(resident, process.memory_info().rss)
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    found = {
        "parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "seconds a step": min(seconds),
        "minutes": min(seconds) * config.steps / 60,
        "memory (GB)": (on_gpu or resident) / 1e9,
    }
    yield Progress(0, config.steps, None, sum(seconds), found)


def _card(
    name: str, job: Job, head: Head, lm: CausalLM, regime: Regime, config: TrainConfig, figures: dict[str, float]
) -> str:
    """The head's card."""
    parameters = sum(p.numel() for p in head.parameters())
    context = min(regime.context, lm.context)
    options = "".join(f" -o {option}={value}" for option, value in job.options.items())
    data = "the standard library's training files" if job.data is None else job.data.name
    held = "held-out modules" if job.data is None else "the end of the data, which was not trained on"
    paragraphs = [
        f"A `{name}` head of {parameters / 1e6:.3g} M parameters for the model `{lm.name}` (hidden size "
        f"{head.fit.hidden_size}, {head.fit.layers} layers, {head.fit.vocab_size} tokens).",
        f"Recipe: `ramify train {name} --model {lm.name}{options}`, {config.steps} steps of {regime.batch} × {context} "
        f"tokens of {data}, {config.optimizer}, learning rate {config.learning_rate}, seed {config.seed}.",
        "Sizes: " + (", ".join(f"{key} {value}" for key, value in asdict(head.sizes).items()) or "none") + ".",
    ]
    lines = [
        f"| figure on {held} | value |",
        "|---|---|",
        *(f"| {key} | {value:.3f} |" for key, value in figures.items()),
    ]
    curve = _curve(job.out / "curve.jsonl")
    text = "\n\n".join(textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False) for part in paragraphs)
    return f"# {name} head for {lm.name}\n\n{text}\n\n" + "\n".join(lines) + "\n\n" + "\n".join(curve) + "\n"


def _curve(file: Path) -> list[str]:
    """Ten points of the loss, each the mean of its tenth of the run."""
    points = [json.loads(line) for line in file.read_text().splitlines()]
    count = min(10, len(points))
    parts = [points[part * len(points) // count : (part + 1) * len(points) // count] for part in range(count)]
    lines = ["| steps | training loss (mean) |", "|---|---|"]
    return lines + [f"| to {part[-1]['step']} | {sum(p['loss'] for p in part) / len(part):.4f} |" for part in parts]
