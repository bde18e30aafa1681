"""A denoiser of ``denoisers.py`` in the place of a model: what holds loop and rules to the closed forms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ramify.bench.parallelbench.denoisers import Denoiser
from ramify.bench.table_model import table_lm
from ramify.models.cache import RowCache
from ramify.models.forward import Nodes
from ramify.models.masked import Denoiser as Facts
from ramify.models.masked import MaskedLM


def exact_lm(denoiser: Denoiser, mask: int, length: int, name: str = "exact") -> MaskedLM:
    """A model over canvases of ``length`` positions that says exactly what ``denoiser`` says; ``mask``: its token.

    Its cache holds tokens and where they stand: an open position stays open there, a fixed one what it was.
    """
    base = table_lm(denoiser.vocabulary, lambda tokens: torch.empty(0), name, length)
    base.forward = _Exact(denoiser, mask, length)
    return MaskedLM(base, Facts(mask))


class _Exact:
    """The forward pass: asks the denoiser, whatever the order in which the positions come."""

    name = "exact"
    weights = "plain"
    dtype = torch.float64

    def __init__(self, denoiser: Denoiser, mask: int, length: int) -> None:
        self.denoiser, self.mask, self.length = denoiser, mask, length

    def current(self) -> bool:
        return True

    def embed(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, self.denoiser.vocabulary).double()

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        columns = (nodes.tokens[:, None, :, None].double(), nodes.positions[:, None, :, None].double())
        tokens, places = (each[:, 0, :, 0].long() for each in cache.row_layers[0].update(*columns))
        ids = nodes.tokens.new_full((len(nodes.tokens), self.length), self.mask)
        for row, length in enumerate(nodes.lengths):
            ids[row, places[row, :length]] = tokens[row, :length]
        ids.scatter_(1, nodes.positions, nodes.tokens)
        logits = self.denoiser.logits(ids, ids == self.mask)
        wanted = nodes.positions if nodes.logits_at is None else nodes.positions[:, list(nodes.logits_at)]
        return logits.gather(1, wanted[..., None].expand(-1, -1, logits.shape[-1])), {}
