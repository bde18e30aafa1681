"""What a beam pays for a token that beams before it took: the four diversity functions of diverse beam search."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ramify.engine.path import Path
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.models.cache import send
from ramify.models.causal import CausalLM

START = -1  # stands before every text, so that its first tokens are n-grams too


class Penalty(ABC):
    """N(y, v) for beams y [n] and tokens v [V], from the choices of earlier groups at the same step."""

    def __init__(self, lm: CausalLM | None, temperature: float, n: int) -> None:
        self.temperature, self.n = temperature, n

    @abstractmethod
    def __call__(self, beams: Sequence[Path], earlier: Sequence[Choice], step: int, like: Tensor) -> Tensor:
        """[n, V] in the form of ``like``. The first ``step`` tokens of a choice's path are those before it."""


class Hamming(Penalty):
    """How many took the token."""

    def __call__(self, beams: Sequence[Path], earlier: Sequence[Choice], step: int, like: Tensor) -> Tensor:
        return _put(like, [(slice(None), choice.token, 1.0) for choice in earlier])


class Cumulative(Penalty):
    """How many took it, each weighed by how alike the histories are."""

    def __call__(self, beams: Sequence[Path], earlier: Sequence[Choice], step: int, like: Tensor) -> Tensor:
        found = []
        for beam, path in enumerate(beams):
            for choice in earlier:
                pairs = zip(path.tokens, choice.path.tokens[:step], strict=True)
                mismatches = sum(mine != theirs for mine, theirs in pairs)
                found.append((beam, choice.token, math.exp(-mismatches / self.temperature)))
        return _put(like, found)


class NGram(Penalty):
    """How often the n-gram that the token would complete is in the texts so far."""

    def __call__(self, beams: Sequence[Path], earlier: Sequence[Choice], step: int, like: Tensor) -> Tensor:
        before = [START] * (self.n - 1)
        texts = [[*before, *choice.path.tokens[:step], choice.token] for choice in earlier]
        found = []
        for beam, path in enumerate(beams):
            context = [*before, *path.tokens][len(path) :]
            for text in texts:
                for place in range(len(text) - len(before)):
                    if text[place : place + len(before)] == context:
                        found.append((beam, text[place + len(before)], 1.0))
        return _put(like, found)


class Embedding(Penalty):
    """How near the token is to those taken, by the cosine of their input embeddings."""

    def __init__(self, lm: CausalLM | None, temperature: float, n: int) -> None:
        super().__init__(lm, temperature, n)
        if lm is None:
            raise RamifyError("diversity='embedding' needs the model's embeddings; use another one")
        vectors = lm.forward.embed(torch.arange(lm.vocab_size, device=lm.device)).float()
        self.vectors = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=-1)

    def __call__(self, beams: Sequence[Path], earlier: Sequence[Choice], step: int, like: Tensor) -> Tensor:
        taken = torch.tensor([choice.token for choice in earlier], device=self.vectors.device)
        near = (self.vectors @ self.vectors[taken].T).clamp_min(0).sum(dim=1)
        return send(near, like.device).expand(len(beams), -1)


DIVERSITIES: dict[str, type[Penalty]] = {
    "hamming": Hamming,
    "cumulative": Cumulative,
    "ngram": NGram,
    "embedding": Embedding,
}


def _put(like: Tensor, entries: Sequence[tuple[int | slice, int, float]]) -> Tensor:
    """The sums of ``entries`` (beam, token, amount) in a tensor of the form of ``like``."""
    penalties = torch.zeros_like(like, device="cpu")
    for beam, token, amount in entries:
        penalties[beam, token] += amount
    return send(penalties, like.device)
