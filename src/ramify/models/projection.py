"""A model's linear layers as the fused forward multiplies with them: joined where they read the same input.

The model goes on working: its own layers become views of the joined matrix, or stand-ins for the converted one.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ramify.errors import RamifyError
from ramify.models.weights import Plain, Product, weight_format


class Declined(Exception):
    """The fused forward does not know this model; the message says what about it."""


class Projection:
    """Linear layers of one module that read the same input, computed as one product.

    At first the layers are run one by one and the model stays untouched. ``hold`` joins them: in the format "plain" the
    layers' own weights become views of the joined matrix, so that nothing is stored twice and in-place changes reach
    both; in any other format the layers are replaced by stand-ins, which compute their part from the converted matrix.
    """

    def __init__(self, parent: nn.Module, *names: str) -> None:
        self.parent, self.names = parent, names
        layers = [getattr(parent, name) for name in names]
        for name, layer in zip(names, layers, strict=True):
            if type(layer) is not nn.Linear:
                raise Declined(f"{name} is no plain linear layer but a {type(layer).__name__}")
        if len({layer.bias is None for layer in layers}) > 1:
            raise Declined(f"of {', '.join(names)} only some have a bias")
        self.layers: list[Any] = layers
        self.product: Product | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.product is None:
            return torch.cat([layer(x) for layer in self.layers], dim=-1)
        return self.product(x)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one product reads."""
        return self.product.nbytes if self.product else sum(int(layer.weight.nbytes) for layer in self.layers)

    def hold(self, name: str, scratch: Tensor) -> None:
        """Join the layers into one matrix in the weight format ``name``; raises ``MemoryError`` if there is no room.

        ``scratch``: flat memory for the joined matrix while it is converted.
        """
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        if psutil.virtual_memory().available < 2 * self.nbytes:
            raise MemoryError(f"too little memory is left to hold it as {name}")
        if name == "plain":
            self.product = Plain(_joined(weights), None if biases[0] is None else _joined(biases))
            return
        bias = None if biases[0] is None else torch.cat(biases).detach()
        weight = weights[0].detach()
        if len(weights) > 1:
            whole = scratch[: sum(part.numel() for part in weights)].view(-1, weight.shape[1])
            weight = torch.cat([part.detach() for part in weights], out=whole)
        self.product = weight_format(name)(weight, bias)
        begin = 0
        for place, (part, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            self.layers[place] = StandIn(self, begin, layer.out_features)
            setattr(self.parent, part, self.layers[place])
            begin += layer.out_features


class StandIn(nn.Module):
    """A linear layer whose weights live in a converted projection, so that transformers' own forward still runs."""

    def __init__(self, projection: Projection, begin: int, size: int) -> None:
        super().__init__()
        self.whole = (projection,)  # in a tuple: neither a submodule nor a parameter of this layer
        self.begin, self.size = begin, size

    def forward(self, x: Tensor) -> Tensor:
        return self.whole[0](x).narrow(-1, self.begin, self.size)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RamifyError(
            "this model's weights were converted for speed and cannot be saved; load it with weights='plain' to save it"
        )


def _joined(parts: list[nn.Parameter]) -> Tensor:
    """The parts below each other in one tensor, of which they become views."""
    if len(parts) == 1:
        return parts[0]
    ends = [part.data_ptr() + part.nbytes for part in parts]
    if ends[:-1] == [part.data_ptr() for part in parts[1:]] and len({_storage(part) for part in parts}) == 1:
        # Joined before, by another wrapper of the same model.
        return parts[0].data.as_strided((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].stride())
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
        part.data = view
    return whole


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
