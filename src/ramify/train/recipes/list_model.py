"""The list model: a masked denoiser on list tasks of one token per item, the test bench of the unmasking rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.errors import RamifyError
from ramify.train.denoise_lists import ListModelConfig, train_list_model
from ramify.train.job import Job
from ramify.train.trainer import Progress


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``.

    Options: ``prefix_causal``, the control whose prompt does not see the answer (false); ``block``, attention in blocks
    of so many positions (none).
    """
    options = job.take(prefix_causal=False, block=None)
    if job.data is not None:
        raise RamifyError("the list model has its own data and takes no --data")
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    config = ListModelConfig(**options)
    yield from train_list_model(job.out, replace(config, train=replace(config.train, **given)), job.dry)
