"""What trained heads borrow from their target: its LM head, and its laws on windows of text.

The LM head is taken as the bare matrix: soft caps and scales that a family puts behind it keep the order of tokens, so
they change how confident a head is, never which tokens it guesses first. Heads are trained against the exact matrices
and draft with what is cheapest (``product``, ``quick_head``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.models.causal import CausalLM
from ramify.models.projection import StandIn
from ramify.models.weights import Int4, Plain, Product, unavailable, weight_format

TEMPERATURE = 0.7  # of sampled text, for which heads measure themselves apart


def lm_head(lm: CausalLM) -> nn.Module:
    """The target's LM head, over whatever weights it holds; x [..., D] in the target's dtype."""
    module: nn.Module = lm.model.get_output_embeddings()
    return module


def lm_head_weight(lm: CausalLM) -> Tensor:
    """Its matrix [V, D] in float32, also where the loaded one was converted."""
    weight: Tensor = lm.original.get_output_embeddings().weight
    return weight.detach().float().cpu()


def laws(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The target's laws [..., V] from its logits: one-hot as when greedy, and at ``TEMPERATURE``."""
    greedy = functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    return greedy, torch.softmax(logits.float() / TEMPERATURE, dim=-1)


def ranked(guesses: Tensor, logits: Tensor, ranks: int) -> Tensor:
    """How much of the target's laws falls on the guess of each rank: [2, ranks], summed over windows, meant over rows.

    ``guesses``, ``logits`` [B, N, V]: of a head, and of the target for the same tokens.
    """
    best = guesses.topk(ranks, dim=-1).indices
    return torch.stack([law.gather(-1, best).mean(dim=1).sum(dim=0) for law in laws(logits)])


def ranked_coupled(guesses: Tensor, logits: Tensor, ranks: int) -> Tensor:
    """How often the token that noise chooses by the target's law at ``TEMPERATURE`` is the guess of each rank.

    The guesses are ranked in view of the same noise, as ``Sampler.foresee`` does; shapes as of ``ranked``: [ranks].
    """
    noise = torch.Generator(logits.device).manual_seed(0)
    race = torch.empty(logits.shape, device=logits.device).exponential_(generator=noise).log_()
    chosen = (logits.float() / TEMPERATURE - race).argmax(dim=-1, keepdim=True)
    best = (guesses.float() / TEMPERATURE - race).topk(ranks, dim=-1).indices
    return (best == chosen).float().mean(dim=1).sum(dim=0)


def product(lm: CausalLM, *layers: nn.Linear, behind: nn.RMSNorm | None = None) -> Product:
    """Linear layers of a head that read the same input, as one product in the target's dtype on its device.

    Its format is the one of ``_quick``, 4 bits in half precision on a CPU.
    ``behind``: a norm before them, whose weight goes into theirs; the product then reads rows of length 1.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if behind is not None:
        weight = weight * behind.weight.detach() * weight.shape[1] ** 0.5
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.detach() for layer in layers]).to(lm.device, lm.dtype)
    return _quick(weight.to(lm.device, lm.dtype), bias)


def quick_head(lm: CausalLM) -> Callable[[Tensor], Tensor]:
    """The target's LM head for drafting: the target's own, or a copy of 4 bits where ``_quick`` takes them.

    x [..., D] in the target's dtype to logits [..., V]. A target that is rounded itself lends its own.
    """
    module: Any = lm.model.get_output_embeddings()
    if lm.device.type != "cpu" or lm.dtype.itemsize != 2 or lm.forward.weights not in ("plain", "packed"):
        return lm_head(lm)
    if isinstance(module, StandIn):
        held: Any = module.whole[0].product
        weight, bias = held.dense(), held.bias
    else:
        weight, bias = module.weight.detach(), module.bias
    found = _quick(weight, bias)
    return found if isinstance(found, Int4) else lm_head(lm)


def _quick(weight: Tensor, bias: Tensor | None) -> Product:
    """A matrix in the format in which few rows cost least.

    In half precision on a CPU those are 4 bits: a draft is no promise, and what a product of few rows costs is to read
    the matrix. Wider numbers stay as they are.
    """
    for name in ["int4", "packed"] if weight.dtype.itemsize == 2 else ["packed"]:
        if not unavailable(name, weight.dtype, weight.device.type):
            with contextlib.suppress(ValueError):  # a shape that the format cannot hold
                return weight_format(name)(weight, bias)
    return Plain(weight, bias)
