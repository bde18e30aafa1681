"""Medusa: heads as the paper defines them, the published tree, measured ranks, and where the state comes from."""

from __future__ import annotations

from typing import Any

import heads
import pytest
import torch
from families import VOCABULARY, lm, text
from torch.nn import functional

import ramify.methods.draft.medusa as place
from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.medusa import PUBLISHED, Forecaster, Heads, Medusa
from ramify.methods.draft.medusa_head import DECAY, MedusaHead, MedusaSizes
from ramify.methods.draft.template import Template
from ramify.methods.head import teach
from ramify.models.calibrate import CostCurve

FREE = CostCurve("free", [1, 100], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 100], [1.0, 2.0, 100.0])
WINDOW = torch.tensor([text(40, 7), text(40, 8)])


def context(tokens: list[int]) -> Context:
    return Context(tokens, 99, Sampler(), torch.Generator(), len(tokens))


# ---------------------------------------------------------------- the head


def test_a_new_head_guesses_what_the_target_itself_guesses():
    """W1 = 0 and W2 = LM head: every head is the target's own guess at the next token."""
    model = lm("llama")
    taught = teach(model, WINDOW, [-1])
    for projection in ("own", "shared"):
        head = MedusaHead.new(model, projection=projection)
        for k in range(5):
            torch.testing.assert_close(head.logits(model, k, taught.hidden[-1]), taught.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"heads": 3, "projection": "own"}, {"layers": 2}, {"heads": 2, "layers": 3}])
def test_joined_heads_are_the_heads(sizes: dict[str, Any]):
    model = lm("qwen3")
    head = heads.medusa(model, **sizes)
    for each in head.lm_heads:
        torch.nn.init.normal_(each.weight)
    h = torch.randn(32, generator=torch.Generator().manual_seed(0))
    expected = []
    for k, blocks in enumerate(head.blocks):
        z = h
        for block in blocks:
            z = functional.silu(block.linear.weight @ z + block.linear.bias) + z
        z = head.lm_heads[k].weight @ z
        logits = z if head.sizes.projection == "own" else model.model.lm_head.weight @ z
        expected.append(logits.topk(7).indices)
    found = Heads(head, model).guess(h, head.sizes.heads, 7)
    assert torch.equal(found, torch.stack(expected))
    assert torch.equal(Heads(head, model).guess(h, 2, 3), found[:2, :3])


def test_the_loss_is_the_papers():
    model = lm("llama")
    head = heads.medusa(model, heads=3)
    h = teach(model, WINDOW, [-1]).hidden[-1]
    expected = sum(
        DECAY**k
        * functional.cross_entropy(head.logits(model, k - 1, h[:, t]), WINDOW[:, t + k + 1], reduction="sum")
        / (2 * (40 - k - 1))
        for k in (1, 2, 3)
        for t in range(40 - k - 1)
    )
    torch.testing.assert_close(head.loss(model, WINDOW), expected)


def test_training_moves_the_heads_and_nothing_else():
    model = lm("llama")
    head = heads.medusa(model, heads=2, projection="own")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = head.loss(model, WINDOW)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


def test_ranks_are_counted_against_the_targets_own_law():
    model = lm("phi3")
    head = heads.medusa(model, heads=2)
    head.settle(model, WINDOW)
    taught = teach(model, WINDOW, [-1])
    for k in range(2):
        best = head.logits(model, k, taught.hidden[-1][:, : -k - 1]).topk(10, dim=-1).indices
        target = taught.logits[:, k + 1 :]
        hits = (best == target.argmax(dim=-1, keepdim=True)).float().mean(dim=(0, 1))
        torch.testing.assert_close(head.accuracy[0, k], hits)
        law = torch.softmax(target / 0.7, dim=-1).gather(-1, best).mean(dim=(0, 1))
        torch.testing.assert_close(head.accuracy[1, k], law)
    found = head.measure(model, WINDOW)
    first = head.accuracy[0, :, 0].tolist()
    assert found == pytest.approx({"agreement at +2": first[0], "agreement at +3": first[1]})


