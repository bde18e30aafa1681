"""A head that is a model of its own: some of the target's layers between the target's embedding and its LM head.

S2D and DEER draft with one. The layers and what else stands between them and the LM head (norm, learned positions)
start as the target's; embedding and LM head stay the target's, unless ``shared`` is False.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ramify.errors import RamifyError
from ramify.methods.head import Fit, Head
from ramify.models.causal import CausalLM, wrap
from ramify.models.projection import StandIn

BOOKKEEPING = ("architectures", "dtype", "transformers_version", "_name_or_path")


class Borrowed(nn.Module):
    """Stands in for the target's embedding or LM head: a frozen copy, no part of the module that it stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: tuple[Any, ...] = ()  # in a tuple: neither a submodule nor a parameter

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.lent[0](x)
        return found

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.lent[0].weight
        return weight


class FewLayers(Head):
    """``model``: the draft model as transformers builds it from ``config``, without the parts that are ``shared``."""

    def __init__(self, fit: Fit, sizes: Any, config: dict[str, Any], shared: bool = True) -> None:
        super().__init__(fit, sizes)
        self.config, self.shared = config, shared
        self.model = _build(config)
        if shared:
            self.model.set_input_embeddings(Borrowed())
            self.model.set_output_embeddings(Borrowed())
        self.trained: tuple[CausalLM, ...] = ()

    @torch.no_grad()
    def take(self, lm: CausalLM, kept: Sequence[int]) -> None:
        """Begin with what ``lm`` has, with its layers ``kept``, counted from 0, in this order."""
        theirs = lm.original.state_dict()
        named = {name: _renumbered(name, kept) for name in self.model.state_dict()}
        missing = [name for name in named.values() if name not in theirs]
        if missing:
            raise RamifyError(f"some layers of {lm.name} make no model of their own: it has no {missing[0]}")
        self.model.load_state_dict({name: theirs[source].float() for name, source in named.items()})

    def draft(self, lm: CausalLM, weights: str | None = None) -> CausalLM:
        """The draft model for ``lm``, in its dtype and on its device, complete: it needs the target no more.

        ``weights``: as ``load`` takes it. With "plain", ``.model.save_pretrained(folder)`` makes it a model folder,
        which may draft for any other target of the same vocabulary.
        """
        model = _build(self.config, lm.dtype, lm.model.config._attn_implementation)
        model.load_state_dict(self.model.state_dict(), strict=not self.shared)
        if self.shared:
            inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
            inner.load_state_dict(lm.model.get_input_embeddings().state_dict())
            if outer.weight is not inner.weight:
                outer.load_state_dict(_lm_head(lm))
        model = model.to(lm.device).requires_grad_(False).eval()
        return wrap(model, lm.tokenizer, f"the draft of {lm.name}", weights=weights, owned=True)

    def as_lm(self, lm: CausalLM) -> CausalLM:
        """The head's own model as the engine sees it, for passes with gradients; in float32."""
        if not self.trained:
            if self.shared:
                parts = (self.model.get_input_embeddings(), lm.original.get_input_embeddings())
                others = (self.model.get_output_embeddings(), lm.original.get_output_embeddings())
                for mine, theirs in (parts, others):
                    mine.lent = (copy.deepcopy(theirs).float().requires_grad_(False),)
            with torch.autocast(lm.device.type, enabled=False):
                self.trained = (wrap(self.model, None, f"the draft of {lm.name}", "transformers"),)
        return self.trained[0]


def config_of(lm: CausalLM, kept: Sequence[int]) -> dict[str, Any]:
    """The config of a model of the layers ``kept`` of ``lm``, as JSON holds it."""
    config = copy.deepcopy(lm.model.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    described = config.to_diff_dict() | {"model_type": config.model_type}
    found: dict[str, Any] = json.loads(json.dumps({k: v for k, v in described.items() if k not in BOOKKEEPING}))
    return found


def _lm_head(lm: CausalLM) -> dict[str, Tensor]:
    """The weights of the target's LM head; where they cannot be loaded anew, what it multiplies with."""
    head = lm.model.get_output_embeddings()
    if lm.again is None and isinstance(head, StandIn):
        product = head.whole[0].product
        assert product is not None  # who stands in has been converted
        return {"weight": product.dense()}
    found: dict[str, Tensor] = lm.original.get_output_embeddings().state_dict()
    return found


def _renumbered(name: str, kept: Sequence[int]) -> str:
    """What the weight ``name`` is called in the whole model; the first number in a name is that of the layer."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            parts[place] = str(kept[int(part)])
            break
    return ".".join(parts)


def _build(described: dict[str, Any], dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """A new transformers model of this config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**described)
    build: Any = AutoModelForCausalLM.from_config
    return build(config, dtype=dtype, attn_implementation=attention)
