"""ADED: trees searched in a tri-gram table that adapts to the target, by MCTS with PUCT scores.

Liu, Lei, Zhang & Xu, "Adaptive Draft-Verification for Efficient Large Language Model Decoding", arXiv 2407.12021 (AAAI
2025). M[(u, v)][w] starts as P(w | u, v) of a corpus, the 12 likeliest w of a pair. Before every draft, over the last
16 tokens of the text,

    M[(c_i, c_{i+1})][c_{i+2}] <- min(3, M[(c_i, c_{i+1})][c_{i+2}] + 0.04)

so that M drifts towards the target and the text at hand. Then, 150 times from the last two tokens: go down to the child
of largest

    W/n + (C1 + ln((N + C2 + 1)/C2)) · p · sqrt(N)/(1 + n)        (infinite while n = 0)

where p is its weight, n its visits and N its parent's; give a childless node all its successors at once and take the
last; go on by chance, w ∝ M, to the depth of 3 tokens; on the way back n grows by 1 and W by R = 1 + the sum of the
path's weights. The 24 most visited paths, each with the likeliest token behind it, are the draft.

Paper and code disagree, or are silent. Followed: R adds M[(a, b)][c] (the code looks up M[(a, b)][b], which is hardly
ever there: ``reward="constant"``); C1 = 32, as the code has it now (1.814 before); the engine verifies by matching one
sample a node, which is exact (the code draws for every path anew, which is not). Ours:

* nodes enter the tree in the order of visits until ``nodes`` are in it (the code drops the longest paths first). With
  ``nodes=None`` as many are drafted as pay on this machine, by how often the node of each rank was right so far.
* an adapted row is a copy on top of the corpus, which stays read only, of at most ``successors`` entries: the lightest
  makes room. ``scope="carried"`` keeps these rows from request to request, as published, "request" starts afresh.
* ``seed_from_prompt`` raises every tri-gram of the prompt as if the model had written the prompt, token by token.
* the paper compares with greedy search and full traversal without defining them. ``search="greedy"``: the chain of
  likeliest successors; "full": all paths by the product of their weights, which is found best first and costs less.

Cost per step: about 3.3 µs an iteration, in plain Python. Memory: some 16 bytes an entry of the corpus. Limits: a
context of one token gives no draft; a memory of three tokens cannot copy a long span, for which a union with a lookup
is better.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

from ramify.engine.drafter import Context, Drafter
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.puct import Tokens, explore, likeliest, most_visited, ranked
from ramify.methods.draft.ranking import Ranked, Sizing, TreeSize
from ramify.methods.draft.trigrams import Adapted, TrigramTable
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import DEMO, CausalLM

NODES = 64  # the paper's budget
ITERATIONS = 150
LEAST = 30  # iterations, however few nodes are wanted
BUNDLED = DEMO / "aded" / "trigrams.safetensors"
FIRST = tuple(0.32 / (rank + 1) ** 1.2 for rank in range(NODES))  # how often node i was right on the demo model


@register(
    name="aded",
    title="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    paper="arXiv 2407.12021",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Aded(DraftMethod):
    """Search a tri-gram table that adapts to what the model writes for the likeliest continuations.

    ``table``: a file of ``ramify train aded`` or a ``TrigramTable``; "empty" for adaptation alone; None for the bundled
    one where the model has the demo's tokenizer, else empty. ``nodes``: draft nodes per step (paper: 64); None sizes
    the tree by the machine's cost curve. ``iterations``: of the search; None for the paper's 150 at 64 nodes, and fewer
    in proportion, down to 30. ``depth``: tokens that it looks ahead; the likeliest next one is added to each path.
    ``paths``: most visited paths that are taken. ``c1``, ``c2``: constants of PUCT. ``reward``: "table" (paper) or
    "constant" (as the published code computes). ``search``: "mcts" (paper), "greedy" or "full" (ablations). ``adapt``:
    raise the weights of the tri-grams that are written, by ``rate`` up to ``cap``, all of the last ``window`` tokens at
    every step. ``successors``: most entries of an adapted pair. ``scope``: "carried" (paper) or "request".
    ``seed_from_prompt``: adapt to the whole prompt first, not to its end only. ``seed``: of the roll-outs.
    """

    table: TrigramTable | str | Path | None = None
    nodes: int | None = None
    iterations: int | None = None
    depth: int = 3
    paths: int = 24
    c1: float = 32.0
    c2: float = 8.0
    reward: Literal["table", "constant"] = "table"
    search: Literal["mcts", "greedy", "full"] = "mcts"
    adapt: bool = True
    rate: float = 0.04
    cap: float = 3.0
    window: int = 16
    successors: int = 24
    scope: Literal["carried", "request"] = "carried"
    seed_from_prompt: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")
        for name in ("iterations", "depth", "paths", "successors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RamifyError(f"{name} must be at least 1, got {value}")
        for name in ("c2", "rate", "cap"):
            if not getattr(self, name) > 0:
                raise RamifyError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.c1 < 0:
            raise RamifyError(f"c1 must be at least 0, got {self.c1}")
        if self.window < 3:
            raise RamifyError(f"window is {self.window}, but a tri-gram needs 3 tokens")
        for name, known in (
            ("reward", ("table", "constant")),
            ("search", ("mcts", "greedy", "full")),
            ("scope", ("carried", "request")),
        ):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        return AdaptiveDrafter(self, self._adapted(lm), self._sizing(lm, request.sampler.greedy))

    def _adapted(self, lm: CausalLM) -> Adapted:
        """The table that a request adapts: its own, or the one that all requests share."""
        corpus = self.memory.get(("corpus", lm))
        if corpus is None:
            corpus = self.memory["corpus", lm] = self._corpus(lm)
        if self.scope == "request":
            return Adapted(corpus, self.successors)
        adapted: Adapted | None = self.memory.get(("adapted", lm))
        if adapted is None:
            adapted = self.memory["adapted", lm] = Adapted(corpus, self.successors)
        return adapted

    def _corpus(self, lm: CausalLM) -> TrigramTable:
        if self.table is None and lm.tokenizer is not None and not bundled().refuses(lm):
            return bundled()
        if self.table is None or self.table == "empty":
            return TrigramTable.empty(lm.vocab_size)
        table = self.table if isinstance(self.table, TrigramTable) else TrigramTable.load(Path(self.table))
        why = table.refuses(lm)
        if why:
            raise RamifyError(
                f"the tri-gram table does not fit {lm.name}: {why}; make one for it with ramify train aded"
            )
        return table

    def _sizing(self, lm: CausalLM, greedy: bool) -> Sizing | None:
        if self.nodes is not None:
            return None
        size = self.memory.get(("size", lm, greedy))
        if size is None:
            size = self.memory["size", lm, greedy] = TreeSize(calibrate(lm), FIRST)
        return Sizing(size, self.depth + 1)


@functools.cache
def bundled() -> TrigramTable:
    """The demo model's table."""
    return TrigramTable.load(BUNDLED)


