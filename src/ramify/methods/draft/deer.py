"""DEER: a masked denoiser drafts a whole block in one pass, the autoregressive model verifies it.

"DEER: Draft with Diffusion, Verify with Autoregressive Models", arXiv 2512.15176. An autoregressive drafter reads its
own unverified tokens, so it goes astray with depth, and takes a pass for each. A denoiser fills k masks behind the
text, bounded by a separator, at once:

    q_i(·) = q(· | x_1 … x_j),  i = 1 … k;      y_i ~ q_i, each by itself
    accept y_i with min(1, p_i(y_i) / q_i(y_i)), else take z ~ max(0, p_i − q_i) normalised and stop

so what is said at i does not depend on the other drafts. Training in ``deer_head.py`` and ``ramify.train.deer``.

Exact for every target law: the engine verifies by rejection with the law that each token was really drawn from (after
temperature, truncation and processors, which see the text and not the draft), or by another lossless rule. Greedy:
y_i = argmax q_i. Followed: one chain, no tree; M and separator are never said; what is behind an end of text is
dropped.

Where the paper is silent or contradicts itself:

* Its Algorithm 1 goes on after a rejection, which takes another pass of the target for each; we stop, as usual. Its
  main text draws z from p, its proof from the residual; the latter is exact. Full acceptance gives a further token.
* ``nodes=None`` takes as many masks as give the most expected tokens per second by the head's own acceptance and the
  cost curves of both models, none where nothing pays, and then verifies as many of the tokens as pay by the laws'
  largest probabilities. The paper's k is fixed, 32 as it seems.
* The bundled drafter sees its text causally and its block in both directions, so that what it read is kept
  (``sight="causal"`` of the head). The paper's sees everything in both directions and reads the text anew every time.

Cost of a step: one pass of the drafter over k + 1 nodes and the newest tokens (all tokens, with ``sight="full"``), and
k rows of the target. Limits: rows of a batch are drafted one after another; k up to what the head was trained for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod, verification_rule
from ramify.methods.draft.deer_draft import BlockDrafter, Filler, fastest, verifying
from ramify.methods.draft.deer_head import DeerHead
from ramify.methods.draft.sizing import PromisedSize
from ramify.methods.head import load_head
from ramify.methods.registry import register
from ramify.models.causal import CausalLM


@register(
    name="deer",
    title="DEER: Draft with Diffusion, Verify with Autoregressive Models",
    paper="arXiv 2512.15176",
    family="draft",
    needs=("logits", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Deer(DraftMethod):
    """A masked denoiser drafts a block in one pass.

    ``head``: the trained drafter, a folder that ``ramify train deer`` made or a head object; None for the bundled one
    of the demo model. ``nodes``: masks of a block (the paper's k); None sizes it by the machine's cost curve.
    ``verifier``: "speculative" (the paper's), "block", or "match" (the same tokens as plain decoding with the same
    seed; the drafter then chooses with the target's own noise).
    """

    trains = DeerHead

    head: Any = None
    nodes: int | None = None
    verifier: Literal["speculative", "block", "match"] = "speculative"

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")
        if not verification_rule(self.verifier).lossless:
            raise RamifyError(f"verifier {self.verifier!r} is not lossless, which this method promises to be")

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        head: DeerHead | None = self.memory.get(("head", lm))
        if head is None:
            head = self.memory["head", lm] = load_head(DeerHead, self.head, lm)
            self.memory["filler", lm] = Filler(head, lm)
        filler: Filler = self.memory["filler", lm]
        coupled = self.verifier == "match"
        if self.nodes is not None:
            if self.nodes > head.sizes.most:
                raise RamifyError(f"the head was trained for {head.sizes.most} masks at most, not {self.nodes}")
            return BlockDrafter(filler, self.nodes, None, request.stop_tokens, coupled)
        greedy = request.sampler.greedy
        key = "masks", lm, greedy
        if key not in self.memory:
            self.memory[key] = fastest(lm, filler, head.accuracy[0 if greedy else 1].tolist())
        masks: int = self.memory[key]
        if masks == 0:
            return Drafter()
        pace = PromisedSize(verifying(lm, filler, masks), masks)
        return BlockDrafter(filler, masks, pace, request.stop_tokens, coupled)
