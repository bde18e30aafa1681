"""Probe, then trust: can this model score a token tree in one pass, and roll back? Asked of its own weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ramify.models.cache import RowCache
from ramify.models.forward import Forward, Nodes, TransformersForward

# The probe's tree: node 0 - 1 - 2 - 3 and node 4 below node 1.
_PROBE_PATHS = ([0, 1, 2, 3], [0, 1, 4])
_PROBE_DEPTH = [0, 1, 2, 3, 2]


def probe(model: Any) -> tuple[TransformersForward, str]:
    """Score a small tree at once and its paths one by one on the model's own weights.

    Returns the forward pass that agrees, and the reason when none does.
    """
    config = model.config.get_text_config(decoder=True)
    types = set(getattr(config, "layer_types", None) or ())
    plain = TransformersForward(model, mask_by_type=False)
    foreign = types - {"full_attention", "sliding_attention"}
    if foreign:
        return plain, f"it has {', '.join(sorted(foreign))} layers, whose state cannot be rolled back or forked"
    if getattr(config, "attention_chunk_size", None) is not None:
        return plain, "its layers attend in chunks, which tree masks do not cover"
    tokens = torch.arange(1, 1 + len(_PROBE_DEPTH)) * 7919 % config.vocab_size
    reasons = []
    # One mask for layers of both kinds would be wrong beyond the window, where the probe does not reach.
    for by_type in [True] if len(types) > 1 else [True, False] if types else [False]:
        forward = TransformersForward(model, by_type)
        try:
            gap = _tree_gap(model, forward, tokens)
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:
            reasons.append(f"its forward pass takes no tree mask ({_first(error)})")
            continue
        if gap <= _tolerance(model.dtype):
            return forward, ""
        if not math.isfinite(gap):
            return plain, "it returned NaN or infinite logits"
        reasons.append(f"a tree scored at once differs from its paths by {gap:.2g} standard deviations of the logits")
    return plain, reasons[-1]


def _tolerance(dtype: torch.dtype) -> float:
    """Allowed gap in standard deviations of the logits: rounding of half precision, or nearly none."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.15


def _tree_gap(model: Any, forward: Forward, tokens: Tensor) -> float:
    """Largest difference between tree and path logits, before and after a rollback, in standard deviations."""
    device = model.get_input_embeddings().weight.device
    tokens = tokens.to(device)
    depth = torch.tensor([_PROBE_DEPTH], device=device)
    ancestors = torch.zeros(1, len(tokens), len(tokens), dtype=torch.bool, device=device)
    for path in _PROBE_PATHS:
        for place, node in enumerate(path):
            ancestors[0, node, path[: place + 1]] = True
    cache = RowCache(model.config.get_text_config(decoder=True).num_hidden_layers, rows=1, capacity=8)
    with torch.no_grad():
        cache.expect(len(tokens), device)
        logits = forward(Nodes(tokens[None], depth, [0], ancestors), cache)[0][0].float()
        alone = [model(input_ids=tokens[path][None]).logits[0].float() for path in _PROBE_PATHS]
        gaps = [(logits[path] - one).abs().max() for path, one in zip(_PROBE_PATHS, alone, strict=True)]
        kept = _PROBE_PATHS[1]
        cache.keep([kept])
        cache.expect(1, device)
        step = Nodes(tokens[3:4][None], torch.tensor([[len(kept)]], device=device), [len(kept)], ancestors[:, :1, :1])
        after = forward(step, cache)[0][0, -1].float()
        expected = model(input_ids=tokens[[*kept, 3]][None]).logits[0, -1].float()
        gaps.append((after - expected).abs().max())
        return float(torch.stack(gaps).max() / alone[0].std())


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
