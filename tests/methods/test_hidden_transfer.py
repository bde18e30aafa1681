"""Hidden transfer: where pseudo steps stand, what they see, how they are trained, and what becomes of their guesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCABULARY, lm, text
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ramify.api import generate
from ramify.bench.prompts import held_out_prompts
from ramify.engine.drafter import Context, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.draft import hidden_transfer
from ramify.methods.draft.ghost_draft import GhostDrafter, behind
from ramify.methods.draft.hidden_transfer import HiddenTransfer, plans, speed
from ramify.methods.draft.hidden_transfer_head import HiddenTransferHead, TransferSizes
from ramify.methods.draft.sparse_tree import dynamic_tree
from ramify.methods.head import Fit, load_head
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load

PROMPT = text(17, 2, period=6)
NEW = 24
SHAPE = TreeShape.of([-1, 0, 0, 1, 1, 2])
TREE = TokenTree(torch.tensor(text(6, 5)), SHAPE)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.std()), rtol=2e-5)


def head_of(model: CausalLM, seed: int | None = 0, scale: float = 0.2, **sizes: Any) -> HiddenTransferHead:
    """Maps near the identity, that differ from step to step."""
    head = HiddenTransferHead.new(model, **sizes)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in head.parameters():
                weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return head.requires_grad_(False)


def context(tokens: list[int]) -> Context:
    return Context(tokens, 8, Sampler(), torch.Generator(), len(tokens))


# ---------------------------------------------------------------- where pseudo steps stand


def test_the_mask_of_two_nodes_and_one_step_is_the_papers():
    """New columns [r c | r' c'] behind Lc cached tokens: r' sees r and itself, c' sees r, c and itself."""
    tree = TokenTree(torch.tensor([5]), TreeShape.chain(1), ghosts=head_of(lm("llama"), ahead=1).ghosts((1, 1)))
    rooted = tree.rooted(3)
    where = rooted.ghosts.on(rooted.shape)
    assert rooted.shape.ancestors.int().tolist() == [[1, 0], [1, 1]]
    assert where.ancestors.int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]
    assert [*rooted.shape.depth, *where.depth.tolist()] == [0, 1, 1, 2]
    assert where.sources.tolist() == [0, 1]


@pytest.mark.parametrize("see_earlier", [True, False])
def test_steps_stand_one_position_further_each(see_earlier: bool):
    head = head_of(lm("llama"), see_earlier=see_earlier)
    ghosts = head.ghosts((3, 2, 0, 1))
    where = ghosts.on(TreeShape.of([-1, 0, 0]))
    assert where.depth.tolist() == [0, 1, 2, 1, 2, 2]
    assert where.kinds.tolist() == [0, 1, 2, 0, 1, 0]
    assert where.sources.tolist() == [-1, -1, -1, 0, 0, 2]
    among = where.ancestors[:, 3:].int()
    chains = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1)).tril().int()
    assert torch.equal(among, chains if see_earlier else torch.eye(6).int())
    assert where.ancestors[:, :3].int().tolist() == [[0, 0, 0]] * 3 + [[1, 0, 0]] * 2 + [[1, 0, 1]]


def test_strangers_stay_strangers_in_a_rooted_and_a_cut_tree():
    tree = TokenTree(TREE.tokens, SHAPE, ghosts=head_of(lm("llama"), see_earlier=False).ghosts((3, 3, 3, 3, 3, 3, 3)))
    cut = tree.rooted(4).cut(4)
    assert cut.ghosts is not None
    assert cut.ghosts.strangers
    where = cut.ghosts.on(cut.shape)
    assert int(where.depth.max()) == 3
    assert where.ancestors[:, len(cut) :].equal(torch.eye(len(cut.ghosts), dtype=torch.bool))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 10_000))
def test_every_node_finds_its_own_steps(counts: list[int], seed: int):
    numbers = torch.Generator().manual_seed(seed)
    parents = [int(torch.randint(-1, node, (), generator=numbers)) if node else -1 for node in range(len(counts) - 1)]
    ghosts = head_of(lm("llama"), ahead=4).ghosts(tuple(counts))
    tree = TokenTree(torch.zeros(len(parents), dtype=torch.long), TreeShape.of(parents), ghosts=ghosts).rooted(1)
    found = [behind(tree, node) for node in range(len(counts))]
    assert [len(own) for own in found] == counts
    assert sorted(ghost for own in found for ghost in own) == list(range(sum(counts)))
    for own in found:
        assert [ghosts.kinds[ghost] for ghost in own] == list(range(len(own)))


def test_states_are_maps_of_the_source_or_of_the_state_before():
    model = lm("llama")
    sources, kinds = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1])
    head = head_of(model, seed=None)
    assert torch.equal(head.states(sources, kinds), sources)
    head, chain = head_of(model), head_of(model, chain=True)
    first, second, third = head.maps
    expected = torch.stack([first(sources[:, 0]), third(sources[:, 1]), second(sources[:, 2])], dim=1)
    torch.testing.assert_close(head.states(sources, kinds), expected)
    expected = torch.stack([first(sources[:, 0]), third(second(first(sources[:, 1]))), second(first(sources[:, 2]))], 1)
    torch.testing.assert_close(chain.states(sources, kinds), expected)
    torch.testing.assert_close(chain.states(sources[0], kinds), expected[0])  # as the engine asks, without a batch


# ---------------------------------------------------------------- what they see and what they leave


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("see_earlier", [True, False])
def test_the_targets_own_logits_do_not_change(layer: int, see_earlier: bool):
    model = lm("llama")
    head = head_of(model, layer=layer, see_earlier=see_earlier)
    plain, session = Session(model), Session(model)
    for each in (plain, session):
        each.prefill([PROMPT])
    tree = TREE.rooted(7)
    with_ghosts = TokenTree(TREE.tokens, SHAPE, ghosts=head.ghosts((3,) * 7)).rooted(7)
    expected, found = plain.score(tree), session.score(with_ghosts)
    assert float((found.logits - expected.logits).abs().max()) < 1e-5 * float(expected.logits.std())
    assert found.ghosts.shape == (1, 21, VOCABULARY)
    for each in (plain, session):
        each.keep([[0, *(node + 1 for node in SHAPE.path(5))]])
    close(session.score(tree).logits, plain.score(tree).logits)


def test_the_order_of_siblings_changes_nothing():
    model = lm("qwen3")
    head, order = head_of(model), [1, 0, 3, 2, 4]
    shape = TreeShape.of([-1, -1, 0, 0, 1])
    permuted = TreeShape.of([-1, -1, 1, 1, 0])
    tokens = torch.tensor(text(5, 8))
    ghosts = head.ghosts((3,) * 6)
    found = []
    for nodes, parents in ((tokens, shape), (tokens[order], permuted)):
        session = Session(model)
        session.prefill([PROMPT])
        scores = session.score(TokenTree(nodes, parents, ghosts=ghosts).rooted(7))
        found.append((scores.logits[0], scores.ghosts[0].view(6, 3, -1)))
    places = [0, *(node + 1 for node in order)]
    close(found[1][0], found[0][0][places])
    close(found[1][1], found[0][1][places])


# ---------------------------------------------------------------- training layout and decoding


@pytest.mark.parametrize("name", ["llama", "llama transformers", "mistral", "gpt2", "gemma3", "mixtral"])
@pytest.mark.parametrize("sizes", [{}, {"see_earlier": False, "layer": 0}, {"chain": True, "layer": 1}])
def test_training_sees_what_decoding_sees(name: str, sizes: dict[str, Any]):
    family, _, how = name.partition(" ")
    model = lm(family, how)
    head = head_of(model, **sizes)
    tokens = torch.tensor([text(20, 3), text(20, 4)])
    found = head.guess(model, tokens)
    assert found.pseudo.shape == (2, 17 * 3, VOCABULARY)
    for row in range(2):
        for place in (0, 9, 16):
            session = Session(model)
            session.prefill([tokens[row, :place].tolist()])
            tree = TokenTree(torch.empty(0, dtype=torch.long), TreeShape.of(()), ghosts=head.ghosts((3,)))
            scores = session.score(tree.rooted(int(tokens[row, place])))
            close(found.text[row, place], scores.logits[0, 0])
            own = (found.where.sources == place).nonzero()[:, 0]
            close(found.pseudo[row, own], scores.ghosts[0])


def test_copies_that_join_last_repeat_the_present():
    """W = I and t = L: every step says what the target says after its own node."""
    model = lm("llama")
    head = head_of(model, seed=None, layer=2)
    found = head.guess(model, torch.tensor([text(12, 3)]))
    close(found.pseudo, found.text[:, found.where.sources])


@torch.no_grad()
def test_the_loss_is_the_formula():
    model = lm("llama")
    tokens = torch.tensor([text(14, 3), text(14, 4)])
    found = head_of(model).guess(model, tokens[:, :-1])
    p, q = torch.log_softmax(found.text, dim=-1), torch.log_softmax(found.pseudo, dim=-1)
    expected = {"teacher": 0.0, "text": 0.0}
    for ghost in range(30):  # ten positions have all of their steps within the window
        place, step = divmod(ghost, 3)
        place = int(found.where.sources[ghost])
        weight = 0.5**step / 20
        truth, guess = p[:, place + step + 1], q[:, ghost]
        expected["teacher"] += weight * float((truth.exp() * (truth - guess)).sum())
        expected["text"] -= weight * float(guess.gather(-1, tokens[:, place + step + 2, None]).sum())
    for targets, value in expected.items():
        head = head_of(model, targets=targets, decay=0.5, positions=0)
        assert float(head.loss(model, tokens)) == pytest.approx(value, rel=1e-4)
    gap = functional.mse_loss(found.hidden[:, 13:], found.hidden[:, found.where.depth], reduction="none").mean(dim=-1)
    more = float((gap * 0.5**found.where.kinds).mean()) * 3
    head = head_of(model, decay=0.5, positions=0, mse=2.0)
    assert float(head.loss(model, tokens)) == pytest.approx(expected["teacher"] + 2 * more, rel=1e-4)


@torch.no_grad()
def test_a_few_positions_stand_for_all():
    model = lm("llama")
    tokens = torch.tensor([text(30, 3)])
    head = head_of(model)
    every, some = head.guess(model, tokens), head.guess(model, tokens, 5)
    places = some.where.sources.view(5, 3)[:, 0].tolist()
    assert len(set(places)) == 5
    assert max(places) < 27
    assert head.guess(model, tokens, 5).where.sources.equal(some.where.sources)
    for row, place in enumerate(places):
        own = (every.where.sources == place).nonzero()[:, 0]
        close(some.pseudo[:, 3 * row : 3 * row + 3], every.pseudo[:, own])


def test_training_learns_through_the_frozen_layers():
    """On texts of fixed successors, one linear map finds the successor's successor."""
    model = lm("llama")
    head = HiddenTransferHead.new(model, ahead=2, positions=0)
    windows = torch.tensor([text(24, seed, period=5) for seed in range(16)])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    before, losses = head.measure(model, windows), []
    for _ in range(40):
        loss = head.loss(model, windows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    after = head.measure(model, windows)
    assert losses[-1] < 0.7 * losses[0]
    for figure in ("top-1 at +2", "top-5 at +2", "top-1 at +3"):
        assert after[figure] > before[figure] + 0.1
    model.model.zero_grad()


def test_a_head_measures_how_often_its_guesses_are_right():
    model = lm("llama")
    head = head_of(model)
    tokens = torch.tensor([text(21, seed) for seed in range(6)])
    head.settle(model, tokens)
    found = head.guess(model, tokens[:, :-1])
    truth = found.text[:, found.where.depth].argmax(dim=-1)
    for step in range(3):
        own = found.where.kinds == step
        best = found.pseudo[:, own].topk(10, dim=-1).indices
        expected = (best == truth[:, own, None]).float().mean(dim=(0, 1))
        torch.testing.assert_close(head.accuracy[0, step], expected)
    assert bool((head.accuracy[1].sum(dim=-1) <= 1.0).all())
    assert not torch.equal(head.accuracy[0], head.accuracy[1])
    figures = head.measure(model, tokens)
    assert figures["top-5 at +3"] == pytest.approx(float(head.accuracy[0, 1, :5].sum()))


# ---------------------------------------------------------------- drafting


def observed(head: HiddenTransferHead, drafter: GhostDrafter, path: list[int]) -> Tensor:
    """Show ``drafter`` a scored draft of its own of which ``path`` was accepted; returns the ghosts' logits."""
    tree = drafter.draft(context(PROMPT)).rooted(PROMPT[-1])
    logits = torch.randn(len(tree.ghosts), VOCABULARY, generator=torch.Generator().manual_seed(len(tree)))
    drafter.observe(Outcome(tree, torch.zeros(len(tree), VOCABULARY), path, [1], {}, logits))
    return logits


def test_the_last_accepted_nodes_steps_make_the_next_draft():
    head = head_of(lm("llama"))
    tree = dynamic_tree(head.accuracy[0].tolist(), 16)
    assert len(set(tree.trees[-1].prompts)) > 1
    made = plans(tree, head)
    drafter = GhostDrafter(made, 10)
    first = drafter.draft(context(PROMPT))
    assert (len(first), first.ghosts.parents) == (0, (-1, 0, 1))
    logits = observed(head, drafter, [0])
    draft = drafter.draft(context(PROMPT))
    best = logits.topk(10).indices
    expected = [int(best[len(path) - 1, path[-1]]) for path in tree.trees[-1].paths]
    assert draft.tokens.tolist() == expected
    for node, count in enumerate(tree.trees[-1].prompts):
        drafter.guesses = best
        logits = observed(head, drafter, [0, *(place + 1 for place in draft.shape.path(node))])
        own = behind(draft.rooted(1), node + 1)
        assert drafter.guesses.tolist() == logits[own].topk(10).indices.tolist()
        assert len(drafter.guesses) == count
        assert len(drafter.draft(context(PROMPT))) == len(tree.trees[count - 1].paths)


def test_without_steps_behind_the_last_node_drafting_begins_anew():
    head = head_of(lm("llama"))
    drafter = GhostDrafter(plans(dynamic_tree(head.accuracy[0].tolist(), 16), head), 10)
    observed(head, drafter, [0])
    assert drafter.guesses is not None
    drafter.rewind(5)
    assert len(drafter.draft(context(PROMPT))) == 0
    observed(head, drafter, [0])
    foreign = TokenTree.chain([1, 2])
    drafter.observe(Outcome(foreign, torch.zeros(2, VOCABULARY), [0, 1], [2, 3]))
    assert len(drafter.draft(context(PROMPT))) == 0
    observed(head, drafter, [0])
    drafter.start([1])
    assert len(drafter.draft(context(PROMPT))) == 0


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_no_map_changes_the_output(fill: float, layer: int):
    model = lm("llama")
    head = head_of(model, layer=layer)
    for each in head.maps:
        each.weight.mul_(fill)
    plain = generate(model, PROMPT, "greedy", max_new_tokens=NEW)
    found = generate(model, PROMPT, HiddenTransfer(head=head, budget=20), max_new_tokens=NEW)
    assert found.tokens == plain.tokens


def test_cached_tokens_are_the_committed_ones_but_the_last(monkeypatch: pytest.MonkeyPatch):
    lengths: list[int] = []
    keep = Session.keep

    def watched(self: Session, nodes: Any) -> None:
        keep(self, nodes)
        lengths.append(self.lengths[0])

    monkeypatch.setattr(Session, "keep", watched)
    found = generate(lm("llama"), PROMPT, HiddenTransfer(head=head_of(lm("llama")), budget=20), max_new_tokens=NEW)
    assert found.stats.accepted > 0
    assert lengths[0] == len(PROMPT) - 1
    steps = [len(step.tokens) for step in found.events if type(step).__name__ == "Accepted"]
    assert lengths[1:] == [len(PROMPT) - 1 + sum(steps[: count + 1]) for count in range(len(steps))]


def test_a_budget_of_nothing_is_plain_decoding():
    found = generate(lm("llama"), PROMPT, HiddenTransfer(head=head_of(lm("llama")), budget=0), max_new_tokens=NEW)
    assert (found.stats.target_calls, found.stats.drafted) == (NEW, 0)
    assert found.tokens == generate(lm("llama"), PROMPT, "greedy", max_new_tokens=NEW).tokens


# ---------------------------------------------------------------- sizes


def test_pseudo_steps_cost_only_the_layers_behind_the_transfer():
    accuracy = head_of(lm("llama")).accuracy[0].tolist()
    tree = dynamic_tree(accuracy, 8, "chain")
    curve = CostCurve("", [1, 101], [1.0, 2.0])  # a hundredth a row
    # Chains of 1, 2, 3 nodes with as many pseudo steps each, and three behind the pending token.
    for share in (0.0, 0.5, 1.0):
        seconds = sum(
            chance * (1.0 + share * 0.01 * nodes + (1 - share) * 0.01 * (nodes + nodes * nodes + 3))
            for nodes, chance in enumerate(tree.steady, 1)
        )
        assert speed(tree, curve, share) == pytest.approx((1.0 + tree.expected) / seconds)
    assert speed(tree, curve, 0.75) > speed(tree, curve, 0.25)


@pytest.mark.parametrize(("slope", "drafts"), [(0.0, True), (0.02, True), (3.0, False)])
def test_the_cost_curve_decides_the_size(slope: float, drafts: bool, monkeypatch: pytest.MonkeyPatch):
    curve = CostCurve("", [1, 161], [1.0, 1.0 + 160 * slope])
    monkeypatch.setattr(hidden_transfer, "calibrate", lambda _: curve)
    method = HiddenTransfer(head=head_of(lm("llama")))
    found = generate(lm("llama"), PROMPT, method, max_new_tokens=NEW)
    assert (found.stats.drafted > 0) == drafts
    if drafts:
        widest = max(len(plan.template.ranks) for plan in method.memory["plans", True, lm("llama")])
        assert widest > 20 if slope == 0.0 else widest <= 12


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1}, "at least 2, for a node and a pseudo step"),
        ({"budget": -3}, "at least 2"),
        ({"allocation": "pruend"}, "did you mean 'pruned'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        HiddenTransfer(**options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ahead": 0}, "ahead must be at least 1, got 0"),
        ({"decay": 0.0}, "decay lies above 0"),
        ({"decay": 1.5}, "at most 1, got 1.5"),
        ({"mse": -1.0}, "mse must be at least 0"),
        ({"positions": -1}, "positions must be at least 0"),
        ({"start": "zero"}, "unknown start"),
        ({"targets": "teachr"}, "did you mean 'teacher'"),
        ({"layer": 3}, "behind layer 0 to 2, not 3"),
        ({"layer": -1}, "behind layer 0 to 2, not -1"),
        ({"layers": 1}, "did you mean 'layer'"),
    ],
)
def test_bad_sizes(sizes: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        HiddenTransferHead.new(lm("llama"), **sizes)


def test_windows_that_are_too_short_are_refused():
    head = HiddenTransferHead.new(lm("llama"))
    with pytest.raises(RamifyError, match="windows of 3 tokens are too short for 3 pseudo steps"):
        head.loss(lm("llama"), torch.tensor([[1, 2, 3, 4]]))


def test_a_head_is_saved_with_all_it_knows(tmp_path: Path):
    model = lm("llama")
    head = head_of(model, layer=1, ahead=2, see_earlier=False)
    head.settle(model, torch.tensor([text(21, seed) for seed in range(4)]))
    head.save(tmp_path)
    found = load_head(HiddenTransferHead, tmp_path, model)
    assert found.sizes == TransferSizes(layer=1, ahead=2, see_earlier=False)
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(found.state_dict().values(), head.state_dict().values(), strict=True)
    )
    other = HiddenTransferHead(Fit(64, VOCABULARY, 2, ""), TransferSizes())
    with pytest.raises(RamifyError, match="its hidden size is 32, not 64"):
        generate(model, PROMPT, HiddenTransfer(head=other), max_new_tokens=2)


def test_the_bundled_head_is_worth_its_training():
    """Sampled text of the demo model, by what its maps add over copies of the present."""
    demo = load("demo", dtype="float32")
    trained = load_head(HiddenTransferHead, None, demo)
    untrained = HiddenTransferHead(trained.fit, trained.sizes).requires_grad_(False)
    untrained.accuracy.copy_(trained.accuracy)
    calls = []
    for head in (trained, untrained):
        method = HiddenTransfer(head=head, budget=40)
        found = [
            generate(demo, prompt.text, method, max_new_tokens=32, seed=1, do_sample=True, temperature=0.7)
            for prompt in held_out_prompts(3)
        ]
        calls.append(sum(result.stats.target_calls for result in found))
    assert calls[0] < 0.92 * calls[1]
