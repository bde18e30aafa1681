"""Drafting from ghosts: whichever node is accepted last, its own ghosts have guessed the next draft already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.tree import Ghosts, TokenTree, TreeShape
from ramify.methods.draft.template import Template


@dataclass(frozen=True)
class Plan:
    """The draft of one state: which guesses, and the ghosts beside them."""

    template: Template
    ghosts: Ghosts


class GhostDrafter(Drafter):
    """Turns the logits of the last accepted node's ghosts into the next draft, of the best ``ranks`` each.

    ``plans``: the draft for 0 guessed tokens (the pending one and its ghosts alone), 1, 2, … ``ensemble``: ghosts whose
    logits are averaged for one guess.
    """

    def __init__(self, plans: Sequence[Plan], ranks: int, ensemble: int = 1) -> None:
        self.plans, self.ranks, self.ensemble = plans, ranks, ensemble
        self.guesses: Tensor | None = None

    def start(self, prompt: Sequence[int]) -> None:
        self.guesses = None

    def rewind(self, length: int) -> None:
        self.guesses = None

    def draft(self, context: Context) -> TokenTree:
        if self.guesses is None:
            return TokenTree(torch.empty(0, dtype=torch.long), TreeShape.of(()), ghosts=self.plans[0].ghosts)
        plan = self.plans[len(self.guesses)]
        return replace(plan.template.fill(self.guesses), ghosts=plan.ghosts)

    def observe(self, outcome: Outcome) -> None:
        own = behind(outcome.tree, outcome.path[-1])
        self.guesses = None
        if own and outcome.ghosts is not None:
            logits = outcome.ghosts[own].view(-1, self.ensemble, outcome.ghosts.shape[-1]).mean(dim=1)
            self.guesses = logits.topk(self.ranks, dim=-1).indices.cpu()


def behind(tree: TokenTree, node: int) -> list[int]:
    """The ghosts that stand behind ``node`` itself, in order."""
    if tree.ghosts is None:
        return []
    found: set[int] = {node}
    own: list[int] = []
    for ghost, parent in enumerate(tree.ghosts.parents):
        if parent in found:
            found.add(len(tree) + ghost)
            own.append(ghost)
    return own
