"""What a pass costs by rows, forward and weight format, and how near that is to reading the weights once.

All configurations are timed in turn: row count by row count each makes two passes, so that the least of them found its
weights where a decoding loop would find them, and a machine that drifts does so for all. Costs are CPU time where one
thread runs, which other processes disturb least, and wall time where several do.

The floor is the time in which the weights of a pass can be read from memory: for the fused forward its matrices, for
transformers' all parameters but an untied embedding table, of which a pass reads a row for each token. Caches and
activations are left out of it, and of a mixture of experts it counts them all.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ramify.bench.chart import Chart
from ramify.bench.configurations import TRANSFORMERS, Configuration, configurations, time_in_turn
from ramify.bench.decoded import decode
from ramify.bench.footprint import Footprint, Task, footprint
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.shapes import random_model, read_bandwidth
from ramify.bench.table import DASH
from ramify.errors import RamifyError
from ramify.models.calibrate import CostCurve
from ramify.models.causal import DEMO, CausalLM
from ramify.models.weights import weight_format

PROMPT = 64
LOADS = 3  # fresh processes for each configuration
LOADED_TOKENS = 32


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    shape: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    rows: str | Sequence[int] | int = "1,2,3,4,6,8,12,16,24,32",
    weights: str | Sequence[str] = "plain,packed,int8,int4",
    budget: float = 60.0,
    new_tokens: int = 64,
    repeats: int = 5,
    memory: bool = True,
    threads: int = 1,
    device: str | None = None,
    static: bool | None = None,
) -> Outcome:
    """Costs by rows, floors, greedy decoding and memory: transformers' forward, and the fused one over ``weights``.

    ``shape``: a name in ``SHAPES`` for random weights (bfloat16 by default) in place of ``model``. ``budget``: seconds
    for the passes; at least three rounds are made. ``new_tokens``: of the greedy comparison, 0 for none, ``repeats``
    times. ``memory``: also load every configuration in fresh processes (on a CPU). ``device``: by default a GPU if
    there is one. ``static``: also the static forward; by default on a GPU only, which replays it as CUDA graphs.
    """
    sizes, formats = _sizes(rows), _formats(weights)
    if repeats < 1:
        raise RamifyError(f"repeats is {repeats}; a comparison needs at least 1")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    static = device != "cpu" if static is None else static
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the weights may still be mapped
            source = model
            if shape is not None:
                source, dtype = str(Path(folder) / shape), dtype or "bfloat16"
                random_model(shape, seed, dtype).save_pretrained(source)
            found, notes = configurations(source, dtype, attention, formats, sizes, device, static)
            outcome = Outcome(notes=[note.replace(source, shape or model) for note in notes])
            first = found[0].lm
            kind, attention = str(first.dtype).removeprefix("torch."), first.model.config._attn_implementation
            about = About(
                f"{shape or model}, {kind}, {attention} attention, {_place(device, threads)}", threads, device
            )
            prompt = _prompt(first, seed)
            _passes(outcome, about, found, time_in_turn(found, budget))
            if new_tokens:
                decoded = decode(about.clock, found, prompt, new_tokens, repeats, seed)
                title = f"Greedy decoding after {len(prompt)} tokens, {about.clock}: {about.what}"
                outcome.tables.append(Table(title, decoded.rows()))
                outcome.notes += decoded.notes(kind, shape is not None)
            resident = _gb(psutil.Process().memory_info().rss)
            outcome.notes.append(
                f"All {len(found)} configurations were in memory at once: {resident:.2f} GB of this process."
            )
            if memory and device == "cpu":
                place = str(DEMO) if source == "demo" else source
                tokens = min(LOADED_TOKENS, first.context - len(prompt))
                tasks = [
                    (label, Task(place, kind, attention, prompt, tokens, threads, *how), held)
                    for label, how, held in _ways(found, len(prompt) + tokens)
                ]
                del found, first
                gc.collect()
                table, said = _memory(about, tasks)
                outcome.tables.append(table)
                outcome.notes += said
    finally:
        torch.set_num_threads(before)
    return outcome


@dataclass(frozen=True)
class About:
    """What is measured, as titles say it, and the clock that counts."""

    what: str
    threads: int
    device: str

    @property
    def clock(self) -> str:
        return "CPU time" if self.threads == 1 and self.device == "cpu" else "wall time"


def _passes(outcome: Outcome, about: About, found: Sequence[Configuration], rounds: int) -> None:
    """Tables, chart and notes of what the passes cost; sets every model's row padding by them."""
    bandwidth = read_bandwidth(about.device)
    clock = about.clock
    wall = {one.label: CostCurve(one.label, one.sizes, one.wall) for one in found}
    cpu = {one.label: CostCurve(one.label, one.sizes, one.cpu) for one in found}
    curves = cpu if clock == "CPU time" else wall
    floors = {one.label: one.reads / bandwidth for one in found}
    for one in found:
        one.lm.padding = curves[one.label].padding
    relative = {
        label: CostCurve(label, curve.rows, [seconds / curve.seconds[0] for seconds in curve.seconds])
        for label, curve in curves.items()
    }
    outcome.tables += [
        Table(f"Cost of a pass by rows, ms of CPU time: {about.what}", _by_rows(cpu, 1e3)),
        Table(f"Cost of a pass by rows, ms of wall time: {about.what}", _by_rows(wall, 1e3)),
        Table(f"The same relative to the configuration's own pass over one row ({clock})", _by_rows(relative, 1.0)),
        _floor_table(about, found, curves, floors),
    ]
    outcome.charts.append(_chart(about, curves, floors))
    outcome.notes += [
        f"Least {clock} of {rounds} rounds of two passes, configurations and row counts in turn, behind "
        f"{found[0].cache.lengths[0]} cached tokens.",
        f"Summing 1 GB with {_place(about.device, about.threads)} reads {bandwidth / 1e9:.1f} GB/s here: the floors "
        "are the weights at that rate.",
        *_cost_notes(curves, floors, clock),
    ]


