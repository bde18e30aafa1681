"""S2D's claims: sorted training makes every exit a draft model, and confidence finds the exit; one draft, many targets

On a language of known words (``ramify.bench.lexicon``) a draft model is trained at its last exit (SFT) or at all of
them (SoFT), and drafts for a larger target by fixed exits and by confidence. Then the bundled draft model of the demo
model serves three targets, the same model in several precisions. A draft counts as far as it is what the target goes on
with: its likeliest tokens, or those that it samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.compare import compare
from ramify.bench.lexicon import Lexicon, build, fit
from ramify.bench.prompts import Prompt, held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.drafters import rows_of
from ramify.engine.drafter import Context
from ramify.engine.sampling import Sampler
from ramify.methods.base import Method
from ramify.methods.draft.s2d import S2D, SortedDrafter
from ramify.methods.draft.s2d_head import SortedHead, sorted_loss
from ramify.methods.draft.schedule import Schedule
from ramify.methods.head import load_head
from ramify.methods.registry import create
from ramify.models.causal import CausalLM, load, wrap

EXITS = (1, 2, 3)
DRAFTED = 6
# Thresholds of exits 1 and 2. Nothing is surer than 1, and everything is surer than 0.
FIXED = {"fixed exit 1": (0.0, 0.0), "fixed exit 2": (1.0, 0.0), "fixed exit 3": (1.0, 1.0)}
ADAPTIVE = {f"adaptive {pair}": pair for pair in ((0.5, 0.5), (0.75, 0.7), (0.9, 0.85))}


def run(
    *,
    seed: int = 0,
    contexts: int = 240,
    steps: int = 600,
    model: str = "demo",
    head: str | None = None,
    prompts: int = 12,
    max_new_tokens: int = 64,
    repeats: int = 3,
) -> Outcome:
    """All tables. ``steps`` train every model of the language; ``head``: a trained one for ``model``, None for the
    bundled one."""
    rows = on_the_lexicon(contexts, steps, seed)
    asked = held_out_prompts(prompts, seed=seed)
    targets = {
        "bfloat16": load(model, dtype="bfloat16"),
        "float32": load(model, dtype="float32"),
        "int8": load(model, dtype="bfloat16", weights="int8"),
    }
    tables = [
        Table(f"Language of 80 words: {contexts} contexts, chains of {DRAFTED}, {steps} steps a model", rows),
        Table("What must show there", claims(rows)),
        Table(
            f"{model}: tokens per call by target, {prompts} held-out prompts × {max_new_tokens} tokens, chains of 5",
            on_the_demo(targets, head, [prompt.text for prompt in asked], max_new_tokens, seed),
        ),
        timed(load(model), head, asked, max_new_tokens, repeats, seed),
    ]
    notes = [
        "MAT: one token and the drafted ones that the target goes on with, at most 7; greedy, and sampled at T = 1. "
        "Layers: of the draft model, for each drafted token.",
        "By target: the same head drafts in each target's precision. Coupled: drafting with the target's own noise.",
    ]
    return Outcome(tables, notes)


def on_the_lexicon(count: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """Drafts of one model by fixed exits and by confidence, trained at one exit or at all."""
    language = Lexicon.of(seed)
    text = language.passage(60_000, seed).tokens
    target = fit(build(language, width=96, seed=seed), text, steps=steps, seed=seed)
    asked = language.contexts(count, seed=seed)
    how: dict[str, Any] = {"max_new_tokens": DRAFTED + 1}
    greedy = [result.tokens for result in generate(target, asked, "greedy", **how)]
    how |= {"do_sample": True, "top_k": 0, "seed": seed}
    sampled = [result.tokens for result in generate(target, asked, "sample", **how)]
    rows = []
    for name, exits in (("SFT", EXITS[-1:]), ("SoFT", EXITS)):
        model = build(language, width=48, seed=seed + 1)
        trained = wrap(model, None, name, "transformers")
        loss = functools.partial(_loss, trained, exits)
        draft = fit(model, text, steps=steps, seed=seed, loss=loss)
        for way, thresholds in (FIXED | ADAPTIVE).items():
            row: dict[str, Any] = {"draft": f"{name}, {way}"}
            chains, layers = drafts(draft, thresholds, asked)
            for label, texts in (("greedy", greedy), ("T = 1", sampled)):
                row[f"MAT, {label}"] = sum(map(_accepted, chains, texts)) / count
            rows.append(row | {"layers": layers})
    return rows


def drafts(draft: CausalLM, thresholds: Sequence[float], asked: Sequence[list[int]]) -> tuple[list[list[int]], float]:
    """A chain for every context, and the mean number of layers that a token of them took."""
    chains, left = [], []
    for text in asked:
        drafter = SortedDrafter(draft, EXITS, [*thresholds, 0.0], Schedule(DRAFTED), frozenset(), False)
        context = Context(text, DRAFTED, Sampler(), torch.Generator(), len(text))
        chains.append(drafter.draft(context).tokens.tolist())
        left += drafter.left
    return chains, sum(EXITS[place] for place in left) / len(left)


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The differences that a language of this size has to show, with what was found."""
    mat = {(row["draft"], kind): row[f"MAT, {kind}"] for row in rows for kind in ("greedy", "T = 1")}
    layers = {row["draft"]: row["layers"] for row in rows}
    found = []

    def claim(text: str, value: float, bar: str, holds: bool) -> None:
        found.append({"claim": text, "found": value, "bar": bar, "holds": "yes" if holds else "no"})

    for kind in ("greedy", "T = 1"):
        first = mat["SoFT, fixed exit 1", kind] / mat["SFT, fixed exit 1", kind]
        claim(f"exit 1, SoFT over SFT, {kind}", first, "≥ 2", first >= 2)
        full = mat["SoFT, fixed exit 3", kind] / mat["SFT, fixed exit 3", kind]
        claim(f"full depth, SoFT over SFT, {kind}", full, "within 5 %", abs(full - 1) <= 0.05)
        near = max(
            (mat[f"SoFT, {way}", kind] for way in ADAPTIVE if layers[f"SoFT, {way}"] <= 0.6 * EXITS[-1]), default=0.0
        )
        near /= mat["SoFT, fixed exit 3", kind]
        claim(
            f"best adaptive of at most 60 % of the layers over full depth, SoFT, {kind}", near, "≥ 0.98", near >= 0.98
        )
        rises = [mat[f"SFT, {way}", kind] for way in ADAPTIVE]
        claim(f"MAT rises with the thresholds, SFT, {kind}", rises[-1] / rises[0], "> 1", rises == sorted(rises))
    for name in ("SFT", "SoFT"):
        rises = [layers[f"{name}, {way}"] for way in ADAPTIVE]
        claim(f"layers rise with the thresholds, {name}", rises[-1] / rises[0], "> 1", rises == sorted(rises))
    return found


