"""REST: a tree of what followed the longest matching suffix of the text in a datastore.

He et al., "REST: Retrieval-Based Speculative Decoding", arXiv 2311.08252 (NAACL 2024). A suffix array over a corpus
tells where the last 16 tokens of the text occur, else the last 15, and so on down to 2. The 10 tokens behind each of at
most 5000 matches enter a trie, and its 64 prefixes of largest count are the draft. Exact for every target law, since
the engine verifies by matching one sample a node (the official code draws for every path anew, which is not exact).

Ours, where paper and code are silent or arbitrary: of more than 5000 matches, those at even distances in the order of
the suffixes are read (the code reads the first, which go on with the lowest ids); among equal counts the shorter prefix
comes first, so that any number of nodes is a tree (the code drops the longest paths where there are too many); nothing
is read across the end of a text. ``nodes=None`` drafts as many nodes as pay on this machine; a node's probability is
taken to be its share of the matches, corrected by what was accepted so far at matches of like length.

Cost per step: at most four searches by bisection, and a few array operations over the matches. Memory: 8 bytes a token
of the corpus. Limits: a text that the corpus does not know gets no draft.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.datastore import SORTED, Datastore
from ramify.methods.draft.sizing import PromisedSize
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import DEMO, CausalLM

NODES = 64  # the paper's budget
BUNDLED = DEMO / "rest" / "datastore.safetensors"


@register(
    name="rest",
    title="REST: Retrieval-Based Speculative Decoding",
    paper="arXiv 2311.08252",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Rest(DraftMethod):
    """Draft a tree of what followed the longest matching suffix of the text in a datastore.

    ``datastore``: a file of ``ramify train rest`` or a ``Datastore``; None for the bundled one, which fits the demo
    model only. ``nodes``: draft nodes per step (paper: 64); None sizes the tree by acceptance and cost curve.
    ``longest``, ``shortest``: tokens of a suffix. ``matches``: most matches that are read. ``length``: tokens read
    behind a match.
    """

    datastore: Datastore | str | Path | None = None
    nodes: int | None = None
    longest: int = 16
    shortest: int = 2
    matches: int = 5000
    length: int = 10

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")
        if min(self.shortest, self.matches, self.length) < 1:
            raise RamifyError(
                f"shortest, matches and length must be at least 1, "
                f"got {self.shortest}, {self.matches} and {self.length}"
            )
        if self.longest < self.shortest:
            raise RamifyError(f"longest is {self.longest}, less than shortest, which is {self.shortest}")
        if self.longest + self.length > SORTED:
            raise RamifyError(
                f"longest and length are {self.longest + self.length} together, but a datastore is sorted by {SORTED} "
                "tokens; choose smaller ones"
            )

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        size = None
        if self.nodes is None:
            size = self.memory.get(("size", lm))
            if size is None:
                size = self.memory["size", lm] = PromisedSize(calibrate(lm), NODES)
        return Retriever(self, self._datastore(lm), size)

    def _datastore(self, lm: CausalLM) -> Datastore:
        known: Datastore | None = self.memory.get(("datastore", lm))
        if known is None:
            known = self.memory["datastore", lm] = self._fitting(lm)
        return known

    def _fitting(self, lm: CausalLM) -> Datastore:
        cure = "make one for it with ramify train rest --model … --data …"
        if self.datastore is None and (lm.tokenizer is None or bundled().refuses(lm)):
            raise RamifyError(f"rest has no datastore for {lm.name}; {cure}, and give it as datastore")
        if self.datastore is None:
            return bundled()
        given = self.datastore
        store = given if isinstance(given, Datastore) else Datastore.load(Path(given))
        why = store.refuses(lm)
        if why:
            raise RamifyError(f"the datastore does not fit {lm.name}: {why}; {cure}")
        return store


@functools.cache
def bundled() -> Datastore:
    """The demo model's datastore; sorted anew, which takes about half a second, for it is kept without its order."""
    return Datastore.load(BUNDLED)


class Retriever(Drafter):
    """Looks one sequence up in ``store``; ``size`` chooses how much of a tree is drafted."""

    def __init__(self, options: Rest, store: Datastore, size: PromisedSize | None) -> None:
        self.options, self.store, self.size = options, store, size
        self.kind, self.promises = 0, [0.0]

    def draft(self, context: Context) -> TokenTree:
        options = self.options
        if options.nodes == 0:
            return TokenTree.empty()
        match, places = self.store.longest(context.tokens[-options.longest :], options.longest, options.shortest)
        if not match:
            return TokenTree.empty()
        if len(places) > options.matches:
            places = places[np.linspace(0, len(places) - 1, options.matches).astype(np.int64)]
        found = most_frequent(self.store.behind(places + match, options.length), options.nodes or NODES)
        nodes = len(found)
        if self.size is not None:
            self.kind = match.bit_length()  # 2–3, 4–7, 8–15, 16: matches of like length are alike
            self.promises = [count / len(places) for _, count in found]
            nodes = self.size.choose(self.kind, self.promises)
        return prefix_tree([prefix for prefix, _ in found[:nodes]])

    def observe(self, outcome: Outcome) -> None:
        if self.size is not None and outcome.drafted:
            self.size.observe(self.kind, self.promises[: outcome.drafted], outcome.accepted)


def most_frequent(rows: np.ndarray, nodes: int) -> list[tuple[tuple[int, ...], int]]:
    """The ``nodes`` prefixes of largest count in ``rows`` [m, length], sorted as rows are; −1 ends a row early.

    Among equal counts the shorter comes first, then the one that is sorted first.
    """
    size, length = rows.shape
    differs = np.ones(rows.shape, dtype=bool)
    differs[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    last, head = np.nonzero(differs.T)  # every prefix by its last place and the first row that has it
    end = np.append(head[1:], 0)
    end[end == 0] = size
    real = rows[head, last] >= 0
    last, head, count = last[real], head[real], (end - head)[real]
    worth = (count * length + length - last) * size - head
    best = np.argpartition(-worth, nodes)[:nodes] if len(worth) > nodes else np.arange(len(worth))
    best = best[np.argsort(-worth[best])]
    return [
        (tuple(rows[row, : place + 1].tolist()), times)
        for row, place, times in zip(head[best].tolist(), last[best].tolist(), count[best].tolist(), strict=True)
    ]


def prefix_tree(prefixes: Sequence[tuple[int, ...]]) -> TokenTree:
    """The tree of ``prefixes``, one node for each; none comes before its own beginning."""
    places = {prefix: node for node, prefix in enumerate(prefixes)} | {(): -1}
    tokens = torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.long)
    return TokenTree(tokens, TreeShape.of(places[prefix[:-1]] for prefix in prefixes))
