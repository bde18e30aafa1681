"""The model of the shared sum task: a tiny mixture of experts whose likeliest first token leads to the worse way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.errors import RamifyError
from ramify.train.job import Job
from ramify.train.reasoner import ReasonerConfig, train_reasoner
from ramify.train.trainer import Progress, TrainConfig

CONFIG = ReasonerConfig(
    families=("sum",),
    vocab_size=None,
    hidden_size=48,
    expert_size=64,
    layers=2,
    experts=4,
    context=256,
    saved="float32",
    train=TrainConfig(steps=2000, learning_rate=1e-2, warmup=50, cooldown=0.5, eval_every=400),
)


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``; the options ``experts`` and ``noise`` are those of ``ReasonerConfig``."""
    options = job.take(experts=CONFIG.experts, noise=CONFIG.noise)
    if job.data is not None or job.dry:
        raise RamifyError("the sum model has its own data and takes no --data or --dry-run")
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    config = replace(CONFIG, experts=int(options["experts"]), noise=float(options["noise"]))
    yield from train_reasoner(job.out, replace(config, train=replace(config.train, **given)))
