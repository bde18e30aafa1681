"""Token trees: worked shapes, tries, rooting and cutting with draws, refusals, and ancestor masks by brute force."""

from __future__ import annotations

import pytest
import torch
from families import fresh, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.engine.drawn import draw
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError

BINARY = [-1, 0, 0, 1, 1, 2, 3, 5]


@st.composite
def parents(draw: st.DrawFn, largest: int = 12) -> list[int]:
    return [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, largest)))]


def ancestors_by_walking(parents: list[int]) -> list[list[bool]]:
    table = []
    for node in range(len(parents)):
        seen = set()
        while node >= 0:
            seen.add(node)
            node = parents[node]
        table.append([other in seen for other in range(len(parents))])
    return table


def tree(tokens: list[int], parents: list[int]) -> TokenTree:
    return TokenTree(torch.tensor(tokens, dtype=torch.long), TreeShape.of(parents))


# ---- shapes ----


def test_worked_shape():
    shape = TreeShape.of([-1, 0, 0, 1])
    assert shape.ancestors.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert shape.depth == (0, 1, 1, 2)
    assert shape.depth_tensor.tolist() == [0, 1, 1, 2]
    assert shape.children == ((1, 2), (3,), (), (), (0,))
    assert [shape.path(node) for node in (-1, 0, 2, 3)] == [(), (0,), (0, 2), (0, 1, 3)]
    assert shape.rooted.parents == (-1, 0, 1, 1, 2)
    assert len(shape) == 4
    assert not shape.is_chain


def test_a_block_sees_itself():
    shape = TreeShape.block(2, 2)
    assert shape.ancestors.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert shape.depth == (0, 1, 2, 3)
    assert not shape.is_chain
    assert shape != TreeShape.chain(4)
    assert shape is TreeShape.block(2, 2)
    assert TreeShape.block(0, 3).ancestors.all()


def test_shapes_are_interned():
    assert TreeShape.of(BINARY) is TreeShape.of(tuple(BINARY))
    assert TreeShape.of([-1, 0, 1]) is TreeShape.chain(3)
    assert TreeShape.of(BINARY).rooted is TreeShape.of(BINARY).rooted
    assert TreeShape.chain(3).rooted is TreeShape.chain(4)


def test_several_roots():
    shape = TreeShape.of([-1, -1, 0, 1])
    assert shape.children[-1] == (0, 1)
    assert shape.ancestors.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_the_empty_shape():
    shape = TreeShape.of([])
    assert (len(shape), shape.depth, shape.children, shape.is_chain) == (0, (), ((),), True)
    assert shape.ancestors.shape == (0, 0)
    assert shape.rooted is TreeShape.chain(1)


@pytest.mark.parametrize("wrong", [[0], [-1, 1], [-1, 2, 0], [-2], [-1, 0, 3]])
def test_parents_come_first(wrong: list[int]):
    with pytest.raises(RamifyError, match="lists parents before children, but node"):
        TreeShape.of(wrong)


@given(parents())
def test_ancestors_depth_and_paths_by_walking(given_parents: list[int]):
    shape = TreeShape.of(given_parents)
    table = ancestors_by_walking(given_parents)
    assert shape.ancestors.tolist() == table
    assert shape.depth == tuple(sum(row) - 1 for row in table)
    for node in range(len(shape)):
        assert shape.path(node) == tuple(other for other, seen in enumerate(table[node]) if seen)
        assert node in shape.children[given_parents[node]]
    assert sorted(node for places in shape.children for node in places) == list(range(len(shape)))
    assert shape.is_chain == (given_parents == list(range(-1, len(shape) - 1)))


@given(parents(), st.integers(-1, 6))
def test_cut_keeps_the_upper_levels(given_parents: list[int], levels: int):
    whole = tree(list(range(len(given_parents))), given_parents)
    kept = [node for node in range(len(whole)) if len(whole.shape.path(node)) <= levels]
    part = whole.cut(levels)
    assert part.tokens.tolist() == kept
    for place, node in enumerate(kept):
        assert part.tokens[list(part.shape.path(place))].tolist() == list(whole.shape.path(node))


# ---- tries ----


def test_from_paths_merges_prefixes():
    made = TokenTree.from_paths([[5, 6, 7], [5, 8], [9], [5, 6], [9, 6]])
    assert made.tokens.tolist() == [5, 6, 7, 8, 9, 6]
    assert made.shape.parents == (-1, 0, 1, 0, -1, 4)


def test_from_no_paths():
    assert len(TokenTree.from_paths([])) == len(TokenTree.from_paths([[], []])) == len(TokenTree.empty()) == 0


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=8))
def test_a_trie_holds_every_prefix_once_in_order(paths: list[list[int]]):
    made = TokenTree.from_paths(paths)
    held = [tuple(made.tokens[list(made.shape.path(node))].tolist()) for node in range(len(made))]
    wanted = [tuple(path[: size + 1]) for path in paths for size in range(len(path))]
    assert held == list(dict.fromkeys(wanted))


