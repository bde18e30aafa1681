"""How Chimera drafts: a template of ranks laid out in levels, and one call of the encoder for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.tree import TokenTree
from ramify.methods.draft.chimera_encoder import Encoder
from ramify.methods.draft.chimera_head import started
from ramify.methods.draft.small_layer import KEPT
from ramify.methods.draft.template import Template
from ramify.models.cache import send
from ramify.models.causal import CausalLM


@dataclass(frozen=True)
class Level:
    """One depth of a draft. Its R rows are the nodes of the depth before that have children.

    ``nodes`` [R]: their places among the nodes of that depth; ``above`` [R]: the rows of which those are children.
    ``mask`` [R, all rows so far], added to scores: 0 on a row's own branch. ``chosen`` [C]: the children, as places in
    the R × ``ranks`` best guesses.
    """

    nodes: Tensor
    above: Tensor
    mask: Tensor
    ranks: int
    chosen: Tensor


class Plan:
    """A template laid out for drafting: its ``levels``, and ``order``, which sorts their children as it does."""

    def __init__(self, template: Template, lm: CausalLM) -> None:
        self.shape = template.shape
        self.levels: list[Level] = []
        rows: list[tuple[int, ...]] = []
        above: list[tuple[int, ...]] = [()]
        before: list[tuple[int, ...]] = [()]
        found: list[tuple[int, ...]] = []

        def index(numbers: list[int]) -> Tensor:
            return send(torch.tensor(numbers, dtype=torch.long), lm.device)

        for depth in range(1, max(map(len, template.ranks), default=0) + 1):
            nodes = [path for path in template.ranks if len(path) == depth]
            inner = [path for path in before if any(node[:-1] == path for node in nodes)]
            rows += inner
            ranks = 1 + max(path[-1] for path in nodes)
            seen = torch.tensor([[own[: len(row)] == row for row in rows] for own in inner])
            mask = torch.zeros(seen.shape, dtype=KEPT).masked_fill_(~seen, -torch.inf)
            self.levels.append(
                Level(
                    index([before.index(path) for path in inner]),
                    index([above.index(path[:-1]) for path in inner]),
                    send(mask, lm.device),
                    ranks,
                    index([inner.index(path[:-1]) * ranks + path[-1] for path in nodes]),
                )
            )
            found += nodes
            before, above = nodes, inner
        self.order = index([found.index(path) for path in template.ranks])


class BranchDrafter(Drafter):
    """Drafts ``plan`` for one sequence; the keys and values of its verified states lie in a cache of its own.

    ``coupled``: takes its guesses in view of the noise.
    """

    hidden_layers = (-1,)

    def __init__(self, encoder: Encoder, plan: Plan, coupled: bool = True) -> None:
        self.encoder, self.plan, self.coupled = encoder, plan, coupled
        self.text = encoder.text()
        self.state: Tensor | None = None
        self.unread: list[Tensor] = []  # verified states that are not in the text's cache yet

    @property
    def known(self) -> int:
        """How many tokens' states are known: all but the pending one's."""
        return self.text.length + sum(map(len, self.unread))

    @torch.inference_mode()
    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        if self.plan.levels:
            self._verified(hidden[-1])
            self.encoder.remember(self.text, torch.cat(self.unread))
            self.unread = []

    @torch.inference_mode()
    def observe(self, outcome: Outcome) -> None:
        if self.plan.levels:
            self._verified(outcome.hidden[-1][list(outcome.path)])

    def _verified(self, states: Tensor) -> None:
        self.unread.append(states)
        self.state = states[-1:]

    def rewind(self, length: int) -> None:
        if length < self.known:
            kept = max(0, length - self.text.length)
            self.unread = [torch.cat(self.unread)[:kept]] if kept else []
            self.text.length = min(length, self.text.length)
            self.state = None

    @torch.inference_mode()
    def draft(self, context: Context) -> TokenTree:
        if self.state is None or not self.plan.levels:
            return TokenTree.empty()
        known, first = self.known, context.tokens[0]
        newest = send(torch.tensor([[first, first, *context.tokens[-3:]][-3:]]), self.state.device)
        unread = torch.cat(self.unread) if self.unread else None
        self.unread = []
        found: list[Tensor] = []
        for step, level in enumerate(self.plan.levels):
            if step > 0:
                newest = torch.cat([newest[level.above, 1:], found[-1][level.nodes, None]], dim=1)
            read = started(newest) if known + step == 1 else newest
            seen = (level.mask, None) if step > 0 else (None, unread)
            scores = self.encoder.scores(step, self.text, self.state, read, known + step, *seen)
            if self.coupled:
                scores = context.foreseen(scores, [step])
            found.append(scores.topk(level.ranks, dim=1).indices.flatten()[level.chosen])
        return TokenTree(torch.cat(found)[self.plan.order], self.plan.shape)
