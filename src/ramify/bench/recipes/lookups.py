"""Drafters that look up rather than compute, side by side: what they guess right, and what a step of theirs costs

The measure is tokens per target call on held-out prompts, over several seeds. Sampling uses the position-indexed noise,
so every variant writes the same text and looping text flatters none. Methods that carry what they learned do so from
prompt to prompt within a seed, and start afresh with the next.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ramify.api import prepare
from ramify.bench.compare import compare
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.drafters import rows_of
from ramify.engine.drafter import Drafter
from ramify.engine.result import Stats
from ramify.engine.speculate import speculate
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
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
    only: str = "",
    timed: bool = True,
) -> Outcome:
    """Every variant greedy and sampled; ``corpus_tokens``: of the training files, for SAM-Decoding's corpus.

    ``only``: the variants whose label begins so. ``timed``: also sizes that the clock decides, timed in turn.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model, dtype=dtype)
        rows = []
        for name, method in variants(corpus(lm, corpus_tokens)).items():
            if not name.startswith(only):
                continue
            greedy = measure(lm, method, prompts, max_new_tokens, seed)
            sampled = [
                measure(lm, method, prompts, max_new_tokens, s, do_sample=True, temperature=temperature)
                for s in range(seed, seed + seeds)
            ]
            found = [total.tokens / total.calls for total in sampled]
            rows.append(
                {
                    "method": name,
                    "greedy": greedy.tokens / greedy.calls,
                    f"T = {temperature}": statistics.mean(found),
                    "lowest": min(found),
                    "highest": max(found),
                    "nodes per call": statistics.mean(total.drafted / total.calls for total in sampled),
                    "accepted": f"{sum(t.accepted for t in sampled) / max(1, sum(t.drafted for t in sampled)):.0%}",
                    "draft, ms": min(1e3 * total.drafting / total.calls for total in sampled),
                    "learn, ms": min(1e3 * total.learning / total.calls for total in sampled),
                }
            )
        if not rows:
            raise RamifyError(f"no variant begins with {only!r}")
        clocked = speeds(load(model), prompts, max_new_tokens, seed, temperature) if timed else []
    finally:
        torch.set_num_threads(before)
    kind = str(lm.dtype).removeprefix("torch.")
    title = f"Tokens per target call, {lm.name}, {kind}, {prompts} held-out prompts × {max_new_tokens} tokens"
    notes = [
        f"{seeds} seeds for sampling. Nodes, their accepted share and milliseconds are those of the sampled runs. "
        "Milliseconds: CPU time of the drafter alone, a step's mean, the least of the seeds; one thread.",
        f"The corpus: the first {corpus_tokens} tokens of the standard library's training files.",
    ]
    if timed:
        notes.append(
            "Speed-ups: median of 3 repeats [lowest, highest] to plain decoding, which is the first row; the methods "
            "take turns. Own share: drafting, verifying and learning, of the decoding time."
        )
    return Outcome([Table(title, rows), *clocked], notes)


def variants(static: StaticAutomaton) -> dict[str, DraftMethod]:
    """What is compared; sizes as published, so that no clock decides."""
    recycling = TokenRecycling(nodes=60)
    counting: dict[str, Any] = {"length": 64, "mode": "tree", "factor": 4.0}
    return {
        "prompt-lookup (n 3, 10 tokens)": PromptLookup(length=10),
        "suffix (40 tokens)": Suffix(length=40),
        "suffix-decoding, path": SuffixDecoding(length=64),
        "suffix-decoding, tree": SuffixDecoding(length=64, mode="tree"),
        "suffix-decoding, tree, factor 4": SuffixDecoding(**counting),
        "suffix-decoding, tree, factor 4, this request only": SuffixDecoding(
            length=64, mode="tree", factor=4.0, requests=0
        ),
        "lookahead (N 5, W 7, G 7)": Lookahead(),
        "lookahead (N 5, W 7, G 7), moved by what was accepted": Lookahead(advance="accepted"),
        "lookahead (N 5, W 7, G 7), seeded from the text": Lookahead(seed_from_prompt=True),
        "lookahead (N 5, W 2, G 2)": Lookahead(window=2, guesses=2),
        "lookahead (N 3, W 3, G 3)": Lookahead(ngram=3, window=3, guesses=3),
        "sam alone (40 tokens)": SAMDecoding(length=40, auxiliary=None),
        "sam alone, corpus": SAMDecoding(length=40, auxiliary=None, corpus=static),
        "sam alone, corpus, bias 0": SAMDecoding(length=40, auxiliary=None, corpus=static, bias=0),
        "token-recycling (60 nodes)": recycling,
        "sam, token-recycling (60 nodes)": SAMDecoding(length=40, auxiliary=recycling),
        "sam, token-recycling (60 nodes), corpus": SAMDecoding(length=40, auxiliary=recycling, corpus=static),
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


def speeds(lm: CausalLM, prompts: int, max_new_tokens: int, seed: int, temperature: float) -> list[Table]:
    """Methods that choose their sizes by this machine, and lookahead both ways, timed in turn."""
    sized = ["prompt-lookup", "suffix", "suffix-decoding", "sam", "token-recycling"]
    lookahead = [Lookahead(seed_from_prompt=seeded, sized=small) for seeded in (False, True) for small in (False, True)]
    shared: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": 3, "seed": seed}
    asked = held_out_prompts(prompts)
    greedy = compare(lm, asked, ["greedy", *sized, *lookahead], **shared)
    sampled = compare(lm, asked, ["sample", *sized, *lookahead], do_sample=True, temperature=temperature, **shared)
    kind = f"{str(lm.dtype).removeprefix('torch.')}, {lm.how}"
    return [
        Table(f"Sizes by the cost curve, {lm.name}, {kind}: greedy", rows_of(greedy)),
        Table(f"Sizes by the cost curve, {lm.name}: temperature {temperature}", rows_of(sampled)),
    ]


@dataclass
class Total:
    """Counters of several requests; ``drafting`` and ``learning``: CPU seconds of the drafter alone."""

    tokens: int = 0
    calls: int = 0
    drafted: int = 0
    accepted: int = 0
    drafting: float = 0.0
    learning: float = 0.0


def measure(lm: CausalLM, method: DraftMethod, prompts: int, max_new_tokens: int, seed: int, **settings: Any) -> Total:
    """All prompts together, from nothing learned; prompt i has seed 1000 · ``seed`` + i."""
    method.memory.clear()
    total = Total()
    for index, prompt in enumerate(held_out_prompts(prompts)):
        given = {"max_new_tokens": max_new_tokens, "seed": 1000 * seed + index, **settings}
        [request] = prepare(lm, [prompt.text], method, **given)
        drafter: Any = method.drafter(lm, request) or Drafter()
        drafts = drafter.draft = Timed(drafter.draft)
        learns = drafter.observe = Timed(drafter.observe)
        stats = Stats.of(speculate(lm, [request], [drafter], method.rule.function), 0)
        total.tokens += stats.generated_tokens
        total.calls += stats.target_calls
        total.drafted += stats.drafted
        total.accepted += stats.accepted
        total.drafting += drafts.seconds
        total.learning += learns.seconds
    return total


class Timed:
    """A function that adds up its own CPU time: other processes may keep it waiting, but not cost it any."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.thread_time()
        result = self.function(*arguments)
        self.seconds += time.thread_time() - began
        return result
