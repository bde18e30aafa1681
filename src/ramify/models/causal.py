"""Causal language models: loading, what they are able to do, and the probe that finds it out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ramify.errors import RamifyError
from ramify.models.forward import Forward
from ramify.models.probe import probe

DEMO = Path(__file__).parent / "demo"


@dataclass(eq=False, repr=False)
class CausalLM:
    """A transformers causal language model as the engine sees it; made by ``load``.

    ``trees``: whether one forward pass scores a token tree exactly, proved on the model's own weights at loading;
    ``reason`` says why not. ``name``: what to call the model in tables.
    """

    model: Any
    tokenizer: Any
    name: str
    forward: Forward
    trees: bool
    reason: str = ""

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"CausalLM({self.name!r}, {self.model.config.model_type}, {kind}, {self.device})"

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.text_config.vocab_size)

    @property
    def context(self) -> int:
        """Longest sequence that the model's positions allow, in tokens."""
        return int(getattr(self.text_config, "max_position_embeddings", None) or 1 << 30)

    @property
    def layers(self) -> int:
        return int(self.text_config.num_hidden_layers)

    @functools.cached_property
    def text_config(self) -> Any:
        return self.model.config.get_text_config(decoder=True)

    def require_trees(self, what: str) -> None:
        """Raise ``RamifyError`` unless token trees (and chains longer than one) can be scored and rolled back."""
        if not self.trees:
            raise RamifyError(f"{self.name} cannot run {what}: {self.reason}; use method='greedy' or 'sample'")

    def require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise RamifyError(f"{self.name} was loaded without a tokenizer; give token ids, or load(..., tokenizer=…)")
        return self.tokenizer

    def encode(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Token ids of a text, or of a chat through the tokenizer's chat template."""
        tokenizer = self.require_tokenizer()
        if isinstance(prompt, str):
            ids: list[int] = tokenizer(prompt)["input_ids"]
            return ids
        if not getattr(tokenizer, "chat_template", None):
            raise RamifyError(f"the tokenizer of {self.name} has no chat template; give the prompt as one text")
        return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def load(
    source: Any = "demo",
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> CausalLM:
    """Load a causal language model.

    ``source``: "demo" (the bundled model), a local folder, a hub id, or a transformers model object (with its
    ``tokenizer``, an object or None for token ids only). ``dtype``: "float32", "bfloat16", … or None for the
    checkpoint's own ("demo": bfloat16 where the CPU computes in it, float32 elsewhere). ``device``: None for the first
    GPU if there is one, else the CPU. ``attention``: transformers' attention implementation, None for its own choice
    ("demo" in bfloat16: "eager", whose rounding of a row does not depend on how many rows there are, so that drafts
    change nothing even in half precision; "sdpa" is faster and rounds other row counts otherwise). Weights are read
    from safetensors only.

    Raises ``RamifyError`` for a folder that holds no usable model, for pickled weights, and for damaged files.
    """
    if not isinstance(source, str | Path):
        model = source
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        if dtype is not None or device is not None:
            model = model.to(dtype=_dtype(dtype), device=device)
        if attention is not None:
            model.set_attn_implementation(attention)
    else:
        name = str(source)
        place = DEMO if name == "demo" else source
        if name == "demo":
            dtype = dtype or _demo_dtype()
            if _dtype(dtype) == torch.bfloat16:
                attention = attention or "eager"
        model = _load_model(place, dtype, attention, trust_remote_code)
        if tokenizer is None:
            tokenizer = _load_tokenizer(place, trust_remote_code)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).requires_grad_(False)
    model.eval()
    return wrap(model, tokenizer, name)


def wrap(model: Any, tokenizer: Any, name: str) -> CausalLM:
    """A ``CausalLM`` around a transformers model as it is, after probing what it can do."""
    training = model.training
    model.eval()  # dropout would make a tree differ from its own paths
    forward, reason = probe(model)
    if training:
        model.train()
    return CausalLM(model, tokenizer, name, forward, trees=not reason, reason=reason)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise RamifyError(f"unknown dtype {dtype!r}; use 'float32', 'bfloat16' or 'float16'")
    return found


def _demo_dtype() -> torch.dtype:
    # A private question of torch, so asked with a way out: without it, float32 is always right.
    computes_in_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    fast = torch.cuda.is_available() or computes_in_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _load_model(
    place: str | Path, dtype: str | torch.dtype | None, attention: str | None, trust_remote_code: bool
) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = Path(place)
    if folder.is_dir():
        _check_folder(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=_dtype(dtype) or "auto",
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise RamifyError(f"the weights in {place} are damaged ({error}); fetch or save the model again") from error
    except (OSError, ValueError, KeyError) as error:
        raise RamifyError(f"{place} holds no causal language model that can be loaded: {_first(error)}") from error
    model, found = loaded
    _check_weights(place, found)
    return model


def _check_weights(place: str | Path, found: dict[str, Any]) -> None:
    """Refuse weights that transformers would have made up: missing ones, and ones of another shape."""
    made_up = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if made_up:
        more = f" and {len(made_up) - 1} more" if len(made_up) > 1 else ""
        raise RamifyError(
            f"the weights in {place} do not fit its config.json: {made_up[0]}{more} are missing or of another shape"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise RamifyError(f"{folder} is no model folder: it has no config.json; give one that save_pretrained made")
    if not any(folder.glob("*.safetensors")):
        pickles = [file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind)]
        if pickles:
            raise RamifyError(
                f"{folder} holds pickled weights only ({pickles[0]}), which can run code when loaded; "
                "convert them to safetensors with model.save_pretrained"
            )
        raise RamifyError(f"{folder} holds no weights: there is no .safetensors file in it")


def _load_tokenizer(place: str | Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
