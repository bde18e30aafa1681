"""Every drafter of the catalogue on held-out code: tokens per call, rows per call, speed and its own share of a step.

Greedy text of a small model repeats itself and flatters whoever copies; the sampled columns, under noise that all
methods share, are the sober ones. Drafters that cannot be built for the model are left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ramify.bench.compare import compare
from ramify.bench.comparison import Comparison
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.rows import Row
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod, Method
from ramify.methods.registry import catalogue, create
from ramify.models.causal import CausalLM, load


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    dtype: str | None = None,
    attention: str | None = None,
    prompts: int = 12,
    max_new_tokens: int = 128,
    repeats: int = 3,
    threads: int = 1,
    temperature: float = 0.7,
    methods: str = "",
) -> Outcome:
    """Both tables, timed in turn; ``methods``: names separated by commas instead of the whole catalogue."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lm = load(model, dtype=dtype, attention=attention)
        chosen, notes = applicable(lm, methods.split(",") if methods else None)
        asked = held_out_prompts(prompts, seed=seed)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed}
        greedy = compare(lm, asked, ["greedy", *chosen], **settings)
        sampled = compare(lm, asked, ["sample", *chosen], do_sample=True, temperature=temperature, **settings)
    finally:
        torch.set_num_threads(before)
    kind = f"{str(lm.dtype).removeprefix('torch.')}, {lm.model.config._attn_implementation} attention, {lm.how}"
    tables = [
        Table(f"{lm.name}, {kind}: greedy, {prompts} prompts × {max_new_tokens} tokens", rows_of(greedy)),
        Table(f"{lm.name}: temperature {temperature}, shared noise", rows_of(sampled)),
    ]
    notes += [
        "Speed-ups: median over the repeats [lowest, highest], to plain decoding (the first row), same prompts.",
        "Own share: drafting, verifying and learning, as a share of the decoding time (reading the prompt left out).",
        *(problem for table in (greedy, sampled) for row in table.rows for problem in row.problems),
    ]
    return Outcome(tables, notes)


def applicable(lm: CausalLM, names: Sequence[str] | None = None) -> tuple[list[Method], list[str]]:
    """The lossless drafters that can be built with their defaults and run on ``lm``, and why others are left out."""
    found: list[Method] = []
    notes = []
    for name in names or [card.name for card in catalogue() if card.family == "draft" and card.lossless]:
        try:
            method = create(name)
            if isinstance(method, DraftMethod):
                method.drafter(lm, Request([1], 2))
            found.append(method)
        except RamifyError as error:
            notes.append(f"{name} is left out: {error}.")
    return found, notes


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The columns by which drafters are compared."""
    return [
        {
            "method": row.label,
            "tokens per call": row.mat or 0.0,
            "rows per call": row.row_steps / row.target_calls if row.target_calls else 0.0,
            "speed-up (wall)": _spread(row.ratio),
            "speed-up (CPU time)": _spread(row.cpu_ratio),
            "own share": f"{own_share(row):.0%}",
            "identical": f"{row.identical} of {row.compared}",
        }
        for row in comparison.rows
    ]


def own_share(row: Row) -> float:
    """Share of the decoding time that is not the target's passes: drafting, verifying, learning and the loop."""
    if not row.shares:
        return 0.0
    return 1 - row.shares["score"] / (1 - row.shares["prefill"])


def _spread(spread: Any) -> str:
    return f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]" if spread else "–"
