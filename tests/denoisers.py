"""Tiny random denoisers: decoders of several families read as canvases, and folders in published layouts."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from families import VOCABULARY, build
from safetensors.torch import save_file
from torch import Tensor

from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.models.causal import wrap
from ramify.models.masked import MaskedLM, masked

MASK = VOCABULARY - 1


@functools.cache
def denoiser(family: str = "llama", block: int | None = None, shift: bool = False, null: int | None = None) -> MaskedLM:
    """A random decoder of ``family`` read as a denoiser; built once per test session, nothing may change it."""
    lm = wrap(build(family), None, family)
    return masked(lm, MASK, {"block": block, "shift": shift, "null_token_id": null})


def plain_logits(lm: MaskedLM, tokens: Sequence[int]) -> Tensor:
    """What the transformers model itself says of a canvas under a mask that hides nothing (or blocks): [L, V]."""
    ids = torch.tensor([list(tokens)])
    length = ids.shape[1]
    places = torch.arange(length)
    sees = torch.ones(length, length, dtype=torch.bool)
    if lm.facts.block:
        sees = (places // lm.facts.block)[None] <= (places // lm.facts.block)[:, None]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).masked_fill(sees, 0.0)
    with torch.no_grad():
        logits: Tensor = lm.model(input_ids=ids, position_ids=places[None], attention_mask=mask[None, None]).logits[0]
    return torch.cat([logits[:1], logits[:-1]]) if lm.facts.shift else logits


def request(prompt: Sequence[int], new: int, *, seed: int = 0, greedy: bool = True, **more: Any) -> Request:
    """``new`` open positions behind ``prompt``."""
    return Request(list(prompt), len(prompt) + new, Sampler(greedy=greedy, noise=Noise(seed)), **more)


def save_as_llada(folder: Path, model: Any, **changes: Any) -> Path:
    """``model``, a Llama, in the layout of LLaDA's checkpoints."""
    config = model.config
    ends = {
        "model.embed_tokens.weight": "model.transformer.wte.weight",
        "model.norm.weight": "model.transformer.ln_f.weight",
        "lm_head.weight": "model.transformer.ff_out.weight",
    }
    parts = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj",
        "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out", "post_attention_layernorm": "ff_norm",
        "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
    }  # fmt: skip
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name not in ends:
            layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
            ends[name] = f"model.transformer.blocks.{layer}.{parts[part]}.weight"
        tensors[ends[name]] = tensor.clone()
    settings = {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers, "mlp_hidden_size": config.intermediate_size, "mlp_ratio": 4,
        "vocab_size": config.vocab_size, "embedding_size": config.vocab_size, "weight_tying": False,
        "max_sequence_length": config.max_position_embeddings, "rope_theta": 10000.0,
        "rms_norm_eps": config.rms_norm_eps, "mask_token_id": MASK, "include_bias": False,
    }  # fmt: skip
    return _write(folder, settings | changes, tensors)


def save_as_dream(folder: Path, model: Any, **changes: Any) -> Path:
    """``model``, a Qwen2, in the layout of Dream's checkpoints."""
    config = model.config
    settings = {
        "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size, "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "mask_token_id": MASK,
    }  # fmt: skip
    return _write(folder, settings | changes, {name: tensor.clone() for name, tensor in model.state_dict().items()})


def _write(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    return folder
