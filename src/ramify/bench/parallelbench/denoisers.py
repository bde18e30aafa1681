"""Denoisers that are right by construction: the true marginals of every open slot, given what is fixed.

``logits(ids [B, L], open [B, L]) -> [B, L, V]``: log-probabilities at the open positions; at the others the token that
stands there is certain. They let rules and loops be held to the closed forms of ``analysis.py``, with nothing trained.

``noise``: standard deviation of a zero-mean noise on the logits, of the size that decides ties and nothing else. The
argmax of an exact law would always break them alike, which no unbiased model does.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ramify.bench.parallelbench.analysis import Law
from ramify.bench.parallelbench.symbols import ANSWER, EOS, MOST, NEW, PAD, PROMPT, TASKS, VOCABULARY
from ramify.errors import RamifyError

NOISE = 1e-4


class Denoiser(Protocol):
    """What stands in for a model."""

    vocabulary: int

    def logits(self, ids: Tensor, open: Tensor) -> Tensor:
        """[B, L, V] for ids [B, L] with the open positions [B, L], whose ids do not matter."""
        ...


class Enumerated:
    """Any law over answers of L tokens, by going through all outcomes: for few of them."""

    def __init__(self, law: Law, vocabulary: int, noise: float = 0.0, seed: int = 0) -> None:
        self.outcomes = torch.tensor(list(law))
        self.chances = torch.tensor(list(law.values()), dtype=torch.float64)
        self.vocabulary = vocabulary
        if int(self.outcomes.max()) >= vocabulary:
            raise RamifyError(f"the law has token {int(self.outcomes.max())}, the vocabulary {vocabulary} tokens")
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)

    def logits(self, ids: Tensor, open: Tensor) -> Tensor:
        fits = (open[:, None] | (ids[:, None] == self.outcomes)).all(-1)
        # Where the fixed tokens fit no outcome nothing is known, so every outcome stays.
        weights = torch.where(fits.any(1, keepdim=True), fits.double(), 1.0) * self.chances
        weights = weights / weights.sum(1, keepdim=True)
        laws = torch.einsum("bo,olv->blv", weights, one_hot(self.outcomes, self.vocabulary).double())
        return finished(laws, ids, open, self.noise, self.generator)


class Symbols:
    """The tasks of ``symbols.py``: sequences of 22, the prompt of each row telling its task and items.

    Where an earlier step drew what cannot be right (an item twice), it goes on as if the rest could be.
    """

    vocabulary = VOCABULARY

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)

    def logits(self, ids: Tensor, open: Tensor) -> Tensor:
        items = ids[:, 1 : 1 + MOST]
        count = (items != PAD).sum(1, keepdim=True)
        slot = torch.arange(MOST, device=ids.device)
        real = slot < count
        given, free = ids[:, PROMPT : PROMPT + MOST], open[:, PROMPT : PROMPT + MOST] & real
        tokens = one_hot(items, VOCABULARY).double()
        left = free.sum(1).clamp(min=1)[:, None, None]

        place = (count - 1 - slot).clamp(min=0)
        reverse = tokens.gather(1, place[..., None].expand_as(tokens))
        sums = one_hot(items.masked_fill(~real, 0).cumsum(1) % 10, VOCABULARY).double()
        word = one_hot(ids[:, NEW], VOCABULARY).double()[:, None]
        placed = (~open[:, PROMPT : PROMPT + MOST] & real & (given == ids[:, [NEW]])).any(1)[:, None, None]
        replaced = torch.where(placed, tokens, (tokens * (left - 1) + word) / left)
        used = ((given[:, :, None] == items[:, None]) & ~open[:, PROMPT : PROMPT + MOST, None]).any(1)
        unused = (tokens * (real & ~used)[..., None]).sum(1, keepdim=True)
        shuffled = (unused / unused.sum(-1, keepdim=True).clamp(min=1)).expand_as(tokens)

        known = {"copy": tokens, "reverse": reverse, "replace-random": replaced, "shuffle": shuffled, "cumsum": sums}
        laws = one_hot(torch.full_like(ids, EOS), VOCABULARY).double()
        for task, law in known.items():
            rows = (ids[:, 0] == TASKS[task])[:, None, None] & real[..., None]
            laws[:, PROMPT : PROMPT + MOST] = torch.where(rows, law, laws[:, PROMPT : PROMPT + MOST])
        return finished(laws, ids, open, self.noise, self.generator)


def canvas(prompts: Tensor) -> Tensor:
    """Ids [B, 22] of prompts with an answer of EOS: what stands at open positions does not matter to a denoiser."""
    return torch.cat([prompts, prompts.new_full((len(prompts), ANSWER), EOS)], dim=1)


def finished(laws: Tensor, ids: Tensor, open: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Log-probabilities of ``laws``, with what is fixed certain, and noise on them if wanted."""
    fixed = one_hot(ids, laws.shape[-1]).double()
    found = torch.where(open[..., None], laws, fixed).log()
    return found + noise * torch.randn(found.shape, generator=generator, dtype=found.dtype) if noise else found