def test_the_last_windows_count_no_more_than_others():
    """Windows are measured in pieces; five of them make an uneven one."""
    model = lm("llama")
    head = heads.medusa(model, heads=1)
    five = torch.tensor([text(20, seed) for seed in range(5)])
    head.settle(model, five)
    found = head.accuracy.clone()
    total = torch.zeros_like(found)
    for window in five:
        head.settle(model, window[None])
        total += head.accuracy
    torch.testing.assert_close(found, total / 5)


# ---------------------------------------------------------------- the tree


def test_the_published_tree():
    """mc_sim_7b_63: 63 nodes, four deep, ranks up to 9, every node after its parent."""
    assert len(PUBLISHED.ranks) == len(set(PUBLISHED.ranks)) == 63
    assert [PUBLISHED.shape.depth.count(depth) for depth in range(4)] == [10, 28, 23, 2]
    assert PUBLISHED.ranks[:8] == ((0,), (0, 0), (1,), (0, 1), (2,), (0, 0, 0), (1, 0), (0, 2))
    assert {path for path in PUBLISHED.ranks if len(path) == 4} == {(0, 0, 0, 0), (0, 0, 0, 1)}


def test_the_tree_that_a_head_gets(monkeypatch: pytest.MonkeyPatch):
    model = lm("llama")
    monkeypatch.setattr(place, "calibrate", lambda lm: FREE)
    known, unknown = heads.medusa(model, heads=3), MedusaHead.new(model, projection="shared", heads=3)

    def tree(greedy: bool = True, **options: Any) -> Template:
        method = Medusa(**options)
        return method._template(Heads(options["head"], model), model, greedy)

    assert tree(head=unknown) == Template(tuple(path for path in PUBLISHED.ranks if len(path) < 4))
    assert tree(head=unknown, nodes=7) == PUBLISHED.first(7)
    assert tree(head=known, tree="mc_sim_7b_63", nodes=5) == PUBLISHED.first(5)
    rates = known.accuracy[0].tolist()
    assert tree(head=known, nodes=9) == Template.likeliest(rates, 9)
    assert len(tree(head=known).ranks) == 63  # rows cost nothing
    known.accuracy[1, :, 1:] = 0.0
    assert all(path == (0,) * len(path) for path in tree(False, head=known).ranks)
    monkeypatch.setattr(place, "calibrate", lambda lm: STEEP)
    assert tree(head=known).ranks == ()
    with pytest.raises(RamifyError, match="has not measured its accuracy"):
        tree(head=unknown, tree="measured")


def test_every_node_carries_its_heads_guess():
    model = lm("llama")
    head = heads.medusa(model, heads=3)
    drafter = Forecaster(Heads(head, model), PUBLISHED.first(20))
    assert len(drafter.draft(context([5]))) == 0  # a prompt of one token has no state yet
    session = Session(model)
    states = session.score(TokenTree.chain(text(9)), hidden_layers=[-1]).hidden[-1][0]
    drafter.observe_prompt(text(9), None, {-1: states})
    drafted = drafter.draft(context([*text(9), 4]))
    guesses = Heads(head, model).guess(states[-1], 3, 10)
    for node, path in enumerate(PUBLISHED.ranks[:20]):
        assert drafted.tokens[node] == guesses[len(path) - 1, path[-1]]
    # After a step, it is the last accepted node's state that counts, wherever it stands in the tree.
    session.keep([range(9)])
    tree = drafted.rooted(4)
    scores = session.score(tree, hidden_layers=[-1])
    path = list(tree.shape.path(6))
    drafter.observe(Outcome(tree, scores.logits[0], path, [1] * len(path), {-1: scores.hidden[-1][0]}))
    session.keep([path])
    alone = Session(model)
    fresh = alone.score(TokenTree.chain([*text(9), *tree.tokens[path].tolist()]), hidden_layers=[-1])
    torch.testing.assert_close(drafter.state, fresh.hidden[-1][0, -1], atol=1e-5, rtol=1e-5)


