"""Static shapes for a GPU: the fused forward pass as one CUDA graph for every tree size.

A GPU answers a pass over few rows sooner than Python can launch its kernels. What is to be launched as a whole, a CUDA
graph, needs shapes, addresses and a course that never change. So here every step has one of a few sizes, reads and
writes buffers that stay where they are, and finds its masks and rotations from tensors: lengths are data, not shapes.

Made for GPUs; on CPUs it is as right, and slower than the fused pass, since it attends to the whole capacity.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ramify.models.cache import RowCache, send
from ramify.models.forward import Nodes, nodes_at
from ramify.models.fused import FusedForward

# Nodes of a step: what lies between two sizes is padded to the larger one.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160)
# Capacities are multiples of so many slots, so that few of them occur.
SLOTS = 256
# Longer beginnings of a text go through the fused forward: a step of their size would be prepared for one use.
BEGINNING = 16

Program = Callable[..., tuple[Tensor, ...]]
Table = tuple[Tensor, Tensor]  # cos and signed sin [capacity, 1, rotated size]


class StaticForward:
    """``Forward`` in fixed shapes, over a ``FusedForward`` and its weights.

    ``backend``: what ``torch.compile`` makes of a step before it is captured: "inductor" joins its small kernels, in
    minutes for a large model; None leaves it as it is, which takes no time. On a CPU nothing is captured.

    What it prepared it keeps, and with it a set of cache buffers for every number of rows and capacity that occurred.
    Prompts go through the fused forward, on the same buffers. ``load`` takes it only when it is named: how fast it is
    was not measured on a GPU yet.
    """

    name = "static"

    def __init__(self, fused: FusedForward, backend: str | Callable[..., Any] | None = None) -> None:
        self.fused = fused
        self.backend = backend
        self.dtype, self.weights = fused.dtype, fused.weights
        self._rooms: dict[tuple[int, int], list[_Room]] = {}
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._pool: Any = None

    @property
    def prepared(self) -> int:
        """How many kinds of step there are: rows, nodes, capacity, and the hidden layers wanted."""
        return len(self._programs)

    def current(self) -> bool:
        """Whether the model is still the one that the fused forward read."""
        return self.fused.current()

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of ``tokens``: [..., D]."""
        return self.fused.embed(tokens)

    # Always in inference mode, for a step is compiled with or without it.
    @torch.inference_mode()
    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        count = nodes.tokens.shape[1]
        size = next((size for size in SIZES if size >= count), count)
        room = self._room(cache, max(nodes.lengths) + size)
        partial = nodes.first > 0 or nodes.last is not None or len(nodes.tokens) < len(cache.lengths)
        if size > SIZES[-1] or _begins(nodes) or partial:
            return self.fused(nodes, cache)
        x = self.embed(nodes.tokens) if nodes.embeddings is None else nodes.embeddings
        layers = tuple(layer for layer in nodes.hidden_layers if layer != 0)
        step = room.steps.get((size, layers))
        if step is None:
            step = room.steps[size, layers] = self._step(room, size, layers)
        step.fill(nodes, x)
        if x.is_cuda and step.graph is None:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            step.capture(self._pool)
        logits, *states = [output[:, :count] for output in step.run()]
        if nodes.logits_at is not None:
            logits = nodes_at(logits, nodes.logits_at)
        if step.graph is not None:  # whose next replay writes over its outputs
            logits, states = logits.clone(), [state.clone() for state in states]
        known = {0: x, **dict(zip(layers, states, strict=True))}
        return logits, {layer: known[layer] for layer in nodes.hidden_layers}

    def _room(self, cache: RowCache, end: int) -> _Room:
        """The buffers that ``cache`` lives in, of at least ``end`` slots; it moves if it has to."""
        rows, capacity = len(cache.lengths), cache.capacity
        if end > capacity:
            capacity = max(end, 2 * capacity)
        elif cache.joined is not None:
            for room in self._rooms.get((rows, capacity), ()):
                if room.buffers is cache.joined:
                    return room
        capacity = -(-capacity // SLOTS) * SLOTS
        rooms = self._rooms.setdefault((rows, capacity), [])
        free = next((room for room in rooms if room.is_free), None)
        if free is None:
            free = _Room(self.fused, rows, capacity)
            rooms.append(free)
        free.tenant = weakref.ref(cache)
        cache.occupy(free.buffers)
        return free

    def _step(self, room: _Room, size: int, layers: tuple[int, ...]) -> _Step:
        """A step in ``room``; steps of one kind share what was compiled."""
        rows, capacity = room.buffers.shape[1], room.buffers.shape[3]
        kind = (rows, size, capacity, layers)
        if kind not in self._programs:
            program: Program = _decode
            if self.backend is not None:
                # Of code of its own: torch searches all that it compiled from one code object, and stops at the eighth.
                code = _decode.__code__.replace(co_name=f"step_{rows}_{size}_{capacity}")
                program = types.FunctionType(code, _decode.__globals__)
                program = torch.compile(program, fullgraph=True, dynamic=False, backend=self.backend)
            self._programs[kind] = program
        return _Step(self._programs[kind], self.fused, room, size, layers)


class _Room:
    """Buffers for one cache at a time, at addresses that do not change.

    ``buffers``: [2 layers, B, key heads, capacity, size], keys and values in turn. ``steps``: those that work on them.
    """

    def __init__(self, fused: FusedForward, rows: int, capacity: int) -> None:
        layer, weight = fused.attention[0], fused.norm.weight
        self.tenant: Callable[[], RowCache | None] = lambda: None
        self.steps: dict[tuple[int, tuple[int, ...]], _Step] = {}
        # Made to last, so not as tensors that only inference mode may use.
        with torch.inference_mode(False):
            shape = (2 * len(fused.attention), rows, layer.key_heads, capacity, layer.size)
            self.buffers = torch.zeros(shape, dtype=fused.dtype, device=weight.device)
            self.keys, self.values = list(self.buffers[0::2]), list(self.buffers[1::2])
            first = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
            like = self.buffers.new_zeros(1)
            self.tables: list[Table] = []
            for rotation in fused.rotations:
                rotation.at(first, capacity, like)
                self.tables.append((rotation.cos[:capacity], rotation.sin[:capacity]))

    @property
    def is_free(self) -> bool:
        tenant = self.tenant()
        return tenant is None or tenant.joined is not self.buffers


class _Step:
    """A step of one kind: its input buffers for B rows of N nodes and, on a GPU, its graph."""

    def __init__(self, program: Program, fused: FusedForward, room: _Room, size: int, layers: tuple[int, ...]) -> None:
        rows, device = room.buffers.shape[1], room.buffers.device
        with torch.inference_mode(False):
            self.x = room.buffers.new_zeros(rows, size, len(fused.norm.weight))
            self.positions = torch.zeros(rows, size, dtype=torch.long, device=device)
            self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
            self.alone = torch.eye(size, dtype=torch.bool, device=device)
            self.ancestors = self.alone.repeat(rows, 1, 1)
        inputs = (self.x, self.positions, self.lengths, self.ancestors)
        self.run = functools.partial(program, fused, *inputs, room.keys, room.values, room.tables, layers)
        self.graph: Any = None

    def fill(self, nodes: Nodes, x: Tensor) -> None:
        """Copy in what enters; nodes beyond it are zeros that see themselves, so that nothing becomes NaN."""
        count = x.shape[1]
        if count < self.x.shape[1]:
            self.x.zero_()
            self.positions.zero_()
            self.ancestors.copy_(self.alone)
        self.x[:, :count] = x
        self.positions[:, :count] = nodes.positions
        self.ancestors[:, :count, :count] = nodes.ancestors
        self.lengths.copy_(send(torch.tensor(nodes.lengths), x.device))

    def capture(self, pool: Any) -> None:
        """Make the graph. ``pool``: the memory that all graphs share; none of them is asked for old results."""
        with torch.cuda.device(self.x.device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # compiles, and lets the libraries choose their kernels
                    self.run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = self.run()
        self.graph = graph
        self.run = functools.partial(_replay, graph, outputs)


def _replay(graph: Any, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    graph.replay()
    return outputs


class _Slots(NamedTuple):
    """One layer's buffers [B, K, capacity, size] in place of a ``RowLayer``; ``where``: the places of new entries."""

    keys: Tensor
    values: Tensor
    where: tuple[Tensor, Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        # Of all ways to write this, the one that inductor turns into a write in place; it copies whole buffers else.
        self.keys.index_put_(self.where, keys)
        self.values.index_put_(self.where, values)
        return self.keys, self.values


def _decode(
    fused: FusedForward,
    x: Tensor,
    positions: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    tables: list[Table],
    layers: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Logits [B, N, V] and the hidden states [B, N, D] behind ``layers``: a function of tensors of fixed shapes."""
    rows, heads, capacity, _ = keys[0].shape
    turns = [(cos[positions], sin[positions]) for cos, sin in tables]
    masks = visible(positions, lengths, ancestors, capacity, fused.window)
    hidden = torch.finfo(x.dtype).min
    full, local = (torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, hidden)[:, None] for mask in masks)
    places = lengths[:, None] + torch.arange(x.shape[1], device=x.device)
    row = torch.arange(rows, device=x.device)[:, None, None]
    head = torch.arange(heads, device=x.device)[None, :, None]
    where = (row, head, places[:, None])
    cached: Any = [_Slots(*buffers, where) for buffers in zip(keys, values, strict=True)]
    logits, states = fused.decode(x, turns, (full, local), cached, None, layers)
    return (logits, *(states[layer] for layer in layers))


def visible(
    positions: Tensor, lengths: Tensor, ancestors: Tensor, capacity: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """Which slots the nodes see, in layers that see everything and in those with a window: bool [B, N, capacity].

    The same as ``ramify.models.forward.attention_masks``, from tensors alone: ``lengths`` [B], ``ancestors`` [B, N, N].
    """
    count = positions.shape[1]
    slots = torch.arange(capacity, device=positions.device)
    offset = slots - lengths[:, None]  # of a slot behind its row's cached entries: the new node that it holds
    node = offset.clamp(0, count - 1)
    holds = (offset >= 0) & (offset < count)
    among = ancestors.gather(2, node[:, None].expand(-1, count, -1))
    full = (offset < 0)[:, None] | (holds[:, None] & among)
    if window is None:
        return full, full
    place = torch.where(holds, positions.gather(1, node), slots)
    return full, full & (positions[:, :, None] - place[:, None] < window)


def _begins(nodes: Nodes) -> bool:
    """Whether this is part of a long prompt: nothing is cached yet, or the logits of one node are wanted."""
    alone = nodes.logits_at is not None and len(nodes.logits_at) == 1
    return nodes.tokens.shape[1] > BEGINNING and (alone or not any(nodes.lengths))
