"""Parallel prompt decoding: the published trees, the training layout, and what a draft is made of."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import lm, text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ramify.methods.draft.ppd as module
from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.request import Request
from ramify.engine.sampling import Sampler
from ramify.engine.session import Session
from ramify.engine.speculate import speculate
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.draft.ghost_draft import GhostDrafter, Plan
from ramify.methods.draft.ppd import Ppd, plans
from ramify.methods.draft.ppd_head import PromptTokens
from ramify.methods.draft.ppd_layout import continuation, layout
from ramify.methods.draft.sparse_tree import VICUNA_7B, DynamicTree, SparseTree, dynamic_tree, transitions
from ramify.methods.head import BUNDLED, load_head
from ramify.methods.registry import create, find
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load
from ramify.train.data import held_out_documents

PREFIX = text(14, 3)  # longer than the sliding windows


@functools.cache
def head_for(family: str, how: str = "", **sizes: Any) -> PromptTokens:
    torch.manual_seed(0)
    return PromptTokens.new(lm(family, how), **sizes).requires_grad_(False)


def windows(rows: int, length: int) -> Tensor:
    return torch.tensor([text(length, row) for row in range(rows)])


# The trees.


@pytest.mark.parametrize(
    ("budget", "sizes", "prompts", "f", "steady", "expected", "naive"),
    [
        (50, (10, 17, 17), (30, 33, 33), None, None, 1.2033, None),
        (60, (10, 20, 20), (30, 40, 40), (0.8458, 1.2425, 1.2547), (0.0, 0.828, 0.172), 1.2449, 1.1821),
        (105, (10, 33, 34), (30, 72, 71), (0.8458, 1.3435, 1.3876), (0.0, 0.474, 0.526), 1.3669, 1.3214),
    ],
)
def test_the_published_trees_for_vicuna(
    budget: int, sizes: Any, prompts: Any, f: Any, steady: Any, expected: float, naive: float | None
):
    tree = dynamic_tree(VICUNA_7B, budget)
    assert tuple(len(each.paths) for each in tree.trees) == sizes
    assert tuple(sum(each.prompts) for each in tree.trees) == prompts
    assert tree.expected == pytest.approx(expected, abs=5e-5)
    assert tree.rows == budget + 4
    if f is not None:
        # The official files round every p(v) by itself, to which the last digit of their sums is due.
        assert [each.expected for each in tree.trees] == pytest.approx(f, abs=4e-4)
        assert tree.steady == pytest.approx(steady, abs=5e-4)
        assert dynamic_tree(VICUNA_7B, budget, "naive").expected == pytest.approx(naive, abs=5e-5)


def test_every_node_of_the_published_tree_of_50():
    """``dynamic_sparse_trees_50`` of the official repository: nodes with their prompt tokens."""
    tree = dynamic_tree(VICUNA_7B, 50)
    shared = "0 1 2 3 4 5 6 00 01 02 03 04 10 11 20"
    second = dict.fromkeys([*shared.split(), "05"], 2) | {"7": 1}
    third = dict.fromkeys([*shared.split(), "000"], 2) | {"05": 1}
    published = [dict.fromkeys("0123456789", 3), second, third]
    for found, nodes in zip(tree.trees, published, strict=True):
        assert {"".join(map(str, path)): c for path, c in zip(found.paths, found.prompts, strict=True)} == nodes
        assert list(found.paths) == sorted(found.paths, key=lambda path: (len(path), path))


@pytest.mark.parametrize("allocation", ["pruned", "naive", "random", "chain"])
def test_the_expectation_is_what_a_simulation_gives(allocation: str):
    numbers = random.Random(1)
    accuracy = tuple(best[:5] for best in VICUNA_7B)
    tree = dynamic_tree(accuracy, 24, allocation)
    state, accepted, steps, visits = 3, 0, 30_000, [0, 0, 0]
    for _ in range(steps):
        visits[state - 1] += 1
        right = [numbers.choices([*range(5), None], [*best, 1 - sum(best)])[0] for best in accuracy]
        nodes = dict(zip(tree.trees[state - 1].paths, tree.trees[state - 1].prompts, strict=True))
        path: tuple[Any, ...] = ()
        while (*path, *right[len(path) : len(path) + 1]) in nodes and len(path) < len(right):
            path = (*path, right[len(path)])
        accepted += len(path)
        state = nodes[path] if path else 3
    assert accepted / steps == pytest.approx(tree.expected, abs=0.02)
    assert [count / steps for count in visits] == pytest.approx(tree.steady, abs=0.015)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(2, 30))
def test_trees_of_any_accuracy(weights: list[list[float]], budget: int):
    accuracy = tuple(tuple(share / (sum(best) + 0.1) for share in best) for best in weights)
    n = len(accuracy)
    found = {name: dynamic_tree(accuracy, budget, name) for name in ("pruned", "naive", "random", "chain")}
    for tree in found.values():
        assert len(tree.trees) == n
        for depth, each in enumerate(tree.trees, 1):
            assert all(path[:-1] in {(), *each.paths} and len(path) <= depth for path in each.paths)
            assert all(1 <= count <= n for count in each.prompts)
            assert min(each.stops) > -1e-9
            rate = [functools.reduce(lambda p, k: p * accuracy[k[0]][k[1]], enumerate(q), 1.0) for q in each.paths]
            assert each.expected == pytest.approx(sum(rate))
        assert sum(tree.steady) == pytest.approx(1.0)
        assert tree.steady == pytest.approx((transitions(tree.trees).T @ tree.steady).tolist(), abs=1e-9)
        assert tree.expected == pytest.approx(sum(p * e.expected for p, e in zip(tree.steady, tree.trees, strict=True)))
    for name in ("pruned", "random"):
        assert all(e.spent <= max(budget, 2 * len(e.paths)) for e in found[name].trees)
        assert found[name].rows <= budget + 1 + n
    if budget >= n + 1:
        assert found["pruned"].expected >= found["naive"].expected - 1e-9


def test_the_first_of_equals_loses_its_prompt_token():
    tree = dynamic_tree(((0.2,) * 4, (0.2,) * 4), 7)
    assert [(len(each.paths), each.prompts) for each in tree.trees] == [(3, (1, 1, 2)), (3, (1, 1, 2))]


# Training.


@pytest.mark.parametrize("sizes", [{}, {"ensemble": 2}, {"prompts": 1}], ids=str)
@pytest.mark.parametrize("name", ["llama", "llama transformers", "gpt2", "gemma2", "mistral", "gemma3 transformers"])
def test_the_training_layout_is_the_decoding_layout(name: str, sizes: dict[str, int]):
    family, _, how = name.partition(" ")
    model, head = lm(family, how), head_for(family, how, **sizes)
    n, m = head.sizes.prompts, head.sizes.ensemble
    tokens, places = windows(2, 20), torch.tensor([0, 6, 15])
    logits, guesses = head.guess(model, tokens, places)
    [root, *_] = plans(dynamic_tree(VICUNA_7B[:n], 4), head)
    for row, place in itertools.product(range(2), range(3)):
        end = int(places[place])
        session = Session(model)
        session.prefill([tokens[row, :end].tolist()])
        tree = TokenTree(tokens[row, :0], TreeShape.of([]), ghosts=root.ghosts).rooted(int(tokens[row, end]))
        scores = session.score(tree)
        ghosts = scores.ghosts[0].view(n, m, -1).mean(dim=1)
        torch.testing.assert_close(guesses[row, place], ghosts, atol=1e-5 * float(ghosts.std() + 1), rtol=1e-5)
        torch.testing.assert_close(logits[row, end], scores.logits[0, 0], atol=2e-5, rtol=1e-5)


def test_text_does_not_see_prompt_tokens():
    model, head, tokens = lm("qwen3"), head_for("qwen3"), windows(2, 20)
    expected = Session(model, 2).score([TokenTree.chain(row) for row in tokens]).logits
    few, many = (head.guess(model, tokens, torch.tensor(places)) for places in ([4], [1, 4, 9]))
    for logits in (few[0], many[0]):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few[1][:, 0], many[1][:, 1], atol=1e-5, rtol=1e-5)


def test_what_embeddings_see_of_each_other():
    """Two prompt tokens of two embeddings behind the second of three text rows."""
    expected = {"ensemble": "1000 0100 1010 0101", "decoder": "1000 1100 1110 1111", "encoder": "1100 1100 0011 0011"}
    for mask, rows in expected.items():
        positions, seen = layout(3, torch.tensor([1]), 2, 2, mask)
        assert positions.tolist() == [0, 1, 2, 2, 2, 3, 3]
        assert ["".join(map(str, row)) for row in seen[3:, 3:].int().tolist()] == rows.split()
        assert seen[3:, :3].tolist() == [[True, True, False]] * 4
        assert not seen[:3, 3:].any()
    _, seen = layout(4, torch.tensor([0, 2]), 1, 2, "decoder")
    assert seen[4:, 4:].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("targets", ["own", "corpus", "hard"])
def test_gradients_pass_the_frozen_target(targets: str):
    tokens = windows(2, 24)
    gradients = []
    for how in ("", "transformers"):
        model = lm("qwen2", how)
        head = head_for("qwen2", how, targets=targets, insertions=5)
        with torch.enable_grad():
            embeddings = head.embeddings.clone().requires_grad_()
            loss = torch.func.functional_call(Loss(head, model), {"head.embeddings": embeddings}, (tokens,))
            gradients.append(torch.autograd.grad(loss, embeddings)[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)
    assert (gradients[0].norm(dim=1) > 1e-4).all()
    direction = gradients[0] / gradients[0].norm()
    up, down = (
        torch.func.functional_call(
            Loss(head, model), {"head.embeddings": head.embeddings + by * direction}, (tokens,)
        ).detach()
        for by in (2e-3, -2e-3)
    )
    assert float((up - down) / 4e-3) == pytest.approx(float(gradients[0].norm()), rel=0.03)


class Loss(torch.nn.Module):
    def __init__(self, head: PromptTokens, model: CausalLM) -> None:
        super().__init__()
        self.head, self.lm = head, model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head.loss(self.lm, tokens)


def test_the_loss_is_the_decayed_divergence_from_the_target():
    model, tokens = lm("llama"), windows(2, 12)
    places = torch.arange(12 - 4)
    for decay, targets in ((1.0, "corpus"), (0.8, "corpus"), (0.5, "own"), (0.8, "hard")):
        head = head_for("llama", targets=targets, decay=decay, insertions=0)
        text_logits, guesses = head.guess(model, tokens, places)
        z = continuation(model, tokens, places, 3)
        total = 0.0
        for row, place, k in itertools.product(range(2), places.tolist(), (1, 2, 3)):
            p = torch.softmax(guesses[row, place, k - 1], dim=-1).detach()
            if targets == "hard":
                distance = -float(p[tokens[row, place + k + 1]].log())
            else:
                q = torch.softmax(
                    text_logits[row, place + k].detach() if targets == "corpus" else z[row, place, k - 1], dim=-1
                )
                distance = float((q * (q / p).log()).sum())
            total += decay ** (k - 1) * distance / (3 * 2 * len(places))
        assert float(head.loss(model, tokens).detach()) == pytest.approx(total, rel=1e-4)


def test_the_teacher_follows_the_own_greedy_text_of_the_target():
    model, tokens = lm("phi3"), windows(1, 20)
    z = continuation(model, tokens, torch.tensor([3, 12]), 3)
    for place, end in enumerate((3, 12)):
        prompt = tokens[0, : end + 1].tolist()
        own = generate(model, prompt, "greedy", max_new_tokens=4).tokens
        logits = Session(model).score(TokenTree.chain([*prompt, *own[:3]])).logits[0, end + 1 :]
        torch.testing.assert_close(z[0, place], logits, atol=2e-5, rtol=1e-5)
        assert z[0, place].argmax(dim=-1).tolist() == own[1:]


def test_insertion_points_depend_on_the_tokens_alone():
    head = head_for("llama")
    tokens = windows(2, 40)
    assert head._places(tokens, 7).tolist() == head._places(tokens.clone(), 7).tolist()
    assert head._places(tokens, 7).tolist() != head._places(tokens + 1, 7).tolist()
    assert head._places(tokens, 0).tolist() == head._places(tokens, 99).tolist() == list(range(36))
    with pytest.raises(RamifyError, match="windows of 4 tokens are too short for 3 prompt tokens"):
        head._places(windows(1, 4), 0)


def test_a_head_starts_from_tokens_learns_and_measures_itself(tmp_path: Path):
    model, tokens = lm("llama"), windows(6, 32)
    torch.manual_seed(1)
    head = PromptTokens.new(model, targets="corpus")
    table = model.forward.embed(torch.arange(96))
    assert all((table == row).all(dim=1).any() for row in head.embeddings)
    assert head.accuracy[0].tolist() == head.accuracy[1].tolist()
    torch.testing.assert_close(head.accuracy[1], torch.tensor(VICUNA_7B))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.03, weight_decay=0.0)
    losses = []
    for _ in range(25):
        loss = head.loss(model, tokens)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    head.requires_grad_(False)
    head.settle(model, tokens)
    places = head._places(tokens[:4], 64), head._places(tokens[4:], 64)
    best = torch.cat([head.guess(model, part, where)[1] for part, where in zip(tokens.split(4), places, strict=True)])
    own = torch.cat([continuation(model, part, w, 3) for part, w in zip(tokens.split(4), places, strict=True)])
    first = (best.argmax(dim=-1) == own.argmax(dim=-1)).float().mean(dim=(0, 1))
    torch.testing.assert_close(head.accuracy[0, :, 0], first)
    assert (head.accuracy >= 0).all()
    assert (head.accuracy.sum(dim=-1) <= 1 + 1e-5).all()
    assert (head.accuracy[0] != head.accuracy[1]).any()
    measured = head.measure(model, tokens)
    assert list(measured) == [f"{what} at +{d}" for what in ("agreement", "top-5") for d in (2, 3, 4)]
    for distance in (2, 3, 4):
        assert 0 <= measured[f"agreement at +{distance}"] <= measured[f"top-5 at +{distance}"] <= 1
    head.save(tmp_path)
    again = load_head(PromptTokens, tmp_path, model)
    assert torch.equal(again.embeddings, head.embeddings)
    assert torch.equal(again.accuracy, head.accuracy)


# Drafting.


def outcome_of(tree: TokenTree, path: tuple[int, ...], ghosts: Tensor | None) -> Outcome:
    return Outcome(tree, torch.zeros(len(tree), 96), path, [1], ghosts=ghosts)


def context(tokens: list[int]) -> Context:
    return Context(tokens, 99, Sampler(), torch.Generator(), len(tokens))


def prompter(layouts: list[Plan], head: PromptTokens, kind: type[GhostDrafter] = GhostDrafter) -> GhostDrafter:
    return kind(layouts, head.accuracy.shape[-1], head.sizes.ensemble)


@pytest.mark.parametrize("ensemble", [1, 3])
def test_the_accepted_node_decides_what_is_drafted_next(ensemble: int):
    head = head_for("llama", ensemble=ensemble)
    three = SparseTree(((0,), (1,), (0, 2), (0, 2, 1)), (0.1,) * 4, (2, 1, 3, 1), 1.0)
    two, one = SparseTree(((0,), (1, 0)), (0.1, 0.1), (1, 1), 1.0), SparseTree(((3,),), (0.1,), (1,), 1.0)
    two = SparseTree(((1,), (1, 0)), (0.1, 0.1), (1, 1), 1.0)
    layouts = plans(DynamicTree((one, two, three), (0, 0, 1), 1.0), head)
    drafter = prompter(layouts, head)
    drafter.start([5])
    first = drafter.draft(context([5]))
    assert len(first) == 0
    assert len(first.ghosts) == 3 * ensemble
    assert first.ghosts.on(first.shape).depth.tolist() == [k for k in range(3) for _ in range(ensemble)]
    logits = torch.randn(3 * ensemble, 96, generator=torch.Generator().manual_seed(4))
    drafter.observe(outcome_of(first.rooted(5), (0,), logits))
    best = logits.view(3, ensemble, 96).mean(dim=1).topk(10).indices
    second = drafter.draft(context([5, 6]))
    assert second.shape.parents == (-1, -1, 0, 2)
    assert second.tokens.tolist() == [int(best[0, 0]), int(best[0, 1]), int(best[1, 2]), int(best[2, 1])]
    assert len(second.ghosts) == (3 + 2 + 1 + 3 + 1) * ensemble
    # Each prompt token sees its node, the node's ancestors, and what precedes it in its own chain.
    where = second.ghosts.on(second.shape)
    assert where.sources.tolist() == [
        s for s, c in ((-1, 3), (0, 2), (1, 1), (2, 3), (3, 1)) for _ in range(c * ensemble)
    ]
    kinds = [kind for c in (3, 2, 1, 3, 1) for kind in range(c * ensemble)]
    assert second.ghosts.kinds == tuple(kinds)
    for ghost, kind in enumerate(kinds):
        source = int(where.sources[ghost])
        above = len(second.shape.path(source))
        assert int(where.depth[ghost]) == above + kind // ensemble
        assert int(where.ancestors[ghost].sum()) == above + kind // ensemble + 1
        chain = where.ancestors[ghost, 4:].nonzero()[:, 0].tolist()
        assert {kinds[other] % ensemble for other in chain} == {kind % ensemble}
    tree = second.rooted(6)
    logits = torch.randn(10 * ensemble, 96, generator=torch.Generator().manual_seed(5))
    for node, expected, begin in ((0, (-1, -1, 0, 2), 0), (1, (-1, 0), 3), (2, (-1,), 5), (3, (-1, -1, 0, 2), 6)):
        drafter.observe(outcome_of(tree, tree.shape.path(node), logits))
        following = drafter.draft(context([5, 6, 7]))
        assert following.shape.parents == expected
        own = logits[begin * ensemble : (begin + 1) * ensemble].mean(dim=0).topk(10).indices
        assert int(following.tokens[0]) == int(own[layouts[{4: 3, 2: 2, 1: 1}[len(expected)]].template.ranks[0][0]])


def test_a_step_that_ends_elsewhere_begins_anew():
    head = head_for("llama")
    drafter = prompter(plans(dynamic_tree(VICUNA_7B, 12), head), head)
    first = drafter.draft(context([5])).rooted(5)
    drafter.observe(outcome_of(first, (0,), torch.randn(3, 96)))
    assert len(drafter.draft(context([5, 6]))) > 0
    # In a union another drafter's node may be the last one, or nothing of ours may be in the tree.
    ghosts = replace(first.ghosts, parents=(0, 2, 3))
    foreign = TokenTree(torch.tensor([5, 9]), TreeShape.of([-1, 0]), ghosts=ghosts)
    for outcome in (outcome_of(foreign, (0, 1), torch.randn(3, 96)), outcome_of(TokenTree.chain([5]), (0,), None)):
        drafter.observe(outcome)
        again = drafter.draft(context([5, 6, 9]))
        assert (len(again), len(again.ghosts)) == (0, 3)
    drafter.observe(outcome_of(first, (0,), torch.randn(3, 96)))
    drafter.rewind(1)
    assert len(drafter.draft(context([5]))) == 0


def test_a_tree_that_was_cut_near_the_end_leads_to_a_lower_state():
    head = head_for("llama")
    drafter = prompter(plans(dynamic_tree(VICUNA_7B, 12), head), head)
    first = drafter.draft(context([5])).cut(2).rooted(5)
    assert len(first.ghosts) == 2
    drafter.observe(outcome_of(first, (0,), torch.randn(2, 96)))
    assert drafter.draft(context([5, 6])).shape == drafter.plans[2].template.shape


class Erratic(GhostDrafter):
    """Forgets some of its guesses at random, so that every sequence of states occurs."""

    numbers = random.Random(3)

    def observe(self, outcome: Outcome) -> None:
        super().observe(outcome)
        if self.guesses is not None:
            known = self.numbers.randrange(len(self.guesses) + 1)
            self.guesses = self.guesses[:known] if known else None


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_the_text_is_plain_whatever_the_states_and_nothing_stays_in_the_cache(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    model, head = lm(family), head_for(family, prompts=4)
    lengths = []
    keep = Session.keep

    def kept(session: Session, nodes: Any) -> None:
        keep(session, nodes)
        lengths.append(session.lengths[0])

    monkeypatch.setattr(Session, "keep", kept)
    accuracy = (*VICUNA_7B, VICUNA_7B[-1])
    drafters = [prompter(plans(dynamic_tree(accuracy, 20), head), head, kind) for kind in (GhostDrafter, Erratic)]
    expected = generate(model, PREFIX, "greedy", max_new_tokens=40).tokens
    for drafter in drafters:
        lengths.clear()
        events = list(speculate(model, [Request(PREFIX, len(PREFIX) + 40)], [drafter]))
        steps = [event.tokens for event in events if hasattr(event, "path")]
        assert list(itertools.chain(*steps)) == expected
        assert len(steps) < 40
        committed = list(itertools.accumulate(map(len, steps), initial=len(PREFIX)))
        assert lengths[:-1] == [count - 1 for count in committed[:-1]]


def test_the_order_of_siblings_changes_nothing():
    model, head = lm("gemma3"), head_for("gemma3", prompts=4)
    tree = dynamic_tree((*VICUNA_7B, VICUNA_7B[-1]), 24)
    turned = []
    for each in tree.trees:
        order = sorted(range(len(each.paths)), key=lambda v: (len(each.paths[v]), [-r for r in each.paths[v]]))
        paths, stops, prompts = (tuple(values[v] for v in order) for values in (each.paths, each.stops, each.prompts))
        turned.append(SparseTree(paths, stops, prompts, each.expected))
    runs = []
    for layouts in (plans(tree, head), plans(DynamicTree.of(turned), head)):
        events = list(speculate(model, [Request(PREFIX, 60)], [prompter(layouts, head)]))
        runs.append([event.tokens for event in events if hasattr(event, "path")])
    assert runs[0] == runs[1]
    assert len(runs[0]) < 46


def test_without_a_budget_there_is_plain_decoding():
    result = generate(lm("llama"), PREFIX, Ppd(head=head_for("llama"), budget=0), max_new_tokens=12)
    assert (result.stats.target_calls, result.stats.row_steps, result.stats.drafted) == (12, 12, 0)


def test_the_budget_follows_the_cost_curve(monkeypatch: pytest.MonkeyPatch):
    model, head = lm("llama"), head_for("llama")

    def drafter(seconds: list[float]) -> Any:
        curve = CostCurve("", [1, 20, 64, 134, 160], seconds)
        monkeypatch.setattr(module, "calibrate", lambda _: curve)
        return Ppd(head=head).drafter(model, Request([1], 9))

    assert not isinstance(drafter([1.0, 5.0, 15.0, 30.0, 36.0]), GhostDrafter)
    # 1 + E is 1.90 with 16 guesses and prompt tokens, 2.24 with 60, 2.37 with 105.
    for seconds, budget in (([1.0] * 5, 105), ([1.0, 1.0, 1.0, 2.0, 2.2], 60), ([1.0, 1.0, 2.0, 4.0, 4.5], 16)):
        found = drafter(seconds)
        expected = plans(dynamic_tree(VICUNA_7B, budget), head)
        assert [plan.template for plan in found.plans] == [plan.template for plan in expected]
    # Where six rows are free and the next is dear, one prompt token with two guesses is best.
    assert len(drafter([1.0, 1.0, 1.0, 1.0, 1.0]).plans) == 4
    curve = CostCurve("", [1, 6, 7, 160], [1.0, 1.0, 9.0, 99.0])
    monkeypatch.setattr(module, "calibrate", lambda _: curve)
    assert [len(plan.ghosts) for plan in Ppd(head=head).drafter(model, Request([1], 9)).plans] == [1, 3]
    with pytest.raises(RamifyError, match="3 prompt tokens, fewer than the 4 asked for"):
        Ppd(head=head, budget=8, prompts=4).drafter(model, Request([1], 9))
    assert len(Ppd(head=head, budget=8, prompts=2).drafter(model, Request([1], 9)).plans) == 3
    sampled = Request([1], 9, Sampler(greedy=False))
    head = PromptTokens.new(model).requires_grad_(False)
    head.accuracy[1] *= 0.1
    method = Ppd(head=head, budget=24)
    greedy, other = method.drafter(model, Request([1], 9)), method.drafter(model, sampled)
    assert greedy.plans[3].template != other.plans[3].template


# The catalogue and bad input.


def test_the_catalogue_knows_what_is_trained():
    assert find("ppd").trains is PromptTokens
    assert Ppd().head is None
    assert Ppd.card.lossless


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1}, "budget must be at least 2"),
        ({"budget": -3}, "budget must be at least 2"),
        ({"prompts": 0}, "prompts must be at least 1"),
        ({"allocation": "prune"}, "did you mean 'pruned'"),
        ({"verifier": "typical"}, "unknown option of 'ppd': 'verifier'"),
    ],
)
def test_what_is_wrong_with_the_options_is_said(options: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        create("ppd", **options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"prompts": 0}, "prompts must be at least 1"),
        ({"ensemble": 0}, "ensemble must be at least 1"),
        ({"insertions": -1}, "insertions must be at least 0"),
        ({"decay": 0.0}, "decay lies above 0"),
        ({"decay": 1.5}, "decay lies above 0"),
        ({"mask": "ensembel"}, "did you mean 'ensemble'"),
        ({"targets": "soft"}, "unknown targets 'soft'"),
        ({"prompt": 3}, "did you mean 'prompts'"),
    ],
)
def test_what_is_wrong_with_a_head_is_said(sizes: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        PromptTokens.new(lm("llama"), **sizes)


def test_heads_that_cannot_draft_are_refused():
    for sizes in ({"mask": "decoder", "ensemble": 2}, {"mask": "encoder"}):
        with pytest.raises(RamifyError, match="cannot stand in a draft tree"):
            generate(lm("llama"), PREFIX, Ppd(head=head_for("llama", **sizes), budget=8), max_new_tokens=4)
    generate(lm("llama"), PREFIX, Ppd(head=head_for("llama", mask="decoder"), budget=8), max_new_tokens=4)
    with pytest.raises(RamifyError, match="there is no ppd head for"):
        generate(lm("llama"), PREFIX, Ppd(budget=8), max_new_tokens=4)
    with pytest.raises(RamifyError, match="budget of 1 holds no guess"):
        dynamic_tree(VICUNA_7B, 1)
    with pytest.raises(RamifyError, match="did you mean 'naive'"):
        dynamic_tree(VICUNA_7B, 8, "naiv")


@pytest.mark.skipif(not (BUNDLED / "ppd").exists(), reason="the demo head is not in the package")
def test_the_bundled_prompt_tokens_learned_something():
    """Untrained ones answer with whatever is frequent, and the later ones not even that."""
    demo = load("demo", dtype="float32")
    torch.manual_seed(0)
    held_out = held_out_documents(demo)
    tokens = torch.tensor([document[500:597] for document in held_out if len(document) > 597][:5])
    before, after = (
        head.measure(demo, tokens) for head in (PromptTokens.new(demo), load_head(PromptTokens, None, demo))
    )
    assert after["agreement at +3"] > before["agreement at +3"] + 0.05
    assert all(after[f"top-5 at +{distance}"] > before[f"top-5 at +{distance}"] + 0.03 for distance in (2, 3, 4))
