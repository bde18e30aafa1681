"""The trained part of Medusa: heads that each guess one token further ahead, from the same state.

Shapes: D the target's hidden size, V its vocabulary, h_t its state at position t, behind the final norm.

    z_k = SiLU(W1_k h_t + b_k) + h_t        (``layers`` such blocks in a row)
    p_k = softmax(W2_k z_k)                 guesses x_{t+k+1}, for k = 1 … ``heads``

W1 and b begin at zero and W2 as the target's LM head, so that every head begins as the target's own guess at x_{t+1}.
Medusa-1: the target is frozen, and L = Σ_k 0.8^k CE(p_k, x_{t+k+1}) over the text.

``projection``: "own" trains a W2 [V, D] for each head, as published. "shared" reads the target's LM head in its place,
W2_k = W_lm A_k with A_k [D, D] = I at first: V / D times smaller. (W_lm alone would not do. A block only adds, and
nothing below −0.28 in any entry, so that it cannot take the target's own guess out of h.) In the official code the
blocks of a head share one W1, for a Python list of modules is multiplied; here each has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError, unknown
from ramify.methods.draft.borrowed import lm_head, lm_head_weight, ranked
from ramify.methods.head import Fit, Head, Regime, teach
from ramify.models.causal import CausalLM

RANKS = 10  # guesses of a head that a tree may hold
DECAY = 0.8  # weight of a head's loss beside the one before it
CHUNK = 4  # windows at a time, where a head measures itself


@dataclass(frozen=True)
class MedusaSizes:
    """``heads``: how many tokens ahead (paper: 5). ``layers``: blocks of a head. ``projection``: "own" or "shared"."""

    heads: int = 5
    layers: int = 1
    projection: str = "own"

    def __post_init__(self) -> None:
        if self.heads < 1 or self.layers < 1:
            raise RamifyError(f"heads and layers must be at least 1, got {self.heads} and {self.layers}")
        if self.projection not in ("own", "shared"):
            raise unknown("projection", self.projection, ["own", "shared"])


class Block(nn.Module):
    """x + SiLU(Linear x); nothing but x at first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.silu(self.linear(x))


class MedusaHead(Head):
    """``blocks``: by head, its residual blocks; ``lm_heads``: its matrices W2, or A where the target's is shared.

    ``accuracy`` [2, heads, ranks]: how likely the guess of each rank is the target's token, when greedy and when
    sampled; all zero before it was measured.
    """

    method = "medusa"
    regime = Regime(steps=400, learning_rate=6e-3, through=True)
    Sizes = MedusaSizes

    def __init__(self, fit: Fit, sizes: MedusaSizes) -> None:
        super().__init__(fit, sizes)
        size = fit.hidden_size
        self.blocks = nn.ModuleList(nn.ModuleList(Block(size) for _ in range(sizes.layers)) for _ in range(sizes.heads))
        out = fit.vocab_size if sizes.projection == "own" else size
        self.lm_heads = nn.ModuleList(nn.Linear(size, out, bias=False) for _ in range(sizes.heads))
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.zeros(2, sizes.heads, min(RANKS, fit.vocab_size)))

    @classmethod
    @torch.no_grad()
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        head = super().new(lm, **options)
        start = lm_head_weight(lm) if head.sizes.projection == "own" else torch.eye(head.fit.hidden_size)
        last: Any = head.lm_heads
        for each in last:
            each.weight.copy_(start)
        return head

    def logits(self, lm: CausalLM, k: int, h: Tensor) -> Tensor:
        """What head ``k`` (0 the first) makes of states h [..., D]: [..., V]."""
        blocks: Any = self.blocks[k]
        for block in blocks:
            h = block(h)
        found: Tensor = self.lm_heads[k](h)
        return found if self.sizes.projection == "own" else lm_head(lm)(found.to(lm.dtype))

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        h = teach(lm, tokens, [-1]).hidden[-1].float()
        total = h.new_zeros(())
        for k in range(len(self.blocks)):
            logits = self.logits(lm, k, h[:, : -k - 2]).float()
            total = total + DECAY ** (k + 1) * functional.cross_entropy(
                logits.flatten(0, 1), tokens[:, k + 2 :].flatten()
            )
        return total

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """How often the first guess at distance 2, 3, … is the target's likeliest token, those in between given."""
        found = self._ranks(lm, tokens)[0, :, 0].tolist()
        return {f"agreement at +{k + 2}": rate for k, rate in enumerate(found)}

    @torch.no_grad()
    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        self.accuracy.copy_(self._ranks(lm, tokens))

    def _ranks(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """[2, heads, ranks]: the mean share of the target's law that falls on the guess of each rank."""
        total = torch.zeros_like(self.accuracy)
        for part in torch.split(tokens, CHUNK):
            taught = teach(lm, part, [-1])
            h = taught.hidden[-1].float()
            for k in range(len(self.blocks)):
                guesses = self.logits(lm, k, h[:, : -k - 1])
                total[:, k] += ranked(guesses, taught.logits[:, k + 1 :], total.shape[2])
        return total / len(tokens)
