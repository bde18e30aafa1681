"""Masked denoisers: models that see a whole canvas in both directions and say what stands at its open positions.

Any decoder of transformers is one when it was trained as one: run under an explicit mask that hides nothing, with a
token for "open". Its ``config.json`` says so in one entry, ``denoiser`` (see ``Denoiser``); checkpoints of LLaDA and
Dream are read as the Llama and the Qwen2 that they are (``ramify.models.layouts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.models.cache import RowCache
from ramify.models.causal import BUNDLED, CausalLM, open_model
from ramify.models.forward import Forward, Nodes, sliding_window
from ramify.models.layouts import model_type, settings_of


@dataclass(frozen=True)
class Denoiser:
    """What ``config.denoiser`` holds.

    ``mask_token_id``: the token that stands at open positions. ``shift``: the logits for position i leave the model at
    position i − 1 (Dream). ``block``: positions see their own block of that many positions and the blocks before it;
    None where all see all. ``null_token_id``: what takes the place of the prompt in the unconditional pass of
    classifier-free guidance; None for the mask token (LLaDA). ``prefix_causal``: so many first positions see each other
    and not what follows: the prompts of a model whose prompts all have that length; 0 where all see all.
    """

    mask_token_id: int
    shift: bool = False
    block: int | None = None
    null_token_id: int | None = None
    prefix_causal: int = 0


class Blind:
    """A forward pass in which the first ``prompt`` positions see each other only."""

    def __init__(self, forward: Forward, prompt: int) -> None:
        self.forward, self.prompt = forward, prompt
        self.name, self.dtype, self.weights = forward.name, forward.dtype, forward.weights

    def current(self) -> bool:
        return self.forward.current()

    def embed(self, tokens: Tensor) -> Tensor:
        return self.forward.embed(tokens)

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        answer = nodes.positions >= self.prompt
        hidden = ~answer[:, :, None] & answer[:, None, :]
        if any(nodes.lengths) and bool((~answer).any()):  # entries that are held would be seen by the prompt
            raise RamifyError(
                "a prompt that does not see the answer is read in a whole pass only; give canvases one by one"
            )
        return self.forward(replace(nodes, ancestors=nodes.ancestors & ~hidden), cache)


@dataclass(eq=False, repr=False)
class MaskedLM:
    """A masked denoiser as the engine sees it; made by ``load_masked``.

    ``base``: the transformers decoder, whose forward pass was proved to keep to explicit masks on its own weights.
    ``facts``: how it was trained to read a canvas.
    """

    base: CausalLM
    facts: Denoiser

    def __repr__(self) -> str:
        return repr(self.base).replace("CausalLM", "MaskedLM", 1)

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def model(self) -> Any:
        return self.base.model

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def forward(self) -> Forward:
        blind = self.facts.prefix_causal
        return Blind(self.base.forward, blind) if blind else self.base.forward

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.base.vocab_size

    @property
    def context(self) -> int:
        """Longest canvas that the model's positions allow, prompt included."""
        return self.base.context

    @property
    def layers(self) -> int:
        return self.base.layers

    @property
    def mask_id(self) -> int:
        """The token at open positions, which is never the answer."""
        return self.facts.mask_token_id

    def refresh(self) -> None:
        """Follow a model that was changed since it was wrapped."""
        self.base.refresh()

    def require_tokenizer(self) -> Any:
        return self.base.require_tokenizer()

    def encode(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Token ids of a text, or of a chat through the tokenizer's chat template."""
        return self.base.encode(prompt)


def load_masked(
    source: Any = "demo-dlm",
    *,
    tokenizer: Any = None,
    mask_token: int | str | None = None,
    shift: bool | None = None,
    block: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    forward: str | None = None,
    weights: str | None = None,
    trust_remote_code: bool = False,
) -> MaskedLM:
    """Load a masked denoiser.

    ``source``: a bundled model ("demo-dlm", "demo-masked-image", "list-model", "grid-model", "parallel-model"), a local
    folder in transformers' layout or that of LLaDA or Dream (whose own code is not run), a hub id, or a model object.
    ``mask_token``, ``shift``, ``block``: how the model was trained to read a canvas, see ``Denoiser``; None for what
    its config says. A text for ``mask_token`` is looked up in the tokenizer. The other settings are those of ``load``.

    Raises ``RamifyError`` for a checkpoint that says nothing of a mask token (an autoregressive one), for a mask token
    outside the vocabulary, for a model with a sliding window, and wherever ``load`` does.
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
    given = {"shift": shift, "block": block}
    return masked(lm, mask_token, {name: value for name, value in given.items() if value is not None})


def masked(lm: CausalLM, mask_token: int | str | None = None, given: Mapping[str, Any] | None = None) -> MaskedLM:
    """``lm`` read as a denoiser, by what its config says and ``given`` says otherwise; raises as ``load_masked``."""
    facts = dict(getattr(lm.model.config, "denoiser", None) or {}) | dict(given or {})
    if isinstance(mask_token, str):
        found = lm.require_tokenizer().convert_tokens_to_ids(mask_token)
        if found is None or found == lm.tokenizer.unk_token_id:
            raise RamifyError(f"the tokenizer of {lm.name} has no token {mask_token!r}; name the model's own")
        mask_token = int(found)
    if mask_token is not None:
        facts["mask_token_id"] = mask_token
    if "mask_token_id" not in facts:
        raise RamifyError(
            f"{lm.name} is an autoregressive checkpoint: its config names no mask token; use ramify.load, or give "
            "mask_token if it was trained to fill one in"
        )
    try:
        denoiser = Denoiser(**facts)
    except TypeError as error:
        raise RamifyError(f"the entry 'denoiser' in the config of {lm.name} is not understood: {error}") from error
    if not 0 <= denoiser.mask_token_id < lm.vocab_size:
        raise RamifyError(
            f"the mask token {denoiser.mask_token_id} is outside the vocabulary of {lm.name} "
            f"({lm.vocab_size} tokens); give the one that the model was trained with"
        )
    if denoiser.block is not None and denoiser.block < 1:
        raise RamifyError(f"the block of {lm.name} is {denoiser.block}; blocks have at least 1 position")
    if denoiser.prefix_causal < 0:
        raise RamifyError(f"prefix_causal of {lm.name} is {denoiser.prefix_causal}; it is a number of positions")
    lm.require_trees("a canvas")
    if sliding_window(lm.model) is not None:
        raise RamifyError(f"{lm.name} has a sliding attention window, which a canvas has no use for")
    return MaskedLM(lm, denoiser)


def is_masked(source: Any) -> bool:
    """Whether ``source``, as ``load_masked`` takes it, says of itself that it is a denoiser; without loading it."""
    if isinstance(source, MaskedLM):
        return True
    if not isinstance(source, str | Path):
        return getattr(getattr(source, "config", None), "denoiser", None) is not None
    folder = Path(BUNDLED.get(str(source), source))
    return "denoiser" in settings_of(folder) or model_type(folder) is not None
