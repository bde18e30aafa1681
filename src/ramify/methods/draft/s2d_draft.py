"""A draft model with several exits at work on one sequence: a session for each segment of its layers.

Segment j runs the layers behind exit j − 1 up to exit j and has read as many tokens as have gone that deep. What left
at exit j and has not gone deeper waits in a queue P_j, as the plain states that left the layer, before the norm:

    |segment 1| ≥ |segment 2| ≥ …,        |segment j| = |segment j + 1| + |P_j|

A token that goes deeper takes the queue along: all of it enters the next segment in one pass, at its own positions, so
what was skipped is filled in and every segment always holds what a pass over the whole text would have left there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.models.causal import CausalLM

FEW = 8  # new tokens that enter with the next draft; more are read by all segments at once
CHUNK = 512


class Segments:
    """``tokens``: what the first segment has read. ``waiting``: by exit but the last, its queue [1, n, D]."""

    def __init__(self, lm: CausalLM, exits: Sequence[int]) -> None:
        self.exits = list(exits)
        self.sessions = [Session(lm, first=first, last=last) for first, last in pairwise((0, *exits))]
        nothing = torch.empty(1, 0, int(lm.text_config.hidden_size), dtype=lm.dtype, device=lm.device)
        self.waiting = [nothing] * (len(exits) - 1)
        self.tokens: list[int] = []

    @property
    def lengths(self) -> list[int]:
        """How many tokens every segment has read."""
        return [session.lengths[0] for session in self.sessions]

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Forget what is not the beginning of ``tokens``; returns those of them that are still to be entered.

        At least the last one is. When more than a few are new, the others are read by all segments, without exits.
        """
        same = 0
        for mine, theirs in zip(self.tokens, tokens[:-1], strict=False):
            if mine != theirs:
                break
            same += 1
        self.truncate(same)
        if len(tokens) - same > FEW:
            for start in range(same, len(tokens) - 1, CHUNK):
                self.enter(tokens[start : min(start + CHUNK, len(tokens) - 1)])
                for place in range(1, len(self.exits)):
                    self.deepen(place)
        return list(tokens[len(self.tokens) :])

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, cached or waiting."""
        lengths = [min(each, length) for each in self.lengths]
        for session, each in zip(self.sessions, lengths, strict=True):
            session.truncate([each])
        for place, (early, late) in enumerate(pairwise(lengths)):
            self.waiting[place] = self.waiting[place][:, : early - late]
        self.tokens = self.tokens[:length]

    def enter(self, tokens: Sequence[int]) -> Tensor:
        """Read new tokens with the first segment; logits [V] of exit 1 after the last of them."""
        self.tokens += tokens
        return self._run(0, TokenTree.chain(tokens), None)

    def deepen(self, place: int) -> Tensor:
        """Send the queue before segment ``place`` (counted from 0) into it; logits [V] behind it, after the last."""
        states = self.waiting[place - 1]
        self.waiting[place - 1] = states[:, :0]
        return self._run(place, TokenTree.chain([0] * states.shape[1]), states)

    def _run(self, place: int, chain: TokenTree, states: Tensor | None) -> Tensor:
        layer = [self.exits[place]] if place < len(self.waiting) else []
        session = self.sessions[place]
        scores = session.score(chain, logits_at=[len(chain) - 1], hidden_layers=layer, states=states)
        session.keep([range(len(chain))])
        for left in scores.hidden.values():
            self.waiting[place] = torch.cat([self.waiting[place], left], dim=1)
        return scores.logits[0, 0]
