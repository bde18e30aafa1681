"""Token Recycling's ablations: what carrying the matrix, updating from all nodes and seeding are worth.

The measure is tokens per target call at equal numbers of verified nodes, on held-out prompts, over several seeds.
Sampling uses the position-indexed noise, so every variant writes the same text and looping text flatters none.
"""

from __future__ import annotations

import statistics
from typing import Any

from ramify.api import generate
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.methods.base import Method
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM, load


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    prompts: int = 16,
    max_new_tokens: int = 64,
    seeds: int = 3,
    temperature: float = 0.7,
) -> Outcome:
    """Tokens per call of every variant, greedy and sampled (mean over ``seeds`` with lowest and highest)."""
    lm = load(model, dtype="float32")
    variants: dict[str, Method] = {
        "prompt lookup (n 3, 10 tokens)": PromptLookup(length=10),
        "suffix automaton (40 tokens)": Suffix(length=40),
        "reset per prompt, no seeding": TokenRecycling(template="paper", scope="request", seed_from_prompt=False),
        "reset per prompt, seeded": TokenRecycling(template="paper", scope="request"),
        "carried, update accepted path only": TokenRecycling(template="paper", update="accepted"),
        "carried, update all nodes (the method)": TokenRecycling(template="paper"),
    }
    for k in (2, 4):
        variants[f"k = {k} (paper tree narrowed)"] = TokenRecycling(template="paper", k=k)
    for nodes in (20, 40, 80, 160):
        variants[f"calibrated tree, {nodes} nodes"] = TokenRecycling(nodes=nodes)
    rows = []
    for name, method in variants.items():
        greedy = _tokens_per_call(lm, method, prompts, max_new_tokens, seed)
        sampled = [
            _tokens_per_call(lm, method, prompts, max_new_tokens, s, do_sample=True, temperature=temperature)
            for s in range(seed, seed + seeds)
        ]
        rows.append(
            {
                "variant": name,
                "greedy": greedy,
                f"T = {temperature}, mean": statistics.mean(sampled),
                "lowest": min(sampled),
                "highest": max(sampled),
            }
        )
    title = f"Tokens per target call, {lm.name}, float32, {prompts} held-out prompts × {max_new_tokens} tokens"
    return Outcome([Table(title, rows)], [f"{seeds} seeds for sampling; each starts with an empty matrix."])


def _tokens_per_call(
    lm: CausalLM, method: Method, prompts: int, max_new_tokens: int, seed: int, **settings: Any
) -> float:
    method.memory.clear()
    tokens = calls = 0
    for index, prompt in enumerate(held_out_prompts(prompts)):
        result = generate(lm, prompt.text, method, max_new_tokens=max_new_tokens, seed=1000 * seed + index, **settings)
        tokens += result.stats.generated_tokens
        calls += result.stats.target_calls
    return tokens / calls
