"""What a step of the draft–verify loop costs beside the forward pass, at a length of about 1,000 tokens."""

from __future__ import annotations

import time
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.passes import Timed
from ramify.bench.recipes import Outcome, Table
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM, load


def run(
    *, seed: int = 0, length: int = 900, new_tokens: int = 200, repeats: int = 5, vocabulary: int = 4096
) -> Outcome:
    """CPU time per step, forward passes left out, on a tiny random Llama; the least of ``repeats`` runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = _tiny(seed, vocabulary)
        prompt = torch.randint(1, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        rows = []
        cases: list[tuple[str, Any]] = [
            ("plain step", "greedy"),
            ("chain of 10", PromptLookup(length=10)),
            ("tree of 80 nodes", TokenRecycling(template="paper")),
            ("tree of 160 nodes", TokenRecycling(nodes=160)),
        ]
        for name, method in cases:
            best, timed = float("inf"), Timed(lm.forward)
            plain, lm.forward = lm.forward, timed
            for _ in range(repeats):
                timed.seconds, timed.calls = 0.0, 0
                began = time.process_time()
                result = generate(lm, prompt, method, max_new_tokens=new_tokens)
                rest = time.process_time() - began - timed.seconds
                best = min(best, rest / result.stats.target_calls)
            lm.forward = plain
            rows.append({"step": name, "CPU ms per step beside the forward pass": 1e3 * best})
    finally:
        torch.set_num_threads(threads)
    title = f"Loop cost at {length} to {length + new_tokens} tokens, vocabulary {vocabulary}"
    return Outcome([Table(title, rows)], ["Setting up the request and reading the prompt are counted in."])


def _tiny(seed: int, vocabulary: int) -> CausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return load(LlamaForCausalLM(config))
