"""Chimera: its trigrams, its training layout held to step-by-step drafting, its trees, its cache."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import heads
import pytest
import torch
from families import build, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ramify.methods.draft.chimera as chimera_module
import ramify.methods.draft.chimera_encoder as chimera_encoder
from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.session import Session
from ramify.errors import RamifyError
from ramify.methods.draft.borrowed import ranked, ranked_coupled
from ramify.methods.draft.chimera import PAPER, Chimera
from ramify.methods.draft.chimera_draft import BranchDrafter, Plan
from ramify.methods.draft.chimera_encoder import Encoder
from ramify.methods.draft.chimera_head import ChimeraHead, started, windows_of_three
from ramify.methods.draft.template import Template
from ramify.methods.head import load_head, teach
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load

WINDOW = torch.tensor([text(20, 1), text(20, 2)])
VARIANTS: list[dict[str, Any]] = [
    {},
    {"head": "full", "start": "target"},
    {"trigram": False},
    {"context": False},
    {"residual": False},
    {"attention": 8, "key_heads": 2, "width": 24, "theta": 100.0},
]


def new(model: CausalLM, *, shaken: float = 0.3, **options: Any) -> ChimeraHead:
    """A head whose every weight differs from where it starts."""
    torch.manual_seed(0)
    head = ChimeraHead.new(model, **{"heads": 3} | options)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(shaken * weight.shape[-1] ** -0.5 * torch.randn_like(weight))
    return head.requires_grad_(False)


@functools.cache
def frozen() -> CausalLM:
    """The target of training, as loading a folder gives it."""
    return load(build("llama").requires_grad_(False))


def context(tokens: list[int]) -> Context:
    return Context(tokens, 99, Sampler(), torch.Generator(), len(tokens))


def states(model: CausalLM, tokens: Tensor) -> Tensor:
    return teach(model, tokens, [-1]).hidden[-1].float()


def drafter(head: ChimeraHead, model: CausalLM, template: Template, tokens: list[int]) -> BranchDrafter:
    """One that has read all of ``tokens`` but the last."""
    made = BranchDrafter(Encoder(head, model), Plan(template, model))
    made.observe_prompt(tokens[:-1], None, {-1: states(model, torch.tensor([tokens[:-1]]))[0]})
    return made


def test_the_worked_trigrams():
    tokens = torch.tensor([5, 7, 9, 4])
    grams = windows_of_three(tokens)
    assert grams[0].tolist() == [5, 5, 5]
    assert started(grams[1:]).tolist() == [[5, 7, 7], [5, 7, 9], [7, 9, 4]]
    assert grams[2].tolist() == [5, 7, 9]  # the second place's own start ends there


def test_without_enrichment_the_trigram_is_linear():
    head = new(lm("llama"))
    embedded = torch.randn(5, 3, 32)
    assert not torch.allclose(head.trigrams(embedded), embedded.flatten(1) @ head.reduce.weight.T, atol=1e-3)
    head.enrich.weight.zero_()
    head.enrich.bias.zero_()
    torch.testing.assert_close(head.trigrams(embedded), embedded.flatten(1) @ head.reduce.weight.T)


@pytest.mark.parametrize("kind", ["shared", "full"])
def test_at_first_a_head_says_what_the_target_says(kind: str):
    model = lm("qwen3")
    head = ChimeraHead.new(model, head=kind, start="target")
    taught = teach(model, WINDOW, [-1])
    h = taught.hidden[-1]
    torch.testing.assert_close(head.guess(model, 0, h, torch.zeros_like(h)), taught.logits)
    # And what it reads of a branch is the newest token's embedding, as it is.
    embedded = torch.randn(4, 3, 32)
    torch.testing.assert_close(head.trigrams(embedded), embedded[:, 2])


def test_by_default_a_head_begins_without_an_opinion():
    model = lm("qwen3")
    head = ChimeraHead.new(model).requires_grad_(False)
    taught = teach(model, WINDOW, [-1])
    found, outputs = head.unroll(model, taught.hidden[-1], WINDOW, "given")
    assert not any(bool(z.any()) for z in found)
    scale = outputs[0].detach().norm() / taught.hidden[-1][:, : outputs[0].shape[1]].norm()
    assert 0.5 < float(scale) < 2.0


@pytest.mark.parametrize(("options", "table"), [*((each, 1 << 26) for each in VARIANTS), ({}, 0)], ids=str)
def test_training_sees_what_drafting_sees(options: dict[str, Any], table: int, monkeypatch: pytest.MonkeyPatch):
    """Every z and every guess of the training layout, against drafts of chains from every position.

    With the trigrams' products looked up in a ``table``, and multiplied each time.
    """
    monkeypatch.setattr(chimera_encoder, "TABLE", table)
    model = lm("llama")
    head = new(model, **options)
    found, _ = head.unroll(model, states(model, WINDOW), WINDOW, "guess")
    chain = Template(((0,), (0, 0), (0, 0, 0)))
    for row, tokens in enumerate(WINDOW.tolist()):
        for j in range(found[0].shape[1]):
            made = drafter(head, model, chain, tokens[: j + 2])
            seen: list[Tensor] = []
            score = made.encoder.scores
            made.encoder.scores = lambda *given, score=score, seen=seen: (seen.append(score(*given)), seen[-1])[1]
            drafted = made.draft(context(tokens[: j + 2]))
            assert drafted.tokens.tolist() == [int(z[row, j].argmax()) for z in found]
            for z, expected in zip(seen, found, strict=True):
                torch.testing.assert_close(z[0], expected[row, j], atol=1e-5, rtol=1e-5)


TREE = Template(((0,), (2,), (0, 1), (1,), (2, 0), (0, 0), (2, 0, 1), (0, 1, 0), (0, 1, 2), (2, 1)))


def test_every_node_of_a_tree_is_read_along_its_own_branch():
    model = lm("mistral")
    head = new(model)
    tokens = WINDOW[0].tolist()
    tree = drafter(head, model, TREE, tokens).draft(context(tokens))
    assert tree.shape is TREE.shape
    for node, ranks in enumerate(TREE.ranks):
        path = tree.tokens[list(tree.shape.path(node))].tolist()
        # As if the corpus had gone on along this path: the row of the last state, at the depth of the node.
        told = torch.tensor([[*tokens, *path, 0, 0, 0]])[:, : len(tokens) + 2]
        found, _ = head.unroll(model, states(model, told), told, "given")
        best = found[len(path) - 1][0, -1].topk(3).indices
        assert int(best[ranks[-1]]) == path[-1]


def test_nothing_leaks_from_later_tokens():
    model = lm("llama")
    head = new(model)
    told = states(model, WINDOW)
    changed = WINDOW.clone()
    changed[:, 10] = (changed[:, 10] + 7) % 96
    before, _ = head.unroll(model, told, WINDOW, "given")
    after, _ = head.unroll(model, states(model, changed), changed, "given")
    assert torch.equal(before[0][:, :9], after[0][:, :9])  # row j of step 1 reads tokens up to j + 1
    assert not torch.allclose(before[0][:, 9], after[0][:, 9])
    assert torch.equal(before[1][:, :8], after[1][:, :8])
    assert not torch.allclose(before[1][:, 8], after[1][:, 8])


def test_the_cache_holds_verified_states_only():
    """After steps that accept nothing, a part, and all of a draft: the keys of a drafter that read the text at once."""
    model = lm("llama")
    head = new(model)
    tokens = text(9, 4)
    made = drafter(head, model, TREE, tokens)
    session = Session(model)
    session.prefill([tokens[:-1]])
    for path in ([0], [0, 1], [0, 1, 3], [0, 2, 5, 7], [0]):
        drafted = made.draft(context(tokens)).rooted(tokens[-1])
        scores = session.score(drafted, hidden_layers=[-1])
        session.keep([path])
        committed = [*drafted.tokens[path[1:]].tolist(), 5]
        tokens = tokens + committed
        made.observe(Outcome(drafted, scores.logits[0], path, committed, {-1: scores.hidden[-1][0]}))
    fresh = drafter(head, model, TREE, tokens)
    assert made.known == fresh.known == len(tokens) - 1
    assert made.draft(context(tokens)).tokens.tolist() == fresh.draft(context(tokens)).tokens.tolist()
    assert made.text.length == fresh.text.length == len(tokens) - 1
    size = len(tokens) - 1
    torch.testing.assert_close(made.text.keys[:, :size], fresh.text.keys[:, :size], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("length", [6, 12])
def test_what_is_taken_back_is_read_anew(length: int, drafts: bool):
    """From within what was read, or within what a step added; with or without a draft since."""
    model = lm("llama")
    head = new(model)
    tokens = text(12, 5)
    made = drafter(head, model, TREE, tokens)
    tree = made.draft(context(tokens)).rooted(tokens[-1])
    tokens = [*tokens, *tree.tokens[[1, 3]].tolist(), 5]
    hidden = states(model, torch.tensor([tokens[:-1]]))[0, 11:]
    made.observe(Outcome(tree, torch.zeros(11, 96), [0, 1, 2], tokens[-3:], {-1: hidden}))
    assert made.known == 14
    if drafts:
        made.draft(context(tokens))
    other = [*tokens[:length], *text(5, 6)]
    made.rewind(length)
    assert made.known == length
    assert len(made.draft(context(other[: length + 1])).tokens) == 0  # the last state is not known
    made.observe_prompt(other[length:-1], None, {-1: states(model, torch.tensor([other[:-1]]))[0, length:]})
    fresh = drafter(head, model, TREE, other)
    assert made.draft(context(other)).tokens.tolist() == fresh.draft(context(other)).tokens.tolist()


def test_an_oracle_is_accepted_whole():
    """A target whose layers add nothing follows the newest token alone; so does an untrained head that ignores h."""
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    target = load(model)
    head = ChimeraHead.new(target, start="target")
    with torch.no_grad():
        for each in head.heads:
            each.weight[:, :32] = 0.0
    found = generate(target, text(6), Chimera(head=head, tree="paper"), max_new_tokens=30, do_sample=False)
    assert found.tokens == generate(target, text(6), "greedy", max_new_tokens=30).tokens
    assert (found.stats.target_calls, found.stats.tokens_per_call) == (6, 5.0)


@functools.cache
def shuffled(family: str) -> Chimera:
    return Chimera(head=new(lm(family)), tree="paper")


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_random_head_changes_nothing(family: str):
    for settings_ in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7}):
        plain = "sample" if settings_["do_sample"] else "greedy"
        prompts = [text(1), text(2, 1), text(13, 2)]
        expected = generate(lm(family), prompts, plain, max_new_tokens=20, seed=3, **settings_)
        found = generate(lm(family), prompts, shuffled(family), max_new_tokens=20, seed=3, **settings_)
        assert [each.tokens for each in found] == [each.tokens for each in expected]
        assert all(each.stats.drafted > 0 for each in found)


def test_the_published_tree():
    assert len(PAPER.ranks) == 25
    assert [PAPER.shape.depth.count(depth) for depth in range(5)] == [4, 8, 8, 3, 2]
    model = lm("llama")
    for count, nodes, expected in ((5, None, 25), (4, None, 23), (2, None, 12), (4, 6, 6)):
        method = Chimera(head=ChimeraHead.new(model, heads=count), tree="paper", nodes=nodes)
        result = generate(model, text(8), method, max_new_tokens=20)
        assert len(result.steps[0][0].tree) == expected


@st.composite
def templates(draw: Any) -> Template:
    paths: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from([(), *paths]))
        paths.append((*parent, draw(st.integers(0, 3).filter(lambda r, p=parent: (*p, r) not in paths))))
    return Template(tuple(paths))


@given(templates())
@settings(max_examples=60, deadline=None)
def test_a_plan_draws_any_template(template: Template):
    """Replayed on names instead of tokens: row names grow by rank, and the tree comes out as the template has it."""
    plan = Plan(template, lm("llama"))
    rows: list[tuple[int, ...]] = [()]
    all_rows: list[tuple[int, ...]] = []
    found: list[tuple[int, ...]] = []
    children: list[tuple[int, ...]] = [()]
    for step, level in enumerate(plan.levels):
        grown = [children[place] for place in level.nodes.tolist()]
        if step:
            assert [rows[place] for place in level.above.tolist()] == [path[:-1] for path in grown]
        rows = grown
        all_rows += rows
        for path, line in zip(rows, level.mask.tolist(), strict=True):
            assert [other for other, value in zip(all_rows, line, strict=True) if value == 0] == [
                other for other in all_rows if path[: len(other)] == other
            ]
        guesses = [(*path, rank) for path in rows for rank in range(level.ranks)]
        children = [guesses[place] for place in level.chosen.tolist()]
        found += children
    assert [found[place] for place in plan.order.tolist()] == list(template.ranks)


def test_ranks_are_measured_and_lay_out_the_tree():
    model = lm("llama")
    head = new(model, heads=2)
    assert generate(model, text(8), Chimera(head=head, nodes=9), max_new_tokens=6).stats.drafted == 0  # never measured
    head.settle(model, WINDOW)
    found, _ = head.unroll(model, states(model, WINDOW), WINDOW, "given")
    base = teach(model, WINDOW).logits
    for step, z in enumerate(found):
        hit = (z.argmax(-1) == base[:, step + 1 : step + 1 + z.shape[1]].argmax(-1)).float().mean()
        assert float(head.accuracy[0, step, 0]) == pytest.approx(float(hit))
        assert head.measure(model, WINDOW)[f"agreement at +{step + 2}"] == pytest.approx(float(hit))
    assert bool((head.accuracy.sum(-1) <= 1.0001).all())
    head.accuracy[0] = torch.tensor([[0.5, 0.2] + [0.0] * 6, [0.4, 0.3] + [0.0] * 6])
    head.accuracy[1] = torch.tensor([[0.2, 0.1] + [0.0] * 6, [0.0] * 8])
    head.accuracy[2] = torch.tensor([[0.4] + [0.0] * 7, [0.3] + [0.0] * 7])
    shapes = []
    for sampled, coupled in ((False, True), (True, False), (True, True)):
        method = Chimera(head=head, nodes=4, coupled=coupled)
        steps = generate(model, text(8), method, max_new_tokens=9, do_sample=sampled, seed=1).steps
        shapes.append(steps[0][0].tree.shape.parents)
    assert shapes == [(-1, -1, 0, 0), (-1, -1), (-1, 0)]


def test_accuracy_in_view_of_the_noise() -> None:
    """A guess that is the target's own is always right then; one that knows nothing is not."""
    logits = 2 * torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(0))
    right = ranked_coupled(logits, logits, 3) / 2
    assert right.tolist() == [1.0, 0.0, 0.0]
    known, blind = ranked_coupled(logits + torch.randn_like(logits), logits, 3)[0], ranked(logits, logits, 3)[1, 0]
    assert float(ranked_coupled(torch.zeros_like(logits), logits, 3)[0]) < float(blind) < float(known) < 2.0


