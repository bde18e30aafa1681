"""Lexical unit decoding: tokens per pass against what they cost, by alpha, beta and k, on a language of known units.

The lexicon language shows where units are: a word's first token is uncertain, the others follow from it. A small model
of it is fine-tuned in passing for every alpha. Quality is the likelihood of the generated text under the base model.
Then the bundled head on the demo model, beside plain decoding of both models.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ramify.api import generate
from ramify.bench.lexicon import Lexicon, build, fit
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.engine.result import Result
from ramify.methods.base import Method
from ramify.methods.draft.lud import LUD
from ramify.methods.draft.lud_head import LudHead
from ramify.methods.head import load_head, teach
from ramify.models.causal import CausalLM, load
from ramify.train.trainer import TrainConfig, train

BETAS = (0.95, 0.9, 0.8, 0.5)
TUNED = "plain decoding of the model tuned on units, alpha 0.5"
LENGTH = 32  # tokens of a context, and of its continuation
WINDOW, BATCH, RATE = 64, 4, 3e-3


def run(
    *,
    seed: int = 0,
    steps: int = 600,
    head_steps: int = 400,
    contexts: int = 40,
    prompts: int = 16,
    max_new_tokens: int = 64,
    model: str = "demo",
) -> Outcome:
    """Both parts; ``steps`` train the base model of the lexicon language, ``head_steps`` fine-tune it."""
    lexicon = Lexicon.of(seed)
    text = lexicon.passage(60_000, seed).tokens
    base = fit(build(lexicon, seed=seed), text, steps=steps, seed=seed)
    asked = lexicon.contexts(contexts, LENGTH)
    judged = torch.tensor(lexicon.contexts(32, WINDOW, seed=1))

    def tuned(**options: Any) -> LudHead:
        torch.manual_seed(seed)
        head = LudHead.new(base, **options)
        return _train(head, base, text, head_steps, seed)

    untrained = LudHead.new(base).requires_grad_(False)
    units, sure, random = tuned(alpha=0.5), tuned(alpha=0.9), tuned(alpha=0.0)
    cases: list[tuple[str, Method | str, CausalLM]] = [
        ("plain decoding of the base model", "greedy", base),
        (TUNED, "greedy", units.merged(base)),
        ("untrained [PAD], beta 0.9", LUD(head=untrained), base),
        *((_units(0.5, beta), LUD(head=units, beta=beta), base) for beta in BETAS),
        *((_units(alpha, 0.9), LUD(head=tuned(alpha=alpha)), base) for alpha in (0.3, 0.7)),
        (_units(0.9, 0.9), LUD(head=sure), base),
        (f"{_units(0.9, 0.9)}, 15 % of full length", LUD(head=tuned(alpha=0.9, full=0.15)), base),
        *((_units(0.0, beta), LUD(head=random, beta=beta), base) for beta in (0.9, 0.5)),
        *((f"{_units(0.5, 0.9)}, k = {k}", LUD(head=units, k=k), base) for k in (1, 2)),
        (f"{_units(0.5, 0.9)}, no repetition control", LUD(head=units, repetition=False), base),
        *((_verified(beta), LUD(head=units, beta=beta, verify=True), base) for beta in (0.9, 0.5)),
    ]
    rows = [
        {"decoding": name} | _figures(generate(lm, asked, method, max_new_tokens=LENGTH, do_sample=False), base)
        for name, method, lm in cases
    ]
    figures = {name: head.measure(base, judged) for name, head in (("0.5", units), ("0.9", sure), ("0", random))}
    base_nats = figures["0.5"]["nats a token of the base"]
    costs = ", ".join(f"{each['nats a token'] - base_nats:+.3f} (alpha {name})" for name, each in figures.items())
    title = f"Lexicon language: {steps} steps of the base, {head_steps} of tuning; {contexts} contexts, greedy"
    notes = [
        "NLL: nats a token of the generated text under the base model. Steps: share of those that gave 1, 2, … tokens.",
        f"On held-out text the tuned models lose {costs} nats a token, to {base_nats:.3f} of the base.",
    ]
    tables = [
        _identified(lexicon, base),
        Table(title, rows),
        Table("What a language of known units has to show", claims(rows)),
        *_on_the_model(model, prompts, max_new_tokens, seed),
    ]
    return Outcome(tables, notes)


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The differences that the lexicon language has to show, with what was found."""
    row = {each["decoding"]: each for each in rows}
    found = []

    def claim(text: str, value: float, bar: str, holds: bool) -> None:
        found.append({"claim": text, "found": value, "bar": bar, "holds": "yes" if holds else "no"})

    units = [row[_units(0.5, beta)] for beta in BETAS]
    usual = row[_units(0.5, 0.9)]
    gain = usual["tokens per call"] / row[_units(0.0, 0.9)]["tokens per call"]
    claim("tokens per call, units over random spans, beta 0.9", gain, "≥ 1.2", gain >= 1.2)
    cost = usual["NLL"] - row[TUNED]["NLL"]
    claim("NLL, units − plain decoding of the tuned model, beta 0.9", cost, "≤ 0.03", cost <= 0.03)
    for what in ("tokens per call", "NLL"):
        values = [each[what] for each in units]
        claim(f"{what} rises as beta falls", values[-1] / values[0], "> 1", values == sorted(values))
    harm = row[_units(0.9, 0.9)]["NLL"] - usual["NLL"]
    claim("NLL, alpha 0.9 without negatives − alpha 0.5", harm, "> 0", harm > 0)
    off = row[_verified(0.9)]["NLL"] - row[TUNED]["NLL"]
    claim("NLL, verified spans − plain decoding of the tuned model", off, "0", off == 0.0)
    return found


