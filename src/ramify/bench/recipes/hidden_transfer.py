"""Hidden transfer's ablations: the layer of transfer, what pseudo steps see, training, their number, the tree

Many short trainings are compared on a small model of characters (``ramify.bench.letters``), where guesses far ahead are
right often enough to tell variants apart, beside Medusa's heads and PPD's prompt tokens after as many steps.
The layer of transfer is then swept on the demo model, and the bundled head measured there. Sampling uses the noise of
each position, so that all variants write the same text; greedy text of a small model loops and flatters everyone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.api import generate
from ramify.bench.compare import compare
from ramify.bench.letters import CONTEXT, letter_lm, letters, train_on_letters
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.drafters import applicable, rows_of
from ramify.methods.base import Method
from ramify.methods.draft.hidden_transfer import HiddenTransfer
from ramify.methods.draft.hidden_transfer_head import HiddenTransferHead
from ramify.methods.draft.medusa import Medusa
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.methods.draft.ppd import Ppd
from ramify.methods.draft.ppd_head import PromptTokens
from ramify.methods.draft.sparse_tree import dynamic_tree
from ramify.methods.head import Head, load_head
from ramify.models.causal import CausalLM, load
from ramify.train.data import library_files
from ramify.train.heads import train_head
from ramify.train.job import Job

RATE = 3e-3
CHAIN: dict[str, Any] = {"budget": 2, "allocation": "chain"}
ABLATIONS: dict[str, dict[str, Any]] = {
    **{f"t = {layer}": {"layer": layer} for layer in (0, 1, 2, 3)},
    "t = 2, steps do not see each other": {"layer": 2, "see_earlier": False},
    "t = 2, each step from the one before": {"layer": 2, "chain": True},
    "t = 2, no bias": {"layer": 2, "bias": False},
    "t = 2, random start": {"layer": 2, "start": "random"},
    "t = 2, no decay (λ = 1)": {"layer": 2, "decay": 1.0},
    "t = 2, 0.1 × squared distance of states": {"layer": 2, "mse": 0.1},
    "t = 2, targets: the text, no teacher": {"layer": 2, "targets": "text"},
    **{f"t = 2, K = {ahead}": {"layer": 2, "ahead": ahead} for ahead in (1, 2, 4)},
}


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    head: str | None = None,
    prompts: int = 12,
    max_new_tokens: int = 64,
    letter_steps: int = 1200,
    steps: int = 400,
    texts: int = 64,
    sweep_steps: int = 120,
    repeats: int = 3,
) -> Outcome:
    """All tables. ``head``: a trained one for ``model``, None for the bundled one; ``sweep_steps`` a layer there."""
    small = letter_lm(steps=letter_steps, seed=seed)
    kept = torch.tensor(letters(library_files()[1], 50_000, seed)).unfold(0, CONTEXT + 1, CONTEXT)[:texts]
    lm, plain = load(model), load(model, weights="plain")
    asked = held_out_prompts(prompts, seed=seed)
    texts_asked = [prompt.text for prompt in asked]
    trained = load_head(HiddenTransferHead, head, lm)
    other, notes = applicable(lm, ["medusa"])
    methods: list[str | Method] = ["sample", HiddenTransfer(head=trained)]
    methods += [HiddenTransfer(head=trained, budget=budget) for budget in (8, 20)]
    how: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "seed": seed}
    timed = compare(lm, asked, [*methods, *other], max_new_tokens=max_new_tokens, repeats=repeats, **how)
    kind = str(lm.dtype).removeprefix("torch.")
    tables = [
        Table(
            f"Characters, 4 layers, {steps} steps each; chains of K guesses on {texts} texts",
            on_letters(small, kept, steps, seed),
        ),
        Table(
            f"{plain.name}, {plain.layers} layers, {kind}: {sweep_steps} steps a layer", sweep(plain, sweep_steps, seed)
        ),
        Table(
            f"{lm.name}, {kind}: tokens per call, {prompts} held-out prompts × {max_new_tokens} tokens",
            allocations(lm, texts_asked, trained, max_new_tokens, seed, other),
        ),
        Table(f"{lm.name}, {kind}: temperature 0.7, timed in turn", rows_of(timed)),
    ]
    notes += [
        "top-1 and top-5 at +n: how often the target's likeliest token n places ahead, those in between given, is a "
        "head's first guess or among its first five. T = …: tokens per target call.",
        "Row-layers: rows times layers of a pass, in those of a plain step; a pseudo step passes the layers behind t.",
    ]
    return Outcome(tables, notes)


def on_letters(lm: CausalLM, windows: Tensor, steps: int, seed: int) -> list[dict[str, Any]]:
    """Every variant after as many steps, with a chain of its best guesses."""
    starts = [window[: CONTEXT // 2].tolist() for window in windows]
    rows = []

    def add(name: str, head: Head, method: Method, top5: bool = True) -> None:
        figures = head.measure(lm, windows)
        row: dict[str, Any] = {"drafter": name, "parameters": sum(each.numel() for each in head.parameters())}
        for ahead in (2, 3, 4):
            first = figures.get(f"top-1 at +{ahead}", figures.get(f"agreement at +{ahead}"))
            row[f"top-1 +{ahead}"] = first if first is not None else "–"
        row["top-5 +2"] = figures["top-5 at +2"] if top5 else "–"
        for degrees in (0.0, 0.7, 1.0):
            row[f"T = {degrees:g}"] = tokens_per_call(lm, starts, method, 48, seed, degrees)
        rows.append(row)

    medusa = train_on_letters(MedusaHead, lm, steps=steps, learning_rate=RATE, seed=seed, heads=3)
    medusa.accuracy[..., 1:] = 0.0  # leaves the chain of first guesses
    add("Medusa", medusa, Medusa(head=medusa, nodes=3), top5=False)
    tokens = train_on_letters(PromptTokens, lm, steps=steps, learning_rate=0.03, seed=seed, insertions=32)
    add("PPD", tokens, Ppd(head=tokens, **CHAIN))
    untrained = HiddenTransferHead.new(lm, layer=2).requires_grad_(False)
    add("t = 2, untrained", untrained, HiddenTransfer(head=untrained, **CHAIN))
    for name, sizes in ABLATIONS.items():
        head = train_on_letters(HiddenTransferHead, lm, steps=steps, learning_rate=RATE, seed=seed, **sizes)
        add(name, head, HiddenTransfer(head=head, **CHAIN))
    return rows


def sweep(lm: CausalLM, steps: int, seed: int) -> list[dict[str, Any]]:
    """The layer of transfer, with what a pass over 20 nodes and steps costs and is expected to give there."""
    rows = []
    for layer in sorted({0, lm.layers // 8, lm.layers // 4, lm.layers // 2, 3 * lm.layers // 4, lm.layers - 1}):
        with tempfile.TemporaryDirectory() as folder:
            job = Job(Path(folder), lm, steps=steps, seed=seed, options={"layer": layer})
            *_, last = train_head("hidden-transfer", job)
            head = load_head(HiddenTransferHead, Path(folder) / "head", lm)
        tree = dynamic_tree(head.accuracy[1].tolist(), 20)
        figures = {name: rate for name, rate in (last.evaluation or {}).items() if "+4" not in name}
        row: dict[str, Any] = {"t": layer} | figures
        row["row-layers"] = row_layers(tree.trees[-1].prompts, layer, lm.layers)
        row["expected tokens, T = 0.7"] = 1.0 + tree.expected
        rows.append(row)
    return rows


def allocations(
    lm: CausalLM, prompts: Sequence[str], trained: HiddenTransferHead, new: int, seed: int, others: Sequence[Method]
) -> list[dict[str, Any]]:
    """Ways to share out pseudo steps, with trained and untrained maps; other drafters at as many nodes."""
    untrained = HiddenTransferHead(trained.fit, trained.sizes).requires_grad_(False)
    untrained.accuracy.copy_(trained.accuracy)  # the same trees
    rows: list[dict[str, Any]] = []
    for budget, allocation in (
        (2, "chain"),
        (20, "naive"),
        (20, "random"),
        (20, "pruned"),
        (60, "naive"),
        (60, "pruned"),
    ):
        tree = dynamic_tree(trained.accuracy[1].tolist(), budget, allocation).trees[-1]
        row: dict[str, Any] = {
            "drafter": allocation if allocation == "chain" else f"{allocation}, B = {budget}",
            "nodes": len(tree.paths),
            "row-layers": row_layers(tree.prompts, trained.layer, lm.layers),
        }
        for name, head in (("untrained", untrained), ("trained", trained)):
            method = HiddenTransfer(head=head, budget=budget, allocation=allocation)  # type: ignore[arg-type]
            row[f"greedy, {name}"] = tokens_per_call(lm, prompts, method, new, seed)
            row[f"T = 0.7, {name}"] = tokens_per_call(lm, prompts, method, new, seed, 0.7)
        rows.append(row)
    for nodes in sorted({row["nodes"] for row in rows}) if others else ():
        medusa = Medusa(nodes=nodes)
        row = {"drafter": "medusa", "nodes": nodes, "row-layers": 1.0 + nodes, "greedy, untrained": "–"}
        row |= {"T = 0.7, untrained": "–", "greedy, trained": tokens_per_call(lm, prompts, medusa, new, seed)}
        rows.append(row | {"T = 0.7, trained": tokens_per_call(lm, prompts, medusa, new, seed, 0.7)})
    return rows


def row_layers(pseudo: Sequence[int], layer: int, layers: int) -> float:
    """Rows times layers of a pass over a tree with these numbers of pseudo steps, the pending token's own added."""
    return 1.0 + len(pseudo) + (sum(pseudo) + max(pseudo)) * (layers - layer) / layers


def tokens_per_call(
    lm: CausalLM, prompts: Sequence[Any], method: Method, new: int, seed: int, degrees: float = 0.0
) -> float:
    """All prompts together."""
    how: dict[str, Any] = {"do_sample": True, "temperature": degrees} if degrees > 0 else {}
    tokens = calls = 0
    for index, prompt in enumerate(prompts):
        stats = generate(lm, prompt, method, max_new_tokens=new, seed=1000 * seed + index, **how).stats
        tokens, calls = tokens + stats.generated_tokens, calls + stats.target_calls
    return tokens / calls