def test_size_and_depth_follow_the_cost_curve(monkeypatch: pytest.MonkeyPatch):
    model = lm("llama")
    head = new(model, heads=4)
    head.accuracy[:, :, 0] = 0.8
    encoder = Encoder(head, model)
    curve = CostCurve("", [1, 4, 8, 64], [1.0, 1.0, 1.0, 8.0])
    monkeypatch.setattr(chimera_module, "calibrate", lambda _: curve)
    every = [Template.likeliest([[0.8]] * depth, 9) for depth in range(1, 5)]
    for level, depth in ((0.0, 4), (0.3, 3), (0.9, 0)):
        monkeypatch.setattr(chimera_module, "level_beside_pass", lambda _, level=level: level)
        assert len(chimera_module.fastest(encoder, every).ranks) == depth
        method = Chimera(head=head)
        drafted = generate(model, text(8), method, max_new_tokens=9).steps[0][0].tree
        assert len(drafted) == depth


@pytest.mark.parametrize("options", [*VARIANTS, {"target": "hard"}, {"feed": "guess"}, {"detach": False}], ids=str)
def test_it_learns(options: dict[str, Any]):
    model = frozen()
    torch.manual_seed(0)
    head = ChimeraHead.new(model, **{"heads": 2} | options)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = head.loss(model, WINDOW)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    head.loss(model, WINDOW).backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in head.parameters())