def _units(alpha: float, beta: float) -> str:
    return f"{'units' if alpha else 'random spans'}, alpha {alpha}, beta {beta}"


def _verified(beta: float) -> str:
    return f"{_units(0.5, beta)}, verified"


def _train(head: LudHead, base: CausalLM, text: Sequence[int], steps: int, seed: int) -> LudHead:
    """``head`` after ``steps`` steps on random windows, at a rate that falls to nothing."""
    every = torch.tensor(text).unfold(0, WINDOW + 1, 1)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        return head.loss(base, every[torch.randint(len(every), (BATCH,), generator=generator)])

    config = TrainConfig(steps, RATE, "adamw", 20, 1.0, weight_decay=0.0, seed=seed, save_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(head, loss_at, config, Path(folder)):
            pass
    return head.requires_grad_(False).eval()


def _identified(lexicon: Lexicon, base: CausalLM) -> Table:
    """Which held-out tokens continue a unit, by whether they begin a word."""
    passages = [lexicon.passage(200, 2_000_003 + index) for index in range(10)]
    tokens = torch.tensor([passage.tokens for passage in passages])
    begins = torch.tensor([passage.starts for passage in passages])[:, 1:]
    law = torch.softmax(teach(base, tokens).logits[:, :-1].float(), dim=-1)
    p = law.gather(-1, tokens[:, 1:, None])[..., 0]
    rows = [
        {
            "alpha": alpha,
            "word-internal tokens that continue": f"{100 * float((p[~begins] >= alpha).float().mean()):.1f} %",
            "word starts that continue": f"{100 * float((p[begins] >= alpha).float().mean()):.1f} %",
        }
        for alpha in (0.3, 0.5, 0.7, 0.9)
    ]
    return Table("Units that the base model's own probabilities find", rows)


def _on_the_model(model: str, prompts: int, max_new_tokens: int, seed: int) -> list[Table]:
    lm = load(model)
    tuned = load_head(LudHead, None, lm).merged(lm)
    asked = [prompt.text for prompt in held_out_prompts(prompts, seed=seed)]
    tables = []
    for title, settings in (
        ("greedy", {"do_sample": False}),
        ("temperature 0.2", {"do_sample": True, "temperature": 0.2}),
        ("temperature 0.7", {"do_sample": True, "temperature": 0.7}),
    ):
        plain = "sample" if settings["do_sample"] else "greedy"
        cases: list[tuple[str, Method | str, CausalLM]] = [
            ("plain decoding of the base model", plain, lm),
            ("plain decoding of the tuned model", plain, tuned),
            *((f"beta {beta}", LUD(beta=beta), lm) for beta in BETAS),
            *((f"k = {k}", LUD(k=k), lm) for k in (1, 2)),
            *((f"beta {beta}, verified", LUD(beta=beta, verify=True), lm) for beta in (0.9, 0.5, 0.3)),
        ]
        results: list[list[Result]] = [[] for _ in cases]
        for index, text in enumerate(asked):
            for case, (_, method, on) in enumerate(cases):
                found = generate(on, text, method, max_new_tokens=max_new_tokens, seed=seed + index, **settings)
                results[case].append(found)
        seconds = [sum(each.stats.decode_seconds for each in found) for found in results]
        rows = [
            {"decoding": name}
            | _figures(found, lm)
            | {"rows per call": _rate(found, "row_steps"), "speed": seconds[0] / seconds[case]}
            for case, ((name, _, _), found) in enumerate(zip(cases, results, strict=True))
        ]
        tables.append(
            Table(f"{lm.name}, bundled head, {title}: {prompts} held-out prompts × {max_new_tokens} tokens", rows)
        )
    return tables


def _figures(results: Sequence[Result], base: CausalLM) -> dict[str, Any]:
    lengths: Counter[int] = Counter()
    for result in results:
        lengths += result.stats.accepted_lengths
    passes = sum(lengths.values())
    return {
        "tokens per call": _rate(results, "generated_tokens"),
        "NLL": _nats(base, results),
        "steps by their tokens": " ".join(f"{lengths[count] / passes:.2f}" for count in range(1, max(lengths) + 1)),
    }


def _rate(results: Sequence[Result], what: str) -> float:
    total: float = sum(getattr(result.stats, what) for result in results)
    return total / sum(result.stats.target_calls for result in results)


def _nats(base: CausalLM, results: Sequence[Result]) -> float:
    """Nats a generated token under the base model."""
    total = 0.0
    for result in results:
        text = torch.tensor([[*result.prompt, *result.tokens]], device=base.device)
        start = len(result.prompt)
        logits = teach(base, text).logits[0, start - 1 : -1].float()
        total += float(functional.cross_entropy(logits, text[0, start:], reduction="sum"))
    return total / sum(len(result.tokens) for result in results)
