"""Methods against transformers' own loops on held-out code prompts, greedy and sampled, timed in turn."""

from __future__ import annotations

from typing import Any

import torch

from ramify.bench.compare import compare
from ramify.bench.comparison import Comparison
from ramify.bench.prompts import Prompt, held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.shapes import random_model
from ramify.models.causal import CausalLM, load

METHODS = ["greedy", "hf-greedy", "hf-prompt-lookup", "prompt-lookup", "suffix", "token-recycling"]
SAMPLED = ["sample", "hf-prompt-lookup", "prompt-lookup", "suffix", "token-recycling"]


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    dtype: str | None = None,
    attention: str | None = None,
    prompts: int = 16,
    max_new_tokens: int = 128,
    repeats: int = 3,
    threads: int = 1,
    temperature: float = 0.7,
    big: bool = True,
) -> Outcome:
    """Greedy and sampled comparison on ``model``; with ``big`` also plain decoding on a random model of 100 M."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lm = load(model, dtype=dtype, attention=attention)
        asked = held_out_prompts(prompts, seed=seed)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed}
        kind = f"{str(lm.dtype).removeprefix('torch.')}, {lm.model.config._attn_implementation} attention"
        greedy = compare(lm, asked, METHODS, **settings)
        sampled = compare(lm, asked, SAMPLED, do_sample=True, temperature=temperature, **settings)
        tables = [
            Table(f"{lm.name}, {kind}, greedy, {prompts} prompts × {max_new_tokens} tokens", rows_of(greedy)),
            Table(f"{lm.name}, {kind}, temperature {temperature}", rows_of(sampled)),
        ]
        if big:
            other = load(random_model("llama-100m", seed))
            ids = [Prompt(p.id, p.text, p.group) for p in asked[:4]]
            plain = compare(
                CausalLM(other.model, lm.tokenizer, other.name, other.forward, other.trees),
                ids,
                ["hf-greedy", "greedy"],
                max_new_tokens=32,
                repeats=repeats,
                seed=seed,
            )
            tables.append(Table("random Llama of 100 M parameters, float32, greedy", rows_of(plain)))
    finally:
        torch.set_num_threads(before)
    notes = [
        "Ratios: median over the repeats [lowest, highest], to the first row, same prompts.",
        "Sampled rows share the noise of each position, so equal laws give equal tokens; transformers draws its own.",
    ]
    return Outcome(tables, notes)


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The columns of a comparison that a reader looks for first."""
    rows = []
    for row in comparison.rows:
        wall, cpu = row.ratio, row.cpu_ratio
        rows.append(
            {
                "method": row.label,
                "tokens/s": row.tokens_per_second or 0.0,
                "speed-up (wall)": f"{wall.median:.2f} [{wall.low:.2f}, {wall.high:.2f}]" if wall else "–",
                "speed-up (CPU time)": f"{cpu.median:.2f} [{cpu.low:.2f}, {cpu.high:.2f}]" if cpu else "–",
                "tokens per call": row.mat or 0.0,
                "drafted": row.drafted,
                "accepted": row.accepted,
                "identical": f"{row.identical} of {row.compared}",
            }
        )
    return rows
