"""What the parallel model reads: a tokenizer of whole words, and batches of drawn problems with their answers."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ramify.bench.parallelbench.apart import draw
from ramify.bench.parallelbench.lists import printed
from ramify.bench.parallelbench.names import LETTERS, NAMES
from ramify.bench.parallelbench.prompts import TEMPLATES
from ramify.bench.parallelbench.puzzles import BLANK, SYMBOLS
from ramify.bench.parallelbench.tasks import FAMILIES, GENERATED
from ramify.bench.parallelbench.words import WORDS

END, UNKNOWN, MASK = "<|end|>", "<|unknown|>", "<|mask|>"
# Words with the blank before them, lone symbols and blanks, and what stands around the items of a list as one token.
PIECES = r'\["|", "|"\]| "| ?[A-Za-z][a-z]+| ?a\b|[A-Z0-9]|\n+|[^\S\n]|[^\sA-Za-z0-9]|[a-z]'
NEW = 32  # positions of an answer, the benchmark's own number
# Hardly masked answers weigh much and vary most: with them the first steps learn nothing, without them a model does not
# know what is nearly finished. The second is one position of an answer.
CLIPS = (0.25, 1.0), (1 / NEW, 1.0)
# Learnt more slowly than sentences and reversed lists, and within reach of a short run.
LATE = ("copy", "replace-index", "replace-random", "insert-random", "remove-random")
GROUPS = 4  # parts of a batch, by length, so that little is padding


def vocabulary() -> list[str]:
    """All pieces of the benchmark's prompts and answers, as its generators write them."""
    texts = [printed(NAMES), printed(LETTERS), f'new name: "{NAMES[0]}"\nindex: 0', "symbols: A, B"]
    texts += [",".join([*SYMBOLS, BLANK]), "words:", "The", "She", "It", " the she it and."]
    texts += [f" {word}" for words in WORDS.values() for word in words.split()]
    for template in TEMPLATES.values():
        texts += [
            template.format(instruction=FAMILIES[task].instruction, example="A", answer="A", question="A")
            for task in GENERATED
        ]
    return sorted({piece for text in texts for piece in re.findall(PIECES, text)})


def tokenizer() -> Any:
    """A token for each piece, and three more: the end, what is unknown, and the mask."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = {piece: place for place, piece in enumerate((*vocabulary(), END, UNKNOWN, MASK))}
    backend = Tokenizer(models.WordLevel(entries, unk_token=UNKNOWN))
    backend.add_special_tokens([END, UNKNOWN, MASK])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )


class Batches:
    """Batches of drawn problems; the batch of a step depends on the seed and the step alone.

    Tasks are drawn evenly; from step ``late`` on three in four texts are of those among them that are ``LATE``.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[str], size: int, seed: int, late: int) -> None:
        self.encode = tokenizer.backend_tokenizer.encode_batch_fast
        self.end = int(tokenizer.eos_token_id)
        self.tasks, self.size, self.seed, self.late = tasks, size, seed, late
        self.slow = [task for task in tasks if task in LATE] or list(tasks)

    def __call__(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """``GROUPS`` pairs of ids [b, L], from the shortest texts to the longest, and of where answers stand.

        In every other text that is the answer of its example as well: twice as much to learn from for the same pass.
        """
        rng = random.Random(f"{self.seed}/{step}")
        some = [self.slow if step >= self.late and rng.random() < 0.75 else self.tasks for _ in range(self.size)]
        parts = [part for tasks in some for part in example(rng, rng.choice(tasks))]
        codes = [code.ids for code in self.encode(parts)]
        rows = sorted(
            (codes[start : start + 4] for start in range(0, len(codes), 4)), key=lambda row: sum(map(len, row[:3]))
        )
        learnt = [rng.random() < 0.5 for _ in rows]
        part = math.ceil(len(rows) / GROUPS)
        starts = range(0, len(rows), part)
        return [self._pad(rows[start : start + part], learnt[start : start + part]) for start in starts]

    def _pad(self, rows: Sequence[Sequence[list[int]]], learnt: Sequence[bool]) -> tuple[Tensor, Tensor]:
        longest = max(sum(map(len, row[:3])) for row in rows) + NEW
        ids, answers = torch.full((len(rows), longest), self.end), torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, (row, both) in enumerate(zip(rows, learnt, strict=True)):
            text = [token for part in row for token in part]
            before, shown, between, _ = itertools.accumulate(map(len, row))
            ids[place, : len(text)] = torch.tensor(text)
            answers[place, between:] = True
            answers[place, before:shown] = both
        return ids, answers


def example(rng: random.Random, task: str) -> tuple[str, str, str, str]:
    """A prompt under any template, in three parts, the second being its example's answer, and then a right answer."""
    shown, asked = draw(rng, task), draw(rng, task)
    first, second = rng.choice(list(TEMPLATES.values())).split("{answer}")
    words = {"instruction": FAMILIES[task].instruction, "example": shown.question, "question": asked.question}
    return first.format(**words), shown.label, second.format(**words), asked.label
