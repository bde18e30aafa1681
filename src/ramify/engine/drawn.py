"""Draws: tokens together with the law that they were really drawn from.

Exact speculative sampling needs the proposal's true law. ``Drawn`` can only be made by ``draw``, which samples the
tokens itself, so a draft cannot carry a law that its tokens did not come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_KEY = object()


@dataclass(frozen=True, eq=False)
class Drawn:
    """Tokens [k] drawn in this order from ``law`` (float [V], sums to 1), with or without replacement; see ``draw``."""

    tokens: tuple[int, ...]
    law: Tensor
    replacement: bool
    _key: Any = field(repr=False)

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise TypeError("Drawn holds the law that its tokens were drawn from; make it with draw(law, ...)")


def draw(law: Tensor, count: int, generator: torch.Generator | None, *, replacement: bool = False) -> Drawn:
    """Draw ``count`` tokens from ``law`` [V]; without replacement at most as many as the law supports.

    Without replacement the order is that of one draw after another, each from what the earlier ones left.
    """
    # What is kept is exactly what is drawn from: normalised as ``multinomial`` does it unseen, and in a copy of its own
    # that a drafter cannot overwrite. Half precision is too coarse for the ratios p/q.
    law = law if law.dtype == torch.float64 else law.float()
    law = law / law.sum()
    if not replacement:
        count = min(count, int(torch.count_nonzero(law)))
    # float64, for in float32 the race of a subnormal probability underflows and a token of probability 0 can win.
    chances = law.double().to(generator.device if generator is not None else law.device)
    tokens = torch.multinomial(chances, count, replacement=replacement, generator=generator)
    return Drawn(tuple(tokens.tolist()), law, replacement, _KEY)
