"""A synthetic language of known words, and small models trained on it: for claims that natural text shows too vaguely.

The lexicon holds random words of one to five tokens. After each word comes one of four words of its own, drawn once at
random, with probability .5, .25, .15 or .1. So the first token of a word is uncertain, the others follow from it, and
where words begin is known. Everything depends on the seeds alone.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ramify.errors import RamifyError
from ramify.models.causal import CausalLM, load
from ramify.train.trainer import TrainConfig, train

CHANCES = (0.5, 0.25, 0.15, 0.1)
LONGEST = 5
HEAD = 24  # entries of an attention head
HELD_OUT = 1_000_003  # seeds of held-out texts begin here


@dataclass(frozen=True)
class Passage:
    """Tokens of a text, and which of them begin a word."""

    tokens: list[int]
    starts: list[bool]


@dataclass(frozen=True)
class Lexicon:
    """``words``: their tokens. ``successors``: for each word the four that may follow, the likeliest first."""

    words: tuple[tuple[int, ...], ...]
    successors: tuple[tuple[int, ...], ...]
    vocabulary: int

    @staticmethod
    def of(seed: int = 0, *, words: int = 80, vocabulary: int = 64) -> Lexicon:
        """A language of ``words`` different words over ``vocabulary`` tokens."""
        if words < len(CHANCES) or vocabulary < 2:
            raise RamifyError(f"a lexicon needs {len(CHANCES)} words and 2 tokens, got {words} and {vocabulary}")
        if words > vocabulary**2:
            raise RamifyError(f"{vocabulary} tokens are too few for {words} different words; take more tokens")
        rng = random.Random(f"lexicon {seed}")
        found: dict[tuple[int, ...], None] = {}
        while len(found) < words:
            length = rng.randint(1, LONGEST)
            found.setdefault(tuple(rng.randrange(vocabulary) for _ in range(length)))
        successors = tuple(tuple(rng.sample(range(words), len(CHANCES))) for _ in range(words))
        return Lexicon(tuple(found), successors, vocabulary)

    def passage(self, length: int, seed: int = 0) -> Passage:
        """A text of ``length`` tokens; the last word may be cut."""
        rng = random.Random(f"passage {seed}")
        word = rng.randrange(len(self.words))
        tokens: list[int] = []
        starts: list[bool] = []
        while len(tokens) < length:
            spelled = self.words[word]
            tokens += spelled
            starts += [True] + [False] * (len(spelled) - 1)
            [word] = rng.choices(self.successors[word], CHANCES)
        return Passage(tokens[:length], starts[:length])

    def contexts(self, count: int, length: int = 32, seed: int = 0) -> list[list[int]]:
        """``count`` held-out texts of ``length`` tokens, which end anywhere in a word."""
        return [self.passage(length, HELD_OUT + count * seed + index).tokens for index in range(count)]


def build(lexicon: Lexicon, *, width: int = 96, layers: int = 3, seed: int = 0, context: int = 256) -> Any:
    """An untrained Llama in float32 with tied embeddings, ``width`` a multiple of 24."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if width < HEAD or width % HEAD:
        raise RamifyError(f"width must be a multiple of {HEAD}, got {width}")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=lexicon.vocabulary,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD,
            num_key_value_heads=width // HEAD,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    model.generation_config = GenerationConfig(pad_token_id=0)  # type: ignore[no-untyped-call]
    return model


def next_token(model: Any, windows: Tensor) -> Tensor:
    """The usual loss on windows [B, T + 1]."""
    logits = model(input_ids=windows[:, :-1]).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def fit(
    model: Any,
    text: Sequence[int],
    *,
    steps: int = 600,
    batch: int = 8,
    context: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    loss: Callable[[Any, Tensor], Tensor] = next_token,
) -> CausalLM:
    """Train ``model`` in place on random windows of ``text``, and return it as the engine sees it.

    ``loss(model, windows)`` takes windows [batch, context + 1]. Beyond ``context`` tokens the model guesses worse.
    """
    if len(text) <= context:
        raise RamifyError(f"the text has {len(text)} tokens, too few for windows of {context}; give more")
    every = torch.tensor(text).unfold(0, context + 1, 1)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        return loss(model, every[torch.randint(len(every), (batch,), generator=generator)])

    config = TrainConfig(steps, learning_rate, warmup=20, cooldown=0.5, seed=seed, save_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(model, loss_at, config, Path(folder)):
            pass
    return load(model.requires_grad_(False).eval())