def test_after_a_rewind_it_drafts_as_if_it_had_never_seen_what_was_refused():
    model = lm("llama")
    every = Heads(heads.medusa(model), model)
    made, fresh = (Forecaster(every, PUBLISHED.first(20)) for _ in range(2))
    refused, wanted = text(14, 5), [*text(14, 5)[:9], *text(5, 9)]

    def tell(drafter: Forecaster, tokens: list[int], begin: int, end: int) -> None:
        states = teach(model, torch.tensor([tokens]), [-1]).hidden[-1][0, begin:end]
        drafter.observe_prompt(tokens[begin:end], None, {-1: states})

    tell(made, refused, 0, 13)
    before = made.draft(context(refused)).tokens.tolist()
    made.rewind(13)  # the pending token alone was refused: what it was guessed from stays
    assert made.draft(context([*refused[:13], 3])).tokens.tolist() == before
    made.rewind(9)
    assert len(made.draft(context(wanted[:10]))) == 0  # the state behind the ninth token is gone
    tell(made, wanted, 9, 12)
    tell(fresh, wanted, 0, 12)
    assert made.draft(context(wanted[:13])).tokens.tolist() == fresh.draft(context(wanted[:13])).tokens.tolist()
    session = Session(model)
    session.prefill([wanted[:12]])
    for drafter in (made, fresh):
        tree = drafter.draft(context(wanted[:13])).rooted(wanted[12])
        scores = session.score(tree, hidden_layers=[-1])
        drafter.observe(Outcome(tree, scores.logits[0], [0, 1], [int(tree.tokens[1]), 7], {-1: scores.hidden[-1][0]}))
    for length, nodes in ((14, 20), (13, 0)):
        made.rewind(length)
        assert len(made.draft(context(wanted))) == nodes


def test_a_head_that_knows_the_text_is_accepted():
    """Trained on one text until it knows it, three heads make most steps four tokens long."""
    model = lm("llama")
    prompt = text(12, 3)
    target = generate(model, prompt, "greedy", max_new_tokens=80, do_sample=False)
    window = torch.tensor([prompt + target.tokens])
    torch.manual_seed(0)
    head = MedusaHead.new(model, heads=3, projection="own")
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(model, window).backward()
        optimizer.step()
    head.settle(model, window)
    found = generate(model, prompt, Medusa(head=head, nodes=8), max_new_tokens=80, do_sample=False)
    assert found.tokens == target.tokens
    assert found.stats.tokens_per_call > 2.5


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Medusa(nodes=-1), "nodes must be at least 0, got -1"),
        (lambda: Medusa(tree="mesured"), "did you mean 'measured'"),
        (lambda: MedusaSizes(heads=0), "heads and layers must be at least 1, got 0 and 1"),
        (lambda: MedusaSizes(projection="none"), "unknown projection 'none'"),
        (lambda: MedusaHead.new(lm("llama"), head=3), "did you mean 'heads'"),
    ],
)
def test_what_is_wrong_is_said(make: Any, message: str):
    with pytest.raises(RamifyError, match=message):
        make()


def test_a_head_of_another_model_is_refused():
    head = MedusaHead.new(lm("llama"), projection="shared")
    other = type(head.fit)(64, VOCABULARY, 2, "")
    wrong = MedusaHead(other, head.sizes)
    with pytest.raises(RamifyError, match="its hidden size is 32, not 64"):
        generate(lm("llama"), text(5), Medusa(head=wrong), max_new_tokens=4)
    with pytest.raises(RamifyError, match="there is no medusa head for"):
        generate(lm("llama"), text(5), "medusa", max_new_tokens=4)
    with pytest.raises(RamifyError, match="is a EagleHead, not a MedusaHead"):
        generate(lm("llama"), text(5), Medusa(head=heads.eagle(lm("llama"))), max_new_tokens=4)
