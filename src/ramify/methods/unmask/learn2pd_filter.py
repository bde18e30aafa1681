"""The trained part of Learn2PD: from the confidences of a block to whether each of its predictions is final.

    z = W_n ReLU(… ReLU(W_1 c + b_1)) + b_n,    c [B] the confidences of the block, z [B] logits of "as in the answer"

All layers are B wide: 2 (B² + B) parameters with two of them, 2,112 at B = 32. Positions that are fixed already enter
with the model's confidence in them (near 1 in LLaDA): it is how the filter knows what is left. A block that is shorter
than B is filled up with 1 and the logits there are left out; a text that was cut at its end is like one that was fixed
there.

Its loss counts open positions only (ours): nobody asks about the others, and a model that was never trained to repeat a
token that it sees is often sure of another one there, which teaches the filter to distrust certainty. The authors count
all (``loss="all"`` in the recipe). Their file of the filter is not published: the count of parameters gives the width,
ReLU is ours. Confidences are float32 here, where they train on those of bfloat16 and decode with float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError
from ramify.methods.head import Head, Regime, load_head
from ramify.models.causal import BUNDLED, CausalLM
from ramify.models.masked import MaskedLM

SURE = 0.9  # the level at which accepted predictions are counted


@dataclass(frozen=True)
class FilterSizes:
    """``block``: B, positions of the blocks it was trained on. ``depth``: layers (paper: 2)."""

    block: int = 32
    depth: int = 2

    def __post_init__(self) -> None:
        for name in ("block", "depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RamifyError(f"{name} is {value!r}; a filter has at least 1")


class Filter(Head):
    """``depth`` layers of width B. It learns from records [N, 3, B]: confidences, which predictions held, weights."""

    method = "learn2pd"
    regime = Regime(steps=4000, learning_rate=3e-3, optimizer="adamw", weight_decay=0.01)
    Sizes = FilterSizes
    sizes: FilterSizes

    def __init__(self, fit: object, sizes: FilterSizes) -> None:
        super().__init__(fit, sizes)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(nn.Linear(sizes.block, sizes.block) for _ in range(sizes.depth))

    def forward(self, confidences: Tensor) -> Tensor:
        """Logits [..., n] for confidences [..., n], n ≤ B."""
        count = confidences.shape[-1]
        z = functional.pad(confidences.float(), (0, self.sizes.block - count), value=1.0)
        for layer in self.layers[:-1]:
            z = functional.relu(layer(z))
        logits: Tensor = self.layers[-1](z)
        return logits[..., :count]

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """Mean binary cross-entropy of records ``tokens`` [N, 3, B]."""
        confidences, right, weight = tokens.unbind(1)
        each = functional.binary_cross_entropy_with_logits(self(confidences), right, weight, reduction="sum")
        return each / weight.sum()

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """Of records [N, 3, B]: the loss, and of the predictions accepted at 0.9 the share that is wrong."""
        confidences, right, weight = tokens.double().unbind(1)
        accepted = weight * (torch.sigmoid(self(confidences).double()) > SURE)
        return {
            "loss": self.loss(lm, tokens).item(),
            f"wrong among accepted at {SURE}": ((accepted * (1 - right)).sum() / accepted.sum().clamp(min=1)).item(),
            f"accepted at {SURE}": (accepted.sum() / weight.sum()).item(),
        }


def find_filter(source: Filter | str | Path, lm: MaskedLM) -> Filter:
    """The filter in a folder, that of a bundled model for "bundled", or ``source`` itself, checked against ``lm``."""
    if source != "bundled":
        return load_head(Filter, source, lm.base)
    folder = BUNDLED[lm.name] / "heads" / "learn2pd" if lm.name in BUNDLED else None
    if folder is None or not folder.is_dir():
        raise RamifyError(
            f"there is no filter for {lm.name}; train one with 'ramify train learn2pd --model …' and give its folder "
            "as filter=…, or decode without one: filter=none"
        )
    return load_head(Filter, folder, lm.base)
