"""The grid model: images in miniature by a masked denoiser, the test bench of what samples images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.errors import RamifyError
from ramify.train.denoise_grids import GridModelConfig, train_grid_model
from ramify.train.job import Job
from ramify.train.trainer import Progress


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``."""
    job.take()
    if job.data is not None:
        raise RamifyError("the grid model has its own data and takes no --data")
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    config = GridModelConfig()
    yield from train_grid_model(job.out, replace(config, train=replace(config.train, **given)), job.dry)
