"""Tiny random models of every family that the engine serves, and of some that it refuses.

Their text is neither constant nor free of structure: the head favours a fixed successor of every token (so that
drafts are sometimes right) and the layers are loud enough to overrule it (so that a wrong mask, position or cache
changes the text). Sliding windows are ``WINDOW`` tokens, shorter than the texts.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import torch

from ramify.models.causal import CausalLM, load

VOCABULARY = 96
CONTEXT = 128
WINDOW = 10

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.18,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
_NARROW: dict[str, Any] = {"head_dim": 8}
_WINDOW: dict[str, Any] = {"sliding_window": WINDOW}
_ALTERNATING: dict[str, Any] = {
    **_NARROW,
    **_WINDOW,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
_BARE = {name: value for name, value in _BASE.items() if name != "num_key_value_heads"}

_SPECS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _BASE),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _BASE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _BASE | _NARROW),
    "mistral": ("MistralConfig", "MistralForCausalLM", _BASE | _WINDOW),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _BASE | _NARROW),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _BASE | _ALTERNATING),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _BASE | _ALTERNATING),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _BASE | _WINDOW),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
            "initializer_range": 0.18, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _BARE),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _BASE | _EXPERTS | {"num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        _BASE | _NARROW | _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16},
    ),
    # Positions in the attention itself (ALiBi), and recurrent states: no trees.
    "bloom": ("BloomConfig", "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2,
                                                  "n_head": 4, "initializer_range": 0.18}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 32,
                                                  "num_hidden_layers": 2}),
    "qwen3_next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        _BASE | _NARROW | _EXPERTS | {
            "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}  # fmt: skip
REFUSED = ("bloom", "mamba", "qwen3_next")
FAMILIES = tuple(name for name in _SPECS if name not in REFUSED)
WINDOWED = ("mistral", "gemma2", "gemma3", "phi3")
# Those that the fused forward pass serves.
FUSED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3")


def build(family: str, seed: int = 0, **changes: Any) -> Any:
    """A new transformers model of ``family`` in float32, its config with ``changes``; equal weights for equal seeds."""
    import transformers

    config, kind, settings = _SPECS[family]
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings | changes)).eval()
    # Generation settings of the library's examples, not of ours.
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    _shape_head(model, family, seed)
    return model


@torch.no_grad()
def _shape_head(model: Any, family: str, seed: int) -> None:
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    if head is embedding or family in REFUSED:
        return
    generator = torch.Generator().manual_seed(seed + 1)
    successor = torch.randperm(len(head), generator=torch.Generator().manual_seed(1))
    directions = torch.randn(embedding.shape, generator=generator)
    # Gemma multiplies embeddings by the square root of their size.
    embedding.copy_(directions / (32**0.5 if family.startswith("gemma") else 1.0))
    head.copy_(0.3 * torch.randn(head.shape, generator=generator))
    head[successor] += directions / directions.norm(dim=1, keepdim=True)


@functools.cache
def model(family: str) -> Any:
    """The model of ``family``, built once per test session; nothing may change it."""
    return build(family)


def lm(family: str, how: str = "") -> CausalLM:
    """``model(family)`` as the engine sees it.

    ``how``: "" for what ``load`` chooses, "transformers" for that forward pass, or a weight format; converting replaces
    a model's layers, so then it is a model of its own, with equal weights.
    """
    return _lm(family, how)


@functools.cache
def _lm(family: str, how: str) -> CausalLM:
    if how in ("", "transformers"):
        return load(model(family), forward=how or None)
    return load(build(family), weights=how)


def text(length: int, seed: int = 0, period: int | None = None) -> list[int]:
    """``length`` random ids; with ``period``, a motif of so many ids over and over."""
    numbers = random.Random(1000 * length + seed)
    motif = [numbers.randrange(1, VOCABULARY) for _ in range(period or length)]
    return [motif[place % len(motif)] for place in range(length)]


@functools.cache
def byte_tokenizer() -> Any:
    """A tokenizer of the 256 bytes, with "<pad>" (256), "<eos>" (257), and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = bytes_to_unicode()
    backend = Tokenizer(models.BPE(vocab={table[byte]: byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-in of every byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


@functools.cache
def byte_lm() -> CausalLM:
    """A Llama over ``byte_tokenizer`` whose text is mostly printable ASCII, with some longer characters."""
    model = build("llama", vocab_size=258, max_position_embeddings=512, pad_token_id=256)
    model.generation_config.pad_token_id = 256
    with torch.no_grad():
        bias = torch.full((258,), -1.0)
        bias[32:127] = 1.0
        bias[194:240] = 0.5
        bias[256:] = -9.0
        model.lm_head.bias = torch.nn.Parameter(bias)
    return load(model, tokenizer=byte_tokenizer())


@torch.no_grad()
def fresh(family: str, tokens: list[int]) -> torch.Tensor:
    """Logits [n, V] of transformers' own forward pass over ``tokens``: no cache, no mask of ours."""
    return model(family)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
