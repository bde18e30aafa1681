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

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError
from ramify.methods.head import Fit, Head, Regime, teach
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM, wrap
from ramify.models.forward import Nodes

CHUNK = 4  # windows at a time, where the head measures itself
BOOKKEEPING = ("architectures", "dtype", "transformers_version", "_name_or_path")


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


class Borrowed(nn.Module):
    """Stands in for the target's embedding or LM head: a frozen copy, no part of the module that it stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: tuple[Any, ...] = ()  # in a tuple: neither a submodule nor a parameter

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.lent[0](x)
        return found

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.lent[0].weight
        return weight


class SortedHead(Head):
    """``model``: the draft model as transformers builds it, without the parts that it shares with the target."""

    method = "s2d"
    regime = Regime(steps=500, learning_rate=2e-3, through=True)
    Sizes = SortedSizes

    def __init__(self, fit: Fit, sizes: SortedSizes) -> None:
        super().__init__(fit, sizes)
        if sizes.config is None or sizes.exits is None:
            raise RamifyError("an s2d head is described by its exits and the config of its draft model")
        self.model = _build(sizes.config)
        if sizes.shared:
            self.model.set_input_embeddings(Borrowed())
            self.model.set_output_embeddings(Borrowed())
        self.trained: tuple[CausalLM, ...] = ()

    @classmethod
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        exits = SortedSizes(options.get("exits")).exits or proportions(min(lm.layers, max(2, 3 * lm.layers // 8)))
        if exits[-1] > lm.layers:
            raise RamifyError(
                f"{lm.name} has {lm.layers} layers, so its draft model cannot have an exit at {exits[-1]}"
            )
        head = super().new(lm, **options | {"exits": exits, "config": _truncated(lm, exits[-1])})
        theirs = lm.original.state_dict()
        missing = [name for name in head.model.state_dict() if name not in theirs]
        if missing:
            raise RamifyError(f"the first layers of {lm.name} make no model of their own: it has no {missing[0]}")
        head.model.load_state_dict({name: theirs[name].float() for name in head.model.state_dict()})
        return head

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        return sorted_loss(self._as_lm(lm), tokens, self.sizes.exits)

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """By exit, how often its likeliest token is the target's."""
        right = [0.0] * len(self.sizes.exits)
        for part in torch.split(tokens, CHUNK):
            truth = teach(lm, part).logits.argmax(dim=-1)
            for place, logits in enumerate(exit_logits(self._as_lm(lm), part, self.sizes.exits)):
                right[place] += float((logits.argmax(dim=-1) == truth).float().mean(dim=1).sum())
        return {
            f"agreement at exit {layer}": hits / len(tokens)
            for layer, hits in zip(self.sizes.exits, right, strict=True)
        }

    def draft(self, lm: CausalLM, weights: str | None = None) -> CausalLM:
        """The draft model for ``lm``, in its dtype and on its device, complete: it needs the target no more.

        ``weights``: as ``load`` takes it. With "plain", ``.model.save_pretrained(folder)`` makes it a model folder,
        which may draft for any other target of the same vocabulary.
        """
        model = _build(self.sizes.config, lm.dtype, lm.model.config._attn_implementation)
        model.load_state_dict(self.model.state_dict(), strict=not self.sizes.shared)
        if self.sizes.shared:
            inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
            inner.load_state_dict(lm.model.get_input_embeddings().state_dict())
            if outer.weight is not inner.weight:
                outer.load_state_dict(lm.original.get_output_embeddings().state_dict())
        model = model.to(lm.device).requires_grad_(False).eval()
        return wrap(model, lm.tokenizer, f"the draft of {lm.name}", weights=weights, owned=True)

    def _as_lm(self, lm: CausalLM) -> CausalLM:
        """The head's own model as the engine sees it, for passes with gradients; in float32."""
        if not self.trained:
            if self.sizes.shared:
                parts = (self.model.get_input_embeddings(), lm.original.get_input_embeddings())
                others = (self.model.get_output_embeddings(), lm.original.get_output_embeddings())
                for mine, theirs in (parts, others):
                    mine.lent = (copy.deepcopy(theirs).float().requires_grad_(False),)
            with torch.autocast(lm.device.type, enabled=False):
                self.trained = (wrap(self.model, None, f"the draft of {lm.name}", "transformers"),)
        return self.trained[0]


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


def _truncated(lm: CausalLM, layers: int) -> dict[str, Any]:
    """The config of a model of the first ``layers`` layers of ``lm``, as JSON holds it."""
    config = copy.deepcopy(lm.model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    described = config.to_diff_dict() | {"model_type": config.model_type}
    kept: dict[str, Any] = json.loads(json.dumps({k: v for k, v in described.items() if k not in BOOKKEEPING}))
    return kept


def _build(described: dict[str, Any], dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """A new transformers model of this config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**described)
    build: Any = AutoModelForCausalLM.from_config
    return build(config, dtype=dtype, attn_implementation=attention)
