"""Medusa and EAGLE heads: trained and untrained, tree and chain, sizes, and what drafting costs of a step.

Tokens per target call are free of the clock, and measured in float32 over all prompts; sampled runs use the
position-indexed noise, so that every variant writes the same text. The clock comes second: methods in turn, in the
model's own dtype.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.compare import compare
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.drafters import rows_of
from ramify.errors import RamifyError
from ramify.methods.base import Method
from ramify.methods.draft.eagle import Eagle
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.medusa import Medusa
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.methods.draft.published import find_head
from ramify.models.causal import CausalLM, load

NODES = (8, 16, 31, 59)


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    medusa: str = "",
    eagle: str = "",
    more: str = "",
    prompts: int = 12,
    max_new_tokens: int = 96,
    repeats: int = 3,
    temperature: float = 0.7,
    threads: int = 1,
) -> Outcome:
    """Both tables; ``medusa``, ``eagle``: folders of heads (default the bundled ones); ``more``: "name=folder,…"."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = load(model, dtype="float32")
        given = find_head(MedusaHead, medusa or None, exact), find_head(EagleHead, eagle or None, exact)
        others = dict(pair.split("=", 1) for pair in more.split(",") if "=" in pair)
        counted = _counted(exact, *given, others)
        rows = [
            {"variant": name, **_tokens_per_call(exact, method, prompts, max_new_tokens, temperature, seed)}
            for name, method in counted.items()
        ]
        lm = load(model)
        timed: list[Method] = [
            Medusa(head=given[0]),
            Eagle(head=given[1], coupled=False),
            Eagle(head=given[1]),
            Eagle(head=given[1], nodes=59),
        ]
        timed += [_method(folder) for folder in others.values()]
        asked = held_out_prompts(prompts, seed=seed)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed}
        greedy = compare(lm, asked, ["greedy", *timed], **settings)
        sampled = compare(lm, asked, ["sample", *timed], do_sample=True, temperature=temperature, **settings)
    finally:
        torch.set_num_threads(before)
    count = f"{prompts} held-out prompts × {max_new_tokens} tokens"
    return Outcome(
        [
            Table(f"Tokens per target call, {exact.name}, float32, {count}", rows),
            Table(f"{lm.name}, {str(lm.dtype).removeprefix('torch.')}, {lm.how}: greedy, {count}", rows_of(greedy)),
            Table(f"{lm.name}: temperature {temperature}, shared noise", rows_of(sampled)),
        ],
        [
            f"Medusa head: {_described(given[0])}. EAGLE head: {_described(given[1])}."
            + "".join(f" {name}: {_described(_find(folder, exact))}." for name, folder in others.items()),
            "Coupled: sampled drafts are made in view of the noise; greedy ones are the same. "
            "Nodes: draft nodes of a step. Without a number, a tree is sized by the machine's cost curve.",
            "Own share: drafting, verifying and learning, as a share of the decoding time without the prompt.",
        ],
    )


def _counted(lm: CausalLM, medusa: MedusaHead, eagle: EagleHead, others: dict[str, str]) -> dict[str, Method]:
    """What is compared by tokens per call, at equal numbers of nodes."""
    torch.manual_seed(0)
    chain = copy.deepcopy(medusa)
    chain.accuracy[:, :, 1:] = 0.0
    found: dict[str, Method] = {
        "medusa, untrained, published tree": Medusa(head=MedusaHead.new(lm, projection="shared")),
        "medusa, published tree, 63 nodes": Medusa(head=medusa, tree="mc_sim_7b_63"),
        f"medusa, chain, {medusa.sizes.heads} nodes": Medusa(head=chain, nodes=medusa.sizes.heads),
        **{f"medusa, measured tree, {nodes} nodes": Medusa(head=medusa, nodes=nodes) for nodes in NODES},
        "eagle, untrained, 59 nodes": Eagle(head=EagleHead.new(lm), nodes=59),
        "eagle, chain, 5 nodes": Eagle(head=eagle, nodes=5, depth=5, k=1),
        **{f"eagle, tree, {nodes} nodes": Eagle(head=eagle, nodes=nodes) for nodes in NODES},
        **{
            f"eagle, tree, {nodes} nodes, not coupled": Eagle(head=eagle, nodes=nodes, coupled=False) for nodes in NODES
        },
        **{f"eagle, depth {depth}, 31 nodes": Eagle(head=eagle, nodes=31, depth=depth) for depth in (1, 2, 3, 4)},
        "eagle, k = 4, 31 nodes": Eagle(head=eagle, nodes=31, k=4),
    }
    return found | {f"{name}, 31 nodes": _method(folder, nodes=31) for name, folder in others.items()}


def _method(folder: str, **options: Any) -> Method:
    name = _head_of(folder)
    made: Method = Medusa(head=folder, **options) if name == "medusa" else Eagle(head=folder, **options)
    return made


def _head_of(folder: str) -> str:
    """Which of the two a folder of our own holds a head of."""
    try:
        name: str = json.loads((Path(folder) / "head.json").read_text())["method"]
    except (OSError, ValueError, KeyError):
        raise RamifyError(f"{folder} holds no head that ramify trained; give 'name=folder' pairs") from None
    if name not in ("medusa", "eagle"):
        raise RamifyError(f"{folder} holds a head of {name!r}; this measures those of medusa and eagle")
    return name


def _find(folder: str, lm: CausalLM) -> MedusaHead | EagleHead:
    if _head_of(folder) == "medusa":
        return find_head(MedusaHead, folder, lm)
    return find_head(EagleHead, folder, lm)


def _described(head: MedusaHead | EagleHead) -> str:
    count = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    sizes = head.sizes
    if isinstance(head, MedusaHead):
        return f"{sizes.heads} heads, {sizes.projection} projection, {count:.2f} M numbers"
    vocabulary = sizes.draft_vocabulary or head.fit.vocab_size
    return (
        f"version {sizes.version}, MLP {sizes.width}, {vocabulary} draft tokens, trained over {sizes.distances} "
        f"distance{'s' * (sizes.distances > 1)}, {count:.2f} M numbers"
    )


def _tokens_per_call(
    lm: CausalLM, method: Method, prompts: int, max_new_tokens: int, temperature: float, seed: int
) -> dict[str, float]:
    found = {}
    for kind, settings in (
        ("greedy", {"do_sample": False}),
        (f"T = {temperature}", {"do_sample": True, "temperature": temperature}),
    ):
        tokens = calls = 0
        for index, prompt in enumerate(held_out_prompts(prompts, seed=seed)):
            result = generate(lm, prompt.text, method, max_new_tokens=max_new_tokens, seed=seed + index, **settings)
            tokens += result.stats.generated_tokens
            calls += result.stats.target_calls
        found[kind] = tokens / calls
    return found
