"""How alike the features of a canvas are from one pass to the next, where nothing was written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ramify.engine.events import Unmasked
from ramify.engine.request import Request
from ramify.methods.unmask.orders import Unmask
from ramify.models.masked import MaskedLM


def key_similarity(lm: MaskedLM, requests: Sequence[Request], steps: int) -> float:
    """Mean cosine, over layers and positions, between the keys of a pass and of the next, in random order.

    Positions that the step between them wrote are left out.
    """
    found = []
    for request, result in zip(requests, Unmask(order="random", steps=steps).complete(lm, requests), strict=True):
        start = len(request.prompt)
        given = request.canvas or [None] * (request.max_length - start)
        canvas = torch.tensor([*request.prompt, *(lm.mask_id if token is None else token for token in given)])
        states, written = [canvas.clone()], []
        for event in result.events:
            if isinstance(event, Unmasked):
                places = torch.tensor(event.positions)
                canvas[places] = torch.tensor(event.tokens)
                states.append(canvas.clone())
                written.append(places)
        keys = _keys(lm, torch.stack(states[:-1]))
        for (before, after), places in zip(pairwise(keys), written, strict=False):
            same = torch.ones(len(canvas), dtype=torch.bool)
            same[places] = False
            found.append(torch.cosine_similarity(before, after, dim=-1)[:, same].mean().item())
    return sum(found) / len(found)


@torch.no_grad()
def _keys(lm: MaskedLM, ids: Tensor) -> list[Tensor]:
    """Of each canvas [n, L] the keys of every layer: [layers, L, heads · size]."""
    length = ids.shape[1]
    output = lm.model(
        input_ids=ids,
        position_ids=torch.arange(length).expand_as(ids),
        attention_mask=torch.zeros(len(ids), 1, length, length, dtype=lm.dtype),
        use_cache=True,
    )
    keys = torch.stack([layer.keys for layer in output.past_key_values.layers])
    return list(keys.transpose(2, 3).flatten(3).transpose(0, 1))
