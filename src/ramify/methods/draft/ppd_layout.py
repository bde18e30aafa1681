"""Rows of a training pass of parallel prompt decoding: a text, and what is inserted behind some of its positions.

Behind the text rows x_1 … x_T stand the prompt tokens of every insertion point i: prompt token k has the position
i + k and sees x_1 … x_i and the prompt tokens 1 … k of its own point, as it will in a draft tree. No text row sees
them, so one pass serves many points, and gives what the target says of the text besides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes


def layout(length: int, places: Tensor, prompts: int, ensemble: int, mask: str) -> tuple[Tensor, Tensor]:
    """Positions [N] and ancestors bool [N, N] of ``length`` text rows and of what is inserted after ``places`` [P].

    N = length + P · prompts · ensemble; a point's rows stand together, prompt token by prompt token.
    """
    device = places.device
    step = torch.arange(prompts, device=device).repeat_interleave(ensemble)
    member = torch.arange(ensemble, device=device).repeat(prompts)
    if mask == "ensemble":
        seen = (step[:, None] >= step) & (member[:, None] == member)
    elif mask == "decoder":
        seen = torch.ones(len(step), len(step), dtype=torch.bool, device=device).tril_()
    else:
        seen = step[:, None] == step
    count = len(places) * len(step)
    ancestors = torch.zeros(length + count, length + count, dtype=torch.bool, device=device)
    ancestors[:length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    ancestors[length:, :length] = torch.arange(length, device=device) <= places.repeat_interleave(len(step))[:, None]
    ancestors[length:, length:] = torch.kron(torch.eye(len(places), dtype=torch.bool, device=device), seen)
    inserted = places[:, None] + 1 + step
    return torch.cat([torch.arange(length, device=device), inserted.flatten()]), ancestors


@torch.no_grad()
def continuation(
    lm: CausalLM, tokens: Tensor, places: Tensor, count: int, temperature: float = 0.0, seed: int = 0
) -> Tensor:
    """Logits [B, P, count, V] of the target after 1 … ``count`` tokens of its own behind every one of ``places``."""
    generator = torch.Generator(tokens.device).manual_seed(seed)
    length, own = tokens.shape[1], tokens.new_zeros(len(tokens), len(places), 0)
    found: list[Tensor] = []
    for size in range(count + 1):
        positions, ancestors = layout(length, places, size, 1, "ensemble")
        logits = score(lm, torch.cat([tokens, own.flatten(1)], dim=1), None, positions, ancestors)
        last = logits[:, length + size - 1 :: size] if size > 0 else logits[:, places]
        if size > 0:
            found.append(last)
        if temperature:
            law = torch.softmax(last.float() / temperature, dim=-1)
            token = torch.multinomial(law.flatten(0, 1), 1, generator=generator).view(len(tokens), len(places), 1)
        else:
            token = last.argmax(dim=-1, keepdim=True)
        own = torch.cat([own, token], dim=2)
    return torch.stack(found, dim=2)


def score(lm: CausalLM, tokens: Tensor, embeddings: Tensor | None, positions: Tensor, ancestors: Tensor) -> Tensor:
    """Logits [B, N, V] of rows that are laid out alike in every window, with gradients where they are wanted."""
    rows, count = len(tokens), len(positions)
    cache = RowCache(lm.layers, rows, count)
    cache.expect(count, tokens.device)
    filled = functional.pad(tokens, (0, count - tokens.shape[1]))
    nodes = Nodes(filled, positions.expand(rows, -1), [0] * rows, ancestors[None], embeddings=embeddings)
    logits, _ = lm.forward(nodes, cache)
    return logits
