"""What to expect at real sizes: the cost curve of a 0.5 B model × the tokens per call measured on the demo model.

Costs need the shape of a model, not its training; acceptance needs trained text. So the curve comes from random
weights in the shape of Qwen2-0.5B, the tokens per call from the bundled model on held-out code, and the product is a
forecast for a model that is as predictable as the demo model. Both factors are stated.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.shapes import random_model, read_bandwidth
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.calibrate import measure
from ramify.models.causal import load
from ramify.models.weights import unavailable

SIZES = (0, 8, 15, 24, 32, 48, 64, 80, 128)


def run(
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    prompts: int = 12,
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    budget: float = 60.0,
) -> Outcome:
    """Tokens per call on the demo model for several tree sizes, and the cost of as many rows at 0.5 B."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mats = {size: _tokens_per_call(size, prompts, max_new_tokens, seed, temperature) for size in SIZES}
        model = random_model("qwen2-0.5b", seed, dtype)
        weights = sum(int(parameter.nbytes) for parameter in model.parameters())
        lm = load(model, weights="plain" if unavailable("packed", model.dtype, "cpu") else "packed")
        curve = measure(lm, "qwen2-0.5b", budget)
        how = lm.how
        bandwidth = read_bandwidth()
        del lm, model
        gc.collect()
    finally:
        torch.set_num_threads(threads)
    rows = [
        {
            "draft nodes": size,
            "cost of the pass (× one row)": curve.ratio(size + 1),
            "tokens per call, greedy": greedy,
            "expected speed-up, greedy": greedy / curve.ratio(size + 1),
            f"tokens per call, T={temperature}": sampled,
            f"expected speed-up, T={temperature}": sampled / curve.ratio(size + 1),
        }
        for size, (greedy, sampled) in mats.items()
    ]
    costs = [
        {"rows": row, "ms": 1e3 * seconds, "× one row": seconds / curve.seconds[0]}
        for row, seconds in zip(curve.rows, curve.seconds, strict=True)
    ]
    floor = weights / bandwidth
    notes = [
        "Speed-up = tokens per call / cost of the pass; draft time (about 1 % of such a pass) is left out. Tokens per "
        "call: demo model in float32, held-out code prompts, matrix carried from prompt to prompt.",
        f"The floor: reading {weights / 1e9:.2f} GB of weights at the {bandwidth / 1e9:.1f} GB/s measured here (one "
        f"thread, summing 1 GB) takes {1e3 * floor:.0f} ms; a single row takes {curve.cost(1) / floor:.1f} times as "
        "long.",
    ]
    return Outcome(
        [
            Table(f"Token Recycling at Qwen2-0.5B's shape, {dtype}, one thread", rows),
            Table(f"Cost curve, Qwen2-0.5B's shape, random, {dtype}, {how}, one thread, least wall time", costs),
        ],
        notes,
    )


def _tokens_per_call(
    nodes: int, prompts: int, max_new_tokens: int, seed: int, temperature: float
) -> tuple[float, float]:
    lm = load("demo", dtype="float32")
    found = []
    settings: dict[str, Any]
    for settings in ({}, {"do_sample": True, "temperature": temperature}):
        method = TokenRecycling(nodes=nodes)
        tokens = calls = 0
        for index, prompt in enumerate(held_out_prompts(prompts, seed=seed)):
            result = generate(lm, prompt.text, method, max_new_tokens=max_new_tokens, seed=seed + index, **settings)
            tokens += result.stats.generated_tokens
            calls += result.stats.target_calls
        found.append(tokens / calls)
    return found[0], found[1]
