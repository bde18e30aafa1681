"""What a drafter learns from: texts that its target wrote, kept in a file.

DEER distils the target by its own answers. Beginnings are cut from the training texts at random places; the target
goes on, half of the texts greedily and half at ``TEMPERATURE``. Ends of text are part of what it writes: behind one,
the next text begins, so that all windows have one length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.speculate import speculate
from ramify.errors import RamifyError
from ramify.methods.draft.borrowed import TEMPERATURE
from ramify.models.causal import CausalLM
from ramify.train.denoisers import at

TOGETHER = 64  # texts that are written in one batch


@dataclass(frozen=True)
class Teacher:
    """``texts`` [N, T] in the target's tokens, of which all behind the first ``given`` of each are the target's own."""

    texts: Tensor
    given: int

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"texts": self.texts.int(), "given": torch.tensor(self.given)}, file)

    @classmethod
    def load(cls, file: Path) -> Teacher:
        found = load_file(file)
        return cls(found["texts"].long(), int(found["given"]))

    def reader(self, size: int, seed: int) -> Callable[[int], Tensor]:
        """Gives the texts [size, T] of every step, in a new order every epoch."""

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> Tensor:
            return torch.randperm(len(self.texts), generator=at(seed, epoch))

        def read(step: int) -> Tensor:
            places = range(step * size, (step + 1) * size)
            return self.texts[[int(order(place // len(self.texts))[place % len(self.texts)]) for place in places]]

        return read


def write(
    lm: CausalLM, beginnings: Sequence[Sequence[int]], length: int, seed: int
) -> Iterator[tuple[int, Teacher | None]]:
    """Let ``lm`` go on behind ``beginnings`` up to ``length`` tokens; says how many are written, at last the texts."""
    from transformers import TemperatureLogitsWarper

    written: list[list[int]] = [list(text) for text in beginnings]
    for first in range(0, len(written), TOGETHER):
        part = written[first : first + TOGETHER]
        requests = []
        for row, text in enumerate(part, first):
            greedy = row % 2 == 0
            processors = [] if greedy else [TemperatureLogitsWarper(TEMPERATURE)]
            noise = Noise(1_000_003 * seed + row)
            requests.append(Request(list(text), length, Sampler(processors, greedy=greedy, noise=noise)))
        for event in speculate(lm, requests):
            if isinstance(event, Accepted):
                part[event.row].extend(event.tokens)
        yield first + len(part), None
    yield len(written), Teacher(torch.tensor(written), len(beginnings[0]))


def beginnings(texts: Sequence[Sequence[int]], count: int, given: int, seed: int) -> list[list[int]]:
    """``count`` pieces of ``given`` tokens from random places of ``texts``; every place is as likely."""
    flat = torch.tensor([token for text in texts for token in text])
    if len(flat) < 2 * given:
        raise RamifyError(f"the training data has {len(flat)} tokens; give at least {2 * given}")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(flat) - given, (count,), generator=generator).tolist()
    return [flat[start : start + given].tolist() for start in starts]
