"""REST's datastore: the texts of a corpus and the order of their suffixes."""

from __future__ import annotations

import random
import textwrap
import time
from collections.abc import Iterator

from ramify.errors import RamifyError
from ramify.methods.draft.datastore import Datastore
from ramify.methods.head import fingerprint
from ramify.models.causal import CausalLM
from ramify.train.data import documents
from ramify.train.job import Job
from ramify.train.trainer import Progress

FILE = "datastore.safetensors"


def train(job: Job) -> Iterator[Progress]:
    """Write ``datastore.safetensors`` and its card into ``job.out``.

    Options: at most so many ``tokens``, of texts taken at random (all); whether the ``order`` of the suffixes is kept
    too (true) or made anew whenever the datastore is loaded.
    """
    options = job.take(tokens=None, order=True)
    if job.steps is not None or job.learning_rate is not None or job.dry:
        raise RamifyError("the rest recipe sorts its corpus once and takes no --steps, --learning-rate or --dry-run")
    lm, began = job.lm(), time.monotonic()
    texts = documents(lm, job.data)
    if options["tokens"] is not None:
        texts = _some(texts, options["tokens"], job.seed)
    store = Datastore.of(texts, lm.vocab_size, fingerprint(lm))
    job.out.mkdir(parents=True, exist_ok=True)
    store.save(job.out / FILE, order=options["order"])
    (job.out / "README.md").write_text(_card(job, lm, len(texts), store))
    yield Progress(1, 1, None, time.monotonic() - began, {"texts": float(len(texts)), "tokens": float(len(store))})


def _some(texts: list[list[int]], tokens: int, seed: int) -> list[list[int]]:
    """As many of ``texts`` in a random order as fit into ``tokens``, the mark behind each included."""
    kept, room = [], tokens
    for text in random.Random(seed).sample(texts, len(texts)):
        if len(text) + 1 <= room:
            kept.append(text)
            room -= len(text) + 1
    return kept


def _card(job: Job, lm: CausalLM, texts: int, store: Datastore) -> str:
    options = "".join(f" -o {option}={value}" for option, value in job.options.items())
    data = "the standard library's training files" if job.data is None else job.data.name
    paragraphs = [
        f"{texts} texts of {len(store)} tokens together (a mark behind each included), as token ids of `{lm.name}`.",
        f"Recipe: `ramify train rest --model {lm.name}{options}`, seed {job.seed}, on {data}.",
    ]
    return f"# Datastore for {lm.name}\n\n" + "\n\n".join(textwrap.fill(p, 118) for p in paragraphs) + "\n"
