"""Several opinions on one token of a mixture of experts: other routes for it, and one law from all of them.

The text before it is read along the routers' own routes only, and so is what the token leaves in the cache; what other
routes make of the token is used for the next law and forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ramify.engine.path import Path
from ramify.engine.pool import Pool
from ramify.engine.sampling import Noise
from ramify.models.routing import Detour, Routers

STREAM = 2_147_483_659  # keeps the noise of routes apart from that of tokens


class Routes:
    """Reads the newest tokens of paths along ``copies`` other routes, found by Gumbel noise of scale ``noise``.

    ``penalty``: what an expert loses for every earlier copy of the token that took it. ``read``: tokens so far;
    ``changed``: the mean share of their choices of experts that were not the router's own.
    """

    def __init__(self, routers: Routers, copies: int, noise: float, penalty: float = 0.0) -> None:
        self.routers, self.copies, self.noise, self.penalty = routers, copies, noise, penalty
        self.read = 0
        self._changed = 0.0

    @property
    def changed(self) -> float:
        return self._changed / self.read if self.read else 0.0

    def __call__(self, pool: Pool, paths: Sequence[Path]) -> Tensor:
        """Logits [n, 1 + copies, V] of the next tokens, the first by the routers' own route."""
        detours: list[Detour] = []

        def way(ordered: Sequence[Path]) -> Detour:
            gumbel = torch.stack([self._gumbel(pool, path) for path in ordered])
            detours.append(self.routers.detour(self.noise * gumbel, self.penalty))
            return detours[0]

        logits = pool.again(paths, self.copies, way)
        self._changed += detours[0].changed * len(paths)
        self.read += len(paths)
        return logits

    def _gumbel(self, pool: Pool, path: Path) -> Tensor:
        """Gumbel(0, 1) for every layer, copy and expert, which belongs to the path's number and length."""
        shape = (self.routers.layers, self.copies, self.routers.experts)
        noise = Noise(pool.request.sampler.noise.seed + STREAM, path.number)
        return -noise.race(shape[0] * shape[1] * shape[2], len(path)).log().view(shape)


def merged(logits: Tensor, *, clean: bool, by_confidence: bool, top: int) -> Tensor:
    """One row of logits [n, V] from those of all routes [n, 1 + J, V]: their mean, the own route's if ``clean``.

    ``by_confidence``: weighed by minus the mean log-probability of their ``top`` likeliest tokens.
    """
    kept = logits if clean else logits[:, 1:]
    if not by_confidence:
        return kept.mean(dim=1)
    confidences = -kept.log_softmax(-1).topk(top, dim=-1).values.mean(dim=-1)
    weights = confidences / confidences.sum(dim=-1, keepdim=True)
    return (weights[..., None] * kept).sum(dim=1)
