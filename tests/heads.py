"""Draft heads for tiny random models that are right often, not always, without training; and bundled ones at work."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ramify.api import generate
from ramify.bench.prompts import held_out_prompts
from ramify.methods.base import Method
from ramify.methods.draft.deer_head import DeerHead
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.models.causal import CausalLM, load


@torch.no_grad()
def medusa(lm: CausalLM, **sizes: Any) -> MedusaHead:
    """Blocks that turn the state a little, so that heads differ; measured to be right less and less often."""
    torch.manual_seed(0)
    head = MedusaHead.new(lm, **{"projection": "shared"} | sizes)
    for blocks in head.blocks:
        for block in blocks:
            nn.init.normal_(block.linear.weight, std=0.3)
    ranks = torch.arange(head.accuracy.shape[2])
    for k in range(head.accuracy.shape[1]):
        head.accuracy[:, k] = 0.4 / (k + 2) / (ranks + 1)
    return head


@torch.no_grad()
def eagle(lm: CausalLM, **sizes: Any) -> EagleHead:
    """Mostly the successor that the target's LM head favours for the token, moved by what the layer attends to."""
    torch.manual_seed(0)
    head = EagleHead.new(lm, **sizes)
    size, layer = head.fit.hidden_size, head.layers[0]
    parts = [torch.eye(size), *(0.2 * torch.eye(size) for _ in range(head.fc.in_features // size - 1))]
    head.fc.weight.copy_(torch.cat(parts, dim=1))
    nn.init.normal_(layer.self_attn["o_proj"].weight, std=0.2)
    nn.init.normal_(layer.mlp["down_proj"].weight, std=0.2)
    return head


@torch.no_grad()
def deer(lm: CausalLM, **sizes: Any) -> DeerHead:
    """All layers of the target, so that a causal head that is shifted is right one token ahead, and then seldom."""
    torch.manual_seed(0)
    head = DeerHead.new(lm, **{"layers": lm.layers, "most": 12, "last": 8} | sizes)
    head.accuracy.copy_(0.9 ** torch.arange(1, head.accuracy.shape[1] + 1))
    return head.eval()  # GPT-2 has dropout


def calls_of_sampling(method: Method) -> int:
    """Target calls for some sampled text of the demo model in float32, which must be that of plain sampling."""
    model = load("demo", dtype="float32")
    prompts = [prompt.text for prompt in held_out_prompts(3, seed=0)]
    settings: dict[str, Any] = {"max_new_tokens": 48, "do_sample": True, "temperature": 0.7, "seed": 1}
    plain, found = (generate(model, prompts, each, **settings) for each in ("sample", method))
    assert [result.tokens for result in found] == [result.tokens for result in plain]
    return sum(result.stats.target_calls for result in found)
