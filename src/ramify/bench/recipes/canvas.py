"""What a step of the masked loop costs beside the forward pass: bookkeeping, laws, rules."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ramify.bench.passes import Timed
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.methods.options import build_spec
from ramify.models.masked import MaskedLM, load_masked
from ramify.unmasking import request

METHODS = "unmask,threshold,factor,remdm,rcr,ccd,learn2pd"


def run(
    *,
    seed: int = 0,
    model: str = "demo-dlm",
    methods: str = METHODS,
    new_tokens: int = 128,
    prompt_tokens: int = 64,
    block: int = 16,
    batch: int = 4,
    repeats: int = 3,
) -> Outcome:
    """CPU time per step beside the passes, one canvas at a time and ``batch`` together; the least of ``repeats``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load_masked(model)
        texts = [lm.encode(prompt.text)[-prompt_tokens:] for prompt in held_out_prompts(batch, seed)]
        rows = []
        for spec in methods.split(","):
            for cache in ("none", "prefix"):
                for size in (1, batch):
                    rows.append(_row(lm, spec, block, cache, texts[:size], new_tokens, seed, repeats))
    finally:
        torch.set_num_threads(threads)
    title = f"{model}: {prompt_tokens} prompt tokens, {new_tokens} open positions in blocks of {block}"
    return Outcome([Table(title, rows)], ["Own work is everything but the forward passes; setting up is counted in."])


def _row(
    lm: MaskedLM, spec: str, block: int, cache: str, texts: Sequence[Any], new: int, seed: int, repeats: int
) -> dict[str, Any]:
    """One line: the time of a step, and how much of it is our own."""
    method = build_spec(f"{spec}:block={block}:cache={cache}")
    requests = [request(lm, method, text, new, seed + row) for row, text in enumerate(texts)]
    plain, timed = lm.base.forward, Timed(lm.base.forward)
    lm.base.forward = timed
    best = (float("inf"), 0.0)
    try:
        for _ in range(repeats):
            timed.seconds, timed.calls = 0.0, 0
            began = time.process_time()
            method.complete(lm, requests)
            whole = time.process_time() - began
            best = min(best, ((whole - timed.seconds) / timed.calls, timed.seconds / timed.calls))
    finally:
        lm.base.forward = plain
    own, passes = best
    return {
        "method": spec.partition(":")[0],
        "cache": cache,
        "rows": len(texts),
        "ms of a pass": 1e3 * passes,
        "ms of its own": 1e3 * own,
        "own share %": 100 * own / (own + passes),
    }
