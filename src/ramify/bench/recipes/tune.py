"""Tuning held to its word: predicted against measured speed-ups, and auto against the best single drafter.

``ramify tune`` runs for greedy and for sampled text on some held-out prompts, with a cache folder of its own. Then
``auto``, which reads the profiles, takes turns with plain decoding and the best single drafters on other prompts.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch

from ramify.bench.chart import Chart
from ramify.bench.compare import compare
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.speed import rows_of
from ramify.bench.tune import COMPOSITIONS, tune
from ramify.bench.tuning import Tuning
from ramify.methods.options import build_spec, outside
from ramify.models.causal import CausalLM, load

SINGLES = 2  # best single drafters beside auto


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    dtype: str | None = None,
    prompts: int = 6,
    others: int = 8,
    max_new_tokens: int = 64,
    repeats: int = 3,
    temperature: float = 0.7,
    methods: str = "",
) -> Outcome:
    """Tune on ``prompts`` of them, compare on ``others`` more; ``methods``: only these, separated by commas."""
    threads, folder = torch.get_num_threads(), os.environ.get("RAMIFY_CACHE")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAMIFY_CACHE"] = cache
        try:
            found = Outcome()
            lm = load(model, dtype=dtype)
            settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed}
            given = [name for name in outside(methods, ",+") if name] or None
            for heat in (None, temperature):
                _regime(lm, heat, prompts, others, given, settings, found)
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("RAMIFY_CACHE")
            if folder is not None:
                os.environ["RAMIFY_CACHE"] = folder
    found.notes.append("Speed-ups: median over the repeats [lowest, highest], to plain decoding, same prompts.")
    return found


def _regime(
    lm: CausalLM,
    heat: float | None,
    prompts: int,
    others: int,
    methods: list[str] | None,
    settings: dict[str, Any],
    found: Outcome,
) -> None:
    """Tune for greedy text or one temperature, then compare auto with the best singles where nothing was tuned."""
    every = held_out_prompts(prompts + others)
    kind = "greedy" if heat is None else f"temperature {heat}"
    tuned = tune(lm, every[:prompts], temperature=heat, methods=methods, **settings)
    size = f"{prompts} prompts × {settings['max_new_tokens']} tokens"
    found.tables += [
        Table(f"Tried, {lm.name}, {kind}, {size}, {tuned.clock}", tuned.rows()),
        Table(f"Predicted and measured, {kind}", _predictions(tuned)),
    ]
    ranked = [each.spec for each in tuned.candidates]
    singles = [spec for spec in ranked if not isinstance(build_spec(spec), COMPOSITIONS)][:SINGLES]
    sampling = {"do_sample": False} if heat is None else {"do_sample": True, "temperature": heat}
    base = "greedy" if heat is None else "sample"
    timed = compare(lm, every[prompts:], [base, "auto", *map(build_spec, singles)], **settings, **sampling)
    found.tables.append(Table(f"auto on {others} other prompts, {kind}", rows_of(timed)))
    found.notes += [" ".join(tuned.why()), *(f"{spec} is left out: {why}." for spec, why in tuned.left_out.items())]
    chart = tuned.chart()
    found.charts.append(Chart("greedy" if heat is None else "sampled", chart.title, chart.x, chart.y, chart.lines,
                              ticks=chart.ticks))  # fmt: skip


def _predictions(tuned: Tuning) -> list[dict[str, Any]]:
    return [
        {
            "method": each.spec,
            "predicted": each.predicted,
            "measured": f"{each.ratio.median:.2f} [{each.ratio.low:.2f}, {each.ratio.high:.2f}]",
            "off": f"{100 * each.error:+.0f} %",
        }
        for each in tuned.measured
    ]