def test_detached_steps_differ_in_their_gradients_only():
    gradients, losses = [], []
    for detach in (True, False):
        head = new(frozen(), detach=detach).requires_grad_(True)
        loss = head.loss(frozen(), WINDOW)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(head.layer.qkv.weight.grad)
    assert losses[0] == losses[1]
    assert not torch.allclose(*gradients)


def test_a_saved_head_drafts_the_same(tmp_path: Path):
    model = lm("llama")
    head = new(model)
    head.settle(model, WINDOW)
    head.save(tmp_path)
    again = load_head(ChimeraHead, tmp_path, model)
    assert again.sizes == head.sizes
    tokens = text(9)
    one, other = (drafter(each, model, TREE, tokens).draft(context(tokens)) for each in (head, again))
    assert one.tokens.tolist() == other.tokens.tolist()


def test_bad_input():
    model = lm("llama")
    for make, sentence in (
        (lambda: Chimera(tree="papre"), "unknown tree 'papre'; did you mean 'paper'"),
        (lambda: Chimera(nodes=-1), "nodes must be at least 0, got -1"),
        (lambda: ChimeraHead.new(model, heads=0), "heads must be at least 1, got 0"),
        (lambda: ChimeraHead.new(model, head="ful"), "unknown head 'ful'; did you mean 'full'"),
        (lambda: ChimeraHead.new(model, feed="x"), "unknown feed 'x'"),
        (lambda: ChimeraHead.new(model, start="traget"), "unknown start 'traget'; did you mean 'target'"),
        (lambda: ChimeraHead.new(model, width=-3), "width must be at least 0"),
        (lambda: ChimeraHead.new(model, attention=5), "5 attention heads do not divide 32 into even parts"),
        (lambda: ChimeraHead.new(model, key_heads=3), "key_heads 3 do not divide the 4 attention heads"),
        (lambda: new(model).loss(model, WINDOW[:, :3]), "windows of 3 tokens are too short for 3 heads"),
        (lambda: generate(model, text(4), "chimera"), "there is no chimera head for"),
        (
            lambda: generate(
                lm("mixtral"), text(4), Chimera(head=ChimeraHead.new(load(build("llama", vocab_size=50))))
            ),
            "trained for another model than .*: its vocabulary is 96, not 50",
        ),
        (lambda: generate(model, text(9), Chimera(head=new(model), tree="paper", nodes=40)), "fewer than the 40"),
    ):
        with pytest.raises(RamifyError, match=sentence):
            make()


def test_drafts_in_view_of_the_noise_are_right_more_often_and_change_no_token() -> None:
    calls = [heads.calls_of_sampling(Chimera(nodes=7, coupled=coupled)) for coupled in (False, True)]
    assert calls[1] < calls[0]
