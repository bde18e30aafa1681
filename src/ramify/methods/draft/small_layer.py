"""One decoder layer of a head at work on few rows of one sequence: what EAGLE and Chimera draft with.

On rows so few a pass is many small calls, and code and weights have left the processor's caches since the last one. So
the layer makes few calls: matrices that read the same input are one product, norms' weights are multiplied into the
matrices behind them (a row is then divided by its plain length), the root of the head size into the rotation tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ramify.models.fused import rotate
from ramify.models.weights import Product

KEPT = torch.float32  # keys and values: products of few rows cost a CPU least so
Turns = Callable[[Tensor], tuple[Tensor, Tensor]]


class Text:
    """Keys and values [K, slots, size] of one sequence: its verified text, and behind it the draft under way."""

    def __init__(self, key_heads: int, size: int, device: torch.device) -> None:
        self.keys = torch.zeros(key_heads, 256, size, dtype=KEPT, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def write(self, begin: int, keys: Tensor, values: Tensor) -> int:
        """Put rows [K, n, size] into the slots from ``begin`` on; returns where they end."""
        end = begin + keys.shape[1]
        if end > self.keys.shape[1]:
            space = self.keys.new_zeros(len(keys), end, self.keys.shape[2])
            self.keys, self.values = (torch.cat([kept, space], dim=1) for kept in (self.keys, self.values))
        self.keys[:, begin:end] = keys
        self.values[:, begin:end] = values
        return end


class SmallLayer:
    """``heads`` over ``key_heads`` of ``size`` each; ``turns``: rotation tables [n, 1, size] for positions [n]."""

    def __init__(
        self, qkv: Product, out: Product, gate_up: Product, down: Product, heads: int, key_heads: int, turns: Turns
    ) -> None:
        self.qkv, self.out, self.gate_up, self.down = qkv, out, gate_up, down
        self.heads, self.key_heads, self.turns = heads, key_heads, turns
        self.tables: tuple[Tensor, Tensor] | None = None

    def attend(
        self, text: Text, x: Tensor, begin: int, place: int, asking: int, hidden: Tensor | None = None
    ) -> Tensor:
        """What the last ``asking`` of the rows x [n, in] attend to: [asking, heads · size].

        The rows enter the slots from ``begin`` on. Either all ask, or the last one, or none: those that ask have
        position ``place``, the rows before them those before it. Rows see every slot up to their end; ``hidden``
        [asking, m] is added for the last m slots, minus infinity where a row does not see one.
        """
        turning, groups = self.heads + self.key_heads, self.key_heads
        qkv = self.qkv(x).to(KEPT).view(len(x), turning + groups, -1)
        size = qkv.shape[2]
        cos, sin = self._tables(place + 1, qkv)
        first, last = place - (len(x) - asking), place + (asking > 0)
        turned = rotate(qkv[:, :turning], cos[first:last], sin[first:last])
        end = text.write(begin, turned[:, self.heads :].transpose(0, 1), qkv[:, turning:].transpose(0, 1))
        if asking == 0:
            return x[:0]
        # Queries that share a key head stand below each other: [K, G · asking, size].
        queries = turned[len(x) - asking :, : self.heads].transpose(0, 1).reshape(groups, -1, size)
        scores = torch.bmm(queries, text.keys[:, :end].transpose(1, 2))
        if hidden is not None:
            scores.view(self.heads, asking, end)[:, :, end - hidden.shape[1] :] += hidden
        mixed = torch.bmm(torch.softmax(scores, dim=-1), text.values[:, :end])
        return mixed.view(self.heads, asking, size).transpose(0, 1).reshape(asking, -1).to(x.dtype)

    def finish(self, residual: Tensor, mixed: Tensor) -> Tensor:
        """What leaves the layer [n, D], from the residual stream [n, D] and what attention gave."""
        y = residual + self.out(mixed)
        gate, up = self.gate_up(unit(y)).chunk(2, dim=1)
        found: Tensor = y + self.down(functional.silu(gate).mul_(up))
        return found

    def _tables(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation tables for the positions below ``end`` and more; queries and keys each bring a half of the scale."""
        if self.tables is None or end > len(self.tables[0]):
            places = torch.arange(max(256, 1 << (end - 1).bit_length()), device=like.device)
            cos, sin = self.turns(places)
            scale = like.shape[2] ** -0.25
            self.tables = scale * cos.to(KEPT), scale * sin.to(KEPT)
        return self.tables


def unit(x: Tensor) -> Tensor:
    """Rows x [n, D] of length 1."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp_min_(1e-6)
