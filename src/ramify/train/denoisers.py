"""What the recipes of masked denoisers share: a small decoder, how it is saved, and how well it fills what is masked.

The quality is measured with two plain samplers of its own, not with the unmasking rules, for these models are what the
rules are tested with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.train.denoising import Denoise


def small_decoder(
    vocabulary: int, positions: int, mask_id: int, block: int | None = None, initial: float = 0.02
) -> Any:
    """The untrained transformer of list and grid model: GPT-2 of width 64, 3 layers, 4 heads, without dropout.

    ``initial``: spread of the first weights.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=64,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        initializer_range=initial,
        bos_token_id=None,
        eos_token_id=None,
    )
    return mark(GPT2LMHeadModel(config), mask_id, block)


def mark(model: Any, mask_id: int, block: int | None = None) -> Any:
    """``model``, its config saying that it is a denoiser with this mask token and block size (None: sees all)."""
    model.config.denoiser = {"mask_token_id": mask_id, "shift": False, "block": block, "null_token_id": None}
    return model


def at(seed: int, step: int) -> torch.Generator:
    """The randomness of one step of a run, a function of the two."""
    return torch.Generator().manual_seed(seed * 1_000_000_007 + step)


@torch.no_grad()
def fill_at_random(denoise: Denoise, ids: Tensor, opened: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """``ids`` [B, L] with the ``opened`` positions drawn, ``each`` a pass, in random order at temperature 1."""
    ids, opened = ids.clone(), opened.clone()
    while opened.any():
        law = denoise(ids).double().softmax(-1)
        drawn = torch.multinomial(law.flatten(0, 1), 1, generator=generator).view_as(ids)
        order = torch.rand(ids.shape, generator=generator).masked_fill(~opened, 2.0).argsort(1).argsort(1)
        chosen = (order < each) & opened
        ids, opened = torch.where(chosen, drawn, ids), opened & ~chosen
    return ids


@torch.no_grad()
def fill_where_sure(denoise: Denoise, ids: Tensor, opened: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """``ids`` with the likeliest tokens, in each pass those of at least ``threshold`` and the surest; passes by row."""
    ids, opened = ids.clone(), opened.clone()
    passes = torch.zeros(len(ids), dtype=torch.long)
    while opened.any():
        passes += opened.any(1)
        best, token = denoise(ids).double().softmax(-1).max(-1)
        best = best.masked_fill(~opened, -1.0)
        surest = torch.zeros_like(opened).scatter(1, best.argmax(1, keepdim=True), True)
        chosen = ((best >= threshold) | surest) & opened
        ids, opened = torch.where(chosen, token, ids), opened & ~chosen
    return ids, passes


def curve(file: Path, figure: str) -> list[tuple[int, float, float]]:
    """Of every evaluation in ``curve.jsonl``: the step, the mean loss since the one before, the ``figure``."""
    points, losses = [], []
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        losses.append(entry["loss"])
        if entry["evaluation"]:
            points.append((entry["step"], sum(losses) / len(losses), entry["evaluation"][figure]))
            losses = []
    return points
