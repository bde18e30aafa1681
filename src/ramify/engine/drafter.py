"""What a drafter is: it proposes continuations and learns from what became of them; it never decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree


@dataclass
class Context:
    """What a drafter sees of its sequence before a step.

    ``tokens``: committed ids, prompt included; the last one is pending (its successor is to be guessed). ``levels``:
    deepest useful tree, counted in levels, at least 1. ``sampler``: the target's sampling settings. ``generator``:
    randomness for drafts, independent of the verifier's. ``position``: where the next token goes, as
    ``sampler.noise`` counts.
    """

    tokens: list[int]
    levels: int
    sampler: Sampler
    generator: torch.Generator
    position: int

    def foreseen(
        self, logits: Tensor, levels: Sequence[int], size: int | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """``Sampler.foresee`` for guesses at the tokens of ``levels`` of the draft, 0 being the pending one's children.

        For methods that are verified by matching: only there does the noise choose.
        """
        return self.sampler.foresee(logits, [self.position + level for level in levels], size, ids)


@dataclass(frozen=True)
class Outcome:
    """What became of a draft.

    ``tree``: what was scored, node 0 being the formerly pending token. ``logits``: [N, V] of its nodes. ``path``:
    accepted nodes, node 0 first. ``tokens``: newly committed ids, the target's own one last (unless the sequence ended
    before it). ``hidden``: by layer, [N, D], the states that the drafter asked for. ``ghosts``: [G, V], logits of the
    tree's ghost nodes.

    ``mine``: where the drafter's own nodes are in ``tree``, node 0 first; None when all of them are. In a union of
    drafters the tree also holds what others proposed, and the path may lead through it.
    """

    tree: TokenTree
    logits: Tensor
    path: Sequence[int]
    tokens: Sequence[int]
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    ghosts: Tensor | None = None
    mine: Sequence[int] | None = None

    @property
    def drafted(self) -> int:
        """How many nodes the drafter itself proposed."""
        return len(self.tree if self.mine is None else self.mine) - 1

    @property
    def accepted(self) -> int:
        """How many of these were accepted."""
        return len(self.path if self.mine is None else set(self.path) & set(self.mine)) - 1


class Drafter:
    """A drafter of one sequence; the base class proposes nothing and learns nothing.

    ``wants_prompt_logits``: whether ``observe_prompt`` is to be called with logits while the prompt is read.
    ``hidden_layers``: layers of the target whose states it wants, of the prompt and of every scored tree; 0 =
    embeddings, −1 = what the head sees.
    """

    wants_prompt_logits = False
    hidden_layers: Sequence[int] = ()

    def start(self, prompt: Sequence[int]) -> None:
        """Begin a sequence with these prompt ids."""

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        """Prompt tokens [n] as they are read (all but the last, which is pending).

        With the logits [n, V] after each where they are wanted, and by layer the wanted states [n, D].
        """

    def rewind(self, length: int) -> None:
        """Hear that nothing counts any more but the first ``length`` tokens; comes before the next draft.

        It happens inside an assistant only, whose target refused what the assistant had committed. A drafter that keeps
        things by position, or states of the last token, forgets those beyond; it may then propose nothing for a step.
        """

    def draft(self, context: Context) -> TokenTree:
        """Propose a tree below the pending token; an empty one means plain decoding for this step."""
        return TokenTree.empty()

    def observe(self, outcome: Outcome) -> None:
        """Learn from a scored tree."""
