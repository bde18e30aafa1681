"""Probe, then trust: can this model score a token tree in one pass, and roll back? Asked of its own weights.

And does the fused forward pass compute the same logits as transformers' own, on a tree and on a step behind it?
"""

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
    reasons = []
    # One mask for layers of both kinds would be wrong beyond the window, where the probe does not reach.
    for by_type in [True] if len(types) > 1 else [True, False] if types else [False]:
        forward = TransformersForward(model, by_type)
        try:
            gap = _tree_gap(model, forward)
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:
            reasons.append(f"its forward pass takes no tree mask ({_first(error)})")
            continue
        if gap <= _tolerance(model.dtype):
            return forward, ""
        if not math.isfinite(gap):
            return plain, "it returned NaN or infinite logits"
        reasons.append(f"a tree scored at once differs from its paths by {gap:.2g} standard deviations of the logits")
    return plain, reasons[-1]


class Agreement:
    """transformers' logits on the probe's tree and on a step behind its second path, to hold other forwards to."""

    def __init__(self, model: Any, forward: TransformersForward) -> None:
        self.model = model
        self.expected = _tree_logits(model, forward)

    def gap(self, forward: Forward) -> float:
        """Largest difference of ``forward``'s logits from transformers', in standard deviations of the logits."""
        found = _tree_logits(self.model, forward)
        return float((found - self.expected).abs().max() / self.expected.std())

    def reason(self, forward: Forward) -> str:
        """Why ``forward`` must not take transformers' place, "" when their logits agree."""
        gap = self.gap(forward)
        tolerance = 1e-4 if forward.dtype in (torch.float32, torch.float64) else _tolerance(forward.dtype)
        # Written so that a gap that is no number is refused as well.
        return "" if gap <= tolerance else f"its logits differ from transformers' by {gap:.2g} standard deviations"


def _tolerance(dtype: torch.dtype) -> float:
    """Allowed gap in standard deviations of the logits: rounding of half precision, or nearly none."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.15


def _tree_gap(model: Any, forward: Forward) -> float:
    """Largest difference between tree and path logits, before and after a rollback, in standard deviations."""
    tokens = _probe_tokens(model)
    kept = _PROBE_PATHS[1]
    logits = _tree_logits(model, forward)
    with torch.no_grad():
        alone = [model(input_ids=tokens[path][None]).logits[0].float() for path in _PROBE_PATHS]
        expected = model(input_ids=tokens[[*kept, 3]][None]).logits[0, -1].float()
    gaps = [(logits[path] - one).abs().max() for path, one in zip(_PROBE_PATHS, alone, strict=True)]
    gaps.append((logits[-1] - expected).abs().max())
    return float(torch.stack(gaps).max() / alone[0].std())


def _tree_logits(model: Any, forward: Forward) -> Tensor:
    """Logits [n + 1, V] of the tree's nodes, and of node 3's token behind the second path once that alone is kept."""
    tokens = _probe_tokens(model)
    depth = torch.tensor([_PROBE_DEPTH], device=tokens.device)
    ancestors = torch.zeros(1, len(tokens), len(tokens), dtype=torch.bool, device=tokens.device)
    for path in _PROBE_PATHS:
        for last, node in enumerate(path, start=1):
            ancestors[0, node, path[:last]] = True
    cache = RowCache(model.config.get_text_config(decoder=True).num_hidden_layers, rows=1, capacity=8)
    kept = _PROBE_PATHS[1]
    with torch.no_grad():
        cache.expect(len(tokens), tokens.device)
        logits = forward(Nodes(tokens[None], depth, [0], ancestors), cache)[0][0].float()
        cache.keep([kept])
        cache.expect(1, tokens.device)
        place = torch.tensor([[len(kept)]], device=tokens.device)
        after = forward(Nodes(tokens[3:4][None], place, [len(kept)], ancestors[:, :1, :1]), cache)[0][0].float()
    return torch.cat([logits, after])


def _probe_tokens(model: Any) -> Tensor:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens: Tensor = torch.arange(1, 1 + len(_PROBE_DEPTH)) * 7919 % vocabulary
    return tokens.to(model.get_input_embeddings().weight.device)


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
