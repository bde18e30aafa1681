"""How Learn2PD's filter is trained: plain decoding gives the answers, the oracle the records, a full batch the filter.

Records are split by prompt, 80 / 10 / 10, where the authors shuffle those of one text into training and test.
Everything is greedy and float32. The prompts: list tasks for a model of their vocabulary, else excerpts of the training
texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ramify.bench.parallelbench import symbols
from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.learn2pd_oracle import Record, decode_greedily
from ramify.methods.unmask.orders import Unmask
from ramify.models.masked import MaskedLM
from ramify.train.data import documents

BATCH = 50  # prompts decoded together
SHARES = (0.8, 0.9)  # of the prompts: up to the first they train, up to the second they validate, the rest tests


@dataclass(frozen=True)
class Records:
    """``values``: float32 [N, 2, B], confidences and whether the predictions were right; ``prompt``: int64 [N]."""

    values: Tensor
    prompt: Tensor

    def split(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """What trains, what validates and what tests; no prompt is in two of them."""
        count = int(self.prompt.max()) + 1
        place = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[self.prompt] / count
        first, second = SHARES
        return (
            self.values[place < first],
            self.values[(place >= first) & (place < second)],
            self.values[place >= second],
        )

    def save(self, file: Path) -> None:
        save_file({"values": self.values, "prompt": self.prompt}, file)

    @staticmethod
    def load(file: Path) -> Records:
        return Records(**load_file(file))


def is_list_model(lm: MaskedLM) -> bool:
    """Whether the prompts of ``lm`` are list tasks: it has their vocabulary and length."""
    return (lm.vocab_size, lm.context) == (symbols.VOCABULARY, symbols.LENGTH)


def prompts_for(lm: MaskedLM, count: int, size: int, data: Path | None, seed: int) -> list[list[int]]:
    """``count`` prompts: list tasks, or excerpts of ``size`` tokens."""
    if is_list_model(lm):
        return symbols.samples(count, torch.Generator().manual_seed(seed))[0].tolist()
    rng = random.Random(seed)
    texts = [text for text in documents(lm.base, data) if len(text) > 2 * size]
    if not texts:
        raise RamifyError(
            f"no text has {2 * size} tokens to take an excerpt from; give longer ones, or a smaller prompt"
        )
    found = []
    for text in rng.choices(texts, weights=[len(text) for text in texts], k=count):
        start = rng.randrange(len(text) - 2 * size)
        found.append(text[start : start + size])
    return found


def answers(lm: MaskedLM, prompts: Sequence[Sequence[int]], length: int, method: MaskedMethod) -> list[list[int]]:
    """What ``method`` fills ``length`` positions behind each prompt with, whatever ends a text."""
    found = []
    for start in range(0, len(prompts), BATCH):
        requests = [Request(prompt, len(prompt) + length) for prompt in prompts[start : start + BATCH]]
        run = method.run(lm, requests)
        texts = {event.row: list(event.tokens) for event in run if isinstance(event, Accepted)}
        found += [texts[row] for row in range(len(requests))]
    return found


def record(lm: MaskedLM, prompts: Sequence[Sequence[int]], length: int, block: int) -> Records:
    """The oracle's records on ``prompts``, towards the answers of plain decoding in blocks of ``block``."""
    if length < block:
        raise RamifyError(f"no block has {block} positions where {length} are filled in; raise length, or lower block")
    references = answers(lm, prompts, length, Unmask(block=block))
    records: list[Record] = []
    owners: list[int] = []
    for start in range(0, len(prompts), BATCH):
        requests = [Request(prompt, len(prompt) + length) for prompt in prompts[start : start + BATCH]]
        _, made = decode_greedily(lm, requests, references[start : start + BATCH], block)
        whole = [each for each in made if len(each.right) == block]
        records += whole
        owners += [start + each.row for each in whole]
    if not records:
        raise RamifyError(
            f"no block begins behind a prompt and has {block} positions; give prompts of a multiple of it"
        )
    values = torch.stack([torch.stack([each.confidences, each.right.float()]) for each in records])
    return Records(values, torch.tensor(owners))
