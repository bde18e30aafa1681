"""One model loaded in several ways, each a forward pass over weights in a format, and their passes timed in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from ramify.errors import RamifyError
from ramify.models.cache import RowCache
from ramify.models.calibrate import PREFIX
from ramify.models.causal import CausalLM, load
from ramify.models.forward import Nodes
from ramify.models.fused import FusedForward
from ramify.models.static import StaticForward
from ramify.models.weights import ROUNDED

CAPACITY = 256  # cache slots that a session begins with
ROUNDS = 3  # at least
TRANSFORMERS = "transformers"


@dataclass
class Configuration:
    """A loaded model, ``prefix`` tokens in a cache of its own, and the least seconds of passes over ``sizes`` rows."""

    label: str
    lm: CausalLM
    sizes: list[int]
    cache: RowCache
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @staticmethod
    def of(label: str, lm: CausalLM, sizes: list[int], prefix: int) -> Configuration:
        cache = RowCache(lm.layers, rows=1, capacity=max(CAPACITY, prefix + sizes[-1]))
        one = Configuration(label, lm, sizes, cache)
        one.run(prefix)
        cache.keep([range(prefix)])
        one.cpu, one.wall = [float("inf")] * len(sizes), [float("inf")] * len(sizes)
        return one

    @torch.inference_mode()
    def run(self, rows: int) -> tuple[float, float]:
        """One pass over ``rows`` rows: wall and CPU seconds."""
        length, device = self.cache.lengths[0], self.lm.device
        tokens = torch.arange(1, rows + 1, device=device)[None] % self.lm.vocab_size
        positions = torch.arange(length, length + rows, device=device)[None]
        ancestors = torch.ones(1, rows, rows, dtype=torch.bool, device=device).tril_()
        nodes = Nodes(tokens, positions, [length], ancestors)
        synchronize(device)
        wall, cpu = time.perf_counter(), time.process_time()
        self.cache.expect(rows, device)
        self.lm.forward(nodes, self.cache)
        synchronize(device)
        return time.perf_counter() - wall, time.process_time() - cpu

    def time(self, place: int) -> None:
        """Time a pass over ``sizes[place]`` rows."""
        wall, cpu = self.run(self.sizes[place])
        self.wall[place], self.cpu[place] = min(wall, self.wall[place]), min(cpu, self.cpu[place])

    @property
    def rounded(self) -> bool:
        return self.lm.forward.weights in ROUNDED

    @property
    def held(self) -> int:
        """Bytes of weights in memory: the parameters, and converted matrices beside those that remain."""
        held = sum(int(parameter.nbytes) for parameter in self.lm.model.parameters())
        forward = self.lm.forward
        if isinstance(forward, FusedForward) and forward.weights != "plain":
            held += sum(part.nbytes for part in forward.projections() if part.product is not None)
        return held

    @property
    def reads(self) -> int:
        """Bytes of weights that a pass over few rows reads: all matrices, but not an embedding table beside the head.

        That table gives one row for each token. A head that is tied to it is read whole.
        """
        forward = self.lm.forward
        if isinstance(forward, FusedForward | StaticForward):
            return (forward.fused if isinstance(forward, StaticForward) else forward).nbytes
        table: Any = self.lm.model.get_input_embeddings().weight
        head: Any = self.lm.model.get_output_embeddings()
        return self.held - (0 if head is not None and head.weight is table else int(table.nbytes))

    @property
    def cached(self) -> float:
        """Bytes of the cache for each token."""
        buffers = [buffer for layer in self.cache.row_layers for buffer in (layer.keys, layer.values)]
        return sum(buffer.nbytes for buffer in buffers if buffer is not None) / self.cache.capacity


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def configurations(
    source: str,
    dtype: str | None,
    attention: str | None,
    formats: Sequence[str],
    sizes: Sequence[int],
    device: str = "cpu",
    static: bool = False,
) -> tuple[list[Configuration], list[str]]:
    """``source`` under transformers' forward, then under the fused one over each of ``formats``, then ``static``.

    Also returns a sentence for each that is left out, with the reason: the model, the machine, or too little memory,
    for all of them stay in memory at once. Sizes that do not fit the context are left out as well.
    """
    first = load(source, dtype=dtype, device=device, attention=attention, forward=TRANSFORMERS)
    first.require_trees("forward passes of several rows")
    prefix = min(PREFIX, first.context // 4)
    fitting = [size for size in sizes if prefix + size <= first.context]
    notes = []
    if len(fitting) < len(sizes):
        notes.append(f"More than {fitting[-1]} rows do not fit the context of {first.context} tokens.")
    found = [Configuration.of(TRANSFORMERS, first, fitting, prefix)]
    kind, same = first.dtype, first.model.config._attn_implementation
    need = 2 * found[0].held  # the checkpoint, and what becomes of it
    ways = [(f"fused {weights}", "fused", weights) for weights in formats] + [("static", "static", "plain")] * static
    for label, forward, weights in ways:
        free = psutil.virtual_memory().available
        if free < need:
            notes.append(
                f"{label} is left out: loading takes up to {need / 1e9:.1f} GB, and {free / 1e9:.1f} are free."
            )
            continue
        try:
            lm = load(source, dtype=kind, device=device, attention=same, forward=forward, weights=weights)
        except RamifyError as error:
            # What follows the last semicolon is advice for whoever called load.
            notes.append(f"{label} is left out: {str(error).rpartition(';')[0] or error}.")
            gc.collect()
            continue
        notes += [f"{label}: {note}." for note in lm.notes]
        found.append(Configuration.of(label, lm, fitting, prefix))
    return found, notes


def time_in_turn(found: Sequence[Configuration], budget: float) -> int:
    """Time all passes, sizes and configurations in turn, until ``budget`` seconds are spent; returns the rounds made.

    Each turn makes two passes, so that the second finds the weights where a decoding loop would.
    """
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - began < budget:
        for place in range(len(found[0].sizes)):
            for one in found:
                one.time(place)
                one.time(place)
        rounds += 1
    return rounds
