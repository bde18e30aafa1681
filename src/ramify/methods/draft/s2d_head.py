"""The trained part of S2D: the first layers of the target as one draft model whose prefixes are language models too.

Sorted fine-tuning (SoFT, arXiv 2309.08968): h_e leaves layer e, and the same norm and LM head stand behind every exit,

    loss = 1/|E| Σ_{e ∈ E} CE(softmax(LM head(norm(h_e))) at n, x_{n+1})

over all exits E in every step. The target has no part in it. ``exits=(m,)`` alone is the paper's baseline "SFT".

The layers and what else stands between them and the LM head (norm, learned positions) start as the target's. Followed:
all of this, and a draft of 3/8 of the target's layers with exits after half, three quarters and all of it (12 of 32,
exits 6, 9, 12). Ours: embedding and LM head are the target's and stay as they are, so that the head is small, unless
``shared=False`` trains and stores them as well; Muon instead of AdamW at 2e-5, since the demo model's head has minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from ramify.errors import RamifyError
from ramify.methods.draft.few_layers import FewLayers, config_of
from ramify.methods.head import Fit, Regime, teach
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes

CHUNK = 4  # windows at a time, where the head measures itself


@dataclass(frozen=True)
class SortedSizes:
    """``exits``: layers behind which a token may leave, the last one the draft's depth; None for the paper's
    proportions. ``shared``: embedding and LM head are the target's. ``config``: of the draft model, from the target's.
    """

    exits: Any = None
    shared: bool = True
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.exits is not None:
            given = [self.exits] if isinstance(self.exits, int) else list(self.exits)
            object.__setattr__(self, "exits", given)  # a list, as JSON gives it back
            check_exits(given)


def check_exits(exits: Sequence[int]) -> None:
    """Refuse exits that are no layers in order."""
    if not exits or any(early >= late for early, late in pairwise((0, *exits))):
        raise RamifyError(f"exits are layers, counted from 1 and each behind the one before, not {tuple(exits)}")


def proportions(depth: int) -> list[int]:
    """Exits after half, three quarters and all of ``depth`` layers."""
    return sorted({depth // 2, 3 * depth // 4, depth} - {0})


class SortedHead(FewLayers):
    """The draft model, without the parts that it shares with the target."""

    method = "s2d"
    regime = Regime(steps=500, learning_rate=2e-3, through=True)
    Sizes = SortedSizes

    def __init__(self, fit: Fit, sizes: SortedSizes) -> None:
        if sizes.config is None or sizes.exits is None:
            raise RamifyError("an s2d head is described by its exits and the config of its draft model")
        super().__init__(fit, sizes, sizes.config, sizes.shared)

    @classmethod
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        exits = SortedSizes(options.get("exits")).exits or proportions(min(lm.layers, max(2, 3 * lm.layers // 8)))
        if exits[-1] > lm.layers:
            raise RamifyError(
                f"{lm.name} has {lm.layers} layers, so its draft model cannot have an exit at {exits[-1]}"
            )
        kept = range(exits[-1])
        head = super().new(lm, **options | {"exits": exits, "config": config_of(lm, kept)})
        head.take(lm, kept)
        return head

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        return sorted_loss(self.as_lm(lm), tokens, self.sizes.exits)

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """By exit, how often its likeliest token is the target's."""
        right = [0.0] * len(self.sizes.exits)
        for part in torch.split(tokens, CHUNK):
            truth = teach(lm, part).logits.argmax(dim=-1)
            for place, logits in enumerate(exit_logits(self.as_lm(lm), part, self.sizes.exits)):
                right[place] += float((logits.argmax(dim=-1) == truth).float().mean(dim=1).sum())
        return {
            f"agreement at exit {layer}": hits / len(tokens)
            for layer, hits in zip(self.sizes.exits, right, strict=True)
        }


def exit_logits(lm: CausalLM, tokens: Tensor, exits: Sequence[int]) -> list[Tensor]:
    """Logits [B, T, V] behind every exit, for windows [B, T]: one pass over the layers, in segments."""
    rows, count = tokens.shape
    positions = torch.arange(count, device=tokens.device).expand(rows, -1)
    ancestors = torch.ones(1, count, count, dtype=torch.bool, device=tokens.device).tril_()
    cache = RowCache(lm.layers, rows, count)
    cache.expect(count, tokens.device)
    found: list[Tensor] = []
    states: Tensor | None = None
    for first, last in pairwise((0, *exits)):
        segment = Nodes(tokens, positions, [0] * rows, ancestors, states, None, (last,), first, last)
        logits, hidden = lm.forward(segment, cache)
        states = hidden[last]
        found.append(logits)
    return found


def sorted_loss(lm: CausalLM, tokens: Tensor, exits: Sequence[int]) -> Tensor:
    """The loss of SoFT on windows [B, T + 1]."""
    losses = [
        functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        for logits in exit_logits(lm, tokens[:, :-1], exits)
    ]
    return torch.stack(losses).mean()
