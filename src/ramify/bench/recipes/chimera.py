"""Chimera's ablations beside Medusa: agreement by distance, tokens per pass of a chain, and its own share of a step.

A character model of the standard library's sources is trained in passing, and one head of every variant with the same
windows and steps. What a head is worth is read off chains of equal length, greedy and sampled: greedy text of a small
model repeats itself and flatters every drafter, so the sampled columns count; their drafts are made without a view to
the noise. Then the bundled head on the demo model, with and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.letters import CONTEXT, letter_lm, letters, train_on_letters
from ramify.bench.prompts import Prompt, held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.engine.drafter import Drafter
from ramify.engine.events import Accepted, Scored
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.speculate import speculate
from ramify.errors import unknown
from ramify.methods.base import Method
from ramify.methods.draft.chimera import Chimera
from ramify.methods.draft.chimera_draft import BranchDrafter, Plan
from ramify.methods.draft.chimera_encoder import Encoder
from ramify.methods.draft.chimera_head import ChimeraHead
from ramify.methods.draft.eagle_draft import Continuer, TreeDrafter
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.medusa import Forecaster, Heads, Medusa
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.methods.draft.template import Template
from ramify.methods.head import Head
from ramify.models.causal import CausalLM, load
from ramify.train.data import library_files

AHEAD = 3
RATE = 3e-3
START = 64  # characters of a text that is to be continued
CHAIN = Template(tuple((0,) * depth for depth in range(1, AHEAD + 1)))
MEDUSA, NEWEST = "Medusa heads", "trigram reduced to the newest token"
VARIANTS: dict[str, dict[str, Any]] = {
    "Chimera": {},
    "heads of A_i over the target's LM head (shared)": {"head": "shared"},
    "rows do not see the text (no context encoder)": {"context": False},
    NEWEST: {"trigram": False},
    "newest token, no context": {"trigram": False, "context": False},
    "head on o only (no residual h)": {"residual": False},
    "hard targets (the code's last version)": {"target": "hard"},
    "fed with its own guesses (the code's)": {"feed": "guess"},
    "beginning from the target's LM head (the code's)": {"start": "target"},
    "gradients through earlier steps": {"detach": False},
}


def run(
    *,
    seed: int = 0,
    steps: int = 1200,
    head_steps: int = 400,
    texts: int = 160,
    new_tokens: int = 48,
    prompts: int = 16,
    max_new_tokens: int = 64,
    seeds: int = 3,
    part: str = "",
) -> Outcome:
    """``part``: "letters", "demo", or both; ``steps`` train the character model, ``head_steps`` every head."""
    if part not in ("", "letters", "demo"):
        raise unknown("part", part, ["letters", "demo"])
    found = Outcome()
    if part != "demo":
        _on_letters(seed, steps, head_steps, texts, new_tokens, found)
    if part != "letters":
        found.tables.append(_on_the_demo(prompts, max_new_tokens, seed, seeds))
    return found


def _on_letters(seed: int, steps: int, head_steps: int, texts: int, new_tokens: int, found: Outcome) -> None:
    lm = letter_lm(steps=steps, seed=seed)
    held_out = torch.tensor(letters(library_files()[1], 200_000, seed))
    judged = held_out.unfold(0, CONTEXT + 1, CONTEXT)[:32]
    contexts = held_out.unfold(0, START, len(held_out) // texts)[:texts].tolist()
    rows = []
    for name, cls, options in _heads():
        head = train_on_letters(cls, lm, steps=head_steps, learning_rate=RATE, seed=seed, **options)
        agreement = head.measure(lm, judged)
        row: dict[str, Any] = {"drafter": name, "parameters": sum(weight.numel() for weight in head.parameters())}
        row |= {f"+{ahead}": agreement[f"agreement at +{ahead}"] for ahead in range(2, AHEAD + 2)}
        for degrees in (0.0, 0.7, 1.0):
            row[f"T = {degrees}"] = _tokens_per_pass(lm, head, contexts, new_tokens, degrees)
        rows.append(row)
    title = f"Model of characters ({steps} steps), {head_steps} steps a head, chains of {AHEAD}"
    found.tables += [Table(title, rows), Table("What a model of this size has to show", claims(rows))]
    found.notes.append(
        "+n: how often a head's first guess is the target's likeliest token n places ahead, those in between given. "
        f"T = …: tokens per pass on {texts} held-out texts of {START} characters, {new_tokens} more each; at most "
        f"{AHEAD + 1}."
    )


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The differences that a model of characters has to show, with what was found."""
    row = {each["drafter"]: each for each in rows}
    chimera, medusa, newest = row["Chimera"], row[MEDUSA], row[NEWEST]
    found = []

    def claim(text: str, value: float, bar: str, holds: bool) -> None:
        found.append({"claim": text, "found": value, "bar": bar, "holds": "yes" if holds else "no"})

    drop = chimera["+2"] - chimera[f"+{AHEAD + 1}"]
    claim(f"agreement lost from +2 to +{AHEAD + 1}, Chimera", drop, "< 0.03", drop < 0.03)
    drop = medusa["+2"] - medusa[f"+{AHEAD + 1}"]
    claim(f"agreement lost from +2 to +{AHEAD + 1}, Medusa", drop, "> 0.05", drop > 0.05)
    gain = chimera["T = 0.7"] - medusa["T = 0.7"]
    claim("tokens per pass at T = 0.7, Chimera − Medusa", gain, "> 0.3", gain > 0.3)
    gain = chimera["T = 0.7"] - newest["T = 0.7"]
    claim("tokens per pass at T = 0.7, trigram − newest token", gain, "> 0", gain > 0)
    return found


