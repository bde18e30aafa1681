"""Counting the tri-grams of a corpus, from which a table is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ramify.errors import RamifyError
from ramify.methods.draft.trigrams import MOST, SUCCESSORS, TrigramTable

CHUNK = 1 << 20  # tri-grams that are counted at once


@dataclass(frozen=True, eq=False)
class Counts:
    """How often every tri-gram occurred: ``trigrams`` (int64 [E], (u · V + v) · V + w, ascending), ``counts`` [E]."""

    vocab_size: int
    trigrams: np.ndarray
    counts: np.ndarray

    def table(
        self, *, keep: int = SUCCESSORS, least: int = 1, entries: int | None = None, fingerprint: str = ""
    ) -> TrigramTable:
        """P(w | u, v) with the ``keep`` likeliest w of a pair, not normalised anew.

        Of these only what occurred ``least`` times, and the ``entries`` most frequent, where the table is to be small.
        """
        if not 1 <= keep <= MOST:
            raise RamifyError(f"keep is {keep}; a pair has between 1 and {MOST} successors")
        pairs, places = np.unique(self.trigrams // self.vocab_size, return_inverse=True)
        totals = np.bincount(places, self.counts, minlength=len(pairs))
        order = np.lexsort((self.trigrams, -self.counts, places))
        places, trigrams, occurred = places[order], self.trigrams[order], self.counts[order]
        rank = np.arange(len(order)) - np.searchsorted(places, places)
        kept = np.flatnonzero((rank < keep) & (occurred >= least))
        if entries is not None and len(kept) > entries:
            kept = np.sort(kept[np.lexsort((kept, -occurred[kept]))[:entries]])
        found, sizes = np.unique(places[kept], return_counts=True)
        return TrigramTable(
            self.vocab_size,
            pairs[found],
            np.concatenate([[0], np.cumsum(sizes)]),
            (trigrams[kept] % self.vocab_size).astype(np.int32),
            (occurred[kept] / totals[places[kept]]).astype(np.float32),
            fingerprint,
        )


def counts(documents: Iterable[list[int]], vocab_size: int) -> Counts:
    """The tri-grams of documents of token ids; none reaches from one document into the next."""
    *_, found = counting(documents, vocab_size)
    return found


def counting(documents: Iterable[list[int]], vocab_size: int) -> Iterator[Counts]:
    """``counts`` bit by bit: what was counted so far, again and again, in the end all of it."""
    if vocab_size**3 >= 1 << 63:
        raise RamifyError(f"a vocabulary of {vocab_size} is too large for tri-grams in 64 bits")
    total = Counts(vocab_size, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    waiting: list[np.ndarray] = []
    size = 0
    for document in documents:
        ids = np.array(document, dtype=np.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise RamifyError(
                f"the text has tokens outside the vocabulary of {vocab_size}; use the model's own tokenizer"
            )
        waiting.append((ids[:-2] * vocab_size + ids[1:-1]) * vocab_size + ids[2:])
        size += len(waiting[-1])
        if size >= CHUNK:
            total = _merged(total, waiting)
            waiting, size = [], 0
            yield total
    yield _merged(total, waiting)


def _merged(total: Counts, chunks: list[np.ndarray]) -> Counts:
    fresh, times = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *chunks]), return_counts=True)
    trigrams, places = np.unique(np.concatenate([total.trigrams, fresh]), return_inverse=True)
    occurred = np.bincount(places, np.concatenate([total.counts, times]), minlength=len(trigrams))
    return Counts(total.vocab_size, trigrams, occurred.astype(np.int64))
