"""A pass over some of a transformers model's layers: the others are stepped over while it runs.

For models that only their own ``forward`` can run. It keeps all that surrounds the layers (embeddings, rotations, masks
by layer, norm, head), so one way serves every family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ramify.errors import RamifyError


class _Skip(nn.Module):
    """Stands in for a layer that is not run."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


def decoder_layers(model: Any) -> nn.ModuleList:
    """The model's decoder layers; raises ``RamifyError`` where they are not to be found."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for _, module in model.base_model.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise RamifyError(f"{type(model).__name__} has no list of {count} layers, so no pass can run only some of them")


@contextlib.contextmanager
def only_layers(
    model: Any, first: int, last: int | None, entering: Tensor | None, wanted: Sequence[int]
) -> Iterator[dict[int, Tensor]]:
    """Let ``model`` run the layers behind ``first`` up to ``last`` only, and gather the ``wanted`` states.

    ``entering``: what the first of them reads, when ``first`` is above 0. States are counted as in ``Nodes``.
    """
    layers = decoder_layers(model)
    end = len(layers) if last is None else last
    if not 0 <= first < end <= len(layers):
        raise RamifyError(f"layers {first} to {end} are no range of the {len(layers)} layers of {type(model).__name__}")
    states: dict[int, Tensor] = {}
    own = list(layers)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: Tensor = args[0] if args else kwargs["hidden_states"]
        if entering is not None and first > 0:
            given = entering
        states[first] = given
        return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

    def leave(index: int, output: Any) -> None:
        if index in wanted:
            states[index] = output[0] if isinstance(output, tuple) else output

    def read(module: nn.Module, args: tuple[Any, ...]) -> None:
        states[-1] = args[0]
        if last is None:
            states[end] = args[0]

    handles = [own[first].register_forward_pre_hook(enter, with_kwargs=True)]
    for index in range(first, end):
        handles.append(own[index].register_forward_hook(lambda m, a, output, i=index + 1: leave(i, output)))
    handles.append(model.get_output_embeddings().register_forward_pre_hook(read))
    try:
        for index in [*range(first), *range(end, len(own))]:
            layers[index] = _Skip()
        yield states
    finally:
        for index, layer in enumerate(own):
            layers[index] = layer
        for handle in handles:
            handle.remove()
