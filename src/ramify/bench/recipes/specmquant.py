"""SpecMQuant's claims: the dearer the verified rows, the more a tree on the small model gains over one on the target

On a language of known words (``ramify.bench.lexicon``) a target and a smaller model of it are trained; then a tree on
the target, a chain of the small model, and the hierarchy of both are put beside each other, with the models as they are
and rounded to four bits. Costs are those of the paper's curves, on which 60 rows take 1 + s steps and a pass of the
small model 8/70 of the target's, so that no clock is involved. What rows cost here is measured on the demo model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ramify.bench.hierarchies import SLOPES, SMALL, TREES, ablations, curve, measured, planned, rounded, trained, ways
from ramify.bench.lexicon import Lexicon
from ramify.bench.passes import Work
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.plan import LENGTHS, ROWS, verification_cost
from ramify.methods.draft.s2d_head import SortedHead
from ramify.methods.head import load_head
from ramify.models.calibrate import calibrate
from ramify.models.causal import load

FORMATS = ("packed", "int8", "int4")


def run(
    *,
    seed: int = 0,
    steps: int = 600,
    contexts: int = 16,
    max_new_tokens: int = 80,
    temperature: float = 0.7,
    model: str = "demo",
    head: str | None = None,
    prompts: int = 8,
    budget: float = 10.0,
) -> Outcome:
    """All tables. ``steps`` train either model of the language. ``head``: S2D's draft model for ``model``, which is the
    small one there, None for the bundled one. ``budget``: seconds for each cost curve."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": True, "temperature": temperature}
        how |= {"top_k": 0, "seed": seed}
        asked = Lexicon.of(seed).contexts(contexts, seed=seed)
        target, small = trained(seed, steps)
        found = measured(target, small, {**ways(small), **ablations(small)}, asked, how)
        both = rounded(target), rounded(small)
        coarse = measured(*both, ways(both[1]), asked, how)
        tables = [
            Table(
                f"Language of 80 words: {contexts} contexts × {max_new_tokens} tokens, T = {temperature}", rows(found)
            ),
            Table("The same with the matrices of both models rounded to 4 bits, in groups of 128", rows(coarse)),
            Table("What must show there", claims(found, coarse)),
            Table("Planned, from the trees alone and the chains alone", planned(target, small, asked, how, found)),
        ]
        texts = [prompt.text for prompt in held_out_prompts(prompts, seed=seed)]
        tables += on_the_demo(model, head, texts, how, budget)
    finally:
        torch.set_num_threads(before)
    notes = [
        "Rows: of a target call, the pending token included. Passes: of the small model, for a target call; their rows "
        "are the tree's and what is read along with it. Speed: tokens in the time of a plain step; on the language of "
        "words with T(n) = 1 + s (n − 1) / 59 for the target and 8/70 of that for the small model. Reading prompts is "
        "left out.",
        "Planned: from the tokens of trees by size on either model alone, and from the agreement of both on the chain; "
        "no hierarchy was run for it. The planner chooses among trees of "
        f"{', '.join(map(str, TREES))} nodes and lengths up to {LENGTHS[-1]}.",
    ]
    return Outcome(tables, notes)


def rows(found: dict[str, Work]) -> list[dict[str, Any]]:
    """A table of it, the first being plain decoding."""
    plain = next(iter(found.values()))
    return [
        {
            "way": name,
            **done.row(),
            **{f"speed, s = {s}": done.speed(curve(s), curve(s, SMALL)) for s in SLOPES},
            "equals plain": "yes" if done.texts == plain.texts else "no",
        }
        for name, done in found.items()
    ]


def claims(found: dict[str, Work], coarse: dict[str, Work]) -> list[dict[str, Any]]:
    """What has to show, with what was found."""
    told: list[dict[str, Any]] = []

    def claim(text: str, value: str, holds: bool) -> None:
        told.append({"claim": text, "found": value, "holds": "yes" if holds else "no"})

    for label, each in (("", found), (", 4 bits", coarse)):
        gains = []
        for s in SLOPES:
            direct, chain, both = (
                each[name].speed(curve(s), curve(s, SMALL)) for name in ("tree of 30", "chain of 6", "hierarchy")
            )
            order = f"{both:.2f}, {chain:.2f}, {direct:.2f}"
            claim(f"hierarchy > chain > tree on the target, s = {s}{label}", order, both > chain > direct)
            gains.append(both / direct)
        claim(f"hierarchy ÷ tree grows with s{label}", f"{gains[0]:.2f} → {gains[1]:.2f}", gains[1] > gains[0])
        texts = each["plain"].texts
        same = all(done.texts == texts for done in each.values())
        claim(f"every text is that of plain decoding{label}", "all" if same else "not all", same)
    for name in ("tree of 30", "chain of 6", "hierarchy"):
        change = coarse[name].tokens_per_call / found[name].tokens_per_call
        claim(f"4 bits hardly change tokens per call, {name}", f"× {change:.3f}", abs(change - 1) < 0.1)
    differ = found["plain"].texts != coarse["plain"].texts
    claim("4 bits change the text itself", "it differs" if differ else "it is the same", differ)
    return told


def on_the_demo(model: str, head: str | None, texts: Sequence[str], how: dict[str, Any], budget: float) -> list[Table]:
    """What rows cost here in every weight format, and what the ways are then worth; S2D's draft is the small model."""
    targets = {weights: load(model, dtype="bfloat16", weights=weights) for weights in FORMATS}
    first = targets[FORMATS[0]]
    small = load_head(SortedHead, head, first).draft(first)
    curves = {name: verification_cost(lm, budget=budget) for name, lm in targets.items()}
    own = verification_cost(small, budget=budget)
    calibrate(small)  # now, so that its passes are not counted below
    costs = [
        {"weights": name, "plain step, ms": 1e3 * each.cost(1), **{f"{n} rows": each.ratio(n) for n in ROWS[1:]}}
        for name, each in [*curves.items(), ("the small model, packed", own)]
    ]
    told = []
    for name, lm in targets.items():
        plain = curves[name].cost(1)
        calibrate(lm)
        auto = Assistant(model=small, schedule="auto", verifier="match")
        for way, done in measured(lm, small, {**ways(small), "chain, length by the curves": auto}, texts, how).items():
            speed = done.speed(curves[name].ratio, lambda n, plain=plain: own.cost(n) / plain)  # type: ignore[misc]
            told.append({"weights": name, "way": way, **done.row(), "speed by these costs": speed})
    return [
        Table(f"{model}, bfloat16: T_v(n) / T_t on this machine", costs),
        Table(
            f"{model}: {len(texts)} held-out prompts × {how['max_new_tokens']} tokens, T = {how['temperature']}", told
        ),
    ]
