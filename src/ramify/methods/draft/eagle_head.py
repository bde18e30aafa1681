"""The trained part of EAGLE: one decoder layer that continues the target's own states.

Shapes: D the target's hidden size, V its vocabulary. f_t is the target's state at position t, x_t its token.

    EAGLE, EAGLE-2 (``version`` 1)   f_t behind the final norm; out = Layer(fc [e(x_{t+1}); f_t]) is a guess at f_{t+1}
    EAGLE-3 (``version`` 3)          f_t = fc [low_t; middle_t; high_t], states of three layers; out is free
    both                             softmax LM(out) guesses x_{t+2};  with x_{t+2} guessed, out continues as f_{t+1}

Embeddings are the target's, frozen; so is the LM head, but EAGLE-3's is its own (behind a norm of its own). The target
is never trained. With p the target's law where ``out`` stands, and n(·) = SmoothL1:

    version 1   L = n(out, f_{t+1}) + 0.1 · CE(p, softmax LM(out)),  f_t with noise from U(−0.1, 0.1)
    version 3   L = CE(p, softmax LM(out)),  no feature loss

``distances``: how often training feeds the layer its own output, the token given (1 as in EAGLE; EAGLE-3 calls more its
training-time test, and its code takes 7). Later passes see what a draft sees: the text's rows up to t, then their own.

``draft_vocabulary``: guess among so many tokens only, the most frequent ones of the training texts, through a table of
ids (EAGLE-3, FR-Spec), for the LM head of a small model would otherwise be most of a level's cost; 0 for all. The rows
are the target's and frozen in version 1. p is not renormalised over them: a position counts by the share they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError
from ramify.methods.draft.borrowed import lm_head, lm_head_weight
from ramify.methods.draft.eagle_layer import EagleLayer, LayerSizes, Norm, along
from ramify.methods.head import Fit, Head, Regime, Taught, sizes_of, teach
from ramify.models.causal import CausalLM

TOKEN_LOSS = 0.1  # weight of the cross-entropy beside the feature loss
MEASURED = 4  # distances at which a head is measured
CHUNK = 4  # windows at a time, where it is


@dataclass(frozen=True)
class EagleSizes(LayerSizes):
    """Those of the layer, and: ``version`` 1 or 3; ``draft_vocabulary``, ``distances`` and ``noise``: see above.

    ``low``, ``middle``, ``high``: the layers that version 3 reads (0: 2, half of all, all but three). ``fc_bias``.
    ``own_embedding``, ``own_lm_head``: it brings its own, as some published heads do.
    """

    version: int = 1
    draft_vocabulary: int = 0
    distances: int = 1
    noise: float = 0.1
    low: int = 0
    middle: int = 0
    high: int = 0
    fc_bias: bool = False
    own_embedding: bool = False
    own_lm_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in (1, 3):
            raise RamifyError(f"version must be 1 (EAGLE and EAGLE-2) or 3, got {self.version}")
        if self.distances < 1 or self.draft_vocabulary < 0 or self.noise < 0:
            raise RamifyError(
                "distances must be at least 1, draft_vocabulary and noise at least 0, got "
                f"{self.distances}, {self.draft_vocabulary} and {self.noise}"
            )


class EagleHead(Head):
    """The layer with what feeds it and what reads it; module names are those of published checkpoints.

    ``d2t`` [draft vocabulary]: draft token i is the target's token i + d2t[i].
    """

    method = "eagle"
    regime = Regime(steps=400, learning_rate=6e-3, through=True)
    Sizes = EagleSizes

    def __init__(self, fit: Fit, sizes: EagleSizes) -> None:
        super().__init__(fit, sizes)
        size, three = fit.hidden_size, sizes.version == 3
        if sizes.draft_vocabulary > fit.vocab_size:
            raise RamifyError(f"draft_vocabulary is {sizes.draft_vocabulary}, more than the {fit.vocab_size} tokens")
        self.fc = nn.Linear((3 if three else 2) * size, size, bias=sizes.fc_bias)
        self.layers = nn.ModuleList([EagleLayer(size, sizes, joins=three)])
        self.norm = Norm(size, eps=sizes.eps) if three else None
        self.d2t: Tensor | None
        self.register_buffer(
            "d2t", torch.zeros(sizes.draft_vocabulary, dtype=torch.long) if sizes.draft_vocabulary else None
        )
        own = three or sizes.own_lm_head or sizes.draft_vocabulary > 0
        self.lm_head = nn.Linear(size, sizes.draft_vocabulary or fit.vocab_size, bias=False) if own else None
        if self.lm_head is not None:
            self.lm_head.requires_grad_(three)
        self.embed_tokens = nn.Embedding(fit.vocab_size, size).requires_grad_(False) if sizes.own_embedding else None
        self.reads = (sizes.low, sizes.middle, sizes.high) if three else (-1,)

    @classmethod
    @torch.no_grad()
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        config, given = lm.text_config, sizes_of(cls, options)
        heads = given.heads or config.num_attention_heads
        grouped = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        options = options | {
            "heads": heads,
            "key_heads": given.key_heads or (heads if given.heads else grouped),
            "head_size": given.head_size or getattr(config, "head_dim", None) or config.hidden_size // heads,
            "width": given.width or getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            "eps": given.eps or getattr(config, "rms_norm_eps", 1e-6),
            "rope": given.rope or {"rope_type": "default", "rope_theta": float(rope.get("rope_theta", 10000.0))},
        }
        if given.version == 3:
            options |= {name: getattr(given, name) or default for name, default in aux_layers(lm.layers).items()}
        head = super().new(lm, **options)
        head.read(lm, [])
        if head.embed_tokens is not None:
            head.embed_tokens.weight.copy_(lm.forward.embed(torch.arange(lm.vocab_size, device=lm.device)))
        return head

    @torch.no_grad()
    def read(self, lm: CausalLM, texts: Sequence[Sequence[int]]) -> None:
        if self.lm_head is None:
            return
        rows = lm_head_weight(lm)
        if self.d2t is not None:
            counts = Counter(token for text in texts for token in text)
            frequent = sorted(range(lm.vocab_size), key=lambda token: -counts[token])[: len(self.d2t)]
            ids = torch.tensor(sorted(frequent))
            self.d2t.copy_(ids - torch.arange(len(ids)))
            rows = rows[ids]
        self.lm_head.weight.copy_(rows)

    def embed(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """e [..., D] of target tokens."""
        embedded: Tensor = self.embed_tokens(tokens) if self.embed_tokens is not None else lm.forward.embed(tokens)
        return embedded

    def fuse(self, states: Tensor) -> Tensor:
        """f [..., D] of the target's states, side by side where it reads several layers."""
        fused: Tensor = self.fc(states) if self.norm is not None else states
        return fused

    def enter(self, e: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """x and r, see ``eagle_layer``."""
        layer: Any = self.layers[0]
        if self.norm is not None:
            joined: tuple[Tensor, Tensor] = layer.join(e, f)
            return joined
        x = self.fc(torch.cat([e, f], dim=-1))
        return x, x

    def logits(self, lm: CausalLM, out: Tensor) -> Tensor:
        """What the head's outputs [..., D] say of the next token: [..., draft vocabulary]."""
        read = self.norm(out) if self.norm is not None else out
        found: Tensor = self.lm_head(read) if self.lm_head is not None else lm_head(lm)(read.to(lm.dtype))
        return found

    def ids(self, drafted: Tensor) -> Tensor:
        """The target's tokens for those of the draft vocabulary."""
        return drafted if self.d2t is None else drafted + self.d2t[drafted]

    def unroll(self, lm: CausalLM, states: Tensor, tokens: Tensor, distances: int) -> list[Tensor]:
        """out [B, N, D] for distances 1, 2, … of windows ``tokens`` [B, T] with their states; N = T − distances."""
        count = tokens.shape[1] - distances
        if count < 1:
            raise RamifyError(f"windows of {tokens.shape[1]} tokens are too short for {distances} distances")
        layer: Any = self.layers[0]
        f = self.fuse(states[:, :count])
        places = torch.arange(count, device=tokens.device)
        passes: list[tuple[Tensor, Tensor]] = []
        found = []
        for step in range(distances):
            e = self.embed(lm, tokens[:, step + 1 : step + 1 + count]).to(f.dtype)
            x, residual = self.enter(e, f)
            queries, keys, values = layer.project(x, places + step)
            passes.append((keys, values))
            f = layer.finish(residual, along(queries, passes[0], passes[1:]))
            found.append(f)
        return found

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        sizes: EagleSizes = self.sizes
        taught, states = self._taught(lm, tokens)
        goal = taught.hidden[self.reads[-1]].float()
        if sizes.version == 1 and sizes.noise:
            seeded = torch.Generator().manual_seed(int(tokens.sum()))
            states = states + sizes.noise * (2 * torch.rand(states.shape, generator=seeded).to(states) - 1)
        total = goal.new_zeros(())
        for step, out in enumerate(self.unroll(lm, states, tokens, sizes.distances), 1):
            rows = slice(step, step + out.shape[1])
            law = torch.softmax(taught.logits[:, rows].float(), dim=-1)
            if self.d2t is not None:
                law = law[..., self.ids(torch.arange(len(self.d2t), device=law.device))]
            tokens_loss = -(law * functional.log_softmax(self.logits(lm, out).float(), dim=-1)).sum(-1).mean()
            if sizes.version == 3:
                total = total + tokens_loss
            else:
                total = total + functional.smooth_l1_loss(out.float(), goal[:, rows]) + TOKEN_LOSS * tokens_loss
        return total

    def _taught(self, lm: CausalLM, tokens: Tensor) -> tuple[Taught, Tensor]:
        taught = teach(lm, tokens, self.reads)
        return taught, torch.cat([taught.hidden[layer].float() for layer in self.reads], dim=-1)

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """How often the first guess at distance 2, 3, … is the target's likeliest token, those in between given."""
        right = [0.0] * MEASURED
        for part in torch.split(tokens, CHUNK):
            taught, states = self._taught(lm, part)
            for step, out in enumerate(self.unroll(lm, states, part, MEASURED)):
                best = taught.logits[:, step + 1 : step + 1 + out.shape[1]].argmax(dim=-1)
                hit = self.ids(self.logits(lm, out).argmax(dim=-1)) == best
                right[step] += hit.float().mean().item() * len(part) / len(tokens)
        return {f"agreement at +{step + 2}": rate for step, rate in enumerate(right)}


def aux_layers(layers: int) -> dict[str, int]:
    """The layers that EAGLE-3 reads in a target of so many: what enters layers 2, L/2 and L − 3, counted from 0."""
    return {"low": min(2, layers), "middle": max(1, layers // 2), "high": max(1, layers - 3)}
