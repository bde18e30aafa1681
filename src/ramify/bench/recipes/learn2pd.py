"""Learn2PD and end-of-text prediction against thresholds and their oracle, on the list model and the demo denoiser.

Filters of 1, 2 and 4 layers are trained on the records of the oracle. What has to show: the quality of decoding one
position a step at a fraction of the steps. Whether a filter beats a fixed threshold at equal quality is the question.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.bench.filled import Filled, agreement, excerpts, fill, list_tasks, mean, share_right, text_rows
from ramify.bench.parallelbench import symbols
from ramify.bench.recipes import Outcome, Table
from ramify.engine.events import Scored
from ramify.engine.request import Request
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.learn2pd import Learn2PD
from ramify.methods.unmask.learn2pd_filter import Filter
from ramify.methods.unmask.learn2pd_oracle import decode_greedily
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.threshold import Threshold
from ramify.models.causal import load
from ramify.models.masked import MaskedLM, load_masked
from ramify.train.learn2pd import fit, prompts_for, record, settings

FILTERS = {  # layers, and the positions that the loss counts
    "filter of 1": (1, "open"),
    "filter of 2": (2, "open"),
    "filter of 4": (4, "open"),
    "filter of 2 (all)": (2, "all"),
}
TAUS = (0.5, 0.8, 0.9, 0.96, 0.99)
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
ENDS = frozenset({symbols.EOS})
LOSS = 0.005  # of the share right, that still counts as the quality of plain decoding


def run(
    *,
    seed: int = 0,
    each: int = 100,
    records: int = 400,
    model: str = "list-model",
    demo: str = "demo-dlm",
    prompts: int = 24,
    length: int = 64,
) -> Outcome:
    """``each`` prompts of every task, ``records`` prompts to train on; ``demo``: a denoiser of text, "" for none."""
    tables: list[Table] = []
    if model:
        lm = load_masked(model, dtype="float32")
        filters, described = _trained(lm, records, seed)
        tasks = list_tasks(tuple(symbols.TASKS), each, seed + 1)
        rows, plans = _on_lists(lm, filters, tasks)
        tables += [
            Table(f"{lm.name}, {records} prompts of the oracle, split by prompt", described),
            Table(f"{lm.name}, {each} prompts of each of five tasks, one of which it has half learnt", rows),
            Table("the fewest steps at the quality of plain decoding, by kind", _equal(rows)),
            Table("by task: share right, steps", _by_task(lm, plans, tasks)),
            Table("with caches, the answer being one block", _cached(lm, filters["filter of 2"], tasks)),
        ]
    if demo:
        tables.append(_on_text(load_masked(demo, dtype="float32"), prompts, length, seed))
    notes = [
        "Greedy, float32. Positions: evaluated by the passes for an answer, padding of the batch left out. Agreement: "
        "tokens as in decoding one position a step, up to the end of the text. (all): the loss counted positions that "
        "are fixed already too, as published.",
    ]
    return Outcome(tables, notes)


def _trained(lm: MaskedLM, prompts: int, seed: int) -> tuple[dict[str, Filter], list[dict[str, Any]]]:
    """A filter of every kind, trained on the same steps of the oracle, and how well each foresees it."""
    asked = prompts_for(lm, prompts, 0, None, seed)
    recorded = {loss: record(lm, asked, symbols.ANSWER, symbols.ANSWER, loss) for loss in ("open", "all")}
    filters, rows = {}, []
    for name, (depth, loss) in FILTERS.items():
        records = recorded[loss]
        torch.manual_seed(seed)
        head = filters[name] = Filter.new(lm.base, block=symbols.ANSWER, depth=depth)
        with tempfile.TemporaryDirectory() as folder:
            *_, last = fit(head, lm, records, settings(seed), Path(folder))
        _, held, weight = records.values.unbind(1)
        row: dict[str, Any] = {"filter": name, "parameters": sum(p.numel() for p in head.parameters())}
        row |= {"records": len(held), "right": ((held * weight).sum() / weight.sum()).item()}
        rows.append(row | (last.evaluation or {}))
        head.requires_grad_(False).eval()
    return filters, rows


def _on_lists(
    lm: MaskedLM, filters: dict[str, Filter], tasks: dict[str, Tensor]
) -> tuple[list[dict[str, Any]], dict[str, MaskedMethod]]:
    """A row for every decoder, plain decoding first and the oracle last; and the decoders."""
    whole = Learn2PD(filter=None, block=symbols.ANSWER)
    plans: dict[str, MaskedMethod] = {"one a step": Unmask()}
    plans |= {f"one a step, eotp {rule}": replace(whole, eotp=rule) for rule in ("A", "B")}
    plans |= {f"threshold {level:g}": Threshold(gamma=level) for level in LEVELS}
    for kind, head in filters.items():
        plans |= {f"{kind}, τ = {tau:g}": Learn2PD(filter=head, tau=tau, eotp="off") for tau in TAUS}
    for kind, head in filters.items():
        plans |= {f"{kind}, τ = 0.96, eotp {rule}": Learn2PD(filter=head, eotp=rule) for rule in ("A", "B")}
    prompts = torch.cat(list(tasks.values()))
    plain = _fill(lm, plans["one a step"], prompts)
    rows = []
    for name, method in plans.items():
        found = plain if method is plans["one a step"] else _fill(lm, method, prompts)
        rows.append(_row(name, prompts, found, plain))
    return [*rows, _oracle(lm, prompts, plain)], plans


def _row(name: str, prompts: Tensor, found: Filled, plain: Filled) -> dict[str, Any]:
    return {
        "decoding": name,
        "share right": share_right(prompts, found.texts),
        "agreement": agreement(found.texts, plain.texts),
        "steps": mean(found.steps),
        "positions": mean(found.positions),
    }


def _oracle(lm: MaskedLM, prompts: Tensor, plain: Filled) -> dict[str, Any]:
    """The upper bound: what is fixed is what plain decoding comes to, as soon as it is predicted."""
    whole = fill(lm, Unmask(), prompts.tolist(), symbols.ANSWER)
    requests = [Request(prompt, symbols.LENGTH) for prompt in prompts.tolist()]
    events, _ = decode_greedily(lm, requests, whole.texts)
    passes = [sum(row in event.rows for event in events if isinstance(event, Scored)) for row in range(len(requests))]
    row = _row("oracle (knows the answer)", prompts, plain, plain)
    return row | {"steps": mean(passes), "positions": symbols.LENGTH * mean(passes)}


def _equal(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every kind of decoder the one with the fewest steps that is right as often as plain decoding."""
    least = rows[0]["share right"] - LOSS
    kinds = ["one a step", "threshold", *(f"{kind}, τ" for kind in FILTERS), "oracle"]
    found = []
    for kind in kinds:
        good = [row for row in rows if row["decoding"].startswith(kind) and row["share right"] >= least]
        if good:
            found.append(min(good, key=lambda row: row["steps"]))
    return [{"kind": row["decoding"]} | {name: row[name] for name in ("share right", "steps")} for row in found]


