"""Any constraint as a transformers ``LogitsProcessor``: here, in ``transformers.generate``, and under every method."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ramify.constrain.constraint import Constraint, State
from ramify.errors import RamifyError

REMEMBERED = 4096  # prefixes whose states are kept


class Constrained(LogitsProcessor):
    """Give everything that ``constraint`` does not allow the score −∞.

    ``prompt_length``: tokens before the constrained text, padding included; prompts of one call must be equally long.

    It has no state: what is allowed is worked out from the ids behind the prompt, so it holds for drafts, beams that
    are reordered and paths that are forked. It masks and lets the others renormalise, so a sample's law is

        q(x) = Π_t p(x_t) / p(allowed_t)

    and not p(x) / p(any allowed sequence), which ``score_answers`` computes.
    """

    def __init__(self, constraint: Constraint, prompt_length: int) -> None:
        if prompt_length < 1:
            raise RamifyError(f"prompt_length is {prompt_length}; it counts the prompt's tokens, at least 1")
        self.constraint, self.prompt_length = constraint, prompt_length
        self._known: dict[tuple[int, ...], State] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        constraint = self.constraint
        if scores.shape[-1] != constraint.vocabulary.size:
            raise RamifyError(
                f"the constraint is for {constraint.vocabulary.size} logits, but the model has {scores.shape[-1]}"
            )
        if input_ids.shape[-1] < self.prompt_length:
            raise RamifyError(
                f"prompt_length is {self.prompt_length}, but the text has {input_ids.shape[-1]} tokens; give the "
                "prompt's own length"
            )
        states = [self.state(tuple(row)) for row in input_ids[:, self.prompt_length :].tolist()]
        masked = scores.masked_fill(~constraint.mask(states).to(scores.device), -torch.inf)
        if not bool(masked.isfinite().any(dim=-1).all()):
            raise RamifyError(
                "other settings forbid everything that the constraint allows; drop min_new_tokens and bans of tokens"
            )
        return masked

    def state(self, tokens: tuple[int, ...]) -> State:
        """The state behind ``tokens``, going on from the longest beginning whose state is remembered."""
        known = len(tokens)
        while known and tokens[:known] not in self._known:
            known -= 1
        state = self._known[tokens[:known]] if known else self.constraint.start()
        if len(self._known) + len(tokens) > REMEMBERED:
            self._known.clear()
        for place in range(known, len(tokens)):
            state = self.constraint.advance(state, tokens[place])
            self._known[tokens[: place + 1]] = state
        return state
