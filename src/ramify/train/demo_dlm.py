"""Recipe of the bundled diffusion language model: some layers of the demo model, taught to fill blocks of masks.

Adaptation of an autoregressive model: the first and the last layers of the demo model, its embeddings with two more
rows, MASK and SEP, and then BD3-LM's loss on the same training files. Attention goes by blocks, so what is cached of
finished blocks is exact. A prediction is about its own position, without the shift of autoregressive models: so a block
is all that has to be fed. The figure of merit is the upper bound of bits per byte on the held-out modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.models.causal import CausalLM
from ramify.train.data import Windows, documents, held_out_documents, separator, split_off
from ramify.train.denoisers import at, mark
from ramify.train.denoising import Denoise, block_loss, block_pass, bound, cut, full_pass, pretraining_loss, sight
from ramify.train.heads import estimate, same_run
from ramify.train.trainer import Progress, TrainConfig, train

MASK, SEP = "<|mask|>", "<|sep|>"
CLIP = (0.1, 1.0)  # BD3-LM's clipped schedule: hardly masked blocks weigh much and vary most
HELD = 60_000  # tokens held out of data of one's own


@dataclass(frozen=True)
class DemoDLMConfig:
    """Shape and training settings.

    ``init``: "demo" for weights of the model that is adapted, "scratch" for none of them. ``layers``: how many of its
    layers, the first and the last ones. ``block``: positions of a block, None for full attention. ``quick``: every so
    manieth window measures on the way. ``draws``: how often the bound is drawn at the end.
    """

    init: str = "demo"
    layers: int = 4
    block: int | None = 16
    context: int = 256
    batch: int = 8
    quick: int = 16
    draws: int = 4
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=1100, learning_rate=3e-3, warmup=50, cooldown=0.5, eval_every=100, save_every=25
        )
    )

    def __post_init__(self) -> None:
        if self.init not in ("demo", "scratch"):
            raise RamifyError(f"init is {self.init!r}; take demo or scratch")
        if self.layers < 1 or self.context < 2:
            raise RamifyError("take at least 1 of the layers and a context of 2")
        if self.block is not None and (self.block < 1 or self.context % (2 * self.block)):
            raise RamifyError(
                f"two blocks of {self.block} do not divide a context of {self.context}; take a power of two"
            )


def adapt(lm: CausalLM, config: DemoDLMConfig) -> tuple[Any, Any]:
    """The untrained denoiser, in float32, and its tokenizer: that of ``lm`` with MASK and SEP."""
    import copy

    from transformers import AutoConfig, AutoModelForCausalLM

    layers = lm.layers
    if config.layers > layers:
        raise RamifyError(f"{lm.name} has {layers} layers, not {config.layers}; take fewer")
    tokenizer = copy.deepcopy(lm.require_tokenizer())
    tokenizer.add_special_tokens({"mask_token": MASK, "sep_token": SEP})
    shape = AutoConfig.for_model(**lm.model.config.to_dict())
    shape.num_hidden_layers, shape.vocab_size, shape.dtype = config.layers, len(tokenizer), torch.float32
    shape.max_position_embeddings = config.context
    model = AutoModelForCausalLM.from_config(shape)  # type: ignore[no-untyped-call]
    if config.init == "demo":
        _take(model, lm.original, config.layers, layers)
    return mark(model, tokenizer.mask_token_id, config.block), tokenizer


@torch.no_grad()
def _take(model: Any, source: Any, kept: int, layers: int) -> None:
    """Copy the weights of ``source``, of its layers the first and the last; new tokens begin as the mean of all."""
    first = (kept + 1) // 2
    chosen = [*range(first), *range(layers - (kept - first), layers)]
    weights = source.state_dict()
    for name, own in model.state_dict().items():
        parts = name.split(".")
        if "layers" in parts:
            place = parts.index("layers") + 1
            parts[place] = str(chosen[int(parts[place])])
        theirs = weights[".".join(parts)].float()
        own[: len(theirs)] = theirs
        own[len(theirs) :] = theirs.mean(0)


def train_demo_dlm(lm: CausalLM, out: Path, config: DemoDLMConfig, data: Path | None, dry: bool) -> Iterator[Progress]:
    """Train into ``out/model``, resuming from ``out`` if it holds a checkpoint."""
    torch.manual_seed(config.train.seed)
    model, tokenizer = adapt(lm, config)
    texts, held = documents(lm, data), held_out_documents(lm) if data is None else None
    if held is None:
        texts, held = split_off(texts, HELD)
    windows = Windows(texts, separator(lm), config.context - 1, config.batch, config.train.seed)
    mask_id = tokenizer.mask_token_id

    def loss_at(step: int) -> Tensor:
        ids, generator = windows(step), at(config.train.seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            if config.block is None:
                whole = full_pass(model, mask_id, sight(config.context))
                return pretraining_loss(whole, cut(ids, generator), mask_id, generator)
            blocks = block_pass(model, mask_id, ids, config.block)
            return block_loss(blocks, ids, config.block, mask_id, generator, clip=CLIP)

    if dry:
        yield from estimate(model, loss_at, config.train)
        return
    same_run(out, {"recipe": "demo-dlm", "model": lm.name, "data": str(data), **asdict(config)})
    held_out = HeldOut.of(lm, held, config, library=data is None)

    def evaluate() -> dict[str, float]:
        return {"bits_per_byte": held_out.bits_per_byte(model, mask_id, 1, config.quick)[0]}

    yield from train(model, loss_at, config.train, out, evaluate)
    from ramify.train.demo_dlm_card import write_card

    tokenizer.save_pretrained(out / "model")
    model.bfloat16().save_pretrained(out / "model")
    write_card(lm, model.float(), mask_id, held, held_out, out / "model", config)


@dataclass(frozen=True)
class HeldOut:
    """Texts that measure: windows [W, context] every half context, of which the second half counts.

    ``tokens_per_byte``: of the whole of the texts. ``library``: whether they are the demo model's.
    """

    windows: Tensor
    tokens_per_byte: float
    block: int | None
    seed: int
    library: bool

    @classmethod
    def of(cls, lm: CausalLM, texts: list[list[int]], config: DemoDLMConfig, library: bool) -> HeldOut:
        flat = torch.tensor([token for text in texts for token in [separator(lm), *text]])
        size = sum(len(lm.require_tokenizer().decode(text).encode()) for text in texts)
        windows = flat.unfold(0, config.context, config.context // 2)
        return cls(windows, len(flat) / size, config.block, config.train.seed, library)

    @torch.no_grad()
    def bits_per_byte(self, model: Any, mask_id: int, draws: int, stride: int = 1) -> tuple[float, float]:
        """The bound, from every ``stride``th window drawn ``draws`` times, and its standard error over windows."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = self.windows[::stride]
        counted = (torch.arange(chosen.shape[1]) >= chosen.shape[1] // 2).expand(chosen.shape)
        found = torch.zeros(len(chosen), dtype=torch.double)
        for _ in range(draws):
            for start in range(0, len(chosen), 16):
                ids, asked = chosen[start : start + 16], counted[start : start + 16]
                with torch.autocast("cpu", torch.bfloat16):
                    drawn = bound(self._pass(model, mask_id, ids), ids, mask_id, generator, asked, self.block)
                found[start : start + 16] += drawn.double() / draws
        scale = self.tokens_per_byte / (math.log(2) * (chosen.shape[1] - chosen.shape[1] // 2))
        return found.mean().item() * scale, found.std().item() * scale / math.sqrt(len(found))

    @torch.no_grad()
    def first_guesses(self, model: Any, mask_id: int) -> list[float]:
        """The likeliest tokens of blocks of which nothing is visible: share of right ones by place in the block."""
        assert self.block is not None
        right = torch.zeros(self.block, dtype=torch.double)
        half = self.windows.shape[1] // 2
        for start in range(0, len(self.windows), 16):
            ids = self.windows[start : start + 16]
            with torch.autocast("cpu", torch.bfloat16):
                said = self._pass(model, mask_id, ids)(torch.full_like(ids, mask_id)).argmax(-1)
            right += (said == ids)[:, half:].reshape(-1, self.block).double().sum(0)
        return (right / (len(self.windows) * half / self.block)).tolist()

    def _pass(self, model: Any, mask_id: int, ids: Tensor) -> Denoise:
        if self.block is None:
            return full_pass(model, mask_id, sight(ids.shape[1]))
        return block_pass(model, mask_id, ids, self.block)
