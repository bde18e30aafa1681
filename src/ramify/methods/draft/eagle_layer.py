"""The one decoder layer of an EAGLE head: of Llama's shape, under the names that published checkpoints use.

    EAGLE, EAGLE-2   x = fc [e; f]                     r = x
    EAGLE-3          x = [norm_e(e); norm_f(f)]        r = f        (norm_f(f) where ``norm_first``)
    both             y = r + Attention(x),             out = y + MLP(norm(y))

e: the embedding of a token. f: the state before it, the target's own where that is known, else what the layer put out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ramify.errors import RamifyError, unknown
from ramify.models.fused import ROTATIONS, Rotation, rotate


@dataclass(frozen=True)
class LayerSizes:
    """``heads`` over ``key_heads`` of ``head_size``; ``width`` of the MLP; 0 for the target's own.

    ``eps`` of the norms, and ``rope`` as transformers' ``rope_parameters``: the target's where they are not given.
    ``attention_bias``: whether queries, keys and values have biases. ``norm_first``: see above.
    """

    heads: int = 0
    key_heads: int = 0
    head_size: int = 0
    width: int = 0
    eps: float = 0.0
    rope: dict[str, Any] | None = None
    attention_bias: bool = False
    norm_first: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "key_heads", "head_size", "width", "eps"):
            if getattr(self, name) < 0:
                raise RamifyError(f"{name} must be at least 0 (0 takes the target's), got {getattr(self, name)}")
        if self.key_heads and self.heads % self.key_heads:
            raise RamifyError(f"{self.heads} attention heads cannot share {self.key_heads} key heads evenly")
        if self.rope is not None and self.rope.get("rope_type") not in ROTATIONS:
            raise unknown("rotary positions", str(self.rope.get("rope_type")), ROTATIONS)


class Norm(nn.RMSNorm):
    """In the weight's own dtype, also where autocast hands in another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class EagleLayer(nn.Module):
    """``size`` D of the states; reads x [..., N, D], or [..., N, 2D] in EAGLE-3's layout (``joins``).

    Both matrices that write into the residual stream begin at zero, so that a new layer puts out what ``fc`` gave it.
    """

    def __init__(self, size: int, sizes: LayerSizes, joins: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_size = sizes.heads, sizes.key_heads, sizes.head_size
        inputs, inner = (2 if joins else 1) * size, sizes.heads * sizes.head_size
        keys, bias = sizes.key_heads * sizes.head_size, sizes.attention_bias
        out, down = nn.Linear(inner, size, bias=False), nn.Linear(sizes.width, size, bias=False)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(down.weight)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(inputs, inner, bias=bias),
                "k_proj": nn.Linear(inputs, keys, bias=bias),
                "v_proj": nn.Linear(inputs, keys, bias=bias),
                "o_proj": out,
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(size, sizes.width, bias=False),
                "up_proj": nn.Linear(size, sizes.width, bias=False),
                "down_proj": down,
            }
        )
        self.post_attention_layernorm = Norm(size, eps=sizes.eps)
        self.joins, self.norm_first = joins, sizes.norm_first
        if joins:
            self.input_layernorm = Norm(size, eps=sizes.eps)
            self.hidden_norm = Norm(size, eps=sizes.eps)
        rotary = LlamaConfig(
            hidden_size=inner,
            num_attention_heads=sizes.heads,
            head_dim=sizes.head_size,
            rope_parameters=dict(sizes.rope or {}),
            max_position_embeddings=1 << 20,
        )
        self.rotation = Rotation(LlamaRotaryEmbedding(rotary), None)

    def join(self, e: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """x and r of EAGLE-3's layout."""
        normed = self.hidden_norm(f)
        return torch.cat([self.input_layernorm(e), normed], dim=-1), normed if self.norm_first else f

    def project(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, K, G, N, size], keys and values [B, K, N, size] of x [B, N, …] at ``places`` [N].

        G queries share a key head; they come divided by the root of their size.
        """
        attention: Any = self.self_attn
        queries, keys, values = (
            layer(x).view(*x.shape[:2], -1, self.head_size).to(x.dtype)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        turn = [table[None].to(x.dtype) for table in self.turns(places)]
        queries = rotate(queries, *turn).transpose(1, 2) / math.sqrt(self.head_size)
        queries = queries.reshape(len(x), self.key_heads, -1, x.shape[1], self.head_size)
        return queries, rotate(keys, *turn).transpose(1, 2), values.transpose(1, 2)

    def finish(self, residual: Tensor, mixed: Tensor) -> Tensor:
        """What the layer puts out [B, N, D], from r [B, N, D] and what attention gave [B, K, G, N, size]."""
        attention: Any = self.self_attn
        mlp: Any = self.mlp
        y = residual + attention.o_proj(mixed.flatten(1, 2).transpose(1, 2).flatten(2).to(residual.dtype))
        inner = self.post_attention_layernorm(y)
        found: Tensor = y + mlp.down_proj(functional.silu(mlp.gate_proj(inner)) * mlp.up_proj(inner))
        return found

    def turns(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation tables [N, 1, size] for ``places`` [N]: cosines, and sines signed as ``rotate`` wants them."""
        end = int(places[-1]) + 1
        cos, sin = self.rotation.at(places[None], end, torch.empty(0, device=places.device))
        return cos[0], sin[0]


def along(queries: Tensor, text: tuple[Tensor, Tensor], branch: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention in training: row t sees the rows of ``text`` up to t, and row t of each pass of ``branch``."""
    keys, values = (part[:, :, None] for part in text)
    count = queries.shape[-2]
    later = torch.ones(count, count, dtype=torch.bool, device=queries.device).triu_(1)
    scores = (queries @ keys.transpose(-1, -2)).masked_fill(later, -torch.inf)
    if not branch:
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    own_keys, own_values = (torch.stack(part, dim=-2)[:, :, None] for part in zip(*branch, strict=True))
    near = (queries[..., None, :] * own_keys).sum(-1)
    weights = torch.softmax(torch.cat([scores, near], dim=-1), dim=-1, dtype=torch.float32).to(values.dtype)
    far, near = torch.split(weights, [count, len(branch)], dim=-1)
    return torch.matmul(far, values) + (near[..., None] * own_values).sum(-2)
