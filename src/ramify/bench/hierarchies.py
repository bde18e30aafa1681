"""A target, a smaller model of the same language, and the ways in which one drafts for the other: planned and run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ramify.bench.lexicon import Lexicon, build, fit
from ramify.bench.passes import Work, work
from ramify.methods.base import Method
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.plan import Curve, Plan, Prospects, chain_plan, hierarchy_plan, plan, tree_plan
from ramify.methods.draft.specmquant import HierSpec, fake_quantised
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM, wrap

SLOPES = (0.2, 0.8)  # 60 rows cost 1.2 steps with 16 bits and 1.8 with 4 (measured by the paper on an A100)
SMALL = 8 / 70  # a pass of the small model in the target's, by their sizes in the paper
TREES = (10, 20, 30, 40, 60)


def curve(s: float, scale: float = 1.0) -> Curve:
    """Cost of n rows in plain steps, on which 60 cost 1 + s, times ``scale``."""
    return lambda n: scale * (1 + s * (n - 1) / 59)


def trained(seed: int, steps: int) -> tuple[CausalLM, CausalLM]:
    """The target and the small model, on the same text."""
    language = Lexicon.of(seed)
    text = language.passage(60_000, seed).tokens
    target = fit(build(language, width=96, seed=seed), text, steps=steps, seed=seed)
    return target, fit(build(language, width=48, seed=seed + 1), text, steps=steps, seed=seed)


@torch.no_grad()
def rounded(lm: CausalLM) -> CausalLM:
    """A copy of ``lm`` with rounded matrices; embedding and head stay as they are, as in the paper."""
    model = copy.deepcopy(lm.original)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.copy_(fake_quantised(module.weight))
    return wrap(model, lm.tokenizer, f"{lm.name}, 4 bits")


def tree(nodes: int) -> TokenRecycling:
    """Token Recycling with ``nodes`` nodes, the root included."""
    return TokenRecycling(nodes=nodes - 1)


def ways(small: CausalLM) -> dict[str, str | Method]:
    """What is put beside each other."""
    return {
        "plain": "sample",
        "tree of 30": tree(30),
        "chain of 6": Assistant(model=small, length=6, schedule="constant", verifier="match"),
        "hierarchy": HierSpec(model=small),
    }


def ablations(small: CausalLM) -> dict[str, str | Method]:
    """The hierarchy with other lengths and trees."""
    found: dict[str, str | Method] = {f"hierarchy, m = {m}": HierSpec(model=small, length=m) for m in (1, 4, 8)}
    found |= {f"hierarchy, tree of {n}": HierSpec(model=small, inner=tree(n)) for n in TREES if n != 30}
    found |= {f"hierarchy, {i} levels": HierSpec(model=small, levels=i) for i in (1, 2, 6)}
    found["hierarchy, plain first"] = HierSpec(model=small, plain_first=True)
    return found


def measured(
    target: CausalLM, small: CausalLM, methods: dict[str, str | Method], prompts: Sequence[Any], how: dict[str, Any]
) -> dict[str, Work]:
    return {name: work(target, small, method, prompts, **how) for name, method in methods.items()}


def planned(
    target: CausalLM, small: CausalLM, prompts: Sequence[Any], how: dict[str, Any], found: dict[str, Work]
) -> list[dict[str, Any]]:
    """Predicted beside measured, and what the planner would take."""
    by_size = {
        lm: {n: work(lm, small, tree(n), prompts, **how).tokens_per_call for n in TREES} for lm in (target, small)
    }
    told = []
    for s in SLOPES:
        given = Prospects(
            curve(s),
            curve(s, SMALL),
            by_size[target].__getitem__,
            by_size[small].__getitem__,
            found["chain of 6"].agreement,
        )
        for name, one in (
            ("tree of 30", tree_plan(given, 30)),
            ("chain of 6", chain_plan(given, 6)),
            ("hierarchy", hierarchy_plan(given, 30, 6)),
        ):
            told.append(_beside(s, name, one, found[name]))
        best = plan(given, TREES)
        chosen = f"the planner's: {best.kind}, tree of {best.nodes}, m = {best.length}"
        told.append(_beside(s, chosen, best, work(target, small, followed(best, small), prompts, **how)))
    return told


def followed(best: Plan, small: CausalLM) -> str | Method:
    """The method that a plan is for."""
    if best.kind == "plain":
        return "sample"
    if best.kind == "tree":
        return tree(best.nodes)
    inner = tree(best.nodes) if best.kind == "hierarchy" else None
    return Assistant(model=small, length=best.length, inner=inner, schedule="constant", verifier="match")


def _beside(s: float, name: str, one: Plan, done: Work) -> dict[str, Any]:
    return {
        "s": s,
        "way": name,
        "tokens per call, planned": one.tokens,
        "measured": done.tokens_per_call,
        "speed, planned": 1 / one.cost,
        "speed, measured": done.speed(curve(s), curve(s, SMALL)),
    }