def _by_rows(curves: dict[str, CostCurve], unit: float) -> list[dict[str, Any]]:
    rows = next(iter(curves.values())).rows
    return [
        {"rows": size} | {label: unit * curve.seconds[place] for label, curve in curves.items()}
        for place, size in enumerate(rows)
    ]


def _floor_table(
    about: About, found: Sequence[Configuration], curves: dict[str, CostCurve], floors: dict[str, float]
) -> Table:
    rows = []
    for one in found:
        curve, floor = curves[one.label], floors[one.label]
        rows.append(
            {
                "configuration": one.label,
                "GB of weights read": _gb(one.reads),
                "floor, ms": 1e3 * floor,
                "best single row, ms": 1e3 * curve.cost(1),
                "rows run for it": curve.run(1),
                "× floor": curve.cost(1) / floor,
                "8 rows ÷ best single row": curve.ratio(8) if curve.rows[-1] >= 8 else DASH,
            }
        )
    return Table(f"One row, in {about.clock}, beside the reading of the weights: {about.what}", rows)


def _cost_notes(curves: dict[str, CostCurve], floors: dict[str, float], clock: str) -> Iterator[str]:
    cost = {label: curve.cost(1) for label, curve in curves.items()}
    fastest = min(cost, key=cost.__getitem__)
    nearest = min(cost, key=lambda label: cost[label] / floors[label])
    least, own = f"{1e3 * cost[fastest]:.3g} ms", f"{1e3 * cost[TRANSFORMERS]:.3g} ms"
    if fastest == TRANSFORMERS:
        yield f"No other forward makes a single row faster than transformers' own, which takes {own}."
    else:
        ratio = cost[TRANSFORMERS] / cost[fastest]
        yield f"A single row is fastest with {fastest}: {least}; transformers takes {own}, {ratio:.2f} times as long."
    yield f"Nearest to its floor is {nearest}, at {cost[nearest] / floors[nearest]:.2f} times the floor."
    for label, curve in curves.items():
        padding = {rows: curve.run(rows) for rows in curve.rows if curve.run(rows) != rows}
        if padding:
            said = ", ".join(f"{more} for {rows}" for rows, more in padding.items())
            saved = f", which brings a single row to {cost[label] / curve.seconds[0]:.0%}" if 1 in padding else ""
            yield f"{label} runs more rows than wanted where that takes less {clock}: {said}{saved}."


