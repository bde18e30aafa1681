"""Extremely greedy parallel decoding: fix whatever is predicted as in an answer that is known already.

The upper bound of Learn2PD (arXiv 2509.25188), and where its training data come from. The reference answer r is that
of plain decoding; with t_i the prediction at position i of a block, a step records the confidences of all its positions
and y_i = 1[t_i = r_i], and fixes the open ones with y_i = 1. Where the predictions are those of the step before, they
would stay so: r is copied into the rest of the block. So every block begins behind the reference itself.

Ours: where no open position is right, nothing would be fixed and the next pass say the same again; that pass is left
out, and the block filled at once. (The authors make it and record it twice.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.events import Event
from ramify.engine.feeding import Feeding
from ramify.engine.filling import Schedule
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice, Rule, unmask
from ramify.errors import RamifyError
from ramify.models.masked import MaskedLM


@dataclass(frozen=True)
class Record:
    """One step of one block. ``row``: of which request. ``confidences``, ``right``, ``open``: [n], float32 and bool."""

    row: int
    confidences: Tensor
    right: Tensor
    open: Tensor


class Oracle(Rule):
    """Fix what is predicted as in ``references``, one canvas [L] a request, prompt included; keeps ``records``."""

    def __init__(self, references: Sequence[Sequence[int]]) -> None:
        self.references = [torch.tensor(list(reference)) for reference in references]
        self.before: dict[int, Tensor] = {}
        self.records: list[Record] = []

    def choose(self, look: Look) -> Choice:
        fix, tokens = torch.zeros_like(look.open), look.logits.argmax(dim=-1)
        for place, row in enumerate(look.rows):
            index, inside = row.canvas.index, look.inside[place]
            said, count = tokens[place].clone(), int(inside.sum())
            answer = self.references[index][look.positions[place]].to(said.device)
            right = said == answer
            sure, opened = look.law[place, :count].amax(dim=-1).float().cpu(), look.open[place, :count].cpu()
            self.records.append(Record(index, sure, right[:count].cpu(), opened))
            stuck = not look.first[place] and torch.equal(self.before[index][:count], said[:count])
            good = right & look.open[place]
            fix[place] = look.open[place] if stuck or not bool(good.any()) else good
            tokens[place] = answer.where(look.open[place], said)
            self.before[index] = said
        return Choice(fix, tokens)


def decode_greedily(
    lm: MaskedLM,
    requests: Sequence[Request],
    references: Sequence[Sequence[int]],
    block: int | None = None,
    feeding: Feeding | None = None,
) -> tuple[list[Event], list[Record]]:
    """All events of the oracle on ``requests``, and its records; ``references``: what stands behind each prompt."""
    for request, reference in zip(requests, references, strict=True):
        if len(request.prompt) + len(reference) != request.max_length:
            raise RamifyError("a reference is as long as what its request leaves open; decode it without a cut")
    rule = Oracle([[*request.prompt, *reference] for request, reference in zip(requests, references, strict=True)])
    return list(unmask(lm, requests, rule, schedule=Schedule(block), feeding=feeding)), rule.records
