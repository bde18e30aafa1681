"""DEER's stages, weights and blocks; agreement by place beside an autoregressive drafter; long runs; speed.

Drafters of a small model of characters are trained in passing, for all that takes equal training. The demo model's own
is the bundled one, or that of a folder which ``ramify train deer`` left, with the head after every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramify.bench.blocks import LONG, Decoded, agreement, continued, decode, filled
from ramify.bench.compare import compare
from ramify.bench.deer_letters import Class, places, tables
from ramify.bench.letters import letter_lm, letters
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.drafters import rows_of
from ramify.errors import RamifyError
from ramify.methods.base import Method
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.deer import Deer
from ramify.methods.draft.deer_head import DeerHead
from ramify.methods.draft.s2d_head import SortedHead
from ramify.methods.head import load_head
from ramify.models.causal import CausalLM, load
from ramify.train.data import library_files
from ramify.train.deer import STAGES, Course

START = 48  # characters of a text that is to be continued
PARTS = ("letters", "demo", "speed")
ALPHAS = (1.0, 1.01, 1.02, 1.05)


def run(
    *,
    seed: int = 0,
    parts: str = ",".join(PARTS),
    model: str = "demo",
    run_folder: str = "",
    letter_model: str = "",
    letter_steps: int = 1200,
    spans: int = 150,
    stage_one: int = 300,
    stage_two: int = 100,
    texts: int = 256,
    starts: int = 32,
    new_tokens: int = 48,
    prompts: int = 12,
    max_new_tokens: int = 96,
    repeats: int = 3,
) -> Outcome:
    """``parts``: those to run, separated by commas. ``run_folder``: what ``ramify train deer`` left, for its stages.
    ``letter_model``: a folder with the model of characters, trained in passing where there is none. ``spans``,
    ``stage_one``, ``stage_two``: steps of its drafters on ``texts`` that it wrote."""
    chosen = parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        raise RamifyError(f"there is no part {sorted(unknown)[0]!r}; choose among {', '.join(PARTS)}")
    found: list[Table] = []
    if "letters" in chosen:
        small = load(letter_model) if letter_model else letter_lm(steps=letter_steps, seed=seed)
        held_out = letters(library_files()[1], 200_000, seed)
        every = (len(held_out) - START) // starts
        begun = [held_out[place * every : place * every + START] for place in range(starts)]
        course = Course((spans, stage_one, stage_two), seed=seed)
        found += tables(Class.of(small, texts, course), begun, new_tokens, ALPHAS)
    asked = held_out_prompts(prompts, seed=seed)
    if "demo" in chosen:
        lm = load(model, dtype="float32")  # in which identity is promised
        found += on_the_demo(lm, [lm.encode(prompt.text) for prompt in asked], max_new_tokens, run_folder)
    if "speed" in chosen:
        lm = load(model)
        methods: list[str | Method] = ["greedy", Deer(), Deer(nodes=4), Deer(nodes=8), Deer(nodes=16), "s2d", "eagle"]
        timed = compare(lm, asked, methods, max_new_tokens=max_new_tokens, repeats=repeats, seed=seed)
        found.append(Table(f"{lm.name}, {lm.how}: greedy, timed in turn", rows_of(timed)))
    notes = [
        "T = …: tokens per call of the target, its own token included; the paper's τ is this without that token. "
        f"A long run: at least {LONG} draft tokens accepted in a call.",
    ]
    return Outcome(found, notes)


def on_the_demo(lm: CausalLM, starts: Sequence[list[int]], new_tokens: int, run_folder: str) -> list[Table]:
    """Stages, sizes of the block with the accepted lengths, and agreement by place beside S2D's two layers."""
    truth = decode(lm, None, starts, new_tokens).texts
    bundled = load_head(DeerHead, None, lm)
    known = {f"after {stage}": Path(run_folder) / stage / "head" for stage in STAGES} if run_folder else {}
    heads = {name: load_head(DeerHead, folder, lm) for name, folder in known.items()} or {"bundled": bundled}
    stages = []
    for name, head in heads.items():
        found = decode(lm, Deer(head=head, nodes=16), starts, new_tokens)
        sampled = decode(lm, Deer(head=head, nodes=16), starts, new_tokens, 0.7)
        row: dict[str, Any] = {"drafter": name, "T = 0": found.tokens_per_call, "T = 0.7": sampled.tokens_per_call}
        row["as greedy"] = f"{sum(map(list.__eq__, found.texts, truth))} of {len(truth)}"
        stages.append(row)
    sized: list[dict[str, Any]] = []
    lengths: list[dict[str, Any]] = []
    for nodes in (1, 4, 8, 16, 32):
        found = decode(lm, Deer(head=bundled, nodes=nodes), starts, new_tokens)
        sampled = decode(lm, Deer(head=bundled, nodes=nodes), starts, new_tokens, 0.7)
        sized.append({"k": nodes, "T = 0": found.tokens_per_call, "T = 0.7": sampled.tokens_per_call,
                      "long runs, T = 0": f"{found.long_share:.1%}", "long runs, T = 0.7": f"{sampled.long_share:.1%}",
                      "most accepted": max(found.accepted),
                      "as greedy": f"{sum(map(list.__eq__, found.texts, truth))} of {len(truth)}"})  # fmt: skip
        if nodes == 32:
            lengths = [histogram("T = 0", found), histogram("T = 0.7", sampled)]
    alone = load_head(SortedHead, None, lm).draft(lm)
    drafters = {
        "deer, one pass": agreement(filled(bundled, lm), starts, truth, 16, 5),
        "s2d's two layers, 16 passes": agreement(continued(alone), starts, truth, 16, 5),
    }
    written = decode(lm, Assistant(model=alone, length=16, schedule="constant"), starts, new_tokens)
    chains = [
        {"drafter": "deer, one pass", "tokens a call": sized[3]["T = 0"]},
        {"drafter": "s2d's two layers, 16 passes", "tokens a call": written.tokens_per_call},
    ]
    return [
        Table(f"{lm.name}: tokens a call, k = 16, {len(starts)} prompts × {new_tokens} tokens", stages),
        Table(f"{lm.name}: masks of a block", sized),
        Table(f"{lm.name}, k = 32: share of the calls by accepted draft tokens", lengths),
        Table(f"{lm.name}: agreement with its greedy text by place", places(drafters)),
        Table(f"{lm.name}: chains of 16, greedy", chains),
    ]


def histogram(name: str, found: Decoded) -> dict[str, Any]:
    """Shares of the accepted lengths."""
    row: dict[str, Any] = {"text": name}
    bounds = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11), (12, 15), (16, 23), (24, 31), (32, 32))
    for low, high in bounds:
        share = sum(found.accepted[length] for length in range(low, high + 1)) / found.calls
        row[str(low) if low == high else f"{low}–{high}"] = f"{share:.1%}"
    return row
