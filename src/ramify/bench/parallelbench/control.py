"""The control of the list model: trained so that the prompt does not see the answer, and read so.

With it the keys and values of the prompt never grow old, so what a prefix cache still loses comes from earlier blocks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ramify.bench.parallelbench import symbols
from ramify.errors import RamifyError
from ramify.models.cache import RowCache
from ramify.models.causal import open_model
from ramify.models.forward import Forward, Nodes
from ramify.models.masked import Denoiser, MaskedLM


def load_control(folder: str | Path) -> MaskedLM:
    """A model that ``ramify train list-model -o prefix_causal=true`` made."""
    base = open_model(
        folder, tokenizer=None, dtype=None, device=None, attention=None, forward=None, weights=None,
        trust_remote_code=False,
    )  # fmt: skip
    base.forward = _Blind(base.forward)
    return MaskedLM(base, Denoiser(symbols.MASK))


class _Blind:
    """A forward pass in which positions of the prompt see each other only."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.name, self.dtype, self.weights = forward.name, forward.dtype, forward.weights

    def current(self) -> bool:
        return self.forward.current()

    def embed(self, tokens: Tensor) -> Tensor:
        return self.forward.embed(tokens)

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        answer = nodes.positions >= symbols.PROMPT
        hidden = ~answer[:, :, None] & answer[:, None, :]
        if any(nodes.lengths) and bool(hidden.any()):  # entries that are held would be seen by the prompt
            raise RamifyError("the control reads its prompt in a whole pass only; give its canvases one by one")
        return self.forward(replace(nodes, ancestors=nodes.ancestors & ~hidden), cache)