# ---- tokens on shapes ----


def test_chain():
    made = TokenTree.chain([4, 5, 6])
    assert made.tokens.dtype == torch.long
    assert made.shape is TreeShape.chain(3)


def test_rooted_moves_draws_and_soft_nodes():
    generator = torch.Generator().manual_seed(0)
    draws = {-1: draw(torch.ones(4), 2, generator), 0: draw(torch.ones(4), 1, generator)}
    soft = torch.tensor([False, True, False])
    made = TokenTree(torch.tensor([1, 2, 3]), TreeShape.of([-1, -1, 0]), draws, torch.ones(3, 2), soft).rooted(9)
    assert made.tokens.tolist() == [9, 1, 2, 3]
    assert made.shape.parents == (-1, 0, 0, 1)
    assert made.drawn == {0: draws[-1], 1: draws[0]}
    assert made.soft is not None
    assert made.embeddings is not None
    assert made.soft.tolist() == [False, False, True, False]
    assert made.embeddings.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]


def test_cut_keeps_the_draws_of_nodes_that_keep_their_children():
    generator = torch.Generator().manual_seed(0)
    shape = TreeShape.of([-1, -1, 1, 2, 0])
    draws = {node: draw(torch.ones(4), 1, generator) for node in (-1, 0, 1, 2)}
    whole = TokenTree(torch.tensor([1, 2, 3, 4, 5]), shape, draws, torch.arange(10.0).view(5, 2), torch.ones(5) > 0)
    middle = whole.cut(2)
    assert middle.tokens.tolist() == [1, 2, 3, 5]
    assert middle.shape.parents == (-1, -1, 1, 0)
    assert middle.drawn == {-1: draws[-1], 0: draws[0], 1: draws[1]}
    assert middle.embeddings is not None
    assert middle.embeddings.tolist() == [[0, 1], [2, 3], [4, 5], [8, 9]]
    top = whole.cut(1)
    assert top.tokens.tolist() == [1, 2]
    assert top.drawn == {-1: draws[-1]}
    assert len(whole.cut(0)) == 0
    assert whole.cut(0).drawn == {}
    assert whole.cut(3) is whole.cut(7) is whole


def test_cut_renumbers_draws_behind_removed_nodes():
    # Node 2 (too deep) goes, so node 3 becomes node 2.
    generator = torch.Generator().manual_seed(0)
    drawn = {3: draw(torch.ones(4), 1, generator)}
    part = TokenTree(torch.arange(6), TreeShape.of([-1, 0, 1, -1, 3, 4]), drawn).cut(2)
    assert part.tokens.tolist() == [0, 1, 3, 4]
    assert part.shape.parents == (-1, 0, -1, 2)
    assert part.drawn == {2: drawn[3]}


def test_refusals():
    with pytest.raises(RamifyError, match="3 nodes needs as many tokens"):
        TokenTree(torch.tensor([1, 2]), TreeShape.chain(3))
    with pytest.raises(RamifyError, match="3 nodes needs as many tokens"):
        TokenTree(torch.tensor([[1, 2, 3]]), TreeShape.chain(3))
    with pytest.raises(RamifyError, match="both their embeddings and the mask"):
        TokenTree(torch.tensor([1]), TreeShape.chain(1), embeddings=torch.ones(1, 2))
    with pytest.raises(RamifyError, match="both their embeddings and the mask"):
        TokenTree(torch.tensor([1]), TreeShape.chain(1), soft=torch.ones(1) > 0)


# ---- a tree's numbering means nothing ----


@settings(deadline=None, max_examples=25)
@given(st.data(), parents(9), st.sampled_from(["llama", "mistral", "gemma3"]))
def test_another_order_of_siblings_permutes_rows_only(data: st.DataObject, given_parents: list[int], family: str):
    below = [node + 1 for node in given_parents]
    original = tree([data.draw(st.integers(0, 95)) for _ in range(len(below) + 1)], [-1, *below])
    order = [0]  # a random topological order
    while len(order) < len(original):
        ready = [n for n in range(len(original)) if n not in order and original.shape.parents[n] in order]
        order.append(data.draw(st.sampled_from(ready)))
    place = {node: index for index, node in enumerate(order)} | {-1: -1}
    shuffled = tree(original.tokens[order].tolist(), [place[original.shape.parents[node]] for node in order])
    scores = []
    for each in (original, shuffled):
        session = Session(lm(family))
        session.prefill([text(12)])
        scores.append(session.score(each).logits[0])
    torch.testing.assert_close(scores[1], scores[0][order], atol=1e-5, rtol=1e-5)


def test_rows_of_a_tree_are_the_logits_of_its_paths():
    made = tree(text(8, 5), BINARY)
    session = Session(lm("llama"))
    session.prefill([text(20)])
    logits = session.score(made).logits[0]
    for node in range(8):
        alone = fresh("llama", text(20) + made.tokens[list(made.shape.path(node))].tolist())
        torch.testing.assert_close(logits[node], alone[-1], atol=1e-5, rtol=1e-5)
