"""What drafting costs, and which way of drafting is the cheapest: the analysis of SpecMQuant, arXiv 2505.22179.

With d passes of a drafter that costs T_d each, n rows verified at once and τ tokens committed by that, a token costs

    T / T_t = (d · T_d / T_t + T_v(n) / T_t) / τ

in units of a plain step T_t. ``plan`` puts four ways beside each other: plain decoding; a tree that the target
verifies; a chain of a small model; and a tree that the small model verifies, which turns it into a chain for the target
(``HierSpec``). Chain tokens are taken to be accepted with the same probability after an accepted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ramify.models.calibrate import CostCurve, measure
from ramify.models.causal import CausalLM

Curve = Callable[[int], float]  # rows of a pass -> its cost in units of the target's plain step

ROWS = (1, 2, 4, 8, 10, 16, 24, 32, 48, 60)
NODES = (10, 16, 24, 30, 40, 60)  # sizes of trees, the root included
LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12)


def verification_cost(lm: CausalLM, rows: Sequence[int] = ROWS, *, budget: float = 10.0) -> CostCurve:
    """What passes over ``rows`` cost here, measured now in about ``budget`` seconds; its ``ratio`` is T_v(n) / T_t."""
    return measure(lm, "verification", budget, sorted({1, *rows}))


def free_rows(bytes_per_weight: float, flops: float, bandwidth: float) -> float:
    """Rows up to which reading the weights takes longer than multiplying with them; both rates per second."""
    return bytes_per_weight * flops / (2 * bandwidth)


def cost_per_token(tokens: float, verifying: float, drafting: float = 0.0) -> float:
    """What a token costs when a step of ``drafting + verifying`` plain steps commits ``tokens``."""
    return (drafting + verifying) / tokens


def chain_tokens(agreement: float, length: float) -> float:
    """Tokens that a chain of ``length`` gives, each accepted with probability ``agreement`` after an accepted one."""
    return length + 1 if agreement == 1 else (1 - agreement ** (length + 1)) / (1 - agreement)


@dataclass(frozen=True)
class Prospects:
    """What a plan is made from.

    ``target``, ``small``: cost curves, both in units of the target's plain step. ``tree``, ``small_tree``: tokens that
    a pass of either model gives with a tree of n nodes, the root included, 1 for n = 1. ``agreement``: how often the
    target accepts a token of the small model after an accepted one.
    """

    target: Curve
    small: Curve
    tree: Callable[[int], float]
    small_tree: Callable[[int], float]
    agreement: float


@dataclass(frozen=True)
class Plan:
    """A way of drafting. ``nodes``: of the tree, root included (1 without); ``length``: shortest chain (0 without);
    ``tokens`` a target call; ``cost`` of a token in plain steps."""

    kind: Literal["plain", "tree", "chain", "hierarchy"]
    nodes: int
    length: int
    tokens: float
    cost: float


def tree_plan(given: Prospects, nodes: int) -> Plan:
    """The target verifies trees of ``nodes``."""
    tokens = given.tree(nodes)
    return Plan("tree", nodes, 0, tokens, cost_per_token(tokens, given.target(nodes)))


def chain_plan(given: Prospects, length: int) -> Plan:
    """The target verifies chains that the small model decodes plainly."""
    tokens = chain_tokens(given.agreement, length)
    return Plan("chain", 1, length, tokens, cost_per_token(tokens, given.target(length + 1), length * given.small(1)))


def hierarchy_plan(given: Prospects, nodes: int, length: int) -> Plan:
    """The small model verifies trees of ``nodes`` until there are ``length`` tokens, the target the chain of them."""
    each = given.small_tree(nodes)
    passes = math.ceil(length / each)
    tokens = chain_tokens(given.agreement, passes * each)
    verifying = given.target(1 + round(passes * each))
    return Plan("hierarchy", nodes, length, tokens, cost_per_token(tokens, verifying, passes * given.small(nodes)))


def plans(given: Prospects, nodes: Sequence[int] = NODES, lengths: Sequence[int] = LENGTHS) -> list[Plan]:
    """All ways of drafting with these sizes, the cheapest first and of equals the simplest."""
    found = [Plan("plain", 1, 0, 1.0, given.target(1))]
    found += [tree_plan(given, size) for size in nodes]
    found += [chain_plan(given, length) for length in lengths]
    found += [hierarchy_plan(given, size, length) for size in nodes for length in lengths]
    return sorted(found, key=lambda plan: plan.cost)


def plan(given: Prospects, nodes: Sequence[int] = NODES, lengths: Sequence[int] = LENGTHS) -> Plan:
    """The cheapest way."""
    return plans(given, nodes, lengths)[0]