def _by_task(lm: MaskedLM, plans: dict[str, MaskedMethod], tasks: dict[str, Tensor]) -> list[dict[str, Any]]:
    chosen = ["one a step", "threshold 0.9", *(f"{kind}, τ = 0.96" for kind in FILTERS)]
    rows = []
    for name in chosen:
        row: dict[str, Any] = {"decoding": name}
        for task, prompts in tasks.items():
            found = _fill(lm, plans[name], prompts)
            row[task] = f"{share_right(prompts, found.texts):.2f}, {mean(found.steps):.2f}"
        rows.append(row)
    return rows


def _cached(lm: MaskedLM, head: Filter, tasks: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Plain decoding, a threshold and the filter, with the prompt read in every pass or only in the first."""
    rows = []
    for cache in ("none", "prefix", "dual"):
        plans: dict[str, MaskedMethod] = {
            "one a step": Unmask(cache=cache),
            "threshold 0.9": Threshold(cache=cache),
            "filter of 2, τ = 0.96": Learn2PD(filter=head, eotp="off", cache=cache),
            "filter of 2, τ = 0.96, eotp A": Learn2PD(filter=head, cache=cache),
        }
        for name, method in plans.items():
            filled = {task: _fill(lm, method, prompts) for task, prompts in tasks.items() if task != "cumsum"}
            row: dict[str, Any] = {"decoding": name, "cache": cache}
            row |= {task: share_right(tasks[task], found.texts) for task, found in filled.items()}
            row["steps"] = mean([steps for found in filled.values() for steps in found.steps])
            row["positions"] = mean([count for found in filled.values() for count in found.positions])
            rows.append(row)
    return rows


def _on_text(lm: MaskedLM, prompts: int, length: int, seed: int) -> Table:
    """Held-out modules: agreement with plain decoding and likelihood, in steps, positions and seconds."""
    block = lm.facts.block or 32
    asked = excerpts(lm, prompts, 4 * block, seed)
    plans: dict[str, MaskedMethod] = {}
    for cache in ("none", "prefix"):
        label = "" if cache == "none" else f", {cache} cache"
        plans |= {
            f"one a step{label}": Unmask(block=block, cache=cache),
            f"one a step, eotp A{label}": Learn2PD(filter=None, block=block, cache=cache),
        }
        plans |= {f"threshold {g:g}{label}": Threshold(gamma=g, block=block, cache=cache) for g in (0.7, 0.9)}
        plans |= {f"filter, τ = {t:g}{label}": Learn2PD(tau=t, eotp="off", cache=cache) for t in (0.8, 0.9, 0.96)}
        plans |= {f"filter, τ = 0.96, eotp {r}{label}": Learn2PD(eotp=r, cache=cache) for r in ("A", "B")}
    return Table(
        f"{lm.name}, {len(asked)} held-out prompts, {length} tokens in blocks of {block}, rows decoded together",
        text_rows(lm, load("demo", dtype="float32"), plans, asked, length),
    )


def _fill(lm: MaskedLM, method: MaskedMethod, prompts: Tensor) -> Filled:
    return fill(lm, method, prompts.tolist(), symbols.ANSWER, ends=ENDS)
