"""The masked loop where a rule ends the canvas early, and what a rule tells of the positions it fixes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from denoisers import denoiser, request

from ramify.engine.events import Accepted, Cut, Scored, Unmasked
from ramify.engine.feeding import Blockwise, Feeding, Sequential, Whole
from ramify.engine.filling import Schedule
from ramify.engine.look import Look
from ramify.engine.unmask import Choice, Rule, unmask

PROMPT = [3, 14, 15, 9]


@dataclass
class EndsAt(Rule):
    """The surest open position, one a step; after ``steps`` steps the canvas ends at ``length``."""

    steps: int
    length: int

    def choose(self, look: Look) -> Choice:
        fix = look.best(look.confidence, look.quota)
        due = [self.length if row.steps + 1 == self.steps else None for row in look.rows]
        return Choice(fix, cut=due, details={"place": look.positions.double()})


def run(feeding: Feeding, length: int, block: int | None = None) -> tuple[list[int], list[int], list[Unmasked]]:
    """What the canvas of twelve positions is, the positions of every pass, and what was fixed."""
    lm, schedule = denoiser(block=block), Schedule(4)
    events = list(unmask(lm, [request(PROMPT, 12)], EndsAt(2, length), schedule=schedule, feeding=feeding))
    assert [event.length for event in events if isinstance(event, Cut)] == [length]
    [text] = [event.tokens for event in events if isinstance(event, Accepted)]
    passes = [event.nodes for event in events if isinstance(event, Scored)]
    return list(text), passes, [event for event in events if isinstance(event, Unmasked)]


@pytest.mark.parametrize("length", [6, 8, 11, 13])
def test_what_is_behind_a_cut_is_neither_read_nor_written(length: int) -> None:
    text, passes, fixed = run(Whole(), length)
    assert len(text) == length - len(PROMPT)
    assert passes[:2] == [16, 16]
    assert set(passes[2:]) <= {length}
    written = [position for event in fixed[2:] for position in event.positions]
    assert max(written, default=0) < length


def test_a_cut_leaves_what_is_held_before_it() -> None:
    """Nothing behind the block is held by the prefix cache, so that a cut there costs no whole pass."""
    _, passes, _ = run(Blockwise(), 8)
    assert passes == [16, 12, 4, 4]
    _, passes, _ = run(Blockwise(dual=True), 8)
    assert passes == [16, 4, 8, 4]


@pytest.mark.parametrize("length", [6, 8, 11])
def test_a_model_that_sees_in_blocks_does_not_notice_a_cut(length: int) -> None:
    whole = list(unmask(denoiser(block=4), [request(PROMPT, 12)], EndsAt(99, 0), schedule=Schedule(4)))
    [text] = [event.tokens for event in whole if isinstance(event, Accepted)]
    for feeding in (Sequential(4), Sequential(4, keeps=True)):
        found, _, _ = run(feeding, length, block=4)
        kept = (length // 4) * 4 - len(PROMPT)
        assert found[:kept] == list(text[:kept])


def test_a_rule_tells_what_it_likes_of_what_it_fixes() -> None:
    _, _, fixed = run(Whole(), 11)
    assert fixed
    for event in fixed:
        assert event.details == {"place": tuple(map(float, event.positions))}
    assert torch.tensor([event.confidences for event in fixed]).le(1).all()
