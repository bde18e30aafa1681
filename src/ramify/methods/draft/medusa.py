"""Medusa: several heads on the target's last state, each guessing one token further ahead.

Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", arXiv 2401.10774. The
state that gave the pending token also feeds heads k = 1, 2, …: head k guesses the k-th token after it (formulas and
training in ``medusa_head.py``). A static tree combines their best guesses: a node of rank r at depth k carries the
r-th guess of head k, whatever its parent is, for the heads do not know each other.

Followed: heads, start, loss and tree. Our choices, where paper and code differ or are silent:

* ``tree="measured"`` lays out the likeliest nodes by the rank accuracies that the head measured of itself, depths taken
  as independent (the paper's greedy construction), apart for greedy and for sampled text; ``nodes=None`` takes as many
  as give most tokens per second on the machine's cost curve, none when drafting does not pay. "mc_sim_7b_63" is the
  tree of 63 nodes that the official code ships for Vicuna-7B: for heads that come without accuracies, as published
  ones do. It has no rates, so it is taken whole, or cut to ``nodes`` in its own order.
* the engine verifies by matching, which is exact. The paper's typical acceptance is not; it exists as the verifier
  "typical", marked lossy.
* in half precision on a CPU, matrices and LM head are rounded to 4 bits (``borrowed.py``).

Cost per step: one product of all first blocks with a single row, one LM head over ``heads`` rows, one top-k. Limit: a
prompt of one token has no state yet, so its first step drafts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.borrowed import product, quick_head
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.methods.draft.published import find_head
from ramify.methods.draft.template import Template
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

SIZES = (2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 19, 23, 27, 31, 39, 47, 63)
# A node is a word of one digit for each rank on its way.
MC_SIM_7B_63 = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 40 21 004 005 0000 "
    "011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)
PUBLISHED = Template(tuple(tuple(map(int, node)) for node in MC_SIM_7B_63.split()))


@register(
    name="medusa",
    title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    paper="arXiv 2401.10774",
    family="draft",
    needs=("logits", "hidden states", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Medusa(DraftMethod):
    """Draft a static tree from heads that guess one token each, further and further ahead.

    ``head``: the trained part, a folder that ``ramify train medusa`` made, one in the published layout, or a head
    object; None for the bundled one of the demo model. ``tree``: "measured" or "mc_sim_7b_63"; None for "measured"
    where the head has measured itself. ``nodes``: draft nodes per step; None sizes a measured tree by the machine's
    cost curve, and takes the published one whole.
    """

    trains = MedusaHead

    head: Any = None
    tree: Literal["measured", "mc_sim_7b_63"] | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        if self.tree not in (None, "measured", "mc_sim_7b_63"):
            raise unknown("tree", self.tree, ["measured", "mc_sim_7b_63"])
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        heads: Heads | None = self.memory.get(("heads", lm))
        if heads is None:
            heads = self.memory["heads", lm] = Heads(find_head(MedusaHead, self.head, lm), lm)
        greedy = request.sampler.greedy
        tree: Template | None = self.memory.get(("tree", lm, greedy))
        if tree is None:
            tree = self.memory["tree", lm, greedy] = self._template(heads, lm, greedy)
        return Forecaster(heads, tree)

    def _template(self, heads: Heads, lm: CausalLM, greedy: bool) -> Template:
        accuracy = heads.accuracy[0 if greedy else 1].tolist()
        measured = any(map(any, accuracy))
        if self.tree == "mc_sim_7b_63" or (self.tree is None and not measured):
            ranks = heads.accuracy.shape[2]
            fitting = (path for path in PUBLISHED.ranks if len(path) <= len(accuracy) and max(path) < ranks)
            published = Template(tuple(fitting))
            return published if self.nodes is None else published.first(self.nodes)
        if not measured:
            raise RamifyError("this medusa head has not measured its accuracy; take tree='mc_sim_7b_63', or train it")
        if self.nodes is not None:
            return Template.likeliest(accuracy, self.nodes)
        full = Template.likeliest(accuracy, SIZES[-1])
        return full.first(calibrate(lm).best(full.expected, [size for size in SIZES if size <= len(full.ranks)]))


class Heads:
    """All heads as they draft: first blocks joined into one product, in the target's dtype and on its device."""

    def __init__(self, head: MedusaHead, lm: CausalLM) -> None:
        self.accuracy, self.count = head.accuracy.cpu(), head.sizes.heads
        blocks: Any = head.blocks
        last: Any = head.lm_heads
        self.first = product(lm, *(each[0].linear for each in blocks))
        self.later = [[product(lm, block.linear) for block in each[1:]] for each in blocks]
        self.last = [product(lm, each) for each in last]
        self.shared = quick_head(lm) if head.sizes.projection == "shared" else None

    @torch.inference_mode()
    def guess(self, h: Tensor, depth: int, ranks: int) -> Tensor:
        """The ``ranks`` best tokens of the first ``depth`` heads, int64 [depth, ranks], from a state h [D]."""
        z = h + functional.silu(self.first(h[None])).view(self.count, -1)
        rows = [self.last[k](self._deeper(k, z[k : k + 1])) for k in range(depth)]
        logits = torch.cat(rows) if self.shared is None else self.shared(torch.cat(rows))
        return logits.topk(ranks, dim=-1).indices.cpu()

    def _deeper(self, k: int, z: Tensor) -> Tensor:
        for block in self.later[k]:
            z = z + functional.silu(block(z))
        return z


class Forecaster(Drafter):
    """Fills ``tree`` with the heads' guesses from the state that gave the pending token."""

    hidden_layers = (-1,)

    def __init__(self, heads: Heads, tree: Template) -> None:
        self.heads, self.tree = heads, tree
        self.depth, self.ranks = len(tree.levels), 1 + max((max(path) for path in tree.ranks), default=0)
        self.state: Tensor | None = None
        self.known = 0  # how many tokens were read; the state is that of the last of them

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        self.known += len(tokens)
        self.state = hidden[-1][-1]

    def rewind(self, length: int) -> None:
        if length < self.known:
            self.known, self.state = length, None

    def draft(self, context: Context) -> TokenTree:
        if self.state is None or not self.depth:
            return TokenTree.empty()
        return self.tree.fill(self.heads.guess(self.state, self.depth, self.ranks))

    def observe(self, outcome: Outcome) -> None:
        self.known += len(outcome.path)
        self.state = outcome.hidden[-1][outcome.path[-1]]
