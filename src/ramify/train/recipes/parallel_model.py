"""The parallel model: a masked denoiser that answers ParallelBench's text families, from copying lists to sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.errors import RamifyError
from ramify.train.denoise_texts import ParallelModelConfig, train_parallel_model
from ramify.train.job import Job
from ramify.train.trainer import Progress


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``."""
    job.take()
    if job.data is not None:
        raise RamifyError("the parallel model has its own data and takes no --data")
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    config = ParallelModelConfig()
    yield from train_parallel_model(job.out, replace(config, train=replace(config.train, **given)), job.dry)
