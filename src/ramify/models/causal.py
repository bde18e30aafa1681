"""Causal language models: loading, what they are able to do, and the probe that finds it out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ramify.errors import RamifyError, first_line, unknown
from ramify.models.calibrate import recall
from ramify.models.forward import Forward
from ramify.models.fused import FusedForward
from ramify.models.layouts import model_type, read
from ramify.models.probe import Truth, probe
from ramify.models.projection import Declined
from ramify.models.static import StaticForward
from ramify.models.weights import unavailable, weight_format

DEMO = Path(__file__).parent / "demo"
BUNDLED = {"demo": DEMO} | {
    name: DEMO.with_name(name.replace("-", "_"))
    for name in ("demo-reasoner", "demo-dlm", "demo-masked-image", "list-model", "grid-model", "parallel-model")
}
FORWARDS = ("transformers", "fused", "static")


@dataclass(eq=False, repr=False)
class CausalLM:
    """A transformers causal language model as the engine sees it; made by ``load``.

    ``trees``: whether one forward pass scores a token tree exactly, proved on the model's own weights at loading;
    ``reason`` says why not. ``name``: what to call the model in tables. ``forward``: what runs a pass; ``notes`` says
    what about it is not as asked or as fast as it could be. ``padding``: how many rows to run for as many wanted, where
    the measured cost curve says that more are cheaper. ``again``: loads the model anew, as transformers has it.
    """

    model: Any
    tokenizer: Any
    name: str
    forward: Forward
    trees: bool
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    padding: dict[int, int] = field(default_factory=dict)
    again: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"CausalLM({self.name!r}, {self.model.config.model_type}, {kind}, {self.device}, {self.how})"

    @property
    def how(self) -> str:
        """Which forward pass runs, over which weights: "fused, packed weights"."""
        return f"{self.forward.name}, {self.forward.weights} weights"

    @functools.cached_property
    def original(self) -> Any:
        """The transformers model with its own weights: loaded a second time where these were converted."""
        if self.forward.weights == "plain":
            return self.model
        if self.again is None:
            raise RamifyError(
                f"{self.name} holds {self.forward.weights} weights and nothing to load its own from; "
                "load it with weights='plain'"
            )
        return self.again()

    def refresh(self) -> None:
        """Follow a model that was changed since it was wrapped: moved, merged with an adapter, hooked."""
        if not self.forward.current():
            if self.forward.weights != "plain":
                raise RamifyError(
                    f"{self.name} was changed after its weights were converted; make changes before load(…), or load "
                    "it with weights='plain'"
                )
            same = None if self.forward.name == "fused" else self.forward.name
            now = wrap(self.model, self.tokenizer, self.name, same)
            self.forward, self.trees, self.reason, self.notes = now.forward, now.trees, now.reason, now.notes

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
    forward: str | None = None,
    weights: str | None = None,
    trust_remote_code: bool = False,
) -> CausalLM:
    """Load a causal language model.

    ``source``: a bundled model ("demo", "demo-reasoner"), a local folder, a hub id, or a transformers model object
    (with its ``tokenizer``, an object or None for token ids only). ``dtype``: "float32", "bfloat16", … or None for the
    checkpoint's own ("demo": bfloat16 where the CPU computes in it, float32 elsewhere; "demo-reasoner": float32).
    ``device``: None for the first GPU if there is one, else the CPU. ``attention``: transformers' attention
    implementation, None for its own choice ("demo" in bfloat16: "eager", whose rounding of a row hardly depends on
    how many rows there are, so that drafts change next to nothing even in half precision; "sdpa" is faster and rounds
    other row counts otherwise). Weights are read from safetensors only.

    ``forward``: "fused" for the lean pass that serves the dense families of Llama's shape, "transformers" for the
    model's own; None for the fused one wherever it knows the model and gives its logits. "static" is the lean pass in
    fixed shapes, which a GPU replays as one CUDA graph for every tree size; only when it is named, for it was not
    measured there yet. ``weights``: their format, "plain", "packed" (the same weights, faster on CPUs), "int8" or
    "int4" (CPUs; another, rounded model: exactness is then promised with respect to that one); None for "packed" where
    the machine has it, and for "plain" under "static", which takes no other. The weights of a model object are left as
    they are unless a format is named; its linear layers are then replaced for good.

    Raises ``RamifyError`` for a folder that holds no usable model, for pickled weights, for damaged files, for an
    unknown forward or format, where a named one cannot be had, and for a masked denoiser (see ``load_masked``).
    """
    lm = open_model(
        source,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        attention=attention,
        forward=forward,
        weights=weights,
        trust_remote_code=trust_remote_code,
    )
    if getattr(lm.model.config, "denoiser", None) is not None:
        raise RamifyError(f"{lm.name} is a masked denoiser, which reads in both directions; use ramify.load_masked")
    return lm


def open_model(
    source: Any,
    *,
    tokenizer: Any,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    attention: str | None,
    forward: str | None,
    weights: str | None,
    trust_remote_code: bool,
) -> CausalLM:
    """A decoder of transformers as ``load`` finds it, whichever way it was trained to read."""
    if forward not in (None, *FORWARDS):
        raise unknown("forward pass", str(forward), FORWARDS)
    if weights is not None:
        weight_format(weights)
    again = None
    if not isinstance(source, str | Path):
        model = source
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        if dtype is not None or device is not None:
            model = model.to(dtype=_dtype(dtype), device=device)
        if attention is not None:
            model.set_attn_implementation(attention)
    else:
        name = str(source)
        place = BUNDLED.get(name, source)
        if name in BUNDLED and name != "demo":
            dtype = dtype or torch.float32  # too small to gain from half precision
        if name == "demo":
            dtype = dtype or _demo_dtype()
            if _dtype(dtype) == torch.bfloat16:
                attention = attention or "eager"
        home = device or ("cuda" if torch.cuda.is_available() else "cpu")

        def again() -> Any:
            return _load_model(place, dtype, attention, trust_remote_code).to(home).requires_grad_(False).eval()

        model = again()
        if tokenizer is None:
            tokenizer = _load_tokenizer(place, trust_remote_code)
    model.eval()
    lm = wrap(model, tokenizer, name, forward, weights, owned=again is not None)
    lm.again = again
    lm.padding = recall(lm)
    return lm


def wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    forward: str | None = None,
    weights: str | None = None,
    *,
    owned: bool = False,
) -> CausalLM:
    """A ``CausalLM`` around a transformers model as it is, after probing what it can do; options as in ``load``.

    ``owned``: nobody else uses the model, so its weights may be packed without being told to.
    """
    training = model.training
    model.eval()  # dropout would make a tree differ from its own paths
    truth = Truth(model)
    own, reason = probe(model, truth)
    lm = CausalLM(model, tokenizer, name, own, trees=not reason, reason=reason)
    if forward == "transformers":
        if weights not in (None, "plain"):
            raise RamifyError(f"{weights} weights need the fused forward pass; leave out forward='transformers'")
        lm.notes.append("transformers' forward pass was asked for")
    else:
        static = forward == "static"
        if static and weights not in (None, "plain"):
            raise RamifyError(f"the static forward pass takes plain weights, not {weights}; leave out weights")
        why = reason or _fuse(lm, truth, weights if weights or (owned and not static) else "plain", static)
        if why and (forward is not None or weights not in (None, "plain")):
            raise RamifyError(
                f"{name} cannot run the {forward or 'fused'} forward pass: {why}; leave out forward and weights"
            )
        if why:
            lm.notes.append(f"no fused forward pass: {why}")
    if training:
        model.train()
    return lm


def _fuse(lm: CausalLM, truth: Truth, weights: str | None, static: bool) -> str:
    """Give ``lm`` the fused forward pass over ``weights``, None for packed or plain; returns why not, else "".

    ``static``: in fixed shapes.
    """
    try:
        fused = FusedForward(lm.model)
    except Declined as declined:
        return str(declined)
    why = truth.refuses(fused)
    if why:
        return why
    why = unavailable(weights or "packed", fused.dtype, lm.device.type)
    if weights is None:
        weights = "plain" if why else "packed"
    elif why:
        raise RamifyError(f"{why}; load the model with weights='plain'")
    lm.notes.extend(fused.hold(weights))
    lm.forward = StaticForward(fused) if static else fused
    return truth.refuses(lm.forward) if static else ""


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
        if model_type(folder) is not None:
            return read(folder, _dtype(dtype), attention)
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
    except ImportError as error:
        raise RamifyError(f"{place} cannot be loaded as asked: {first_line(error)}") from error
    except (OSError, ValueError, KeyError) as error:
        raise RamifyError(f"{place} holds no causal language model that can be loaded: {first_line(error)}") from error
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

    if Path(place).is_dir() and not any(Path(place).glob(files) for files in ("*token*", "vocab*", "*.model")):
        return None  # transformers would make up an empty one for some families
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None
