"""The demo reasoner: a small mixture of experts that works out arithmetic stories, relations and tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.errors import RamifyError
from ramify.train.job import Job
from ramify.train.reasoner import ReasonerConfig, train_reasoner
from ramify.train.reasoner_card import write_card
from ramify.train.reasoner_data import tokens_seen
from ramify.train.trainer import Progress


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``."""
    noise = float(job.take(noise=0.0)["noise"])
    if job.data is not None or job.dry:
        raise RamifyError("the demo reasoner has its own data and takes no --data or --dry-run")
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    config = ReasonerConfig(noise=noise)
    config = replace(config, train=replace(config.train, **given))
    yield from train_reasoner(job.out, config)
    write_card(job.out / "model", config, tokens_seen(job.out / "model", config))
