"""Coherent contextual decoding: fix what has stayed certain over the last steps, not what looks certain now.

Chen et al., "Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models", arXiv 2512.02044 (ICML
2026). A context may make one token look certain for one step. So the V most confident open positions of every step
leave their laws in a history of d steps, and a position that is among the V now and in the history is judged by

    p̄ = (p + Σ_h p_h) / (1 + d),       H(p̄) = mean of the entropies + JSD,

whose second part estimates how much the token depends on the context that changed meanwhile. Of these candidates

    CCD      the schedule's number with the lowest H(p̄) are fixed, each by its argmax of p̄
    CCD-DS   besides them (``adaptive``) all whose argmax is that of every step of the history and with H(p̄) ≤ ε

A confident position without a history is held back. With a history that is too short, or without candidates, the base
rule fixes what it would, for rejection alone could stall. Where the request samples, tokens are drawn from p̄.

Where the paper is silent. "Persist across steps" is read as in all d entries; ``persist="any"`` takes a position that
is in one, and averages over those where it is. ε is only said to be a heuristic for stability: 0.1 nats are ours, and
inf is what the released code does, which lets dependent slots through that insist on the same word. CCD-DS fixes at
least what CCD fixes, so it takes no more steps. A new block begins with an empty history. An average still holds laws
from before the last token was fixed, which hurts where slots depend on each other: ``token="current"`` takes the argmax
of p instead, and ``fresh`` drops the history of a position whose argmax has just changed; neither is published. The
released code averages nothing: that is ``ccd-code``.

What follows from the rule: the candidates of d + 1 steps in a row all stand among the V positions of the first, so that
CCD-DS fixes at most V / (d + 1) a step in the long run; with the paper's V = 4 and d = 3 that is one. The speed-ups it
reports there (up to 3.8) need the released code's rule.

Cost: d·V laws of the vocabulary a row in float64 (126k tokens, d = 3, V = 4: 12 MB), V averages a step, no pass of the
model. CCD alone saves no steps. Every ``Unmasked`` event tells ``entropy``, H(p̄), and ``jsd`` of what it fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Look, Rule
from ramify.errors import RamifyError, unknown
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import register
from ramify.methods.unmask.orders import SCORES
from ramify.models.masked import MaskedLM


@register(
    name="ccd",
    title="Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models",
    paper="arXiv 2512.02044",
    family="unmask",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class CCD(MaskedMethod):
    """Fix the positions whose laws, averaged over the last steps, are the surest.

    ``adaptive``: CCD-DS, which fixes every consistent candidate. ``history``: d, how many steps are averaged with the
    current one (paper: 2 on LLaDA, 3 on Dream). ``top``: V, how many positions of a step are remembered (paper: 4).
    ``eps``: the greatest H(p̄) in nats of what CCD-DS adds; inf for no bound. ``persist``: in "all" entries of the
    history, or in "any". ``token``: of the "average" or the "current" law. ``fresh``: forget a position's history when
    its argmax changes. ``order``: by which the base rule and the V positions are chosen, see ``unmask``.
    """

    adaptive: bool = False
    history: int = 2
    top: int = 4
    eps: float = 0.1
    persist: Literal["all", "any"] = "all"
    token: Literal["average", "current"] = "average"
    fresh: bool = False
    order: str = "entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history < 0:
            raise RamifyError(f"history is {self.history} steps; it is 0 (no averaging) or more")
        if self.top < 1:
            raise RamifyError(f"top is {self.top}; remember at least 1 position a step")
        if not self.eps >= 0:
            raise RamifyError(f"eps is {self.eps:g}; it is an entropy in nats: 0 or more, inf for no bound")
        for option, known in (("persist", ("all", "any")), ("token", ("average", "current"))):
            if getattr(self, option) not in known:
                raise unknown(option, getattr(self, option), known)
        if self.order not in SCORES:
            raise unknown("order", self.order, SCORES)

    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Coherent:
        return Coherent(self, len(requests))


class Coherent(Rule):
    """CCD for R rows. ``places`` [R, d, V]: positions remembered, −1 for none; ``laws`` [R, d, V, X]: their laws."""

    def __init__(self, method: CCD, rows: int) -> None:
        self.method = method
        self.places = torch.full((rows, method.history, method.top), -1)
        self.laws: Tensor | None = None

    def choose(self, look: Look) -> Choice:
        method, law = self.method, look.law
        ranks = SCORES[method.order](look)
        top, valid = _top(look, ranks, method.top)
        now = law.gather(1, top[..., None].expand(-1, -1, law.shape[-1]))
        at = look.positions.to(top.device).gather(1, top).masked_fill(~valid, -2)
        places, laws = self._history(look, now)
        same = places[..., None] == at[:, None, None]  # [A, d, V, v]
        first = now.argmax(-1)
        agree = laws.argmax(-1)[..., None] == first[:, None, None]
        if method.fresh and method.history:
            changed = (same[:, -1] & ~agree[:, -1]).any(1)
            same = same & ~changed[:, None, None]
            places = places.masked_fill((places[..., None] == at.masked_fill(~changed, -2)[:, None, None]).any(-1), -1)

        seen = same.any(2)  # [A, d, v]
        average, entropy, jsd = mixed(now, laws, same)
        full = torch.tensor([row.step >= method.history for row in look.rows], device=top.device)
        persists = seen.any(1) if method.persist == "any" and method.history else seen.all(1)
        candidates = valid & persists & full[:, None]
        best = entropy.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        chosen = candidates & (best < look.quota[:, None])
        if method.adaptive:
            chosen |= candidates & (entropy <= method.eps) & ~(same & ~agree).any(2).any(1)

        fix = torch.zeros_like(look.open).scatter(1, top, chosen)
        tokens = look.tokens
        if method.token == "average":
            tokens = tokens.where(~fix, _averaged(look, top, average, valid).tokens)
        stalled = ~chosen.any(1, keepdim=True)
        fix = fix | (look.best(ranks, look.quota) & stalled)
        self._remember(look, places, laws, at, now)
        own = look.entropy
        details = {
            "entropy": own.scatter(1, top, entropy.where(valid, own.gather(1, top))),
            "jsd": torch.zeros_like(own).scatter(1, top, jsd.where(valid, 0.0)),
        }
        return Choice(fix, tokens, details=details)

    def _history(self, look: Look, now: Tensor) -> tuple[Tensor, Tensor]:
        """What is remembered of the rows at hand. Positions of an earlier block are fixed, so that none comes back."""
        if self.laws is None:
            self.places = self.places.to(now.device)
            self.laws = now.new_zeros(*self.places.shape, now.shape[-1])
        rows = [row.canvas.index for row in look.rows]
        return self.places[rows], self.laws[rows]

    def _remember(self, look: Look, places: Tensor, laws: Tensor, at: Tensor, now: Tensor) -> None:
        """Add this step's positions and laws, and drop the oldest step's."""
        if not self.method.history:
            return
        assert self.laws is not None
        rows, spare = [row.canvas.index for row in look.rows], self.method.top - at.shape[1]
        at, now = pad(at.clamp(min=-1), (0, spare), value=-1), pad(now, (0, 0, 0, spare))
        self.places[rows] = torch.cat([places[:, 1:], at[:, None]], dim=1)
        self.laws[rows] = torch.cat([laws[:, 1:], now[:, None]], dim=1)


def mixed(now: Tensor, laws: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p̄ [A, v, X] of laws ``now`` and those of the history [A, d, V, X] that are of the ``same`` position [A, d, V, v].

    Also its entropy and the Jensen–Shannon divergence of what it averages, both [A, v], in nats.
    """
    weights = same.double()
    terms = 1 + weights.sum((1, 2))
    average = (now + torch.einsum("advx,advt->atx", laws, weights)) / terms[..., None]
    entropy = torch.special.entr(average).sum(-1)
    before = torch.einsum("adv,advt->at", torch.special.entr(laws).sum(-1), weights)
    jsd = entropy - (torch.special.entr(now).sum(-1) + before) / terms
    return average, entropy, jsd.clamp(min=0)


def _top(look: Look, ranks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` open positions of the block with the greatest ``ranks`` [A, V], and whether there are so many."""
    order = ranks.double().masked_fill(~look.open, -torch.inf).argsort(dim=1, descending=True, stable=True)
    top = order[:, :count]
    return top, look.open.gather(1, top)


def _averaged(look: Look, top: Tensor, average: Tensor, valid: Tensor) -> Look:
    """The look with the averaged laws in the place of the model's, which the request's temperature then warps."""
    index = top[..., None].expand_as(average)
    logits = average.log().to(look.logits.dtype).where(valid[..., None], look.logits.gather(1, index))
    return replace(look, logits=look.logits.scatter(1, index, logits))
