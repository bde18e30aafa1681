"""The forward pass behind one small interface: new nodes in, logits and hidden states out.

``TransformersForward`` runs the model's own ``forward`` and so serves every family whose attention takes an explicit
mask. For the families that share Llama's shape ``ramify.models.fused`` takes its place; the session does not know
which one runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ramify.models.cache import RowCache, send
from ramify.models.layers import only_layers

MASKER = "create_sliding_window_causal_mask"  # what transformers' modelling code imports where layers have windows


@dataclass(frozen=True)
class Nodes:
    """What enters one forward pass: B rows of N nodes each.

    ``tokens``: int64 [B, N]. ``positions``: int64 [B, N]. ``lengths``: cached entries of each row, all visible to its
    nodes. ``ancestors``: bool [B or 1, N, N], which new nodes each node sees, itself included. ``embeddings``:
    [B, N, D] in place of the token look-up. ``logits_at``: indices of the nodes whose logits are wanted, None for all.
    ``hidden_layers``: hidden states wanted, 0 = embeddings, l = output of layer l, −1 = what the head sees.

    ``first``, ``last``: the pass runs the layers behind layer ``first`` up to layer ``last`` (None: all). With
    ``first`` above 0, ``embeddings`` are the states that enter there. The head, its norm before it, reads what comes
    out, also where ``last`` is not the last layer; ``logits_at`` empty spares it. Where ``last`` is given, state l is
    the plain output of layer l, the last one's too. −1 of such a pass needs the logits of all nodes.

    ``reach``: above all positions, where they may lie beyond the slots in use (a canvas of which parts are cached).
    """

    tokens: Tensor
    positions: Tensor
    lengths: Sequence[int]
    ancestors: Tensor
    embeddings: Tensor | None = None
    logits_at: Sequence[int] | None = None
    hidden_layers: Sequence[int] = ()
    first: int = 0
    last: int | None = None
    reach: int = 0


class Forward(Protocol):
    """One pass over new nodes; writes their keys and values into ``cache``.

    ``name``: "transformers" or "fused". ``dtype``: that of activations and logits. ``weights``: the name of the weight
    format, see ``ramify.models.weights``.
    """

    name: str
    dtype: torch.dtype
    weights: str

    def current(self) -> bool:
        """Whether the model is still the one that this forward was made for."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of ``tokens``: [..., D]."""
        ...

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns logits [B, K, V] and the wanted hidden states, each [B, N, D]."""
        ...


class TransformersForward:
    """The model's own ``forward`` with an additive float mask, the one form that all attention backends read alike.

    ``mask_by_type``: whether the model takes a dictionary of masks by layer type (alternating local and global
    layers) instead of one mask for all layers; which of the two holds is found by the probe at loading.
    """

    name = "transformers"
    weights = "plain"

    def __init__(self, model: Any, mask_by_type: bool) -> None:
        self.model = model
        self.mask_by_type = mask_by_type
        config = model.config.get_text_config(decoder=True)
        self.layer_types: tuple[str, ...] = tuple(getattr(config, "layer_types", None) or ())
        self.window = sliding_window(model)
        self.takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.dtype: torch.dtype = model.dtype

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        inputs: dict[str, Any] = {"position_ids": nodes.positions, "past_key_values": cache, "use_cache": True}
        if nodes.embeddings is None:
            inputs["input_ids"] = nodes.tokens
        else:
            inputs["inputs_embeds"] = nodes.embeddings
        mask = self._mask(nodes)
        if mask is not None:
            inputs["attention_mask"] = mask
        if nodes.hidden_layers:
            inputs["output_hidden_states"] = True
        if nodes.logits_at is not None and self.takes_logits_to_keep:
            inputs["logits_to_keep"] = torch.tensor(nodes.logits_at, dtype=torch.long, device=nodes.tokens.device)
        if nodes.first > 0 or nodes.last is not None:
            return self._part(nodes, inputs)
        output = self.model(**inputs)
        logits = output.logits
        if nodes.logits_at is not None and not self.takes_logits_to_keep:
            logits = nodes_at(logits, nodes.logits_at)
        return logits, {layer: output.hidden_states[layer] for layer in nodes.hidden_layers}

    def _part(self, nodes: Nodes, inputs: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
        """A pass over some layers: the others are stepped over, states enter and leave through hooks."""
        inputs.pop("output_hidden_states", None)
        with only_layers(self.model, nodes.first, nodes.last, nodes.embeddings, nodes.hidden_layers) as states:
            logits = self.model(**inputs).logits
        if nodes.logits_at is not None and not self.takes_logits_to_keep:
            logits = nodes_at(logits, nodes.logits_at)
        return logits, {layer: states[layer] for layer in nodes.hidden_layers}

    def current(self) -> bool:
        """Whether the model still computes in the dtype that it had."""
        return bool(self.model.dtype == self.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of ``tokens``: [..., D]."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def _mask(self, nodes: Nodes) -> Tensor | dict[str, Tensor] | None:
        masks = attention_masks(nodes, self.dtype, self.window)
        if masks is None:
            return None
        full, local = masks
        return {"full_attention": full, "sliding_attention": local} if self.mask_by_type else local


def nodes_at(x: Tensor, wanted: Sequence[int]) -> Tensor:
    """The ``wanted`` nodes of x [B, N, …], without waiting for a GPU; the first few are a view."""
    if list(wanted) == list(range(len(wanted))):
        return x[:, : len(wanted)]
    return x[:, send(torch.tensor(wanted), x.device)]


def attention_masks(
    nodes: Nodes, dtype: torch.dtype, window: int | None, slots: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """Additive masks [B, 1, N, slots] for layers that see everything and for those with a window of ``window`` tokens.

    ``slots``: by default those in use; more are hidden. None when a single node of every row sees all there is, which
    needs no mask.
    """
    count = nodes.tokens.shape[1]
    used = max(nodes.lengths) + count
    slots = slots or used
    outgrown = window is not None and used > window
    if count == 1 and slots == used and not outgrown and min(nodes.lengths) == max(nodes.lengths):
        return None
    hidden = torch.finfo(dtype).min
    full = torch.full((len(nodes.lengths), count, slots), hidden, dtype=dtype, device=nodes.tokens.device)
    among = torch.full(nodes.ancestors.shape, hidden, dtype=dtype, device=nodes.tokens.device)
    among.masked_fill_(nodes.ancestors, 0.0)
    for row, length in enumerate(nodes.lengths):
        full[row, :, :length] = 0.0
        full[row, :, length : length + count] = among[row if len(among) > 1 else 0]
    local = _within_window(full, nodes, window, hidden) if outgrown and window is not None else full
    return full[:, None], local[:, None]


def _within_window(full: Tensor, nodes: Nodes, window: int, hidden: float) -> Tensor:
    """``full`` without the slots that lie a window or more behind a node, by their logical positions."""
    count = nodes.tokens.shape[1]
    local = full.clone()
    for row, length in enumerate(nodes.lengths):
        place = torch.arange(full.shape[-1], device=full.device)
        place[length : length + count] = nodes.positions[row]
        distance = nodes.positions[row][:, None] - place
        local[row].masked_fill_(distance >= window, hidden)
    return local


def sliding_window(model: Any) -> int | None:
    """The attention window in tokens if any layer of the model has one."""
    config = model.config.get_text_config(decoder=True)
    window: int | None = getattr(config, "sliding_window", None)
    # Configs carry the field along in families whose modelling code does not look at it.
    code = sys.modules.get(type(model).__module__)
    if code is not None and code.__name__.startswith("transformers.models.") and not hasattr(code, MASKER):
        return None
    types = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (types and "sliding_attention" not in types):
        return None
    return window
