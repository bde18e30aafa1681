"""The draft–verify loop turned inside out: one sequence that its model continues a step at a time, when asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.engine.row import Row, hidden_layers, read
from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree
from ramify.engine.verify import Verifier, match
from ramify.models.causal import CausalLM

FEW = 8  # tokens that are read along with the next draft; more are worth passes of their own,
PIECE = 256  # of so many tokens at most


class Decoder:
    """One sequence of ``lm``, which may be set back: what a drafter that is itself a model decodes with.

    ``request``: text and settings, as for ``speculate``; it ends at ``max_length`` tokens and nowhere else.
    ``drafter``: proposes within this loop, as it would within ``speculate``; None for plain decoding. ``vocabulary``:
    the number of logits wanted, where it is not the model's own. ``rows_run``: nodes that the latest pass evaluated.
    """

    def __init__(
        self, lm: CausalLM, request: Request, drafter: Drafter | None = None, vocabulary: int | None = None
    ) -> None:
        self.limit = request.max_length
        # To the row there is always a next step, so the drafter hears of every one.
        endless = replace(request, max_length=self.limit + 1, stop_tokens=frozenset(), criteria=())
        self.row = Row(0, endless, drafter, lm.device)
        self.session = Session(lm, capacity=len(request.prompt) + 256)
        self.vocabulary = vocabulary or lm.vocab_size
        self.rows_run = 0
        self.begun = False
        if drafter is not None:
            drafter.start(self.row.tokens)

    @property
    def left(self) -> int:
        """How many tokens may still be added."""
        return self.limit - len(self.row.tokens)

    def follow(self, tokens: Sequence[int], generator: torch.Generator) -> None:
        """Make ``tokens``, fewer than ``max_length``, the text, keeping what was read of its beginning.

        All draws come from ``generator``, one for a whole hierarchy: a law is what it says only if no two draws share
        their randomness.
        """
        row = self.row
        row.drafting = row.verifying = generator
        known = len(row.tokens)
        same = row.become(tokens)
        kept = min(self.session.lengths[0], same, len(tokens) - 1)
        if row.drafter is not None and same < known:
            row.drafter.rewind(kept)
        self.session.truncate([kept])

    def step(self, levels: int = 0, verifier: Verifier = match) -> tuple[int, ...]:
        """One pass: draft up to ``levels`` deep, score, accept; returns the tokens that it adds, at most ``left``."""
        row, layers = self.row, hidden_layers([self.row])
        unread = self._unread()
        # Who drafts from the model's states must have seen all of them: then this pass is a plain one.
        blind = len(unread) > 0 and len(layers) > 0
        tree = row.draft(0 if blind else min(levels, self.left - 1)).rooted(row.tokens[-1])
        whole = tree
        for token in reversed(unread):
            whole = whole.rooted(token)
        scores = self._score(whole, layers)
        lead = len(unread)
        committed = [*unread[1:], *row.tokens[-1:]] if lead else []
        verdict, tokens = row.judge(tree, scores.logits[0, lead:], verifier)
        path = [*range(lead), *(lead + node for node in verdict.path)]
        # To the drafter, what was not read yet is what another one proposed, rightly.
        mine = [0, *range(lead + 1, len(whole))] if lead else None
        row.learn(whole, scores, path, [*committed, *tokens], mine=mine)
        self.session.keep([path])
        return tokens

    def _unread(self) -> list[int]:
        """The last tokens before the pending one that were not read, a few at most; reads those before them."""
        row, session = self.row, self.session
        if not self.begun:
            self.begun = True
            read(session, [row], [row.tokens[:-1]])
        while len(unread := row.tokens[session.lengths[0] : -1]) > FEW:
            piece = TokenTree.chain(unread[:PIECE])
            scores = self._score(piece, hidden_layers([row]))
            begin, path = session.lengths[0] + 1, range(len(piece))
            session.keep([path])
            row.learn(piece, scores, path, row.tokens[begin : begin + len(piece)], mine=[0])
        return unread

    def _score(self, tree: TokenTree, layers: Sequence[int]) -> Scores:
        scores = self.session.score(tree, hidden_layers=layers)
        self.rows_run = scores.rows_run
        if scores.logits.shape[-1] != self.vocabulary:
            scores = replace(scores, logits=_fit(scores.logits, self.vocabulary))
        return scores


def _fit(logits: Tensor, vocabulary: int) -> Tensor:
    """``logits`` [..., V] for the tokens 0 … vocabulary − 1: cut, or filled up with tokens that never come."""
    missing = vocabulary - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[..., :vocabulary]
