"""What the reasoners read: the tokenizer, and batches of drawn questions with their worked answers."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ramify.bench.tasks import draws
from ramify.train.bpe import train_bpe

if TYPE_CHECKING:
    from ramify.train.reasoner import ReasonerConfig

END_OF_TEXT = "<|endoftext|>"
# Words and spaces may become one token, digits and signs stay single; "; " and " #### " are pieces of a worked answer.
PIECES = r" ?[A-Za-z]+| ?#### ?|; ?|[0-9]|[^\sA-Za-z0-9]|\s"
GROUPS = 4  # parts of a batch, by length: so little is padding, and still every step sees short and long answers
IGNORED = -100


def train_tokenizer(config: ReasonerConfig, out: Path) -> None:
    """Make the tokenizer and save it in transformers' layout."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    seen = list(itertools.islice(draws("train", config.train.seed, config.families), 4000))
    texts = [task.prompt + task.worked for task in seen]
    if config.vocab_size is None:
        characters = [*sorted(set("".join(texts))), END_OF_TEXT]
        tokenizer = Tokenizer(models.WordLevel({character: place for place, character in enumerate(characters)}))
        tokenizer.add_special_tokens([END_OF_TEXT])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer = train_bpe(texts, config.vocab_size, PIECES, END_OF_TEXT)
    # A chat is its last message, as a question: what the model was trained on is no conversation.
    template = "{{ messages[-1]['content'] }}" + ("" if config.vocab_size is None else "{{ '\\n' }}")
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=config.context,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


class Batches:
    """Batches of drawn questions with their worked answers; the batch of a step depends on the seed and it alone."""

    def __init__(self, tokenizer: Any, config: ReasonerConfig) -> None:
        self.encode = tokenizer.backend_tokenizer.encode_batch_fast
        self.end = int(tokenizer.eos_token_id)
        self.config = config

    def __call__(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """``GROUPS`` pairs of token ids and targets, from the shortest texts to the longest."""
        config = self.config
        drawn = list(itertools.islice(draws("train", f"{config.train.seed}/{step}", config.families), config.batch))
        prompts = self.encode([task.prompt for task in drawn])
        answers = self.encode([task.worked for task in drawn])
        rows = sorted(((p.ids, a.ids) for p, a in zip(prompts, answers, strict=True)), key=lambda r: len(r[0] + r[1]))
        size = math.ceil(len(rows) / GROUPS)
        return [self._pad(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _pad(self, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """Ids [rows, longest] and the targets one place later, ``IGNORED`` where nothing is to learn."""
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), longest), self.end)
        targets = torch.full((len(rows), longest), IGNORED)
        for row, (prompt, answer) in enumerate(rows):
            text = torch.tensor([*prompt, *answer, self.end])
            ids[row, : len(text) - 1] = text[:-1]
            targets[row, len(prompt) - 1 : len(text) - 1] = text[len(prompt) :]
        return ids, targets


def tokens_seen(model: Path, config: ReasonerConfig) -> int:
    """How many tokens a whole run reads, those of the questions included."""
    from transformers import AutoTokenizer

    batches = Batches(AutoTokenizer.from_pretrained(model), config)
    return sum(int((ids != batches.end).sum()) for step in range(config.train.steps) for ids, _ in batches(step))
