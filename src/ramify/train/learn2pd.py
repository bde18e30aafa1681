"""How Learn2PD's filter is trained: plain decoding gives the answers, the oracle the records, a full batch the filter.

Records are split by prompt, 80 / 10 / 10, where the authors shuffle those of one text into training and test.
Everything is greedy and float32. The prompts: list tasks for a model of their vocabulary, else excerpts of the training
texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ramify.bench.parallelbench import symbols
from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.errors import RamifyError, unknown
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.learn2pd_filter import Filter
from ramify.methods.unmask.learn2pd_oracle import Record, decode_greedily
from ramify.methods.unmask.orders import Unmask
from ramify.models.masked import MaskedLM
from ramify.train.data import documents
from ramify.train.trainer import Progress, TrainConfig, train

BATCH = 50  # prompts decoded together
SHARES = (0.8, 0.9)  # of the prompts: up to the first they train, up to the second they validate, the rest tests


@dataclass(frozen=True)
class Records:
    """``values``: float32 [N, 3, B], confidences, which predictions were right, weights; ``prompt``: int64 [N]."""

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


def settings(seed: int, steps: int | None = None, learning_rate: float | None = None) -> TrainConfig:
    """The training settings of a filter; None for the usual ones."""
    regime = Filter.regime
    return TrainConfig(
        steps=steps or regime.steps,
        learning_rate=learning_rate or regime.learning_rate,
        optimizer="adamw",
        warmup=regime.warmup,
        cooldown=0.5,
        weight_decay=regime.weight_decay,
        seed=seed,
        eval_every=max(1, (steps or regime.steps) // 10),
        save_every=500,
    )


def fit(head: Filter, lm: MaskedLM, records: Records, config: TrainConfig, out: Path) -> Iterator[Progress]:
    """Train ``head`` on its share of ``records``, measuring on those that validate; what is in ``out`` is resumed."""
    training, validation, test = records.split(config.seed)
    if not len(training) or not len(validation) or not len(test):
        raise RamifyError("the prompts are too few to train, validate and test with; give at least 20")
    yield from train(
        head, lambda step: head.loss(lm.base, training), config, out, lambda: head.measure(lm.base, validation)
    )


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


def record(lm: MaskedLM, prompts: Sequence[Sequence[int]], length: int, block: int, loss: str = "open") -> Records:
    """The oracle's records on ``prompts``, towards the answers of plain decoding in blocks of ``block``.

    ``loss``: whether "open" positions alone have weight, or "all".
    """
    if loss not in ("open", "all"):
        raise unknown("loss", loss, ("open", "all"))
    if length < block:
        raise RamifyError(f"no block has {block} positions where {length} are filled in; raise length, or lower block")
    plain = Unmask(block=block, cache="prefix" if lm.facts.block else "none")  # exact where the model sees in blocks
    references = answers(lm, prompts, length, plain)
    records: list[Record] = []
    owners: list[int] = []
    for start in range(0, len(prompts), BATCH):
        requests = [Request(prompt, len(prompt) + length) for prompt in prompts[start : start + BATCH]]
        _, made = decode_greedily(lm, requests, references[start : start + BATCH], block, plain.feeding(lm))
        whole = [each for each in made if len(each.right) == block]
        records += whole
        owners += [start + each.row for each in whole]
    if not records:
        raise RamifyError(f"no block of {block} positions lies behind a prompt; give prompts of a multiple of it")
    values = torch.stack(
        [torch.stack([each.confidences, each.right.float(), (each.open | (loss == "all")).float()]) for each in records]
    )
    return Records(values, torch.tensor(owners))
