"""Probe, then trust: can this model score a token tree in one pass, and roll back? Asked of its own weights.

And does the fused forward pass compute the same? Both are held to plain forward passes over the tree's paths.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ramify.errors import first_line
from ramify.models.cache import RowCache
from ramify.models.forward import Forward, Nodes, TransformersForward

# The probe's tree: node 0 - 1 - 2 - 3 and node 4 below node 1. Then node 3's token follows the second path.
_PROBE_PATHS = ([0, 1, 2, 3], [0, 1, 4])
_PROBE_DEPTH = [0, 1, 2, 3, 2]


class Truth:
    """What ``model`` itself says, without cache and masks, along the paths that the probe scores as a tree."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @functools.cached_property
    def expected(self) -> Tensor:
        """Logits [n + 1, V] of the tree's nodes and of the step behind its second path."""
        tokens = _probe_tokens(self.model)
        first, second = _PROBE_PATHS
        with torch.no_grad():
            logits = self.model(input_ids=tokens[torch.tensor([first, [*second, 3]])]).logits.float()
        return torch.cat([logits[0], logits[1, 2:]])

    def gap(self, forward: Forward) -> float:
        """Largest difference of ``forward``'s logits from the model's, in standard deviations of the logits."""
        found = _tree_logits(self.model, forward)
        return float((found - self.expected).abs().max() / self.expected.std())

    def refuses(self, forward: Forward) -> str:
        """Why ``forward`` must not take the place of the model's own, "" when their logits agree."""
        gap = self.gap(forward)
        # Written so that a gap that is no number is refused as well.
        return "" if gap <= _tolerance(forward.dtype) else f"its logits differ by {gap:.2g} standard deviations"


def probe(model: Any, truth: Truth) -> tuple[TransformersForward, str]:
    """Score a small tree at once and hold it to the model's plain passes over its paths.

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
    if config._attn_implementation == "flex_attention" and model.device.type == "cpu":
        # Its compiled kernel reads beyond such a mask, which ends the whole process.
        return plain, "flex_attention takes no tree mask on CPUs (attention='sdpa' does)"
    reasons = []
    # One mask for layers of both kinds would be wrong beyond the window, where the probe does not reach.
    for by_type in [True] if len(types) > 1 else [True, False] if types else [False]:
        forward = TransformersForward(model, by_type)
        try:
            gap = truth.gap(forward)
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:
            reasons.append(f"its forward pass takes no tree mask ({first_line(error)})")
            continue
        if gap <= _tolerance(model.dtype):
            return forward, ""
        if not math.isfinite(gap):
            return plain, "it returned NaN or infinite logits"
        reasons.append(f"a tree scored at once differs from its paths by {gap:.2g} standard deviations of the logits")
    return plain, reasons[-1]


def _tolerance(dtype: torch.dtype) -> float:
    """Allowed gap in standard deviations of the logits: rounding of half precision, or nearly none."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 0.15


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
