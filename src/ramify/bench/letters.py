"""A small model of single characters, trained on the standard library within a minute or two.

The bundled model's tokens are words, which nobody guesses two ahead very often. Characters are guessed far better, so
what training is worth to a drafter shows on them in minutes, and heads of a few hundred numbers can be compared.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ramify.bench.lexicon import Lexicon, build, fit
from ramify.methods.head import Head
from ramify.models.causal import CausalLM
from ramify.train.data import library_files
from ramify.train.trainer import TrainConfig, train

CHARACTERS = 128  # ASCII; all others are read as "?"
CONTEXT = 128
TEXT = 2_000_000  # characters that are trained on
SETTLING = 16  # windows on which a trained head measures itself

H = TypeVar("H", bound=Head)


def letters(files: list[Path], most: int, seed: int = 0) -> list[int]:
    """Up to ``most`` characters of ``files`` in a random order, as ids."""
    order = sorted(files)
    random.Random(seed).shuffle(order)
    text = ""
    for file in order:
        text += file.read_text(encoding="utf-8", errors="replace") + "\n"
        if len(text) >= most:
            break
    return list(text[:most].encode("ascii", errors="replace"))


def letter_lm(*, steps: int = 1200, width: int = 72, layers: int = 4, seed: int = 0) -> CausalLM:
    """A Llama of about 0.3 M parameters in float32, trained on the library's training files."""
    model = build(Lexicon((), (), CHARACTERS), width=width, layers=layers, seed=seed)
    return fit(model, letters(library_files()[0], TEXT, seed), steps=steps, batch=8, context=CONTEXT, seed=seed)


def train_on_letters(
    cls: type[H], lm: CausalLM, *, steps: int, learning_rate: float, batch: int = 4, seed: int = 0, **sizes: Any
) -> H:
    """A head for ``lm`` after ``steps`` steps of AdamW on ``batch`` windows, measured on further ones, frozen."""
    every = torch.tensor(letters(library_files()[0], TEXT, seed + 1)).unfold(0, CONTEXT + 1, 1)

    def windows(step: int, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        return every[torch.randint(len(every), (rows,), generator=generator)]

    torch.manual_seed(seed)
    head = cls.new(lm, **sizes)
    loss_at: Callable[[int], Tensor] = lambda step: head.loss(lm, windows(step, batch))  # noqa: E731
    config = TrainConfig(
        steps, learning_rate, "adamw", warmup=20, cooldown=0.5, weight_decay=0.0, seed=seed, save_every=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(head, loss_at, config, Path(folder)):
            pass
    with torch.no_grad():
        head.settle(lm, windows(steps, SETTLING))
    return head.requires_grad_(False).eval()