class AdaptiveDrafter(Drafter):
    """Adapts ``table`` to one sequence and searches it."""

    def __init__(self, options: Aded, table: Adapted, sizing: Sizing | None) -> None:
        self.options, self.table, self.sizing = options, table, sizing

    def start(self, prompt: Sequence[int]) -> None:
        if self.options.adapt and self.options.seed_from_prompt:
            steps = self.options.window - 2  # as many would have seen each of its tri-grams
            self._reinforce(prompt, steps * self.options.rate)

    def draft(self, context: Context) -> TokenTree:
        tokens = context.tokens
        if self.options.adapt:
            self._reinforce(tokens[-self.options.window :], self.options.rate)
        nodes = self.sizing.wanted(tokens) if self.sizing else self.options.nodes or 0
        if nodes == 0 or len(tokens) < 2:
            return TokenTree.empty()
        pair = self.table.pair(*tokens[-2:])
        tree = self._tree(pair, nodes)
        draft = self.sizing.draft(tree, tokens) if self.sizing else tree.first(len(tree))
        return replace(draft, promises=self._promises(pair, draft))

    def _promises(self, pair: int, draft: TokenTree) -> list[float]:
        """The share of every node's token among the successors of the pair before it."""
        pairs: list[int] = []
        promises: list[float] = []
        for token, parent in zip(draft.tokens.tolist(), draft.shape.parents, strict=True):
            before = pairs[parent] if parent >= 0 else pair
            row = self.table.row(before)
            promises.append(row.share(token) if row else 0.0)
            pairs.append(self.table.next(before, token))
        return promises

    def _reinforce(self, tokens: Sequence[int], by: float) -> None:
        for u, v, w in zip(tokens, tokens[1:], tokens[2:], strict=False):
            self.table.reinforce(self.table.pair(u, v), w, by, self.options.cap)

    def _tree(self, pair: int, nodes: int) -> Ranked:
        """The paths that the search finds from ``pair``, in its order, up to ``nodes`` nodes."""
        tree = Ranked(nodes)
        for path in self._search(pair, nodes):
            if not tree.add(path):
                break
        return tree

    def _search(self, pair: int, nodes: int) -> Iterator[Tokens]:
        options, table = self.options, self.table
        if options.search != "mcts":
            yield from (likeliest if options.search == "greedy" else ranked)(table, pair, options.depth + 1)
            return
        found = explore(
            table,
            pair,
            iterations=options.iterations or min(ITERATIONS, max(LEAST, ITERATIONS * nodes // NODES)),
            depth=options.depth,
            c1=options.c1,
            c2=options.c2,
            generator=Random(pair + options.seed) if options.reward == "table" else None,
        )
        yield from most_visited(table, found, options.paths)
