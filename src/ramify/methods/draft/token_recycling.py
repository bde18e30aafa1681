"""Token Recycling: fill a fixed tree from a matrix of the target's own discarded top-k tokens.

Luo et al., "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
arXiv 2408.08696 (ACL 2025). Row t of the matrix A [V, k] holds the k most likely successors of token t that the
target last computed. A tree template gives each node a rank r below its parent: the node's token is A[parent's token,
r]. After each pass, A[s_i] <- top-k of Z_i for every scored node i, the rejected ones included.

Followed: k = 8, all nodes update, whole rows are overwritten, A starts at zero (its proposals of token 0 are harmless).
``template="paper"`` is the published tree of 80 nodes. Our choices, where paper and code are silent or disagree:

* ``template="calibrated"`` ranks 160 nodes by how often they were right on the demo model's training files
  (``calibrate_template``, down to depth 12), apart for greedy and for sampled text, which repeats itself less; its
  first n nodes are the best prefix-closed tree of n. ``nodes=None`` takes the n with the most expected tokens per
  second on the machine's cost curve, and none when drafting does not pay. The published tree has no rates: it is
  taken whole, or cut to ``nodes`` in its own order.
* ``seed_from_prompt``: the prompt's logits enter A too (the official code throws them away).
* when a token occurs at several scored nodes, the last one in order wins, on every device.
* ``scope="carried"`` keeps A from request to request for as long as the method object lives, as in the published
  figures; "request" starts afresh, which servers with several users want.
* at temperature > 0 the engine verifies by matching one sample a node, which is exact.

Cost per step: one gather a level, one top-k over [n + 1, V]. Memory: V · k · 4 bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.engine.speculate import speculate
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.template import Template
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

SIZES = (4, 6, 8, 10, 12, 15, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 160)
TEMPLATES = Path(__file__).with_name("token_recycling_templates.json")
DEPTH = 12


@register(
    name="token-recycling",
    title="Turning Trash into Treasure: Accelerating Inference of LLMs with Token Recycling",
    paper="arXiv 2408.08696",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class TokenRecycling(DraftMethod):
    """Draft a tree from the top-k tokens that the model itself computed before and did not use.

    ``nodes``: draft nodes per step; None sizes the tree by the machine's cost curve. ``k``: candidates kept for a
    token (paper: 8). ``template``: "calibrated", "paper", or the path of a file that ``Template.save`` wrote.
    ``scope``: "carried" (as published) or "request". ``seed_from_prompt``: learn from the prompt's logits.
    ``update``: "all" scored nodes feed the matrix (paper), or only the "accepted" ones (ablation).
    """

    nodes: int | None = None
    k: int = 8
    template: str = "calibrated"
    scope: Literal["carried", "request"] = "carried"
    seed_from_prompt: bool = True
    update: Literal["all", "accepted"] = "all"

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")
        if self.k < 1:
            raise RamifyError(f"k must be at least 1, got {self.k}")
        for name, value, known in (
            ("scope", self.scope, ("carried", "request")),
            ("update", self.update, ("all", "accepted")),
        ):
            if value not in known:
                raise unknown(name, value, known)

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        if self.k > lm.vocab_size:
            raise RamifyError(f"k is {self.k}, but {lm.name} has {lm.vocab_size} tokens; choose a smaller k")
        return Recycler(self, self._tree(lm, request.sampler.greedy), self._matrix(lm), self._shares(lm))

    def _tree(self, lm: CausalLM, greedy: bool) -> Template:
        name = self.template
        if name == "calibrated":
            name = "greedy" if greedy else "sampled"
        tree: Template | None = self.memory.get(("tree", name, lm))
        if tree is None:
            full = load_template(name).narrow(self.k)
            nodes = self.nodes
            if nodes is None:
                sizes = [size for size in SIZES if size < len(full.ranks)] + [len(full.ranks)]
                nodes = calibrate(lm).best(full.expected, sizes) if full.rates else len(full.ranks)
            tree = self.memory["tree", name, lm] = full.first(nodes)
        return tree

    def _matrix(self, lm: CausalLM) -> np.ndarray:
        if self.scope == "request":
            return np.zeros((lm.vocab_size, self.k), dtype=np.int32)
        matrix: np.ndarray | None = self.memory.get(("matrix", lm))
        if matrix is None:
            matrix = self.memory["matrix", lm] = np.zeros((lm.vocab_size, self.k), dtype=np.int32)
        return matrix

    def _shares(self, lm: CausalLM) -> np.ndarray:
        if self.scope == "request":
            return np.zeros((lm.vocab_size, self.k), dtype=np.float32)
        shares: np.ndarray = self.memory.setdefault(("shares", lm), np.zeros((lm.vocab_size, self.k), dtype=np.float32))
        return shares


def load_template(name: str) -> Template:
    """A bundled template ("paper", "greedy", "sampled"), or one from a file."""
    bundled = json.loads(TEMPLATES.read_text())
    if name in bundled:
        return Template.of(bundled[name])
    file = Path(name)
    if not file.is_file():
        raise unknown("template", name, ["calibrated", *bundled])
    return Template.read(file)


class Recycler(Drafter):
    """Fills ``template`` from ``matrix`` [V, k] (int32, may be shared between sequences) and keeps it up to date.

    ``shares`` [V, k] (float32): the softmax over the k logits that were kept; None to make no promises.
    """

    def __init__(
        self, options: TokenRecycling, template: Template, matrix: np.ndarray, shares: np.ndarray | None = None
    ) -> None:
        self.options, self.template, self.matrix, self.shares = options, template, matrix, shares
        self.wants_prompt_logits = options.seed_from_prompt and len(template.ranks) > 0

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        if logits is not None:
            self._recycle(np.array(tokens), logits)

    def draft(self, context: Context) -> TokenTree:
        filled = np.empty(len(self.template.ranks) + 1, dtype=np.int64)
        filled[0] = context.tokens[-1]
        for nodes, parents, ranks in self.template.levels:
            filled[nodes] = self.matrix[filled[parents], ranks]
        promises = None
        if self.shares is not None:
            parents, ranks = self.template.slots
            promises = self.shares[filled[parents], ranks].tolist()
        return TokenTree(torch.from_numpy(filled[1:]), self.template.shape, promises=promises)

    def observe(self, outcome: Outcome) -> None:
        if not self.template.ranks:
            return
        tokens, logits = outcome.tree.tokens, outcome.logits
        if self.options.update == "accepted":
            path = list(outcome.path)
            tokens, logits = tokens[path], logits[path]
        self._recycle(tokens.cpu().numpy(), logits)

    def _recycle(self, tokens: np.ndarray, logits: Tensor) -> None:
        # numpy assigns repeated indices in order: the last node with a token wins.
        best = logits.topk(self.options.k, dim=-1)
        self.matrix[tokens] = best.indices.cpu().numpy()
        if self.shares is not None:
            odds = best.values.float().cpu().numpy()
            odds = np.exp(odds - odds[:, :1])  # numpy: a quarter of what torch takes for so few
            self.shares[tokens] = odds / odds.sum(axis=1, keepdims=True)


def calibrate_template(lm: CausalLM, requests: Iterable[Request], nodes: int = 160) -> Template:
    """The template of the ``nodes`` most often accepted nodes of the full k-ary tree of depth 12.

    Each request is decoded plainly first; then with token recycling, noting at every step which path of the full tree
    the matrix would have had right. Counts fall from parent to child, so the best nodes are prefix-closed.
    """
    options = TokenRecycling(template="paper")
    start = load_template(options.template)
    matrix = options._matrix(lm)
    counts: Counter[tuple[int, ...]] = Counter()
    steps = 0
    for request in requests:
        text = list(request.prompt)
        for event in speculate(lm, [request]):
            if isinstance(event, Accepted):
                text += event.tokens
        watcher = _Watcher(options, start, matrix, text)
        for _ in speculate(lm, [request], [watcher]):
            pass
        counts.update(watcher.counts)
        steps += watcher.steps
    ranked = sorted(counts, key=lambda path: (-counts[path], len(path), path))[:nodes]
    return Template(tuple(ranked), tuple(counts[path] / steps for path in ranked))


class _Watcher(Recycler):
    """A recycler that knows how the text goes on, and counts the nodes that would have been right."""

    def __init__(self, options: TokenRecycling, template: Template, matrix: np.ndarray, text: Sequence[int]) -> None:
        super().__init__(options, template, matrix)
        self.text, self.counts, self.steps = text, Counter[tuple[int, ...]](), 0

    def draft(self, context: Context) -> TokenTree:
        known = len(context.tokens)
        if self.text[:known] == context.tokens:
            self.steps += 1
            path: tuple[int, ...] = ()
            token = context.tokens[-1]
            for following in self.text[known : known + DEPTH]:
                hits = np.flatnonzero(self.matrix[token] == following)
                if not len(hits):
                    break
                path = (*path, int(hits[0]))
                self.counts[path] += 1
                token = following
        return super().draft(context)
