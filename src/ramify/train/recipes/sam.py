"""SAM-Decoding's static suffix automaton, built over a corpus."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence

from ramify.engine.automaton import SuffixAutomaton
from ramify.errors import RamifyError
from ramify.methods.draft.static_automaton import StaticAutomaton
from ramify.methods.head import fingerprint
from ramify.models.causal import CausalLM
from ramify.train.data import documents
from ramify.train.job import Job
from ramify.train.trainer import Progress

FILE = "automaton.safetensors"
EVERY = 50_000  # tokens between two lines of the curve
TOKENS = 1_000_000


def train(job: Job) -> Iterator[Progress]:
    """Write ``automaton.safetensors`` and its card into ``job.out``.

    Option: ``tokens``, how many of the corpus to read at most (1,000,000; each takes about 50 bytes in the file, and
    1 KB of memory while the automaton grows). A document ends with the tokenizer's end of text, if it has one.
    """
    limit = job.take(tokens=TOKENS)["tokens"]
    if job.steps is not None or job.learning_rate is not None or job.dry:
        raise RamifyError("the sam recipe reads its corpus once and takes no --steps, --learning-rate or --dry-run")
    if not isinstance(limit, int) or limit < 1:
        raise RamifyError(f"tokens is {limit!r}; read at least 1")
    lm, began = job.lm(), time.monotonic()
    texts = _first(documents(lm, job.data), limit, lm.require_tokenizer().eos_token_id)
    total, read, said = sum(map(len, texts)), 0, 0
    grown = SuffixAutomaton()
    for text in texts:
        grown.add(text)
        read += len(text)
        if read >= said + EVERY:
            said = read
            yield Progress(read, total, None, time.monotonic() - began)
    automaton = StaticAutomaton.freeze(grown, lm.vocab_size, fingerprint(lm))
    job.out.mkdir(parents=True, exist_ok=True)
    automaton.save(job.out / FILE)
    (job.out / "README.md").write_text(_card(job, lm, texts, automaton))
    figures = {"states": float(len(automaton.link)), "steps between states": float(len(automaton.tokens))}
    figures["megabytes"] = (job.out / FILE).stat().st_size / 1e6
    yield Progress(total, total, None, time.monotonic() - began, figures)


def _first(texts: Sequence[list[int]], limit: int, end: int | None) -> list[list[int]]:
    """The texts as far as ``limit`` tokens, whole ones with ``end`` behind them."""
    kept = list[list[int]]()
    for text in texts:
        whole = text if end is None else [*text, end]
        kept.append(whole[:limit])
        limit -= len(whole)
        if limit <= 0:
            break
    return kept


def _card(job: Job, lm: CausalLM, texts: list[list[int]], automaton: StaticAutomaton) -> str:
    options = "".join(f" -o {option}={value}" for option, value in job.options.items())
    data = "the standard library's training files" if job.data is None else job.data.name
    paragraphs = [
        f"The suffix automaton of a corpus in the vocabulary of `{lm.name}` ({automaton.vocab_size} tokens): "
        f"{len(automaton.link)} states, {len(automaton.tokens)} steps between them.",
        f"Recipe: `ramify train sam --model {lm.name}{options}`, {len(texts)} texts of {sum(map(len, texts))} tokens "
        f"together: {data}.",
    ]
    return f"# Suffix automaton for {lm.name}\n\n" + "\n\n".join(textwrap.fill(p, 118) for p in paragraphs) + "\n"
