"""Checkpoints of published denoisers, read as the decoders of transformers that they are; no code of theirs is run.

LLaDA (arXiv 2502.09992) is a Llama whose tensors have other names, and whose head and embeddings are two matrices.
Dream (arXiv 2508.15487) is a Qwen2 under its own name, which reads a position's logits one position earlier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.errors import RamifyError, first_line

LLADA_MASK = 126336
DREAM_MASK = 151666


def settings_of(folder: Path) -> dict[str, Any]:
    """What the config.json of ``folder`` holds; nothing where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RamifyError(f"{file} is damaged ({first_line(error)}); fetch or save the model again") from error
    return found if isinstance(found, dict) else {}


def model_type(folder: Path) -> str | None:
    """The layout of ``folder``, a key of ``LAYOUTS``; None where it is none of them."""
    kind = str(settings_of(folder).get("model_type", "")).lower()
    return kind if kind in LAYOUTS else None


def read(folder: Path, dtype: torch.dtype | None, attention: str | None) -> Any:
    """The transformers model in ``folder``, which has one of ``LAYOUTS``; its config says how it reads a canvas.

    ``dtype``: None for the checkpoint's own. Raises ``RamifyError`` for tensors that are missing, of another shape,
    unknown or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = settings_of(folder)
    build = LAYOUTS[str(settings["model_type"]).lower()]
    try:
        model, names = build(settings, attention)
    except KeyError as error:
        raise RamifyError(f"the config.json in {folder} lacks {error}; fetch the model again") from error
    expected = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= {names(name): tensor for name, tensor in load_file(file).items()}
        except SafetensorError as error:
            raise RamifyError(f"the weights in {file} are damaged ({error}); fetch the model again") from error
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
    )
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RamifyError(
            f"the weights in {folder} do not fit its config.json: {wrong[0]}{more} are missing, unknown or of "
            "another shape"
        )
    kinds = {tensor.dtype for tensor in tensors.values()}
    model = model.to(dtype or (kinds.pop() if len(kinds) == 1 else torch.float32))
    model.load_state_dict(tensors, strict=False)  # checked above; a tied head has no tensor of its own
    return model


Names = Callable[[str], str]


def _llada(settings: Mapping[str, Any], attention: str | None) -> tuple[Any, Names]:
    from transformers import LlamaConfig, LlamaForCausalLM

    if settings.get("include_bias") or settings.get("include_qkv_bias"):
        raise RamifyError("this LLaDA checkpoint has biases, which the published ones have not; it cannot be read")
    width = settings["mlp_hidden_size"] or settings["mlp_ratio"] * settings["d_model"]
    config = LlamaConfig(
        vocab_size=settings.get("embedding_size") or settings["vocab_size"],
        hidden_size=settings["d_model"],
        intermediate_size=width,
        num_hidden_layers=settings["n_layers"],
        num_attention_heads=settings["n_heads"],
        num_key_value_heads=settings.get("n_kv_heads") or settings["n_heads"],
        max_position_embeddings=settings["max_sequence_length"],
        rms_norm_eps=settings.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(settings.get("rope_theta", 10000.0))},
        tie_word_embeddings=bool(settings.get("weight_tying", False)),
        pad_token_id=settings.get("pad_token_id"),
        bos_token_id=None,
        eos_token_id=settings.get("eos_token_id"),
    )
    _declare(config, attention, {"mask_token_id": settings.get("mask_token_id", LLADA_MASK)})
    ends = {
        "model.transformer.wte.weight": "model.embed_tokens.weight",
        "model.transformer.ln_f.weight": "model.norm.weight",
        "model.transformer.ff_out.weight": "lm_head.weight",
    }
    parts = {
        "attn_norm": "input_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "ff_norm": "post_attention_layernorm",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }

    def names(name: str) -> str:
        if name in ends:
            return ends[name]
        layer, _, rest = name.removeprefix("model.transformer.blocks.").partition(".")
        part = rest.removesuffix(".weight")
        return f"model.layers.{layer}.{parts[part]}.weight" if part in parts else name

    return LlamaForCausalLM(config), names


def _dream(settings: Mapping[str, Any], attention: str | None) -> tuple[Any, Names]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        num_hidden_layers=settings["num_hidden_layers"],
        num_attention_heads=settings["num_attention_heads"],
        num_key_value_heads=settings["num_key_value_heads"],
        max_position_embeddings=settings["max_position_embeddings"],
        rms_norm_eps=settings["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(settings["rope_theta"])},
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
        pad_token_id=settings.get("pad_token_id"),
        bos_token_id=settings.get("bos_token_id"),
        eos_token_id=settings.get("eos_token_id"),
    )
    _declare(config, attention, {"mask_token_id": settings.get("mask_token_id", DREAM_MASK), "shift": True})
    return Qwen2ForCausalLM(config), str


def _declare(config: Any, attention: str | None, denoiser: dict[str, Any]) -> None:
    config.denoiser = denoiser
    config._attn_implementation = attention or "sdpa"


LAYOUTS: dict[str, Callable[[Mapping[str, Any], str | None], tuple[Any, Names]]] = {"llada": _llada, "dream": _dream}
