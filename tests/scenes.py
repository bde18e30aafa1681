"""What a forward pass may be asked for, as small plays on a session: two forwards must give the same scores in each."""

from __future__ import annotations

import torch
from families import FUSED, WINDOW, text

from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.models.causal import CausalLM

SHAPE = TreeShape.of([-1, 0, 0, 1, 1, 2, 3, 5])
TREE = TokenTree(torch.tensor(text(8, 5)), SHAPE)
# Gemma 2 has no sdpa: it caps its attention scores.
FORMS = [(family, how) for family in FUSED for how in ("eager", "sdpa") if (family, how) != ("gemma2", "sdpa")]


def every(lm: CausalLM) -> list[int]:
    """All layers whose hidden states can be wanted, the last one by both its names."""
    return [*range(lm.layers + 1), -1]


def chain(lm: CausalLM) -> list[Scores]:
    session = Session(lm)
    first = session.score(TokenTree.chain(text(9)), hidden_layers=every(lm))
    session.keep([range(9)])
    return [first, session.score(TokenTree.chain(text(9, 1)), hidden_layers=every(lm))]


def tree(lm: CausalLM) -> list[Scores]:
    session = Session(lm)
    first = session.score(TREE, hidden_layers=every(lm))
    session.prefill([text(5)])
    return [first, session.score(TREE, hidden_layers=every(lm))]


def one_node(lm: CausalLM) -> list[Scores]:
    """With and without a mask: the window is outgrown on the way."""
    session = Session(lm)
    found = []
    for token in text(WINDOW + 4):
        found.append(session.score(TokenTree.chain([token]), hidden_layers=every(lm)))
        session.keep([[0]])
    return found


def rollback(lm: CausalLM) -> list[Scores]:
    session = Session(lm, capacity=4)
    session.prefill([text(7)])
    session.score(TREE)
    session.keep([SHAPE.path(6)])
    found = [session.score(TREE, hidden_layers=every(lm))]
    session.keep([SHAPE.path(7)])
    session.truncate([9])
    return [*found, session.score(TREE, hidden_layers=every(lm))]


def ragged(lm: CausalLM) -> list[Scores]:
    session = Session(lm, 3)

    def score(trees: list[TokenTree]) -> Scores:
        scores = session.score(trees, hidden_layers=every(lm))
        for row, tree in enumerate(trees):  # what follows a row's own nodes means nothing
            with torch.inference_mode():
                for given in (scores.logits, *scores.hidden.values()):
                    given[row, len(tree) :] = 0.0
        return scores

    session.prefill([text(14, 1), text(3, 2), text(23, 3)], chunk=5)
    found = [score([TREE, TokenTree.chain([1, 2]), TokenTree.chain([5])])]
    session.keep([SHAPE.path(4), [0], [0]])
    session.select([2, 0, 0, 1])
    found.append(score([TokenTree.chain([3]), TREE, TREE, TREE]))
    session.keep([[0], SHAPE.path(7), SHAPE.path(3), [0]])
    return [*found, score([TREE] * 4)]


def beyond_the_window(lm: CausalLM) -> list[Scores]:
    """Two interleaved branches, so that a node's slot says nothing about its position."""
    parents = [-1, -1, *range(2 * WINDOW + 6)]
    deep = TokenTree(torch.tensor(text(len(parents), 9)), TreeShape.of(parents))
    session = Session(lm)
    session.prefill([text(2 * WINDOW + 3)])
    return [session.score(deep, hidden_layers=every(lm))]


def soft(lm: CausalLM) -> list[Scores]:
    embeddings = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    marks = torch.tensor([False, True, True, False] * 2)
    session = Session(lm)
    session.prefill([text(14)])
    first = session.score(TokenTree(TREE.tokens, SHAPE, {}, embeddings, marks), hidden_layers=every(lm))
    return [first, session.score(TREE)]


def some_logits(lm: CausalLM) -> list[Scores]:
    session = Session(lm, 2)
    session.prefill([text(9), text(12)])
    return [
        session.score([TREE, TREE], logits_at=wanted, hidden_layers=layers)
        for wanted, layers in (([0], [-1]), ([0, 1, 2], [1]), ([6, 0, 3], [-1]), ([7], [1]))
    ]


SCENES = (chain, tree, one_node, rollback, ragged, beyond_the_window, soft, some_logits)