def _chart(about: About, curves: dict[str, CostCurve], floors: dict[str, float]) -> Chart:
    lines = {
        label: [(float(rows), 1e3 * seconds) for rows, seconds in zip(curve.rows, curve.seconds, strict=True)]
        for label, curve in curves.items()
    }
    milliseconds = {label: 1e3 * floor for label, floor in floors.items()}
    title = f"Cost of a forward pass: {about.what}"
    return Chart("cost", title, "rows", f"ms of {about.clock}", lines, milliseconds, "reading the weights once")


def _ways(found: Sequence[Configuration], tokens: int) -> Iterator[tuple[str, tuple[str | None, str | None], int]]:
    """(label, forward and weights, bytes of weights and of a cache of ``tokens``); transformers by itself first."""
    yield "transformers by itself", (None, None), round(found[0].held + tokens * found[0].cached)
    for one in found:
        how = (one.lm.forward.name, None if one.label == TRANSFORMERS else one.lm.forward.weights)
        yield f"ramify, {one.label}", how, round(one.held + tokens * one.cached)


def _memory(about: About, tasks: Sequence[tuple[str, Task, int]]) -> tuple[Table, list[str]]:
    taken: dict[str, list[Footprint]] = {label: [] for label, *_ in tasks}
    for _ in range(LOADS):
        for label, task, _held in tasks:
            taken[label].append(footprint(task))
    seconds = {label: statistics.median(each.seconds for each in every) for label, every in taken.items()}
    peaks = {label: statistics.median(each.peak for each in every) for label, every in taken.items()}
    rows = [
        {
            "loaded by": label,
            "seconds to load": seconds[label],
            "lowest": min(each.seconds for each in taken[label]),
            "highest": max(each.seconds for each in taken[label]),
            "peak, GB": _gb(peaks[label]),
            "of it the mapped file, GB": _gb(statistics.median(each.mapped for each in taken[label])),
            "weights and cache, GB": _gb(held),
            "peak ÷ these": peaks[label] / held,
        }
        for label, _task, held in tasks
    ]
    base = _gb(statistics.median(each.base for every in taken.values() for each in every))
    slowest, most = max(seconds, key=seconds.__getitem__), max(peaks, key=peaks.__getitem__)
    notes = [
        f"Loading: {LOADS} fresh processes for each, in turn, wall time, medians. Peak: resident memory while loading "
        f"and decoding {tasks[0][1].new_tokens} tokens, beyond the {base:.2f} GB of an interpreter that has imported "
        "torch, transformers (the model's own code included) and ramify. ramify.load also reads the tokenizer, proves "
        "the forward pass on the weights, and converts them. Of a mapped file the system can take memory back.",
        f"{slowest} takes longest ({seconds[slowest]:.2f} s), {most} the most memory ({_gb(peaks[most]):.2f} GB).",
    ]
    return Table(f"Loading in a fresh process: {about.what}", rows), notes


def _sizes(rows: str | Sequence[int] | int) -> list[int]:
    given = rows.split(",") if isinstance(rows, str) else [rows] if isinstance(rows, int) else rows
    try:
        sizes = sorted({1, *(int(size) for size in given)})
    except ValueError:
        raise RamifyError(f"rows takes whole numbers separated by commas, not {rows!r}") from None
    if sizes[0] < 1:
        raise RamifyError(f"rows holds {sizes[0]}; a pass has at least 1")
    return sizes


def _formats(weights: str | Sequence[str]) -> list[str]:
    given = weights.split(",") if isinstance(weights, str) else weights
    formats = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    for name in formats:
        weight_format(name)
    return formats


def _prompt(lm: CausalLM, seed: int) -> list[int]:
    """The first 64 tokens of held-out code, or random ones where there is no tokenizer for it."""
    length = min(PROMPT, lm.context // 4)
    text = lm.encode(held_out_prompts(1, seed)[0].text)[:length] if lm.tokenizer is not None else []
    generator = torch.Generator().manual_seed(seed)
    prompt: list[int] = text or torch.randint(1, lm.vocab_size, (length,), generator=generator).tolist()
    return prompt


def _gb(size: float) -> float:
    return size / 1e9


def _place(device: str, threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "") if device == "cpu" else device
