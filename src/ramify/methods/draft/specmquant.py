"""HierSpec: a tree drafter drafts for a small model, whose chains the (quantised) target verifies.

"Speculative Decoding Meets Quantization: Compatibility Evaluation and Hierarchical Framework Design", arXiv 2505.22179.
Four-bit weights make a plain step cheap but not the verification of a large tree (60 rows: 1.8 steps, against 1.2 with
16 bits), so the tree moves a level down: the small model verifies trees of 30 nodes, the root included, at most I = 3
levels deep, until it has a chain of at least m = 6 tokens, and the target verifies that chain of m to m + I tokens.

This is ``Assistant(inner=…)``, a composition and no loop of its own. Followed: m, I, the tree's size; the text of the
small model goes back to where the target agreed, and the last token of a chain that was accepted whole is read along
with what comes next. ``plain_first`` is the official code's option to let the small model decode a token by itself
after a refusal. Ours:

* any tree drafter (default: Token Recycling, 29 nodes below the root) in place of EAGLE-2 on the small model. One that
  works from hidden states gets a plain pass of the small model first where it has not seen all of them.
* sampling: the official code is greedy only. With "match" the small model decodes with the target's noise; with
  "speculative" and "block" its chains carry its own law. All are exact.
* quantised targets are ``ramify.load(…, weights="int8" | "int4")``. Output equals plain decoding of the model so
  rounded, not of the one that it was rounded from. ``fake_quantised`` is the papers' four-bit scheme (W4A16, groups of
  128, symmetric) as a reference, computed in full precision.

Cost per step: about m / (tokens a pass) passes of the small model over the tree, one of the target over m to m + I + 1
rows. ``ramify.methods.draft.plan`` says from the cost curves whether, and with which sizes, that is less than a tree on
the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.parts import Parts
from ramify.methods.registry import register
from ramify.models.causal import CausalLM


@register(
    name="specmquant",
    title="Speculative Decoding Meets Quantization: Compatibility Evaluation and Hierarchical Framework Design",
    paper="arXiv 2505.22179",
    family="draft",
    needs=("logits",),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class HierSpec(DraftMethod):
    """A small model turns trees into chains, which a quantised target verifies cheaply.

    ``model``: the small model, as ``ramify.load`` takes it or loaded already. ``inner``: what makes trees for it, a
    draft method's name with :option=value where wanted, or an object. ``length``: shortest chain m. ``levels``: how
    deep the trees are at most, I. ``verifier``: "match", "speculative", or "block". ``plain_first``: after a refusal
    the small model first decodes a token without a tree.
    """

    model: Any = None
    inner: Parts = "token-recycling:nodes=29"
    length: int = 6
    levels: int = 3
    verifier: Literal["match", "speculative", "block"] = "match"
    plain_first: bool = False

    def __post_init__(self) -> None:
        if self.model is None:
            raise RamifyError("specmquant needs a small model: -o model=PATH, or HierSpec(model=…)")
        self._assistant()

    def _assistant(self) -> Assistant:
        return Assistant(
            model=self.model,
            length=self.length,
            schedule="constant",
            verifier=self.verifier,
            inner=self.inner,
            levels=self.levels,
            plain_first=self.plain_first,
        )

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        assistant: Assistant | None = self.memory.get("assistant")
        if assistant is None:
            assistant = self.memory["assistant"] = self._assistant()
        return assistant.drafter(lm, request)


def fake_quantised(weight: Tensor, group: int = 128) -> Tensor:
    """``weight`` [out, in] rounded to 4 bits: levels −8 … 7 times max|w| / 7 of every ``group`` inputs of an output."""
    if group < 1:
        raise RamifyError(f"a group has at least 1 weight, got {group}")
    parts = []
    for part in torch.split(weight.float(), group, dim=1):
        scale = part.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / 7
        parts.append((part / scale).round_().clamp_(-8, 7) * scale)
    return torch.cat(parts, dim=1).to(weight.dtype)
