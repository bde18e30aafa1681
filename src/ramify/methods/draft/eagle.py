"""EAGLE-2: one small layer continues the target's own states, and a tree grows where it is sure of itself.

Li et al., "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty", arXiv 2401.15077; "EAGLE-2: Faster
Inference of Language Models with Dynamic Draft Trees", arXiv 2406.16858; "EAGLE-3", arXiv 2503.01840. The layer reads
[embedding of x_{t+1}; state f_t] and puts out a guess at f_{t+1}, of which the LM head makes x_{t+2} (``eagle_head.py``
has formulas and training). Drafted tokens go on from the layer's own outputs; verified text enters its cache with the
target's real states. A node's value is the product of confidences on its way:

    level 1      the k best next tokens
    level l + 1  k children of each of the k best nodes of level l
    at the end   the ``nodes`` most valuable nodes of all levels                (``eagle_tree.py``)

Followed: k = 10, six levels (one, and five expansions), ties to the shallower node. The paper keeps 60 tokens, the
pending one included: ``nodes=59``. Our choices:

* ``nodes=None`` keeps, at every step, what gives most tokens per second by the confidences, the acceptance seen so far
  and the machine's cost curve; it grows only below nodes that would be kept, stops where another level would cost more
  than it promises, and drafts nothing for a while when nothing pays (``eagle_pace.py``).
* the engine verifies by matching, which is exact. (The drafts are the best candidates, not samples, so the published
  code's rule is its one-hot case, with the same law.)
* ``coupled``: sampled text is chosen by noise that the seed gives to every position, so that confidences can be those
  in view of it (``Sampler.foresee``). Without it, and for greedy text, they are those at temperature 1 whatever the
  request's is, as in the published code. It misleads inside an assistant that draws its drafts: no noise chooses there.
* in half precision on a CPU, matrices and LM head are rounded to 4 bits (``borrowed.py``).
* the head has a layer of Llama's shape for every target, as published heads do; one for another family's target is
  trained all the same.

Cost per step: a pass of the layer and the LM head over the newest verified tokens, and one over up to k rows for every
further level. A ``draft_vocabulary`` makes the LM head cheap. Limit: a prompt of one token has no state yet, so its
first step drafts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.eagle_draft import Continuer, TreeDrafter
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.eagle_pace import Pace, relative
from ramify.methods.draft.published import find_head
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

LARGEST = 63  # nodes of a tree that sizes itself


@register(
    name="eagle",
    title="EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees",
    paper="arXiv 2406.16858",
    family="draft",
    needs=("logits", "hidden states", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Eagle(DraftMethod):
    """Continue the target's own states with one layer, and draft the tree that it is most confident of.

    ``head``: the trained part, a folder that ``ramify train eagle`` made, one in a published layout (EAGLE, EAGLE-2,
    EAGLE-3), or a head object; None for the bundled one of the demo model. ``nodes``: draft nodes per step (paper: 59);
    None sizes the tree at every step by the machine's cost curve. ``depth``: levels at most. ``k``: children of a node,
    and nodes of a level that get any; 1 drafts a chain. ``coupled``: False for the paper's confidences in sampled text.
    """

    trains = EagleHead

    head: Any = None
    nodes: int | None = None
    depth: int = 6
    k: int = 10
    coupled: bool = True

    def __post_init__(self) -> None:
        if self.depth < 1 or self.k < 1:
            raise RamifyError(f"depth and k must be at least 1, got {self.depth} and {self.k}")
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        continuer: Continuer | None = self.memory.get(("continuer", lm))
        if continuer is None:
            continuer = self.memory["continuer", lm] = Continuer(find_head(EagleHead, self.head, lm), lm)
        if self.nodes is not None:
            return TreeDrafter(continuer, self.depth, self.k, self.nodes, coupled=self.coupled)
        level: float | None = self.memory.get(("level", lm))
        curve = calibrate(lm)
        if level is None:
            level = self.memory["level", lm] = curve.cost(1) * _level_beside_pass(continuer)
        return TreeDrafter(continuer, self.depth, self.k, LARGEST, Pace(curve, level, LARGEST), self.coupled)


@torch.inference_mode()
def _level_beside_pass(continuer: Continuer) -> float:
    """What drafting a level of a few nodes costs, in units of the target's plain step."""
    lm, text = continuer.lm, continuer.text()
    width, states = 4, len(continuer.head.reads) * int(lm.text_config.hidden_size)
    tokens = torch.zeros(width, dtype=torch.long, device=lm.device)
    out = continuer.read(text, tokens, torch.zeros(width, states, dtype=lm.dtype, device=lm.device))
    hidden, session = torch.zeros(width, width, device=lm.device), Session(lm)
    return relative(
        lambda: continuer.guess(continuer.level(text, tokens, out.expand(width, -1), hidden, 1), width),
        lambda: session.score(TokenTree.chain([0])).logits.argmax(dim=-1).tolist(),
    )