def on_the_demo(
    targets: dict[str, CausalLM], source: str | None, prompts: Sequence[str], new: int, seed: int
) -> list[dict[str, Any]]:
    """One head for all targets: exits, thresholds and noise."""
    first = next(iter(targets.values()))
    head = load_head(SortedHead, source, first)
    untrained = SortedHead.new(load(first.name), exits=head.sizes.exits)
    last = len(head.sizes.exits) - 1
    ways: dict[str, dict[str, Any]] = {
        "the target's own layers, untrained": {"head": untrained, "thresholds": (1.0,) * last},
        **{
            f"fixed exit {exit_}": {"thresholds": (1.0,) * place + (0.0,) * (last - place)}
            for place, exit_ in enumerate(head.sizes.exits)
        },
        **{f"adaptive, thresholds {sure}": {"thresholds": (sure,) * last} for sure in (0.3, 0.5, 0.75, 0.9)},
        "adaptive, thresholds 0.5, coupled": {"coupled": True},
    }
    rows = []
    for name, options in ways.items():
        method = create("s2d", **{"head": head, "schedule": "constant"} | options)
        row: dict[str, Any] = {"draft": name}
        for label, lm in targets.items():
            for kind, how in (("greedy", {}), ("T = 0.7", {"do_sample": True, "temperature": 0.7})):
                tokens = calls = 0
                for index, prompt in enumerate(prompts):
                    settings: dict[str, Any] = {"max_new_tokens": new, "seed": 1000 * seed + index, **how}
                    stats = generate(lm, prompt, method, **settings).stats
                    tokens, calls = tokens + stats.generated_tokens, calls + stats.target_calls
                row[f"{label}, {kind}"] = tokens / calls
        rows.append(row)
    return rows


def timed(lm: CausalLM, head: str | None, asked: Sequence[Prompt], new: int, repeats: int, seed: int) -> Table:
    """By the clock, sampled: the paper's settings, and what else there is."""
    methods: list[str | Method] = ["sample", S2D(head=head), S2D(head=head, coupled=True)]
    methods += [S2D(head=head, coupled=True, schedule="auto"), S2D(head=head, coupled=True, thresholds=(0.0,))]
    how: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "seed": seed}
    found = compare(lm, asked, methods, max_new_tokens=new, repeats=repeats, **how)
    kind = str(lm.dtype).removeprefix("torch.")
    return Table(f"{lm.name}, {kind}: temperature 0.7, timed in turn", rows_of(found))


def _loss(lm: CausalLM, exits: Sequence[int], model: Any, windows: torch.Tensor) -> torch.Tensor:
    return sorted_loss(lm, windows, exits)


def _accepted(chain: Sequence[int], text: Sequence[int]) -> int:
    """One, and the drafted tokens before the first that the target would not have written."""
    pairs = enumerate(zip(chain, text, strict=False))
    return 1 + next((place for place, (mine, theirs) in pairs if mine != theirs), len(chain))
