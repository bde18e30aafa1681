"""Passes over some layers, and ghost nodes that join a pass behind some layer: equal to what they stand for."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, FUSED, build, lm, text
from torch import Tensor

from ramify.engine.session import Session
from ramify.engine.tree import Ghosts, TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM, load
from ramify.models.layers import decoder_layers

TARGETS = [*FAMILIES, *(f"{family} transformers" for family in FUSED)]
SHAPE = TreeShape.of([-1, 0, 0, 1, 1, 2, 3, 5])
TREE = TokenTree(torch.tensor(text(8, 5)), SHAPE)
PREFIX = text(14)  # longer than the sliding windows


def target(name: str) -> CausalLM:
    family, _, how = name.partition(" ")
    return lm(family, how)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.std()), rtol=2e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_two_sessions_over_half_the_layers_are_the_whole_model(name: str):
    model = target(name)
    whole, lower, upper = Session(model), Session(model, last=1), Session(model, first=1)
    for tree, kept in ((TokenTree.chain(PREFIX), range(14)), (TREE, SHAPE.path(6)), (TREE, SHAPE.path(7))):
        expected = whole.score(tree, hidden_layers=[1, -1])
        states = lower.score(tree, logits_at=[], hidden_layers=[0, 1])
        assert states.logits.shape == (1, 0, 96)
        close(states.hidden[1], expected.hidden[1])
        found = upper.score(tree, states=states.hidden[1], hidden_layers=[1, -1])
        close(found.logits, expected.logits)
        close(found.hidden[-1], expected.hidden[-1])
        for session in (whole, lower, upper):
            session.keep([kept])


@pytest.mark.parametrize("name", ["llama", "llama transformers", "gpt2", "gemma2", "mixtral"])
def test_an_early_exit_is_a_model_of_fewer_layers(name: str):
    family, _, _how = name.partition(" ")
    short = build(family)
    layers = decoder_layers(short)
    del layers[1:]
    short.config.update({"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    if getattr(short.config, "layer_types", None):
        short.config.layer_types = short.config.layer_types[:1]
    expected = Session(load(short)).score(TREE).logits
    close(Session(target(name), last=1).score(TREE).logits, expected)


def test_a_deeper_session_catches_up_with_what_left_early():
    """Tokens that left at layer 1 enter the rest later, several at a time, at their own positions."""
    model = target("qwen3")
    whole, lower, upper = Session(model), Session(model, last=1), Session(model, first=1)
    waiting: list[Tensor] = []
    for place, token in enumerate(PREFIX):
        expected = whole.score(TokenTree.chain([token]))
        whole.keep([[0]])
        waiting.append(lower.score(TokenTree.chain([token]), hidden_layers=[1]).hidden[1])
        lower.keep([[0]])
        if place % 4 == 3:
            found = upper.score(TokenTree.chain([0] * len(waiting)), states=torch.cat(waiting, dim=1))
            close(found.logits[:, -1:], expected.logits)
            upper.keep([range(len(waiting))])
            waiting.clear()
    assert (lower.lengths, upper.lengths) == ([14], [12])


def ghosts(layer: int, weight: Tensor) -> Ghosts:
    """Below the pending token, below nodes 2 and 4, and a chain of two; kinds select a matrix."""
    return Ghosts(
        (-1, 8, 2, 4, 10), (0, 1, 0, 0, 1), layer, lambda x, kinds: torch.einsum("gd,gde->ge", x, weight[kinds])
    )


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", TARGETS)
def test_ghosts_are_nodes_that_enter_late_and_leave_nothing(name: str, layer: int):
    model = target(name)
    weight = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1)) / 6
    tree = TokenTree(TREE.tokens, SHAPE, ghosts=ghosts(layer, weight)).rooted(7)
    session, plain = Session(model), Session(model)
    for each in (session, plain):
        each.prefill([PREFIX])
    found = session.score(tree, hidden_layers=[0, 1, -1])
    expected = plain.score(TREE.rooted(7), hidden_layers=[0, 1, -1])
    close(found.logits, expected.logits)
    for each, states in expected.hidden.items():
        close(found.hidden[each], states)
    assert (found.rows_run, found.ghosts.shape) == (14, (1, 5, 96))
    # The same ghosts as nodes of the tree itself, entering with these states.
    parents = (*tree.shape.parents, *tree.ghosts.parents)
    whole = TokenTree(torch.cat([tree.tokens, torch.zeros(5, dtype=torch.long)]), TreeShape.of(parents))
    where = tree.ghosts.on(tree.shape)
    assert where.sources.tolist() == [0, 0, 3, 5, 3]
    given = tree.ghosts.states(expected.hidden[layer][0, where.sources], where.kinds)
    if layer == 0:
        embeddings = torch.cat([torch.zeros(9, 32), given])
        soft = torch.tensor([False] * 9 + [True] * 5)
        other = Session(model)
        other.prefill([PREFIX])
        if not name.startswith("gpt2"):  # whose states behind the embeddings hold positions as well
            close(found.ghosts, other.score(TokenTree(whole.tokens, whole.shape, {}, embeddings, soft)).logits[:, 9:])
    else:
        lower, upper = Session(model, last=1), Session(model, first=1)
        states = lower.score(TokenTree.chain(PREFIX), hidden_layers=[1]).hidden[1]
        upper.score(TokenTree.chain(PREFIX), states=states)
        upper.keep([range(14)])
        states = torch.cat([expected.hidden[1], given[None]], dim=1)
        close(found.ghosts, upper.score(whole, states=states).logits[:, 9:])
    # What is kept is what would have been kept without them.
    session.keep([tree.shape.path(7)])
    plain.keep([tree.shape.path(7)])
    close(session.score(TREE).logits, plain.score(TREE).logits)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3 transformers"])
def test_ragged_rows_with_and_without_ghosts(name: str, layer: int):
    model = target(name)
    weight = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(2)) / 6
    texts = [text(14, 1), text(3, 2), text(23, 3)]
    trees = [
        TokenTree(TREE.tokens, SHAPE, ghosts=ghosts(layer, weight)).rooted(1),
        TokenTree.chain([5, 6]).rooted(2),
        TokenTree.chain([3]),
    ]
    trees[2] = TokenTree(trees[2].tokens, trees[2].shape, ghosts=Ghosts((0, 1), (1, 0), layer, trees[0].ghosts.states))
    batch = Session(model, 3)
    batch.prefill(texts)
    found = batch.score(trees)
    for row, tree in enumerate(trees):
        alone = Session(model)
        alone.prefill([texts[row]])
        expected = alone.score(tree)
        close(found.logits[row, : len(tree)], expected.logits[0])
        if tree.ghosts is not None:
            close(found.ghosts[row, : len(tree.ghosts)], expected.ghosts[0])
    batch.keep([[0, 1], [0], [0]])
    assert batch.lengths == [16, 4, 24]


def test_a_cut_takes_the_ghosts_below_it():
    states = torch.zeros(2, 2)
    tree = TokenTree(TREE.tokens, SHAPE, ghosts=Ghosts((-1, 8, 9, 3, 4, 0), (0, 1, 2, 3, 4, 5), 0, lambda x, k: states))
    assert tree.cut(9) is tree
    cut = tree.cut(3)
    assert cut.shape.parents == (-1, 0, 0, 1, 1, 2)
    assert (cut.ghosts.parents, cut.ghosts.kinds) == ((-1, 6, 7, 0), (0, 1, 2, 5))
    assert tree.cut(1).ghosts.parents == (-1,)
    alone = TokenTree(torch.tensor([], dtype=torch.long), TreeShape.of([]), ghosts=Ghosts((-1, 0), (0, 1), 0, None))
    assert alone.cut(1).ghosts.parents == (-1,)
    assert alone.rooted(3).ghosts.parents == (0, 1)


def test_what_is_refused():
    model = target("llama")
    with pytest.raises(RamifyError, match="no range of the 2 layers"):
        Session(model, first=2)
    with pytest.raises(RamifyError, match="states enter a session"):
        Session(model, first=1).score(TREE)
    with pytest.raises(RamifyError, match="ghosts list parents before children"):
        Ghosts((0,), (0,), 0, lambda x, k: x).on(TreeShape.of([]))
    some = Ghosts((0,), (0,), 1, lambda x, k: x)
    with pytest.raises(RamifyError, match="same layer"):
        Session(model, 2).score(
            [
                TokenTree(torch.tensor([1]), TreeShape.chain(1), ghosts=g)
                for g in (some, Ghosts((0,), (0,), 0, some.states))
            ]
        )
    with pytest.raises(RamifyError, match="cannot run some of its layers only"):
        Session(lm("bloom"), last=1)
