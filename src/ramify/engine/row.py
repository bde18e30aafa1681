"""A row: one sequence in flight, and what a step does to it on either side of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.sampling import NodeLaws
from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree
from ramify.engine.verify import Verdict, Verifier


class Row:
    """One sequence in flight: its committed tokens, of which the last is pending, its drafter, and when it ends.

    ``drafting``, ``verifying``: randomness of the drafter and of the verifier. ``finish``: why it ended, None before.
    """

    def __init__(self, index: int, request: Request, drafter: Drafter | None, device: torch.device) -> None:
        self.index, self.request, self.drafter = index, request, drafter
        self.tokens = list(request.prompt)
        self.start = len(request.padding)
        self.buffer = torch.zeros(self.start + request.max_length + 1, dtype=torch.long, device=device)
        self.length = self.start + len(self.tokens)
        self.buffer[: self.length] = torch.tensor([*request.padding, *self.tokens])
        seed = request.sampler.noise.seed
        self.drafting = torch.Generator().manual_seed(2 * seed + 1_000_000_007)
        self.verifying = torch.Generator().manual_seed(2 * seed + 1_000_000_008)
        self.finish: str | None = None

    @property
    def levels(self) -> int:
        """How deep a draft may be, so that it and the target's own token stay within ``max_length``."""
        return self.request.max_length - len(self.tokens) - 1

    def become(self, tokens: Sequence[int]) -> int:
        """Make ``tokens`` the text, at most ``max_length``; returns how many of the first ones were there already."""
        same = _shared(self.tokens, tokens)
        self.tokens[same:] = tokens[same:]
        self.length = self.start + len(tokens)
        self.buffer[self.start + same : self.length] = torch.tensor(tokens[same:], dtype=torch.long)
        return same

    def draft(self, levels: int) -> TokenTree:
        """What the drafter proposes below the pending token, at most ``levels`` deep."""
        if self.drafter is None or levels < 1:
            return TokenTree.empty()
        context = Context(self.tokens, levels, self.request.sampler, self.drafting, self.length)
        return self.drafter.draft(context).cut(levels)

    def judge(
        self, tree: TokenTree, logits: Tensor, verifier: Verifier, best: Callable[[], list[int]] | None = None
    ) -> tuple[Verdict, tuple[int, ...]]:
        """The verdict on ``tree``, with ``logits`` [N, V], and what it committed; ``best`` as ``NodeLaws`` takes it."""
        laws = NodeLaws(self.request.sampler, tree, logits, self.buffer, self.length, best)
        verdict = verifier(tree, laws, self.verifying)
        return verdict, self.commit([*tree.tokens[list(verdict.path[1:])].tolist(), verdict.token])

    def learn(
        self,
        tree: TokenTree,
        scores: Scores,
        path: Sequence[int],
        tokens: Sequence[int],
        place: int = 0,
        mine: Sequence[int] | None = None,
    ) -> None:
        """Tell the drafter what became of ``tree``, unless the sequence has ended; arguments as of ``Outcome``.

        ``scores``: of all rows, this one at ``place``.
        """
        if self.drafter is None or self.finish:
            return
        size = len(tree)
        hidden = {layer: states[place, :size] for layer, states in scores.hidden.items()}
        ghosts = None
        if tree.ghosts is not None and scores.ghosts is not None:
            ghosts = scores.ghosts[place, : len(tree.ghosts)]
        self.drafter.observe(Outcome(tree, scores.logits[place, :size], path, tokens, hidden, ghosts, mine))

    def commit(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Append tokens one by one until the sequence ends; returns those that were appended."""
        request = self.request
        for count, token in enumerate(tokens, 1):
            self.tokens.append(token)
            self.buffer[self.length] = token
            self.length += 1
            if token in request.stop_tokens or (request.criteria and self._criterion_met()):
                self.finish = "stop"
            elif len(self.tokens) >= request.max_length:
                self.finish = "length"
            if self.finish:
                return tuple(tokens[:count])
        return tuple(tokens)

    def _criterion_met(self) -> bool:
        ids = self.buffer[None, : self.length]
        return any(bool(torch.as_tensor(criterion(ids, None)).any()) for criterion in self.request.criteria)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))


def read(session: Session, rows: Sequence[Row], texts: Sequence[Sequence[int]]) -> int:
    """Append ``texts[i]`` to the cache of row i for the drafters that want it to see; returns the passes."""
    drafters = [row.drafter for row in rows]

    def observe(row: int, tokens: list[int], logits: Tensor | None, hidden: dict[int, Tensor]) -> None:
        drafter = drafters[row]
        if drafter is not None and (drafter.wants_prompt_logits or drafter.hidden_layers):
            drafter.observe_prompt(tokens, logits if drafter.wants_prompt_logits else None, hidden)

    logits = any(drafter is not None and drafter.wants_prompt_logits for drafter in drafters)
    hidden = hidden_layers(rows)
    return session.prefill(texts, observe=observe if logits or hidden else None, logits=logits, hidden_layers=hidden)


def hidden_layers(rows: Sequence[Row]) -> list[int]:
    """The target's layers whose states some drafter wants."""
    return sorted({layer for row in rows if row.drafter is not None for layer in row.drafter.hidden_layers})
