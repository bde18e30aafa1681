"""One sequence to continue: its prompt, its sampling settings, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ramify.engine.sampling import Sampler

Criterion = Callable[..., Tensor]  # a transformers StoppingCriteria: (ids [1, n], None) -> bool [1]


@dataclass
class Request:
    """``prompt``: token ids, at least one. ``max_length``: prompt and continuation together, in tokens.

    ``stop_tokens``: ids that end the sequence and are kept as its last token. ``criteria``: further transformers
    ``StoppingCriteria``, evaluated after every committed token. ``padding``: ids before the prompt that processors and
    criteria are to see, as in a left-padded transformers batch, but the model is not.
    """

    prompt: Sequence[int]
    max_length: int
    sampler: Sampler = field(default_factory=Sampler)
    stop_tokens: frozenset[int] = frozenset()
    criteria: Sequence[Criterion] = ()
    padding: Sequence[int] = ()
