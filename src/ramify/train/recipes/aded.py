"""ADED's tri-gram table, counted over a corpus."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator

from ramify.errors import RamifyError
from ramify.methods.draft.trigram_counts import counting
from ramify.methods.draft.trigrams import SUCCESSORS, TrigramTable
from ramify.methods.head import fingerprint
from ramify.models.causal import CausalLM
from ramify.train.data import documents
from ramify.train.job import Job
from ramify.train.trainer import Progress

FILE = "trigrams.safetensors"


def train(job: Job) -> Iterator[Progress]:
    """Write ``trigrams.safetensors`` and its card into ``job.out``.

    Options: ``keep`` successors of a pair (12); only tri-grams that occurred ``least`` times (1); of these the
    ``entries`` most frequent (all).
    """
    options = job.take(keep=SUCCESSORS, least=1, entries=None)
    if job.steps is not None or job.learning_rate is not None or job.dry:
        raise RamifyError("the aded recipe counts its corpus once and takes no --steps, --learning-rate or --dry-run")
    lm, began = job.lm(), time.monotonic()
    texts = documents(lm, job.data)
    total = sum(max(len(text) - 2, 0) for text in texts)
    for found in counting(texts, lm.vocab_size):
        yield Progress(int(found.counts.sum()), total, None, time.monotonic() - began)
    table = found.table(**options, fingerprint=fingerprint(lm))
    if not len(table):
        raise RamifyError("the corpus is too short: no tri-gram is left; give more text or lower least")
    job.out.mkdir(parents=True, exist_ok=True)
    table.save(job.out / FILE)
    kept = {"tri-grams": float(len(found.trigrams)), "kept": float(len(table)), "pairs": float(len(table.pairs))}
    (job.out / "README.md").write_text(_card(job, lm, texts, table, kept))
    yield Progress(total, total, None, time.monotonic() - began, kept)


def _card(job: Job, lm: CausalLM, texts: list[list[int]], table: TrigramTable, kept: dict[str, float]) -> str:
    options = "".join(f" -o {option}={value}" for option, value in job.options.items())
    data = "the standard library's training files" if job.data is None else job.data.name
    paragraphs = [
        f"P(w | u, v) over the {table.vocab_size} tokens of `{lm.name}`: {kept['kept']:.0f} of {kept['tri-grams']:.0f} "
        f"tri-grams, after {kept['pairs']:.0f} pairs.",
        f"Recipe: `ramify train aded --model {lm.name}{options}`, {len(texts)} texts of {sum(map(len, texts))} tokens "
        f"together: {data}.",
    ]
    return f"# Tri-gram table for {lm.name}\n\n" + "\n\n".join(textwrap.fill(p, 118) for p in paragraphs) + "\n"
