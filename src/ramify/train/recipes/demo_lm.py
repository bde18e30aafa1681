"""The demo model: a small Llama on the source of the Python standard library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.errors import RamifyError
from ramify.train.demo_lm import DemoLMConfig, train_demo_lm
from ramify.train.job import Job
from ramify.train.trainer import Progress


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``."""
    job.take()
    if job.data is not None or job.dry:
        raise RamifyError("the demo model has its own data and takes no --data or --dry-run")
    config = DemoLMConfig()
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    yield from train_demo_lm(job.out, replace(config, train=replace(config.train, **given)))
