"""Token Recycling's calibrated templates, counted on the demo model's own training files."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ramify.errors import RamifyError
from ramify.train.job import Job
from ramify.train.token_recycling import library_excerpts, train_template
from ramify.train.trainer import Progress

KINDS = ("greedy", "sampled")


def train(job: Job) -> Iterator[Progress]:
    """Write ``greedy.json`` and ``sampled.json`` into ``job.out``."""
    job.take()
    if job.steps is not None or job.learning_rate is not None or job.data is not None or job.dry:
        raise RamifyError("the token-recycling recipe counts on its own texts and takes no further settings")
    job.out.mkdir(parents=True, exist_ok=True)
    lm, began = job.lm(dtype="float32"), time.monotonic()
    excerpts = library_excerpts(32, job.seed)
    for step, kind in enumerate(KINDS, 1):
        template = train_template(lm, excerpts, greedy=kind == "greedy", seed=job.seed)
        template.save(job.out / f"{kind}.json")
        sizes = [size for size in (20, 40, 80, 160) if size <= len(template.ranks)]
        expected = {f"tokens a pass, {kind}, {size} nodes": round(template.expected(size), 3) for size in sizes}
        yield Progress(step, len(KINDS), None, time.monotonic() - began, expected)
