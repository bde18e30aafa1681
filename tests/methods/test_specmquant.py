"""HierSpec and its planner: the published numbers, quantised targets, and the choice between trees and chains."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from families import build, lm, text
from hypothesis import given
from hypothesis import strategies as st

from methods.test_assistant import blurred
from ramify.api import generate
from ramify.errors import RamifyError
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.plan import (
    LENGTHS,
    NODES,
    Plan,
    Prospects,
    chain_plan,
    chain_tokens,
    cost_per_token,
    free_rows,
    hierarchy_plan,
    plan,
    plans,
    tree_plan,
    verification_cost,
)
from ramify.methods.draft.specmquant import HierSpec, fake_quantised
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.methods.registry import create, find
from ramify.models.causal import CausalLM, load
from ramify.models.weights import unavailable

PROMPTS = [text(11, 6, period=4), text(5, 1)]
SAMPLED = {"do_sample": True, "temperature": 0.6, "seed": 3}


def sloping(s: float) -> Any:
    """The papers' curves: 60 rows cost 1 + s, which is 1.2 with 16 bits and 1.8 with 4."""
    return lambda rows: 1 + s * (rows - 1) / 59


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize(("s", "tree", "hierarchy", "ratio"), [(0.2, 0.337, 0.304, 1.11), (0.8, 0.410, 0.336, 1.22)])
def test_the_costs_of_the_worked_example(s: float, tree: float, hierarchy: float, ratio: float):
    curve = sloping(s)
    one = cost_per_token(3.2, curve(24))
    other = cost_per_token(4.2, curve(8), 2 * (8 / 70) * curve(30))
    assert one == pytest.approx(tree, abs=6e-4)
    assert other == pytest.approx(hierarchy, abs=6e-4)  # 0.3365 was cut, not rounded
    assert one / other == pytest.approx(ratio, abs=5e-3)


@pytest.mark.parametrize(("s", "direct", "chain", "hierarchy"), [(0.2, 2.03, 3.19, 4.18), (0.8, 1.60, 3.08, 3.73)])
def test_the_speeds_of_the_measured_example(s: float, direct: float, chain: float, hierarchy: float):
    curve = sloping(s)
    assert 1 / cost_per_token(2.23, curve(30)) == pytest.approx(direct, abs=0.005)
    assert 1 / cost_per_token(5.43, curve(7), 6 * 8 / 70) == pytest.approx(chain, abs=0.02)
    # The tokens and passes are means that were rounded.
    assert 1 / cost_per_token(5.86, curve(8), 3.0 * 8 / 70 * curve(30)) == pytest.approx(hierarchy, rel=0.01)


def test_rows_that_are_free_on_an_a100():
    tera, bandwidth = 1e12, 2.0e12
    found = [free_rows(2, 312 * tera, bandwidth), free_rows(1, 624 * tera, bandwidth),
             free_rows(0.5, 624 * tera, bandwidth), free_rows(0.5, 312 * tera, bandwidth)]  # fmt: skip
    assert found == [156, 156, 78, 39]  # FP16, W8A8, W4A8, W4A16


def test_a_chain_gives_a_geometric_sum():
    assert chain_tokens(0.8, 5) == pytest.approx(3.68928)
    assert chain_tokens(1.0, 7) == 8
    assert chain_tokens(0.0, 7) == 1


# ---------------------------------------------------------------- plans


def prospects(s: float, small: float = 8 / 70, agreement: float = 0.85, **changes: Any) -> Prospects:
    curve = sloping(s)
    given: dict[str, Any] = {
        "target": curve,
        "small": lambda rows: small * curve(rows),
        "tree": lambda nodes: 1 + math.log2(nodes) / 2.5,
        "small_tree": lambda nodes: 1 + math.log2(nodes) / 2.5,
        "agreement": agreement,
    }
    return Prospects(**(given | changes))


@given(st.floats(0, 3), st.floats(0.01, 1.2), st.floats(0.0, 1.0))
def test_the_plan_is_the_cheapest(s: float, small: float, agreement: float):
    given = prospects(s, small, agreement)
    every = [Plan("plain", 1, 0, 1.0, 1.0)]
    every += [tree_plan(given, nodes) for nodes in NODES]
    every += [chain_plan(given, length) for length in LENGTHS]
    every += [hierarchy_plan(given, nodes, length) for nodes in NODES for length in LENGTHS]
    assert plan(given).cost == min(each.cost for each in every)
    assert sorted(each.cost for each in every) == [each.cost for each in plans(given)]
    assert plan(given).cost <= 1.0


def test_dearer_rows_move_the_tree_to_the_small_model():
    gains = []
    for s in (0.2, 0.8, 1.6):
        given = prospects(s)
        best = plan(given)
        assert best.kind == "hierarchy"
        gains.append(min(tree_plan(given, nodes).cost for nodes in NODES) / best.cost)
    assert gains == sorted(gains)
    assert gains[0] > 1


