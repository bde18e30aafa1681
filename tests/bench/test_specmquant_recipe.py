"""The recipe of SpecMQuant: what it counts, what it rounds, and what it calls a claim that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build, lm, text

from ramify.api import generate
from ramify.bench.hierarchies import SMALL, ablations, curve, followed, planned, rounded, ways
from ramify.bench.lexicon import Lexicon
from ramify.bench.lexicon import build as build_word_model
from ramify.bench.passes import Work, work
from ramify.bench.recipes.specmquant import claims, rows
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.plan import Plan
from ramify.methods.draft.specmquant import HierSpec
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import load

PROMPTS = [text(11, 6, period=4), text(9, 3, period=3)]


def test_passes_are_counted_by_hand():
    """Of equal models everything is accepted: 24 tokens in four steps of five drafted and one more."""
    small = load(build("llama"))
    forward = small.forward
    method = Assistant(model=small, length=5, schedule="constant", verifier="match")
    done = work(lm("llama"), small, method, PROMPTS, max_new_tokens=24)
    assert small.forward is forward
    assert (done.tokens, done.calls) == (48, 8)
    assert done.verified == [6] * 8
    assert len(done.passes) == 2 * 4 * 5
    assert done.passes.count(2) == 2 * 3  # the last token of a whole chain is read along
    assert (done.agreed, done.tried, done.agreement) == (40, 40, 1.0)
    assert done.texts == [generate(lm("llama"), prompt, "greedy", max_new_tokens=24).tokens for prompt in PROMPTS]
    spent = 8 * curve(0.2)(6) + 34 * SMALL + 6 * SMALL * curve(0.2)(2)
    assert done.speed(curve(0.2), curve(0.2, SMALL)) == pytest.approx(48 / spent)


def test_plain_decoding_has_the_speed_one():
    done = work(lm("llama"), lm("qwen2"), "sample", PROMPTS, max_new_tokens=9, do_sample=True, seed=3)
    assert done.row() == {"tokens per call": 1.0, "rows of it": 1.0, "passes": 0.0, "rows of them": 0.0}
    assert done.speed(curve(0.8), curve(0.8, SMALL)) == 1.0
    assert done.agreement == 0.0


def test_labels_tell_the_options():
    small = lm("llama")
    assert list(ways(small)) == ["plain", "tree of 30", "chain of 6", "hierarchy"]
    for name, method in ablations(small).items():
        assert isinstance(method, HierSpec)
        assert ("plain first" in name) == method.plain_first
        assert (f"m = {method.length}" in name) == (method.length != 6)
        assert (f"{method.levels} levels" in name) == (method.levels != 3)
        assert ("tree of" in name) == (method.inner != "token-recycling:nodes=29")


def test_a_plan_is_followed():
    small = lm("llama")
    assert followed(Plan("plain", 1, 0, 1.0, 1.0), small) == "sample"
    assert followed(Plan("tree", 20, 0, 2.0, 0.6), small) == TokenRecycling(nodes=19)
    for kind, nodes, inner in (("chain", 1, None), ("hierarchy", 30, TokenRecycling(nodes=29))):
        method: Any = followed(Plan(kind, nodes, 4, 3.0, 0.5), small)  # type: ignore[arg-type]
        assert (method.model, method.length, method.schedule, method.inner) == (small, 4, "constant", inner)


def test_all_matrices_but_the_head_are_rounded():
    model = build_word_model(Lexicon.of(), width=24)
    own = load(model)
    coarse = rounded(own)
    before, after = own.original.state_dict(), coarse.original.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}
    assert all(len(after[name][0].unique()) <= 16 for name in changed)


def the_papers(**changes: Any) -> dict[str, Work]:
    """What was published of this check, near enough; ``changes`` of tokens by way, spaces as underscores."""
    given = {
        "plain": Work(800, 800, [1] * 800),
        "tree of 30": Work(223, 100, [30] * 100),
        "chain of 6": Work(543, 100, [7] * 100, [1] * 600),
        "hierarchy": Work(586, 100, [8] * 100, [30] * 300),
    }
    for name, done in given.items():
        done.tokens = changes.get(name.replace(" ", "_"), done.tokens)
        done.texts = [[1]]
    return given


def test_the_published_check_holds():
    coarse = the_papers()
    for done in coarse.values():
        done.texts = [[2]]
    found = claims(the_papers(), coarse)
    assert len(found) == 12
    assert all(row["holds"] == "yes" for row in found)
    assert found[2]["found"] == "2.06 → 2.33"


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"hierarchy": 300}, "hierarchy > chain > tree on the target, s = 0.2"),
        ({"chain_of_6": 200}, "hierarchy > chain > tree on the target, s = 0.8"),
        ({"tree_of_30": 300}, "4 bits hardly change tokens per call, tree of 30"),
    ],
)
def test_a_claim_can_fail(changes: dict[str, int], failing: str):
    found = {row["claim"]: row["holds"] for row in claims(the_papers(**changes), the_papers())}
    assert found[failing] == "no"
    assert found["4 bits change the text itself"] == "no"


def test_rows_say_whether_the_text_is_the_same():
    found = the_papers()
    found["hierarchy"].texts = [[3]]
    told = {row["way"]: row["equals plain"] for row in rows(found)}
    assert told == {"plain": "yes", "tree of 30": "yes", "chain of 6": "yes", "hierarchy": "no"}
    assert list(rows(found)[0]) == [
        "way", "tokens per call", "rows of it", "passes", "rows of them", "speed, s = 0.2", "speed, s = 0.8",
        "equals plain",
    ]  # fmt: skip


def test_plans_stand_beside_what_was_measured():
    how: dict[str, Any] = {"max_new_tokens": 8, "seed": 1}
    small = load(build("llama"))
    found = {name: work(lm("llama"), small, method, PROMPTS, **how) for name, method in ways(small).items()}
    told = planned(lm("llama"), small, PROMPTS, how, found)
    assert len(told) == 8
    assert [row["way"] for row in told[:3]] == ["tree of 30", "chain of 6", "hierarchy"]
    assert told[0]["tokens per call, planned"] == pytest.approx(found["tree of 30"].tokens_per_call)
    assert told[2]["measured"] == found["hierarchy"].tokens_per_call
    assert told[3]["way"].startswith("the planner's: ")
    assert told[3]["speed, planned"] >= max(row["speed, planned"] for row in told[:3])
