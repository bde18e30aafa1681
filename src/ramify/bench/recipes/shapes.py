"""Random models in the shapes of published ones, made on the fly: what a pass costs is a matter of shape, not training.

And what memory gives at best, to hold the costs against.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ramify.bench.configurations import synchronize
from ramify.errors import RamifyError, unknown

# Families and the settings that published configurations give them; contexts are cut, so that a cache stays small.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-0.5b": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "llama3.2-1b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    # No published model: over the vocabulary of the demo model, so that it takes the same prompts.
    "llama-100m": (
        "llama",
        {
            "vocab_size": 4096,
            "hidden_size": 768,
            "intermediate_size": 2304,
            "num_hidden_layers": 13,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "max_position_embeddings": 2048,
        },
    ),
}


def random_model(shape: str, seed: int = 0, dtype: str = "float32") -> Any:
    """A transformers model of ``shape`` with random weights; it knows no end of text.

    Raises ``RamifyError`` for an unknown shape, with the nearest name, and for an unknown dtype.
    """
    if shape not in SHAPES:
        raise unknown("shape", shape, SHAPES)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise RamifyError(f"unknown dtype {dtype!r}; use 'float32', 'bfloat16' or 'float16'")
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = SHAPES[shape]
    config = AutoConfig.for_model(family, bos_token_id=0, eos_token_id=None, pad_token_id=0, **settings)
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM.from_config
    return make(config, dtype=kind).eval()  # in its dtype at once: converting takes three times the memory


def read_bandwidth(device: str = "cpu") -> float:
    """Bytes per second that are read from memory, by as many threads as torch has: the best of seven sums over 1 GB."""
    block = torch.ones(1 << 28, device=device)
    best = float("inf")
    for _ in range(7):
        synchronize(block.device)
        began = time.perf_counter()
        block.sum()
        synchronize(block.device)
        best = min(best, time.perf_counter() - began)
    return block.numel() * block.element_size() / best