def _heads() -> list[tuple[str, type[Head], dict[str, Any]]]:
    others: list[tuple[str, type[Head], dict[str, Any]]] = [
        (MEDUSA, MedusaHead, {"heads": AHEAD}),
        ("EAGLE, one layer on the target's states", EagleHead, {"distances": AHEAD}),
    ]
    return [*others, *((name, ChimeraHead, {"head": "full", "heads": AHEAD} | each) for name, each in VARIANTS.items())]


def _maker(lm: CausalLM, head: Head) -> Callable[[], Drafter]:
    """Makes a drafter of chains for each sequence."""
    if isinstance(head, ChimeraHead):
        encoder, plan = Encoder(head, lm), Plan(CHAIN, lm)
        return lambda: BranchDrafter(encoder, plan, coupled=False)
    if isinstance(head, EagleHead):
        continuer = Continuer(head, lm)
        return lambda: TreeDrafter(continuer, AHEAD, 1, AHEAD, coupled=False)
    assert isinstance(head, MedusaHead)
    heads = Heads(head, lm)
    return lambda: Forecaster(heads, CHAIN)


def _tokens_per_pass(lm: CausalLM, head: Head, contexts: Sequence[list[int]], new_tokens: int, degrees: float) -> float:
    from transformers import TemperatureLogitsWarper

    make = _maker(lm, head)
    tokens = passes = 0
    for first in range(0, len(contexts), 32):
        part = contexts[first : first + 32]
        warpers = [TemperatureLogitsWarper(degrees)] if degrees > 0 else []
        requests = [
            Request(text, len(text) + new_tokens, Sampler(warpers, greedy=degrees == 0, noise=Noise(first + row)))
            for row, text in enumerate(part)
        ]
        for event in speculate(lm, requests, [make() for _ in requests]):
            if isinstance(event, Scored):
                passes += len(event.rows)
            elif isinstance(event, Accepted):
                tokens += len(event.tokens)
    return tokens / passes


def _on_the_demo(prompts: int, max_new_tokens: int, seed: int, seeds: int) -> Table:
    lm = load("demo")
    rows = []
    methods = {
        "Medusa, sized": Medusa(),
        "Chimera, sized": Chimera(),
        "Chimera, sized, not coupled": Chimera(coupled=False),
        "Chimera, published tree": Chimera(tree="paper"),
        **{f"Chimera, {nodes} nodes": Chimera(nodes=nodes) for nodes in (3, 7, 15, 31)},
        **{f"Chimera, {nodes} nodes, not coupled": Chimera(nodes=nodes, coupled=False) for nodes in (3, 7, 15, 31)},
    }
    asked = held_out_prompts(prompts, seed=seed)
    for name, method in methods.items():
        greedy = _measured(lm, method, asked, max_new_tokens, [seed], do_sample=False)
        turns = range(seed, seed + seeds)
        sampled = _measured(lm, method, asked, max_new_tokens, turns, do_sample=True, temperature=0.7)
        rows.append(
            {
                "drafter": name,
                "tokens per call, greedy": greedy[0],
                "tokens per call, T = 0.7": sampled[0],
                "nodes per call": sampled[1],
                "own share of the time": f"{100 * sampled[2]:.0f} %",
            }
        )
    title = f"{lm.name}, {lm.how}: {prompts} held-out prompts × {max_new_tokens} tokens, {seeds} seeds where sampled"
    return Table(title, rows)


def _measured(
    lm: CausalLM, method: Method, asked: Sequence[Prompt], max_new_tokens: int, turns: Iterable[int], **settings: Any
) -> tuple[float, float, float]:
    """Tokens and nodes per call, and drafting, verifying and learning as a share of the decoding time."""
    tokens = calls = nodes = 0
    own = whole = 0.0
    for turn in turns:
        for index, prompt in enumerate(asked):
            seeded = settings | {"seed": 1000 * turn + index}
            stats = generate(lm, prompt.text, method, max_new_tokens=max_new_tokens, **seeded).stats
            tokens, calls, nodes = tokens + stats.generated_tokens, calls + stats.target_calls, nodes + stats.drafted
            own += stats.draft_seconds + stats.verify_seconds
            whole += stats.decode_seconds
    return tokens / calls, nodes / calls, own / whole
