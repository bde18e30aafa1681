"""The machine's cost curve: what a forward pass over k rows costs beside one over a single row.

Verification is nearly free only while the weights' transfer takes longer than the rows' arithmetic, and the curve has
steps that no formula foresees. It is measured once for a model's shape, dtype, device and thread count, and kept in
the user's cache folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ramify.models.cache import RowCache
from ramify.models.forward import Nodes

if TYPE_CHECKING:
    from ramify.models.causal import CausalLM

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160)
PREFIX = 128  # cached tokens while measuring, where the context allows it
WORTHWHILE = 0.05  # a smaller saving by padding is within what the clock cannot tell


@dataclass(frozen=True)
class CostCurve:
    """``seconds[i]``: least wall time of a forward pass over ``rows[i]`` new nodes behind 128 cached tokens
    (a quarter of the context, where that is less).

    ``key`` names model shape, dtype, attention, forward pass, weight format, device and threads.
    """

    key: str
    rows: list[int]
    seconds: list[float]

    def cost(self, rows: int) -> float:
        """Seconds of a forward pass for ``rows`` nodes, padded where more rows take less time."""
        return self._raw(self.run(rows))

    def run(self, rows: int) -> int:
        """How many rows to run for ``rows`` wanted: the next measured size that saves time, else as many.

        Some kernels take longer for one to three rows than for four; the rows that nobody asked for are dropped.
        """
        larger = [size for size in self.rows if size > rows]
        least = min(map(self._raw, larger), default=float("inf"))
        if least > (1 - WORTHWHILE) * self._raw(rows):
            return rows
        return next(size for size in larger if self._raw(size) <= (1 + WORTHWHILE) * least)

    @functools.cached_property
    def padding(self) -> dict[int, int]:
        """``run`` for all sizes where it differs from what is wanted."""
        return {rows: self.run(rows) for rows in range(1, self.rows[-1]) if self.run(rows) != rows}

    def _raw(self, rows: int) -> float:
        """Interpolated between measured sizes."""
        if rows <= self.rows[0]:
            return self.seconds[0]
        for low, high, below, above in zip(self.rows, self.rows[1:], self.seconds, self.seconds[1:], strict=False):
            if rows <= high:
                return below + (above - below) * (rows - low) / (high - low)
        return self.seconds[-1] * rows / self.rows[-1]

    def ratio(self, rows: int) -> float:
        """Cost of ``rows`` nodes in units of a plain step."""
        return self.cost(rows) / self.cost(1)

    def best(self, expected: Callable[[int], float], sizes: Sequence[int]) -> int:
        """The number of draft nodes with the most expected tokens per second, 0 when none beats plain decoding.

        ``expected(n)``: committed tokens per pass with n draft nodes, 1 for n = 0. Drafting itself is taken to be free.
        """
        speeds = {size: expected(size) / self.cost(size + 1) for size in sizes}
        speeds[0] = 1.0 / self.cost(1)
        return max(speeds, key=lambda size: (speeds[size], -size))


def calibrate(lm: CausalLM, *, refresh: bool = False, budget: float = 10.0) -> CostCurve:
    """The cost curve of ``lm`` here, from the cache folder or measured now within about ``budget`` seconds."""
    key = curve_key(lm)
    file = cache_folder() / "cost-curves.json"
    known = _read(file)
    if key in known and not refresh:
        lm.padding = known[key].padding
        return known[key]
    curve = measure(lm, key, budget)
    lm.padding = curve.padding
    known[key] = curve
    with contextlib.suppress(OSError):  # a read-only home folder only means measuring again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({key: asdict(curve) for key, curve in known.items()}, indent=1))
        temporary.replace(file)
    return curve


def recall(lm: CausalLM) -> dict[int, int]:
    """The padding that a kept cost curve of ``lm`` recommends; nothing is measured."""
    curve = _read(cache_folder() / "cost-curves.json").get(curve_key(lm)) if lm.trees else None
    return curve.padding if curve else {}


def measure(lm: CausalLM, key: str, budget: float, rows: Sequence[int] = ROWS) -> CostCurve:
    """Time all sizes in turn, again and again until ``budget`` seconds are spent (three to fifty rounds)."""
    lm.require_trees("forward passes of several rows")
    prefix = min(PREFIX, lm.context // 4)
    sizes = [size for size in rows if prefix + size <= lm.context]
    cache = RowCache(lm.layers, rows=1, capacity=prefix + sizes[-1])
    best = [float("inf")] * len(sizes)
    with torch.no_grad():
        _forward(lm, cache, prefix)
        cache.keep([range(prefix)])
        for size in sizes:
            _forward(lm, cache, size)
        began = time.perf_counter()
        for round_ in range(50):
            if round_ >= 3 and time.perf_counter() - began > budget:
                break
            for index, size in enumerate(sizes):
                best[index] = min(best[index], _forward(lm, cache, size))
    return CostCurve(key, sizes, best)


def _forward(lm: CausalLM, cache: RowCache, size: int) -> float:
    length = cache.lengths[0]
    tokens = torch.arange(1, size + 1, device=lm.device)[None] % lm.vocab_size
    positions = torch.arange(length, length + size, device=lm.device)[None]
    ancestors = torch.ones(1, size, size, dtype=torch.bool, device=lm.device).tril_()
    began = time.perf_counter()
    cache.expect(size, lm.device)
    lm.forward(Nodes(tokens, positions, [length], ancestors), cache)
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return time.perf_counter() - began


def cache_folder() -> Path:
    """Where measurements are kept: ``RAMIFY_CACHE``, else the platform's cache folder for "ramify"."""
    from platformdirs import user_cache_path

    given = os.environ.get("RAMIFY_CACHE")
    return Path(given) if given else user_cache_path("ramify")


def curve_key(lm: CausalLM) -> str:
    """What a cost depends on: model shape, dtype, attention, forward pass, weight format, device, threads, torch."""
    bookkeeping = ("architectures", "dtype", "transformers_version")  # set when a model is saved
    described = {k: v for k, v in lm.model.config.to_dict().items() if not k.startswith("_") and k not in bookkeeping}
    shape = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:12]
    device = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type
    kind = str(lm.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    attention = lm.model.config._attn_implementation
    family, how = lm.model.config.model_type, f"{lm.forward.name}-{lm.forward.weights}"
    return f"{family}-{shape} {kind} {attention} {how} {device} {threads} threads torch {torch.__version__}"


def _read(file: Path) -> dict[str, CostCurve]:
    """The curves in ``file``; what is damaged is left out, and so measured again."""
    try:
        return dict(_parse(file, file.stat().st_mtime_ns))
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=1)
def _parse(file: Path, changed: int) -> dict[str, CostCurve]:
    """The curves in ``file`` as it was at ``changed``; every request asks for them."""
    content = json.loads(file.read_text())
    curves = {}
    for key, entry in content.items() if isinstance(content, dict) else ():
        with contextlib.suppress(TypeError, ValueError, KeyError):
            rows, seconds = [int(row) for row in entry["rows"]], [float(second) for second in entry["seconds"]]
            if rows and len(rows) == len(seconds):
                curves[key] = CostCurve(key, rows, seconds)
    return curves
