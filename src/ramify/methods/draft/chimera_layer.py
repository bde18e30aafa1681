"""The full-context encoder of Chimera: one decoder layer whose draft rows read the target's own states.

Rows R hold the target's last states of the text, and only their keys and values are needed. Draft rows carry the
trigram vectors; a row sees all of R up to the state that its branch begins with, the draft rows of its own branch, and
itself. The layer has Llama's shape (pre-norms, rotary positions, grouped keys, gated feed-forward) for every target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.methods.draft.eagle_layer import Norm
from ramify.models.fused import rotate


class ContextLayer(nn.Module):
    """``size`` D, ``heads`` H over ``key_heads`` K, ``width`` of the feed-forward block, ``theta`` of the rotation.

    The two matrices that write into the residual stream begin at zero: at first a row comes out as it went in.
    """

    def __init__(self, size: int, heads: int, key_heads: int, width: int, theta: float) -> None:
        super().__init__()
        self.heads, self.key_heads, self.size = heads, key_heads, size // heads
        self.theta = theta
        self.before, self.behind = Norm(size, eps=1e-6), Norm(size, eps=1e-6)
        self.qkv = nn.Linear(size, (heads + 2 * key_heads) * self.size, bias=False)
        self.mix = nn.Linear(heads * self.size, size, bias=False)
        self.gate_up = nn.Linear(size, 2 * width, bias=False)
        self.down = nn.Linear(width, size, bias=False)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.down.weight)

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, K, G, N, size], keys and values [B, K, N, size] of rows x [B, N, D].

        The G queries that share a key head come divided by the root of their size.
        """
        rows, count, _ = x.shape
        qkv = self.qkv(self.before(x)).view(rows, count, -1, self.size)
        turned, values = torch.split(qkv, [self.heads + self.key_heads, self.key_heads], dim=2)
        queries, keys = torch.split(rotate(turned, *turn), [self.heads, self.key_heads], dim=2)
        queries = (queries / math.sqrt(self.size)).transpose(1, 2)
        queries = queries.reshape(rows, self.key_heads, -1, count, self.size)
        return queries, keys.transpose(1, 2), values.transpose(1, 2)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What leaves the layer [B, N, D], from what entered it and what attention [B, K, G, N, size] gave."""
        x = x + self.mix(mixed.flatten(1, 2).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.behind(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(functional.silu(gate) * up)
        return out

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation tables [N, 1, size] for ``positions`` [N]: cosines, and sines signed as ``rotate`` wants them."""
        half = torch.arange(0, self.size, 2, device=positions.device) / self.size
        angles = positions[:, None] / self.theta**half
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]
