"""ADED's claims in small: adaptation, corpus, PUCT and its constant, and the search, beside REST and lookups.

The measure is tokens per target call on held-out prompts, over several seeds. All variants write the same text (noise
is indexed by position), so it is computed once and replayed for each. Sampled texts are replayed four times, beginning
at another quarter of the prompts each time, so that the first and the last quarter are the same texts in the end and
differ by what was learned in between.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ramify.api import generate, prepare
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.replay import Replay, replay
from ramify.engine.request import Request
from ramify.errors import unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.aded import Aded
from ramify.methods.draft.autoregressive import Greedy, Sample
from ramify.methods.draft.datastore import Datastore
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.rest import Rest
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.trigram_counts import counts
from ramify.models.causal import CausalLM, load
from ramify.train.data import documents


@dataclass(frozen=True)
class Written:
    """A request and how plain decoding continues it."""

    request: Request
    text: Sequence[int]


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    prompts: int = 16,
    max_new_tokens: int = 64,
    seeds: int = 3,
    temperature: float = 0.7,
    only: str = "",
) -> Outcome:
    """Tokens per call of the variants whose names contain ``only``, greedy and sampled (mean over ``seeds``)."""
    lm = load(model, dtype="float32")
    known = variants(lm)
    chosen = {name: method for name, method in known.items() if only in name}
    if not chosen:
        raise unknown("variant", only, known)
    sampling = {"do_sample": True, "temperature": temperature}
    greedy = written(lm, prompts, max_new_tokens, seed)
    sampled = [written(lm, prompts, max_new_tokens, number, **sampling) for number in range(seed, seed + seeds)]
    rows = []
    for name, method in chosen.items():
        runs = [[replayed(lm, method, turned) for turned in turns(texts)] for texts in sampled]
        means = [Replay.sum(part for run in of_seed for part in run).tokens_per_call for of_seed in runs]
        quarter = max(1, prompts // 4)
        parts = [run for of_seed in runs for run in of_seed]
        total, first, last = (
            Replay.sum(part for run in parts for part in run[span])
            for span in (slice(None), slice(quarter), slice(-quarter, None))
        )
        rows.append(
            {
                "variant": name,
                "greedy": Replay.sum(replayed(lm, method, greedy)).tokens_per_call,
                f"T = {temperature}, mean": statistics.mean(means),
                "lowest": min(means),
                "highest": max(means),
                "first quarter": first.tokens_per_call,
                "last quarter": last.tokens_per_call,
                "nodes a call": total.nodes / total.calls,
                "CPU ms a draft": 1000 * total.seconds / total.calls,
            }
        )
    title = f"Tokens per target call, {lm.name}, float32, {prompts} held-out prompts × {max_new_tokens} tokens"
    notes = [
        f"{seeds} seeds for sampling; every run starts with nothing learned. Quarters: of a run, in the order of its "
        "prompts, sampled. At most 64 nodes a call where the variant says nothing else. CPU ms: of the drafter alone.",
        "Corpus of ADED and REST: the training files of the model itself, the held-out modules left out.",
    ]
    return Outcome([Table(title, rows)], notes)


def variants(lm: CausalLM) -> dict[str, DraftMethod]:
    """What is compared: at most 64 nodes, over the same corpus."""
    corpus = documents(lm)
    counted = counts(corpus, lm.vocab_size)
    table, store = counted.table(), Datastore.of(corpus, lm.vocab_size)
    found: dict[str, DraftMethod] = {
        "prompt lookup (n 3, 10 tokens)": PromptLookup(length=10),
        "suffix automaton (40 tokens)": Suffix(length=40),
        "REST": Rest(store, nodes=64),
        "ADED (the method)": Aded(table, nodes=64),
        "C1 = 1.814": Aded(table, nodes=64, c1=1.814),
        "constant reward": Aded(table, nodes=64, reward="constant"),
        "adaptation off": Aded(table, nodes=64, adapt=False),
        "empty corpus": Aded("empty", nodes=64),
        "adaptation starts afresh with every prompt": Aded(table, nodes=64, scope="request"),
        "seeded from the prompt": Aded(table, nodes=64, seed_from_prompt=True),
        "seeded, and afresh": Aded(table, nodes=64, seed_from_prompt=True, scope="request"),
        "64 paths": Aded(table, nodes=64, paths=64),
        "greedy search": Aded(table, nodes=64, search="greedy"),
        "full search": Aded(table, nodes=64, search="full"),
    }
    for entries in (320_000, 100_000, 30_000):
        if entries < len(table):
            found[f"the {entries:,} most frequent tri-grams"] = Aded(counted.table(entries=entries), nodes=64)
    for iterations in (75, 50, 25):
        found[f"{iterations} iterations"] = Aded(table, nodes=64, iterations=iterations)
    for nodes in (32, 16, 8):
        found[f"{nodes} nodes"] = Aded(table, nodes=nodes)
        found[f"full search, {nodes} nodes"] = Aded(table, nodes=nodes, search="full")
        found[f"REST, {nodes} nodes"] = Rest(store, nodes=nodes)
    return found


def written(lm: CausalLM, prompts: int, max_new_tokens: int, seed: int, **settings: Any) -> list[Written]:
    """Plain decoding of the prompts, greedy unless ``settings`` say how to sample."""
    found = []
    method = Sample() if settings else Greedy()
    for index, prompt in enumerate(held_out_prompts(prompts)):
        how = {"max_new_tokens": max_new_tokens, "seed": 1000 * seed + index, **settings}
        [request] = prepare(lm, [prompt.text], method, **how)
        found.append(Written(request, generate(lm, prompt.text, method, **how).tokens))
    return found


def turns(texts: Sequence[Written]) -> Iterator[list[Written]]:
    """The texts four times, each time beginning a quarter later."""
    for part in range(4):
        start = part * len(texts) // 4
        yield [*texts[start:], *texts[:start]]


def replayed(lm: CausalLM, method: DraftMethod, texts: Sequence[Written]) -> list[Replay]:
    """Every text under a method that has learned nothing before the first."""
    method.memory.clear()
    found = []
    for text in texts:
        drafter = method.drafter(lm, text.request)
        if drafter is not None:
            found.append(replay(drafter, text.request, text.text))
    return found
