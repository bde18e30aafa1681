"""Drafters that look up rather than compute, side by side: what they guess right, and what a step of theirs costs

The measure is tokens per target call on held-out prompts, over several seeds. Sampling uses the position-indexed noise,
so every variant writes the same text and looping text flatters none. Methods that carry what they learned do so from
prompt to prompt within a seed, and start afresh with the next.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.engine.result import Stats
from ramify.methods.base import Method
from ramify.methods.draft.autoregressive import Sample
from ramify.methods.draft.lookahead import Lookahead
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.sam import SAMDecoding
from ramify.methods.draft.static_automaton import StaticAutomaton
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.suffix_decoding import SuffixDecoding
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM, load
from ramify.train.data import documents


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    dtype: str | None = "float32",
    prompts: int = 8,
    max_new_tokens: int = 64,
    seeds: int = 3,
    temperature: float = 0.7,
    corpus_tokens: int = 1_000_000,
) -> Outcome:
    """Every variant greedy and sampled; ``corpus_tokens``: of the training files, for SAM-Decoding's corpus."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model, dtype=dtype)
        rows = []
        for name, method in variants(corpus(lm, corpus_tokens)).items():
            sampled = [
                measure(lm, method, prompts, max_new_tokens, s, do_sample=True, temperature=temperature)
                for s in range(seed, seed + seeds)
            ]
            found = [stats.tokens_per_call for stats in sampled]
            greedy = 1.0 if isinstance(method, Sample) else measure(lm, method, prompts, max_new_tokens, seed)
            rows.append(
                {
                    "method": name,
                    "greedy": greedy if isinstance(greedy, float) else greedy.tokens_per_call,
                    f"T = {temperature}": statistics.mean(found),
                    "lowest": min(found),
                    "highest": max(found),
                    "nodes per call": statistics.mean(stats.drafted / stats.target_calls for stats in sampled),
                    "accepted": f"{sum(s.accepted for s in sampled) / max(1, sum(s.drafted for s in sampled)):.0%}",
                    "draft, ms": min(1e3 * stats.draft_seconds / stats.target_calls for stats in sampled),
                    "verify and learn, ms": min(1e3 * stats.verify_seconds / stats.target_calls for stats in sampled),
                }
            )
    finally:
        torch.set_num_threads(before)
    kind = str(lm.dtype).removeprefix("torch.")
    title = f"Tokens per target call, {lm.name}, {kind}, {prompts} held-out prompts × {max_new_tokens} tokens"
    notes = [
        f"{seeds} seeds for sampling. Nodes, their accepted share and milliseconds are those of the sampled runs; the "
        "milliseconds are a step's, the least of the seeds' means, one thread.",
        "Verifying samples a token from the law at every accepted node, which is most of that column (see sample).",
        f"The corpus: the first {corpus_tokens} tokens of the standard library's training files.",
    ]
    return Outcome([Table(title, rows)], notes)


def variants(static: StaticAutomaton) -> dict[str, Method]:
    """What is compared; sizes as published, so that no clock decides."""
    recycling = TokenRecycling(nodes=60)
    return {
        "sample": Sample(),
        "prompt-lookup (n 3, 10 tokens)": PromptLookup(length=10),
        "suffix (40 tokens)": Suffix(length=40),
        "suffix-decoding, path": SuffixDecoding(length=64),
        "suffix-decoding, tree": SuffixDecoding(length=64, mode="tree"),
        "suffix-decoding, tree, factor 4": SuffixDecoding(length=64, mode="tree", factor=4.0),
        "the same, this request only": SuffixDecoding(length=64, mode="tree", factor=4.0, requests=0),
        "lookahead (N 5, W 7, G 7)": Lookahead(),
        "the same, window moved by what was accepted": Lookahead(advance="accepted"),
        "the same, seeded from the text": Lookahead(seed_from_prompt=True),
        "lookahead (N 5, W 2, G 2)": Lookahead(window=2, guesses=2),
        "lookahead (N 3, W 3, G 3)": Lookahead(ngram=3, window=3, guesses=3),
        "sam alone (40 tokens)": SAMDecoding(length=40, auxiliary=None),
        "sam alone, corpus": SAMDecoding(length=40, auxiliary=None, corpus=static),
        "sam alone, corpus, bias 0": SAMDecoding(length=40, auxiliary=None, corpus=static, bias=0),
        "token-recycling (60 nodes)": recycling,
        "sam, token-recycling (60 nodes)": SAMDecoding(length=40, auxiliary=recycling),
        "the same, corpus": SAMDecoding(length=40, auxiliary=recycling, corpus=static),
    }


def corpus(lm: CausalLM, tokens: int) -> StaticAutomaton:
    """The automaton of the beginning of the training files."""
    texts, left = [], tokens
    for document in documents(lm):
        texts.append(document[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    return StaticAutomaton.build(texts, lm.vocab_size)


def measure(lm: CausalLM, method: Method, prompts: int, max_new_tokens: int, seed: int, **settings: Any) -> Stats:
    """The counters of all prompts together; prompt i has seed 1000 · ``seed`` + i."""
    forget(method)
    total = Stats()
    for index, prompt in enumerate(held_out_prompts(prompts)):
        result = generate(lm, prompt.text, method, max_new_tokens=max_new_tokens, seed=1000 * seed + index, **settings)
        for counter in ("generated_tokens", "target_calls", "drafted", "accepted", "draft_seconds", "verify_seconds"):
            setattr(total, counter, getattr(total, counter) + getattr(result.stats, counter))
    return total


def forget(method: Method) -> None:
    """Let a method, and one that it asks, start afresh."""
    method.memory.clear()
    if isinstance(method, SAMDecoding) and isinstance(method.auxiliary, Method):
        method.auxiliary.memory.clear()
