"""Many paths at once against one after another: throughput of a pool, its memory, and what its bookkeeping costs.

The same number of tokens is drawn from one prompt by a pool of so many paths, and by so many generations in a row, in
turn; of the latter a few are timed and counted as often as needed. No path ends before its time.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.recipes import Outcome, Table
from ramify.bench.tasks import tasks
from ramify.engine.events import Scored
from ramify.engine.result import Result
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import CausalLM, load


def run(
    *,
    seed: int = 0,
    model: str = "demo-reasoner",
    new: int = 256,
    sizes: tuple[int, ...] = (1, 4, 16, 64),
    sequential: int = 4,
    repeats: int = 3,
) -> Outcome:
    """Tokens per second of pools of ``sizes`` paths with ``new`` tokens each, beside ``sequential`` single ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model)
        prompt = tasks(1, seed=seed)[0].prompt
        plain: list[float] = []
        pools: dict[int, list[Result]] = {int(size): [] for size in sizes}
        speeds: dict[int, list[float]] = {size: [] for size in pools}
        for k in range(repeats):
            plain.append(_one_by_one(lm, prompt, new, sequential, seed + 100 * k))
            for size in pools:
                began = time.process_time()
                result = _pool(lm, prompt, new, size, seed + 100 * k)
                speeds[size].append(size * new / (time.process_time() - began))
                pools[size].append(result)
    finally:
        torch.set_num_threads(before)
    base = statistics.median(plain)
    rows = []
    for size, results in pools.items():
        ratios = sorted(speed / one for speed, one in zip(speeds[size], plain, strict=True))
        cost = results[0].cost
        rows.append(
            {
                "paths": size,
                "tokens/s": round(statistics.median(speeds[size])),
                "× one after another": f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
                "passes": cost.forward_calls,
                "most cache entries": cost.peak_cache_tokens,
                "bookkeeping": f"{100 * statistics.median(map(_bookkeeping, results)):.0f} %",
            }
        )
    title = f"{lm.name}, {new} tokens a path, prompt of {pools[min(pools)][0].cost.prompt_tokens} tokens"
    return Outcome(
        [Table(title, rows)],
        [
            f"One after another: {base:.0f} tokens/s, median of {repeats} times {sequential} generations.",
            "Speeds and ratios by CPU time of one thread, in turn; median over the repeats [lowest, highest].",
            "Bookkeeping: choosing tokens and keeping count, as a share of the time of the steps.",
        ],
    )


def _settings(new: int, seed: int) -> dict[str, Any]:
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    return drawn | {"max_new_tokens": new, "min_new_tokens": new, "seed": seed}


def _one_by_one(lm: CausalLM, prompt: str, new: int, count: int, seed: int) -> float:
    """Tokens per second of CPU time."""
    began = time.process_time()
    for k in range(count):
        generate(lm, prompt, "sample", **_settings(new, seed + k))
    return count * new / (time.process_time() - began)


def _pool(lm: CausalLM, prompt: str, new: int, size: int, seed: int) -> Result:
    return generate(lm, prompt, SelfConsistency(size), **_settings(new, seed))


def _bookkeeping(result: Result) -> float:
    scored = sum(event.seconds for event in result.events if isinstance(event, Scored))
    return 1 - scored / result.stats.decode_seconds
