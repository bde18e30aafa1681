"""The figures and the card of the demo image model."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ramify.models.image_tokens import ImageTokens
from ramify.train.denoisers import at, curve, fill_at_random
from ramify.train.denoising import Denoise
from ramify.train.images import CLASSES, HELD_OUT, SIZE, balanced, crops
from ramify.train.images_quality import Judge, Quality

if TYPE_CHECKING:
    from ramify.train.images_model import ImageModelConfig

PASSES = (16, 32)
TOGETHER = 30  # pictures drawn at once


def write_card(folder: Path, model: Any, denoise: Denoise, config: ImageModelConfig) -> None:
    """Judge pictures of the model; write ``training.json`` and ``README.md`` beside it."""
    from ramify.train.images_model import of_class

    tokens, seed, count = ImageTokens.load(folder), config.train.seed, config.judged
    judge, labels = Judge(tokens, seed), balanced(count)
    found = {"training crops": judge.of(*_some(judge.real["train"], count))}
    found["held-out crops"] = judge.of(*_some(judge.real["test"], count))
    for passes in PASSES:
        parts = []
        for part in torch.split(labels, TOGETHER):
            canvas = torch.full((len(part), tokens.length), tokens.mask_id)
            drawn = of_class(denoise, tokens.codes + part[:, None])
            each = tokens.length // passes
            parts.append(fill_at_random(drawn, canvas, canvas == tokens.mask_id, each, at(seed, -5)))
        # A class token inside a picture, next to impossible, is shown as the first code.
        ids = torch.cat(parts)
        found[f"model, {passes} passes"] = judge.of(ids.where(ids < tokens.codes, 0), labels)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "pictures_seen": config.train.steps * config.batch,
        "psnr": {split: _psnr(tokens, split, seed) for split in ("train", "test")},
        "judged": count,
        "quality": {name: asdict(quality) for name, quality in found.items()},
        "config": asdict(config),
    }
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(_card(figures, found, curve(folder.parent / "curve.jsonl", "held-out loss")))


def _some(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The last ``count`` of real crops, and their classes."""
    return ids[-count:], balanced(len(ids))[-count:]


def _psnr(tokens: ImageTokens, split: Any, seed: int) -> float:
    """What the tokenizer keeps of real crops, in decibels."""
    images = crops(balanced(600), split, at(seed, -6))
    error = (images - tokens.decode(tokens.encode(images))).square().mean()
    return float(-10 * error.log10())


def _card(figures: dict[str, Any], found: dict[str, Quality], points: list[tuple[int, float, float]]) -> str:
    config, schedule = figures["config"], figures["config"]["train"]
    paragraphs = [
        f"A masked generator of grey pictures of {SIZE} × {SIZE} pixels: a Llama of "
        f"{figures['parameters'] / 1e6:.2f} M parameters ({config['layers']} layers, hidden size "
        f"{config['hidden_size']}, {config['heads']} heads) with full attention over a class token and 256 image "
        "tokens. It is small, and trained for minutes: it draws textures that are told apart, not pictures that are "
        "taken for real, and is there for samplers to be measured with.",
        f"**Classes.** {', '.join(CLASSES)}, and a null class for guidance, which stood in for "
        f"{100 * config['null_share']:.0f} % of the classes in training.",
        "**Data.** One picture a class out of scikit-image (brick, grass, gravel, coins, immunohistochemistry, Hubble "
        "deep field), all in the public domain, under CC0 or without known restrictions, at half their size; crops at "
        f"random places, half of them mirrored. The last {100 * HELD_OUT:.0f} % of each picture, a vertical strip, are "
        "held out. The two parts of a picture differ: real training crops are far from held-out ones below.",
        f"**Tokenizer.** `codebook.safetensors`: {config['codes']} patches of {config['side']} × {config['side']} "
        f"pixels, k-means of the training crops. It keeps {figures['psnr']['train']:.1f} dB of training crops and "
        f"{figures['psnr']['test']:.1f} dB of held-out ones.",
        f"**Recipe.** `ramify train demo-masked-image` (needs the extra `images`): {schedule['steps']} steps of "
        f"{config['batch']} crops ({figures['pictures_seen'] / 1e3:.0f} k), MaskGIT's loss without label smoothing, "
        f"Muon for the matrices and AdamW for the rest, learning rate {schedule['learning_rate']} (warm-up "
        f"{schedule['warmup']} steps, linear decay over the last {100 * schedule['cooldown']:.0f} %), bfloat16 "
        f"autocast, float32 weights, seed {schedule['seed']}. Position codes are rotary with base "
        f"{config['rotary_base']:g}.",
        f"**Quality** of {figures['judged']} pictures, seen through the tokenizer (`train/images_quality.py` says what "
        "is measured): tokens drawn at temperature 1 in random order, as many in every pass.",
    ]
    table = [
        "| pictures | Fréchet distance to training crops | to held-out crops | class told | seams | token entropy |",
        "|---|---|---|---|---|---|",
    ]
    table += [
        f"| {name} | {one.train:.2f} | {one.test:.2f} | {100 * one.right:.0f} % | {one.seams:.2f} | {one.entropy:.2f} |"
        for name, one in found.items()
    ]
    table += ["", "| step | mean training loss since the line before | held-out loss |", "|---|---|---|"]
    table += [f"| {step} | {loss:.3f} | {held:.3f} |" for step, loss, held in points]
    text = "\n\n".join(textwrap.fill(part, 118, break_on_hyphens=False) for part in paragraphs)
    return f"# The demo image model of ramify\n\n{text}\n\n" + "\n".join(table) + "\n"
