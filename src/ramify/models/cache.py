"""The key–value cache: preallocated buffers in which row r's entries lie contiguously in slots 0 … length(r) − 1.

New entries are written behind each row's own length, so rows of different length need no padding slots and a slot's
number is its token's position. All layers keep their full length, sliding ones too: windows are a matter of the mask,
and what a rejected draft pushed out of a window could not be brought back.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RowCache(Cache):
    """A transformers ``Cache`` for B rows with lengths of their own.

    ``capacity``: slots to begin with; it doubles when they do not suffice. ``seen``: how many slots the layers hand
    out to the next forward pass; ``expect`` sets it to those in use, a forward pass may raise it up to ``capacity``.
    ``taking``: how many rows, from the first, take part in that pass; the others wait.
    ``joined``: [2 layers, B, heads, capacity, head size] when a forward pass lent the buffers, of which the layers' are
    then views, keys and values in turn; None when they are the layers' own.
    """

    def __init__(self, layers: int, rows: int, capacity: int = 256) -> None:
        self.lengths = [0] * rows
        self.capacity = capacity
        self.seen = 0
        self.taking = rows
        self.slots: Tensor | None = None
        self.joined: Tensor | None = None
        self.row_layers = [RowLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.row_layers))

    def expect(self, nodes: int, device: torch.device, rows: int | None = None) -> int:
        """Make room for ``nodes`` new entries in each of the first ``rows`` rows (default all); the others wait.

        Returns how many slots the next forward pass sees.
        """
        self.taking = len(self.lengths) if rows is None else rows
        lengths = self.lengths[: self.taking]
        end = max(lengths) + nodes
        if end > self.capacity:
            self.capacity = max(end, 2 * self.capacity)
            self.joined = None
            for layer in self.row_layers:
                layer.grow(self.capacity)
        if len(set(lengths)) > 1:
            self.slots = send(torch.tensor(lengths), device)[:, None] + torch.arange(nodes, device=device)
        else:
            self.slots = None
        self.seen = end
        return end

    def keep(self, nodes: Sequence[Sequence[int]]) -> None:
        """Of the entries written last, keep ``nodes[r]`` of row r in that order; the row grows by their number."""
        moves = [list(row) != list(range(len(row))) for row in nodes]
        if any(moves):
            widest = max(map(len, nodes))
            padded = [[*row, *range(len(row), widest)] for row in nodes]
            initialised = next(layer.keys for layer in self.row_layers if layer.keys is not None)
            device = initialised.device
            base = send(torch.tensor(self.lengths[: len(nodes)]), device)[:, None]
            source = base + send(torch.tensor(padded), device)
            target = base + torch.arange(widest, device=device)
            if self.joined is not None:
                _move(self.joined[:, : len(nodes)], source, target)
            else:
                for layer in self.row_layers:
                    layer.move(source, target)
        for row, kept in enumerate(nodes):
            self.lengths[row] += len(kept)

    def select(self, rows: Sequence[int]) -> None:
        """Fork, drop or reorder rows. A row that stays where it was is not copied, and room is left for more."""
        used = max(self.lengths[row] for row in rows)
        lent = self.joined is not None
        for layer in self.row_layers:
            layer.select(rows, used, lent)
        self.lengths = [self.lengths[row] for row in rows]
        self.joined = None

    def occupy(self, buffers: Tensor) -> None:
        """Move to ``buffers``, laid out like ``joined`` and no smaller than now, until it grows or ``select``s."""
        buffers.zero_()
        for layer, keys, values in zip(self.row_layers, buffers[0::2], buffers[1::2], strict=True):
            layer.occupy(keys, values)
        self.capacity, self.joined = buffers.shape[-2], buffers


class RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values [B or more, heads, capacity, head size], allocated when the first entries arrive."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Weak, so that the buffers are free again as soon as the session is, without waiting for a garbage collection.
        self.cache: RowCache = weakref.proxy(cache)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def buffer(like: Tensor) -> Tensor:
            # Zeros, not empty: masked slots are multiplied by zero, and zero times a stray NaN is NaN.
            return like.new_zeros(len(self.cache.lengths), like.shape[1], self.cache.capacity, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        cache = self.cache
        keys, values = self.keys[: cache.taking], self.values[: cache.taking]
        if cache.slots is None:
            begin, new = cache.lengths[0], key_states.shape[2]
            keys.narrow(2, begin, new).copy_(key_states)
            values.narrow(2, begin, new).copy_(value_states)
        else:
            index = cache.slots[:, None, :, None]
            keys.scatter_(2, index.expand_as(key_states), key_states)
            values.scatter_(2, index.expand_as(value_states), value_states)
        return keys.narrow(2, 0, cache.seen), values.narrow(2, 0, cache.seen)

    def grow(self, capacity: int) -> None:
        if self.keys is None or self.values is None:
            return
        for name, old in (("keys", self.keys), ("values", self.values)):
            new = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def occupy(self, keys: Tensor, values: Tensor) -> None:
        """Move the entries into these zeroed buffers, which are no smaller."""
        if self.keys is not None and self.values is not None:
            keys[:, :, : self.keys.shape[2]] = self.keys[: len(keys)]
            values[:, :, : self.values.shape[2]] = self.values[: len(values)]
        self.keys, self.values = keys, values
        self.is_initialized = True

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots ``source`` [B, n] to slots ``target`` [B, n]."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                _move(buffer[: len(source)], source, target)

    def select(self, rows: Sequence[int], used: int, afresh: bool) -> None:
        """Row i becomes what row ``rows[i]`` was, in its first ``used`` slots.

        The buffers have up to twice as many rows as are in use, so that a fork copies nothing but itself. ``afresh``:
        into new buffers in any case, for the old ones are lent.
        """
        if self.keys is None or self.values is None:
            return
        available = len(self.keys)
        if afresh or not len(rows) <= available <= 2 * len(rows):
            size = len(rows) if afresh or available > len(rows) else max(len(rows), 2 * available)
            index = send(torch.tensor(rows), self.keys.device)
            old = (self.keys, self.values)
            self.keys, self.values = (each.new_zeros(size, *each.shape[1:]) for each in old)
            for each, buffer in zip(old, (self.keys, self.values), strict=True):
                buffer[: len(rows), :, :used] = each[:, :, :used].index_select(0, index)
            return
        moved = [place for place, row in enumerate(rows) if row != place]
        if moved:
            target = send(torch.tensor(moved), self.keys.device)
            source = send(torch.tensor([rows[place] for place in moved]), self.keys.device)
            for buffer in (self.keys[:, :, :used], self.values[:, :, :used]):
                buffer.index_copy_(0, target, buffer.index_select(0, source))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(self.cache.lengths[: self.cache.taking])

    def get_max_length(self) -> int:
        return -1


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without waiting for a GPU: CUDA has its own copy of pageable memory on return."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _move(buffer: Tensor, source: Tensor, target: Tensor) -> None:
    """In ``buffer`` [..., B, heads, capacity, size] copy slots ``source`` [B, n] to ``target`` [B, n].

    Gathered first, since they overlap.
    """
    if source.shape[0] == 1:
        buffer.index_copy_(-2, target[0], buffer.index_select(-2, source[0]))
    else:
        shape = (*buffer.shape[:-2], source.shape[1], buffer.shape[-1])
        moved = buffer.gather(-2, source[:, None, :, None].expand(shape))
        buffer.scatter_(-2, target[:, None, :, None].expand(shape), moved)
