"""What trained heads borrow from their target: its LM head, and its laws on windows of text.

The LM head is taken as the bare matrix: soft caps and scales that a family puts behind it keep the order of tokens, so
they change how confident a head is, never which tokens it guesses first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.models.causal import CausalLM
from ramify.models.weights import Product, unavailable, weight_format

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


def product(lm: CausalLM, *layers: nn.Linear, behind: nn.RMSNorm | None = None) -> Product:
    """Linear layers of a head that read the same input, as one product in the target's dtype on its device.

    ``behind``: a norm before them, whose weight goes into theirs; the product then reads rows of length 1.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if behind is not None:
        weight = weight * behind.weight.detach() * weight.shape[1] ** 0.5
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.detach() for layer in layers]).to(lm.device, lm.dtype)
    name = "plain" if unavailable("packed", lm.dtype, lm.device.type) else "packed"
    return weight_format(name)(weight.to(lm.device, lm.dtype), bias)
