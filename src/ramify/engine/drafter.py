"""What a drafter is: it proposes continuations and learns from what became of them; it never decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Outcome:
    """What became of a draft.

    ``tree``: what was scored, node 0 being the formerly pending token. ``logits``: [N, V] of its nodes. ``path``:
    accepted nodes, node 0 first. ``tokens``: newly committed ids.
    """

    tree: TokenTree
    logits: Tensor
    path: Sequence[int]
    tokens: Sequence[int]


class Drafter:
    """A drafter of one sequence; the base class proposes nothing and learns nothing.

    ``wants_prompt_logits``: whether ``observe_prompt`` is to be called while the prompt is read.
    """

    wants_prompt_logits = False

    def start(self, prompt: Sequence[int]) -> None:
        """Begin a sequence with these prompt ids."""

    def observe_prompt(self, tokens: list[int], logits: Tensor) -> None:
        """Prompt tokens [n] as they are read, with the logits [n, V] after each."""

    def draft(self, context: Context) -> TokenTree:
        """Propose a tree below the pending token; an empty one means plain decoding for this step."""
        return TokenTree.empty()

    def observe(self, outcome: Outcome) -> None:
        """Learn from a scored tree."""
