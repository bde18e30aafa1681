"""The demo diffusion model: layers of the demo model that fill blocks of masks, and the base of DEER's drafter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ramify.train.demo_dlm import DemoDLMConfig, train_demo_dlm
from ramify.train.job import Job
from ramify.train.trainer import Progress


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``.

    Options: ``init``, whether it begins as ``--model`` (demo) or from random weights (scratch); ``layers``, how many of
    the model's (4); ``block``, positions of a block (16) or none for full attention; ``context`` (256); ``batch`` (8).
    """
    config = DemoDLMConfig()
    options = job.take(**{name: getattr(config, name) for name in ("init", "layers", "block", "context", "batch")})
    changes = {"seed": job.seed, "steps": job.steps, "learning_rate": job.learning_rate}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    lm = job.lm(dtype="float32", weights="plain")
    config = replace(config, **options, train=replace(config.train, **given))
    yield from train_demo_dlm(lm, job.out, config, job.data, job.dry)
