"""Coherent contextual decoding on the list model, clean and under noise, and on the demo denoiser.

Averaging over steps repairs what is wrong for one step, where the right token does not depend on what was just fixed,
and hurts where it does. Both have to show.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ramify.bench.filled import Filled, excerpts, fill, list_tasks, mean, share_right, text_rows
from ramify.bench.parallelbench import symbols
from ramify.bench.recipes import Outcome, Table
from ramify.engine.events import Unmasked
from ramify.engine.sampling import Noise, Sampler
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.ccd import CCD
from ramify.methods.unmask.ccd_code import CCDCode
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.threshold import Threshold
from ramify.models.causal import load
from ramify.models.masked import MaskedLM, load_masked

TASKS = ("copy", "reverse", "replace-random", "shuffle")
FREE = ("copy", "reverse")  # what stands in a slot does not depend on the other slots
SIGMA = 3.0
FIXED: dict[str, MaskedMethod] = {
    "entropy, one a step": Unmask(order="entropy"),
    "confidence, one a step": Unmask(),
    "threshold 0.9": Threshold(),
    "ccd, d = 1": CCD(history=1),
    "ccd, d = 2": CCD(history=2),
    "ccd, d = 3": CCD(history=3),
    "ccd, d = 4": CCD(history=4),
    "ccd, d = 6": CCD(history=6),
    "ccd, d = 2, V = 2": CCD(top=2),
    "ccd, d = 2, V = 8": CCD(top=8),
    "ccd, d = 2, in any step": CCD(persist="any"),
    "ccd, d = 2, current token": CCD(token="current"),
    "ccd, d = 2, fresh history": CCD(fresh=True),
    "ccd-code": CCDCode(),
}
ADAPTIVE: dict[str, MaskedMethod] = {
    "ccd-ds, d = 1, no gate": CCD(adaptive=True, history=1, eps=math.inf),
    "ccd-ds, d = 1, ε = 0.1": CCD(adaptive=True, history=1),
    "ccd-ds, d = 2, no gate": CCD(adaptive=True, eps=math.inf),
    "ccd-ds, d = 2, ε = 0.3": CCD(adaptive=True, eps=0.3),
    "ccd-ds, d = 2, ε = 0.1": CCD(adaptive=True),
    "ccd-ds, d = 2, ε = 0.03": CCD(adaptive=True, eps=0.03),
    "ccd-ds, d = 2, V = 12, ε = 0.1": CCD(adaptive=True, top=12),
    "ccd-ds, d = 3, ε = 0.1": CCD(adaptive=True, history=3),
    "ccd-code, seek mode": CCDCode(adaptive=True),
}


def run(
    *,
    seed: int = 0,
    each: int = 80,
    model: str = "list-model",
    demo: str = "demo-dlm",
    prompts: int = 24,
    length: int = 64,
) -> Outcome:
    """``each`` prompts of every task; ``demo``: the denoiser of text ("" for none), with ``prompts`` of its own."""
    tables: list[Table] = []
    if model:
        lm = load_masked(model, dtype="float32")
        tasks = list_tasks(TASKS, each, seed)
        clean, noisy = (on_lists(lm, FIXED | ADAPTIVE, tasks, sigma, seed) for sigma in (0.0, SIGMA))
        tables += [
            Table(f"{lm.name}, {each} prompts a task: share right, and steps of 12", clean),
            Table(f"the same, logits with noise of σ = {SIGMA:g}", noisy),
            Table("share right at a temperature, mean of the four tasks", at_temperatures(lm, tasks, seed)),
            Table("what is fixed by ccd, d = 2: entropy of p̄ and its divergence, in nats", coherence(lm, tasks, seed)),
        ]
    if demo:
        tables.append(on_text(load_masked(demo, dtype="float32"), prompts, length, seed))
    notes = [
        f"Standard error of a share: at most {math.sqrt(0.25 / each):.2f}. d: steps of history; V: positions "
        "remembered a step (4 unless said). Lists are one block of 12 open positions; greedy but where a temperature "
        "is named.",
    ]
    return Outcome(tables, notes)


def on_lists(
    lm: MaskedLM, methods: dict[str, MaskedMethod], tasks: dict[str, Tensor], sigma: float, seed: int
) -> list[dict[str, Any]]:
    """A row for every method: accuracy by task, and the steps of free and of dependent tasks."""
    rows = []
    for name, method in methods.items():
        filled = {task: _fill(lm, method, prompts, sigma, seed) for task, prompts in tasks.items()}
        row: dict[str, Any] = {"decoding": name}
        row |= {task: share_right(tasks[task], found.texts) for task, found in filled.items()}
        free = [steps for task, found in filled.items() if task in FREE for steps in found.steps]
        bound = [steps for task, found in filled.items() if task not in FREE for steps in found.steps]
        rows.append(row | {"steps, copy and reverse": mean(free), "steps, the others": mean(bound)})
    return rows


def at_temperatures(lm: MaskedLM, tasks: dict[str, Tensor], seed: int) -> list[dict[str, Any]]:
    from transformers import TemperatureLogitsWarper

    rows = []
    for temperature in (0.0, 0.4, 0.7, 1.0):
        warpers = [TemperatureLogitsWarper(temperature)] if temperature else []

        def sampler(row: int, warpers: Any = warpers) -> Sampler:
            return Sampler(warpers, greedy=not warpers, noise=Noise(seed + row))

        row: dict[str, Any] = {"temperature": f"{temperature:g}"}
        for name in ("entropy, one a step", "ccd, d = 1", "ccd, d = 2", "ccd, d = 2, current token"):
            shares = []
            for prompts in tasks.values():
                found = fill(lm, FIXED[name], prompts.tolist(), symbols.ANSWER, sampler=sampler)
                shares.append(share_right(prompts, found.texts))
            row[name] = mean(shares)
        rows.append(row)
    return rows


def coherence(lm: MaskedLM, tasks: dict[str, Tensor], seed: int) -> list[dict[str, Any]]:
    """Means over the slots of items: how much an average hides, clean and noisy, by task."""
    rows = []
    for task, prompts in tasks.items():
        row: dict[str, Any] = {"task": task}
        counts = (prompts[:, 1 : 1 + symbols.MOST] != symbols.PAD).sum(1).tolist()
        for label, sigma in (("clean", 0.0), ("noisy", SIGMA)):
            found = _fill(lm, CCD(), prompts, sigma, seed)
            for figure in ("entropy", "jsd"):
                values = [
                    value
                    for event in found.events
                    if isinstance(event, Unmasked)
                    for place, value in zip(event.positions, event.details[figure], strict=True)
                    if place - symbols.PROMPT < counts[event.row]
                ]
                row[f"{figure}, {label}"] = mean(values)
        rows.append(row)
    return rows


def on_text(lm: MaskedLM, prompts: int, length: int, seed: int) -> Table:
    """Held-out modules: agreement with plain decoding and likelihood, in steps, positions and seconds."""
    block = lm.facts.block or 32
    asked = excerpts(lm, prompts, 4 * block, seed)
    judge = load("demo", dtype="float32")
    plans: dict[str, MaskedMethod] = {
        "entropy, one a step": Unmask(order="entropy", block=block),
        "threshold 0.9": Threshold(block=block),
        "ccd, d = 1": CCD(history=1, block=block),
        "ccd, d = 2": CCD(history=2, block=block),
        "ccd, d = 2, current token": CCD(token="current", block=block),
        "ccd-ds, d = 1, ε = 0.1": CCD(adaptive=True, history=1, block=block),
        "ccd-ds, d = 2, ε = 0.1": CCD(adaptive=True, block=block),
        "ccd-ds, d = 2, ε = 0.1, prefix cache": CCD(adaptive=True, block=block, cache="prefix"),
        "ccd-code, seek mode": CCDCode(adaptive=True, block=block),
    }
    return Table(
        f"{lm.name}, {prompts} held-out prompts, {length} tokens in blocks of {block}, rows decoded together",
        text_rows(lm, judge, plans, asked, length),
    )


def _fill(lm: MaskedLM, method: MaskedMethod, prompts: Tensor, sigma: float, seed: int) -> Filled:
    return fill(lm, method, prompts.tolist(), symbols.ANSWER, sigma=sigma, seed=seed)
