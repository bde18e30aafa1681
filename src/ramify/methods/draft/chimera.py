"""Chimera: a light draft model that reads every token already guessed, and the target's own states of the text.

Zeng et al., "Chimera: A Lossless Decoding Method for Accelerating Large Language Models Inference by Fusing all
Tokens", arXiv 2402.15758. Medusa's heads guess token i + 1 without knowing token i. Here a trigram encoder makes one
vector of the newest three tokens, one decoder layer (the full-context encoder) lets it attend to the target's final
states of the text and to the earlier rows of its branch, and a residual head reads [last real state; its output]. The
formulas, the training and its choices are in ``chimera_head.py``.

A tree is drafted depth by depth: all nodes of a depth that have children pass the layer together, each with the trigram
of its own branch, and head i ranks their children. A template of ranks says which ones are kept. What the layer caches
of the text comes from verified states only; the rows of a draft are forgotten after it.

Followed: ``tree="paper"`` is the published tree of 25 nodes and five levels (for four heads without its two deepest
nodes). Our choices, where the paper is silent or its code cannot run:

* ``tree="calibrated"`` lays nodes out by how often each rank was right when the head was trained (apart for greedy
  text, sampled text, and sampled text in view of the noise); ``nodes=None`` takes size and depth with the most expected
  tokens per second on the machine's cost curve, the measured time of each drafted level counted in, and drafts nothing
  when nothing pays.
* A head that reads the target's LM head ("shared") is the default: the paper's own K matrices [V, 2D] are a fifth of a
  7B target, read at every step.
* The engine verifies by matching, which is exact; the official script's acceptance (typical, temperature 1) is not.
* ``coupled``: in sampled text a node's best guesses are those in view of the noise that will choose the token
  (``Sampler.foresee``), not the likeliest tokens.
* The layer has Llama's shape for every target; in half precision on a CPU its matrices and the LM head are rounded to
  4 bits (``borrowed.py``).

Cost of a step: one pass of trigram encoder, layer and LM head over the rows of each level, in turn. Limits: the first
token of a prompt of one token gets no draft, since no state is known yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.chimera_draft import BranchDrafter, Plan
from ramify.methods.draft.chimera_encoder import Encoder, level_beside_pass
from ramify.methods.draft.chimera_head import ChimeraHead
from ramify.methods.draft.template import Template
from ramify.methods.head import load_head
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

PAPER = Template(
    (
        *((0,), (1,), (2,), (3,)),
        *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
        *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
        *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)),
        *((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
    )
)
SIZES = (2, 3, 5, 7, 11, 15, 19, 23, 31)


@register(
    name="chimera",
    title="Chimera: A Lossless Decoding Method for Accelerating LLMs Inference by Fusing all Tokens",
    paper="arXiv 2402.15758",
    family="draft",
    needs=("logits", "hidden states", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Chimera(DraftMethod):
    """Draft a tree with a trigram encoder, one layer over the model's own states, and residual heads.

    ``head``: the trained part, a folder that ``ramify train chimera`` made or a head object; None for the bundled one
    of the demo model. ``tree``: "calibrated" (by the head's measured accuracy) or "paper" (25 nodes). ``nodes``: draft
    nodes per step; None sizes a calibrated tree by the machine's cost curve, and takes the paper's whole. ``coupled``:
    False to guess without a view to the noise.
    """

    trains = ChimeraHead

    head: Any = None
    tree: Literal["calibrated", "paper"] = "calibrated"
    nodes: int | None = None
    coupled: bool = True

    def __post_init__(self) -> None:
        if self.tree not in ("calibrated", "paper"):
            raise unknown("tree", self.tree, ["calibrated", "paper"])
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        encoder: Encoder | None = self.memory.get(("encoder", lm))
        if encoder is None:
            encoder = self.memory["encoder", lm] = Encoder(load_head(ChimeraHead, self.head, lm), lm)
        greedy = request.sampler.greedy
        plan: Plan | None = self.memory.get(("plan", lm, greedy))
        if plan is None:
            plan = self.memory["plan", lm, greedy] = Plan(self._template(encoder, greedy), lm)
        return BranchDrafter(encoder, plan, self.coupled)

    def _template(self, encoder: Encoder, greedy: bool) -> Template:
        heads = encoder.sizes.heads
        rates = encoder.accuracy[0 if greedy else 2 if self.coupled else 1].tolist()
        if self.tree == "paper":
            fitting = Template(tuple(path for path in PAPER.ranks if len(path) <= heads))
            return fitting if self.nodes is None else fitting.first(self.nodes)
        if self.nodes == 0 or not any(map(any, rates)):
            return Template(())
        if self.nodes is not None:
            return Template.likeliest(rates, self.nodes)
        return fastest(encoder, [Template.likeliest(rates[:depth], n) for depth in range(1, heads + 1) for n in SIZES])


def fastest(encoder: Encoder, templates: list[Template]) -> Template:
    """The template with the most expected tokens per second, drafting included; empty when none beats plain decoding.

    Every level takes one call of the encoder, whose time beside a plain step is measured here and now.
    """
    curve = calibrate(encoder.lm)
    level = curve.cost(1) * level_beside_pass(encoder)
    best, speed = Template(()), 1.0 / curve.cost(1)
    for template in templates:
        size = len(template.ranks)
        seconds = curve.cost(size + 1) + level * len(template.levels)
        if template.expected(size) / seconds > speed:
            best, speed = template, template.expected(size) / seconds
    return best
