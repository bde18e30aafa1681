"""The masked image model: a small generator of 32 × 32 grey pictures by class, over 256 tokens, after MaskGIT.

A Llama under full attention reads a class token and 16 × 16 image tokens, some of them masked, and says what the masked
ones are. It learns with MaskGIT's loss (arXiv 2202.04200) without label smoothing: pictures are drawn at temperature 1,
where smoothed labels would be noise. One prompt in ten is the null class, for classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.models.image_tokens import FILE, ImageTokens
from ramify.train.denoisers import at
from ramify.train.denoising import Denoise, full_pass, maskgit_loss, sight
from ramify.train.heads import estimate, same_run
from ramify.train.images import CLASSES, balanced, crops, fit_tokens
from ramify.train.images_card import write_card
from ramify.train.trainer import Progress, TrainConfig, train


@dataclass(frozen=True)
class ImageModelConfig:
    """Shape, data and training settings.

    ``codes``: patches in the codebook. ``rotary_base``: small, for 257 positions. ``null_share``: prompts that are the
    null class. ``validation``: held-out crops whose loss is watched. ``judged``: pictures that measure the quality.
    """

    codes: int = 64
    side: int = 2
    hidden_size: int = 128
    intermediate_size: int = 352
    layers: int = 6
    heads: int = 4
    rotary_base: float = 100.0
    batch: int = 16
    null_share: float = 0.1
    validation: int = 48
    judged: int = 120
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=1600, learning_rate=6e-3, eval_every=200, save_every=100)
    )


def build(config: ImageModelConfig, tokens: ImageTokens) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    length = tokens.length + 1
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.config.denoiser = {
        "mask_token_id": tokens.mask_id,
        "shift": False,
        "block": None,
        "null_token_id": tokens.null_id,
    }
    return model


def of_class(denoise: Denoise, prompts: Tensor) -> Denoise:
    """``denoise`` over pictures alone: the class tokens ``prompts`` [B, 1] stand before them."""
    return lambda noisy: denoise(torch.cat([prompts, noisy], 1))[:, 1:]


def train_image_model(out: Path, config: ImageModelConfig, dry: bool = False) -> Iterator[Progress]:
    """Train into ``out/model``, resuming from ``out`` if it holds a checkpoint."""
    torch.manual_seed(config.train.seed)
    target = out / "model"
    if not (target / FILE).exists():
        fitted = fit_tokens(config.codes, config.side, config.train.seed)
        target.mkdir(parents=True, exist_ok=True)
        fitted.save(target)
    tokens = ImageTokens.load(target)
    model = build(config, tokens)
    model.set_attn_implementation("eager")  # in bfloat16 a third faster than sdpa, with gradients, at this size
    denoise = full_pass(model, tokens.mask_id, sight(tokens.length + 1))

    def loss_at(step: int) -> Tensor:
        generator = at(config.train.seed, step)
        labels = torch.randint(len(CLASSES), (config.batch,), generator=generator)
        ids = tokens.encode(crops(labels, "train", generator))
        dropped = torch.rand(config.batch, generator=generator) < config.null_share
        prompts = torch.where(dropped, tokens.null_id, tokens.codes + labels)[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            return maskgit_loss(of_class(denoise, prompts), ids, tokens.mask_id, generator, smoothing=0.0)

    if dry:
        yield from estimate(model, loss_at, config.train)
        return
    same_run(out, {"recipe": "demo-masked-image", **asdict(config)})
    labels = balanced(config.validation)
    watched = tokens.encode(crops(labels, "test", at(config.train.seed, -1)))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        to_watch = of_class(denoise, tokens.codes + labels[:, None])
        with torch.autocast("cpu", torch.bfloat16):
            loss = maskgit_loss(to_watch, watched, tokens.mask_id, at(config.train.seed, -2), smoothing=0.0)
        return {"held-out loss": loss.item()}

    yield from train(model, loss_at, config.train, out, evaluate)
    model.save_pretrained(target)
    model.set_attn_implementation("sdpa")
    write_card(target, model, denoise, config)
