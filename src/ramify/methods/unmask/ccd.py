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

from ramify.engine.look import Look, likeliest
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule
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
    """CCD for R rows. ``places`` [R, d, V]: positions remembered, −1 for none; ``laws`` [R, d, V, X]: their laws.

    ``words`` and ``spreads`` [R, d, V]: the argmax and the entropy of these laws. Step s of a block stands at s mod d.
    """

    def __init__(self, method: CCD, rows: int) -> None:
        self.method = method
        shape = (rows, method.history, method.top)
        self.places, self.words = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
        self.spreads = torch.zeros(shape, dtype=torch.float64)
        self.laws: Tensor | None = None

    def choose(self, look: Look) -> Choice:
        method, depth = self.method, self.method.history
        ranks = SCORES[method.order](look)
        top, valid = _top(look, ranks, method.top)
        now, spread = look.law_at(top), look.entropy.gather(1, top)
        at = look.positions.to(top.device).gather(1, top).masked_fill(~valid, -2)
        first = likeliest(now)
        places, laws, words, spreads = self._history(look, now)
        same = places[..., None] == at[:, None, None]  # [A, d, V, v]
        agree = words[..., None] == first[:, None, None]
        if method.fresh and depth:
            last = [(row.step - 1) % depth for row in look.rows]
            changed = (same & ~agree)[range(len(last)), last].any(1)
            same = same & ~changed[:, None, None]
            self._forget(look, at.masked_fill(~changed, -2))

        seen = same.any(2)  # [A, d, v]
        average, entropy, jsd = mixed(now, laws, same, spread, spreads)
        full = torch.tensor([row.step >= depth for row in look.rows], device=top.device)
        persists = seen.any(1) if method.persist == "any" and depth else seen.all(1)
        candidates = valid & persists & full[:, None]
        best = entropy.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        chosen = candidates & (best < look.quota[:, None])
        if method.adaptive:
            chosen |= candidates & (entropy <= method.eps) & ~(same & ~agree).any(2).any(1)

        fix = torch.zeros_like(look.open).scatter(1, top, chosen)
        tokens = (_averaged(look, top, average, chosen) if method.token == "average" else look).tokens
        stalled = ~chosen.any(1, keepdim=True)
        fix = fix | (look.best(ranks, look.quota) & stalled)
        self._remember(look, at, now, first, spread)
        own = look.entropy
        details = {
            "entropy": own.scatter(1, top, entropy.where(valid, own.gather(1, top))),
            "jsd": torch.zeros_like(own).scatter(1, top, jsd.where(valid, 0.0)),
        }
        return Choice(fix, tokens, details=details)

    def _history(self, look: Look, now: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is remembered of the rows at hand. Positions of an earlier block are fixed, so that none comes back."""
        if self.laws is None:
            self.laws = now.new_zeros(*self.places.shape, now.shape[-1])
            self.places, self.words, self.spreads = (
                each.to(now.device) for each in (self.places, self.words, self.spreads)
            )
        held = (self.places, self.laws, self.words, self.spreads)
        rows = [row.canvas.index for row in look.rows]
        if rows == list(range(len(self.places))):
            return held  # all rows, so that no law is copied
        places, laws, words, spreads = (each[rows] for each in held)
        return places, laws, words, spreads

    def _forget(self, look: Look, at: Tensor) -> None:
        """Drop the positions ``at`` [A, v] from the history."""
        rows = [row.canvas.index for row in look.rows]
        places = self.places[rows]
        self.places[rows] = places.masked_fill((places[..., None] == at[:, None, None]).any(-1), -1)

    def _remember(self, look: Look, at: Tensor, now: Tensor, first: Tensor, spread: Tensor) -> None:
        """Put this step's positions and laws in the place of the oldest step's."""
        depth, count = self.method.history, at.shape[1]
        if not depth:
            return
        assert self.laws is not None
        for place, row in enumerate(look.rows):
            index = (row.canvas.index, row.step % depth)
            self.places[index].fill_(-1)[:count] = at[place].clamp(min=-1)
            self.words[index][:count], self.spreads[index][:count] = first[place], spread[place]
            self.laws[index][:count] = now[place]


def mixed(
    now: Tensor, laws: Tensor, same: Tensor, spread: Tensor | None = None, spreads: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """p̄ [A, v, X] of laws ``now`` and those of the history [A, d, V, X] that are of the ``same`` position [A, d, V, v].

    Also its entropy and the Jensen–Shannon divergence of what it averages, both [A, v], in nats. ``spread`` [A, v],
    ``spreads`` [A, d, V]: the entropies of these laws where they are known.
    """
    spread = entropies(now) if spread is None else spread
    spreads = entropies(laws) if spreads is None else spreads
    weights = same.double().flatten(1, 2).mT  # [A, v, d V]
    terms = 1 + weights.sum(2)
    average = torch.baddbmm(now, weights, laws.flatten(1, 2)).div_(terms[..., None])
    entropy = entropies(average)
    before = (weights @ spreads.flatten(1)[..., None])[..., 0]
    jsd = entropy - (spread + before) / terms
    return average, entropy, jsd.clamp(min=0)


def entropies(laws: Tensor) -> Tensor:
    """The entropies [...] of ``laws`` [..., X], in nats."""
    logs = laws.clamp(min=torch.finfo(laws.dtype).tiny).log()  # a third of the time of torch.special.entr
    entropy: Tensor = -torch.linalg.vecdot(laws, logs)
    return entropy


def _top(look: Look, ranks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` open positions of the block with the greatest ``ranks`` [A, V], and whether there are so many."""
    order = ranks.double().masked_fill(~look.open, -torch.inf).argsort(dim=1, descending=True, stable=True)
    top = order[:, :count]
    return top, look.open.gather(1, top)


def _averaged(look: Look, top: Tensor, average: Tensor, chosen: Tensor) -> Look:
    """The look with the averaged laws at what is ``chosen`` of ``top``, which the request's temperature then warps."""
    logits, rows = look.logits.clone(), chosen.nonzero()[:, 0]
    logits[rows, top[chosen]] = average[chosen].log().to(logits.dtype)
    return replace(look, logits=logits)
