"""The key–value cache: preallocated buffers in which row r's entries lie contiguously in slots 0 … length(r) − 1.

New entries are written behind each row's own length, so rows of different length need no padding slots and a slot's
number is its token's position. All layers keep their full length, sliding ones too: windows are a matter of the mask,
and what a rejected draft pushed out of a window could not be brought back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RowCache(Cache):
    """A transformers ``Cache`` for B rows with lengths of their own.

    ``capacity``: slots to begin with; it doubles when they do not suffice. ``seen``: how many slots the layers hand
    out to the next forward pass; ``expect`` sets it to those in use, a forward pass may raise it up to ``capacity``.
    """

    def __init__(self, layers: int, rows: int, capacity: int = 256) -> None:
        self.lengths = [0] * rows
        self.capacity = capacity
        self.seen = 0
        self.slots: Tensor | None = None
        self.row_layers = [RowLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.row_layers))

    def expect(self, nodes: int, device: torch.device) -> int:
        """Make room for ``nodes`` new entries in every row; returns how many slots the next forward pass sees."""
        end = max(self.lengths) + nodes
        if end > self.capacity:
            self.capacity = max(end, 2 * self.capacity)
            for layer in self.row_layers:
                layer.grow(self.capacity)
        if len(set(self.lengths)) > 1:
            offsets = torch.tensor(self.lengths, device=device)[:, None]
            self.slots = offsets + torch.arange(nodes, device=device)
        else:
            self.slots = None
        self.seen = end
        return end

    def keep(self, nodes: Sequence[Sequence[int]]) -> None:
        """Of the entries written last, keep ``nodes[r]`` of each row in that order; the row grows by their number."""
        moves = [list(row) != list(range(len(row))) for row in nodes]
        if any(moves):
            widest = max(map(len, nodes))
            padded = [[*row, *range(len(row), widest)] for row in nodes]
            initialised = next(layer.keys for layer in self.row_layers if layer.keys is not None)
            device = initialised.device
            base = torch.tensor(self.lengths, device=device)[:, None]
            source = base + torch.tensor(padded, device=device)
            target = base + torch.arange(widest, device=device)
            for layer in self.row_layers:
                layer.move(source, target)
        for row, kept in enumerate(nodes):
            self.lengths[row] += len(kept)

    def select(self, rows: Sequence[int]) -> None:
        """Fork, drop or reorder rows."""
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self.row_layers:
            layer.select(rows)


class RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values [B, heads, capacity, head size], allocated when the first entries arrive."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def buffer(like: Tensor) -> Tensor:
            # Zeros, not empty: masked slots are multiplied by zero, and zero times a stray NaN is NaN.
            return like.new_zeros(like.shape[0], like.shape[1], self.cache.capacity, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        cache = self.cache
        if cache.slots is None:
            begin, new = max(cache.lengths), key_states.shape[2]
            self.keys.narrow(2, begin, new).copy_(key_states)
            self.values.narrow(2, begin, new).copy_(value_states)
        else:
            index = cache.slots[:, None, :, None]
            self.keys.scatter_(2, index.expand_as(key_states), key_states)
            self.values.scatter_(2, index.expand_as(value_states), value_states)
        return self.keys.narrow(2, 0, cache.seen), self.values.narrow(2, 0, cache.seen)

    def grow(self, capacity: int) -> None:
        if self.keys is None or self.values is None:
            return
        for name, old in (("keys", self.keys), ("values", self.values)):
            new = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots ``source`` [B, n] to slots ``target`` [B, n]; gathered first, since they overlap."""
        for buffer in (self.keys, self.values):
            if buffer is None:
                continue
            if source.shape[0] == 1:
                buffer.index_copy_(2, target[0], buffer.index_select(2, source[0]))
            else:
                shape = (buffer.shape[0], buffer.shape[1], source.shape[1], buffer.shape[3])
                moved = buffer.gather(2, source[:, None, :, None].expand(shape))
                buffer.scatter_(2, target[:, None, :, None].expand(shape), moved)

    def select(self, rows: Sequence[int]) -> None:
        if self.keys is None or self.values is None:
            return
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.cache.lengths) + query_length, 0

    def get_seq_length(self) -> int:
        return max(self.cache.lengths)

    def get_max_length(self) -> int:
        return -1