def test_what_each_way_is_for():
    assert plan(prospects(0.2, small=0.9)).kind == "tree"  # a small model that is not small
    assert plan(prospects(0.8, agreement=0.1)).kind == "tree"  # or knows something else
    assert plan(prospects(0.8, small_tree=lambda nodes: 1.0)).kind == "chain"  # trees that guess nothing
    dear = prospects(60.0, small=1.2)
    assert plan(dear) == Plan("plain", 1, 0, 1.0, 1.0)  # every row costs as much as a step
    assert plan(prospects(0.0, agreement=1.0), nodes=[30], lengths=[4, 12]).length == 12


def test_a_hierarchy_counts_whole_passes():
    given = prospects(0.8, small_tree=lambda nodes: 2.5)
    found = hierarchy_plan(given, 30, 6)
    assert found.tokens == pytest.approx(chain_tokens(0.85, 7.5))
    assert found.cost == pytest.approx((given.target(9) + 3 * given.small(30)) / found.tokens)


def test_verification_is_measured_here():
    found = verification_cost(lm("llama"), (2, 8, 60, 4096), budget=0.0)
    assert found.rows == [1, 2, 8, 60]  # without what the context has no room for
    assert found.ratio(1) == 1.0
    assert all(seconds > 0 for seconds in found.seconds)


# ---------------------------------------------------------------- quantised targets


def test_four_bit_rounding_by_hand():
    weight = torch.tensor([[0.7, -0.36, 0.1], [0.0, 0.0, 0.0]])
    found = fake_quantised(weight, group=3)
    torch.testing.assert_close(found, torch.tensor([[0.7, -0.4, 0.1], [0.0, 0.0, 0.0]]))
    two = torch.cat([weight[:1], 10 * weight[:1]], dim=1)  # groups have scales of their own
    torch.testing.assert_close(fake_quantised(two, group=3), torch.tensor([[0.7, -0.4, 0.1, 7.0, -4.0, 1.0]]))
    with pytest.raises(RamifyError, match="at least 1 weight, got 0"):
        fake_quantised(weight, group=0)


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_four_bit_rounding_is_near_and_stays(seed: int, inputs: int, dtype: Any):
    weight = torch.randn(3, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found = fake_quantised(weight, group=16)
    assert found.dtype == dtype
    for part, near in zip(weight.split(16, dim=1), found.split(16, dim=1), strict=True):
        step = part.float().abs().amax(dim=1, keepdim=True) / 7
        assert ((near.float() - part.float()).abs() <= step * 0.53).all()
        assert len(near[0].unique()) <= 16
    if dtype == torch.float32:
        torch.testing.assert_close(fake_quantised(found, group=16), found)


@functools.cache
def rounded() -> CausalLM:
    """The target with its linear layers rounded to four bits."""
    model = build("llama")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(fake_quantised(module.weight))
    return load(model)


@functools.cache
def eight_bit() -> CausalLM:
    if why := unavailable("int8", torch.float32, "cpu"):
        pytest.skip(why)
    return load(build("llama"), weights="int8")


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("target", [rounded, eight_bit])
def test_output_is_that_of_the_quantised_target(target: Any, settings: dict[str, Any]):
    small = lm("llama")  # the model that was rounded: it agrees often, not always
    name = "sample" if settings else "greedy"
    plain = generate(target(), PROMPTS, name, max_new_tokens=40, **settings)
    found = generate(target(), PROMPTS, HierSpec(model=small), max_new_tokens=40, **settings)
    assert [each.tokens for each in found] == [each.tokens for each in plain]
    assert sum(each.stats.accepted for each in found) > 40
    if target is rounded:
        unrounded = generate(small, PROMPTS, name, max_new_tokens=40, **settings)
        assert [each.tokens for each in found] != [each.tokens for each in unrounded]


# ---------------------------------------------------------------- the method


def test_the_method_is_a_composition():
    recycling = TokenRecycling(template="paper", nodes=29)
    mine = HierSpec(model=blurred(), inner=recycling)
    same = Assistant(model=blurred(), inner=recycling, length=6, levels=3, schedule="constant", verifier="match")
    for settings in ({}, SAMPLED):
        one = generate(lm("llama"), PROMPTS, mine, max_new_tokens=40, **settings)
        other = generate(lm("llama"), PROMPTS, same, max_new_tokens=40, **settings)
        for first, second in zip(one, other, strict=True):
            assert [(len(draft.tree), done.tokens) for draft, done in first.steps if draft] == [
                (len(draft.tree), done.tokens) for draft, done in second.steps if draft
            ]


def test_the_papers_defaults():
    method: Any = create("specmquant", model=lm("llama"))
    assert find("specmquant") is HierSpec
    assert (method.length, method.levels, method.inner) == (6, 3, "token-recycling:nodes=29")
    result = generate(lm("llama"), PROMPTS[0], method, max_new_tokens=60)
    sizes = [len(draft.tree) for draft, _ in result.steps if draft][:-1]
    assert set(sizes) <= {6, 7, 8, 9}
    assert result.stats.accepted == result.stats.drafted


def test_what_is_wrong_with_the_options_is_said():
    with pytest.raises(RamifyError, match="needs a small model: -o model=PATH"):
        HierSpec()
    with pytest.raises(RamifyError, match="length must be at least 1, got 0"):
        HierSpec(model=lm("llama"), length=0)
    with pytest.raises(RamifyError, match="hf-greedy makes no drafts, so it cannot be part of an assistant"):
        HierSpec(model=lm("llama"), inner="hf-greedy")
