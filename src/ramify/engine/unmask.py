"""The masked loop: read the canvas, fix some of its open positions, until none is open.

It owns blocks, schedules, passes, caches and counting for every method of this kind. A ``Rule`` says which positions
are fixed (reduce), a ``Feeding`` which positions a pass evaluates and which it reads from what earlier passes held.
"""

from __future__ import annotations

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ramify.engine.canvas import CanvasSession
from ramify.engine.events import Accepted, Cut, Event, Finished, Prefilled, Remasked, Scored, Unmasked
from ramify.engine.feeding import Feeding, Whole
from ramify.engine.filling import Filling, Schedule
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.models.masked import MaskedLM


@dataclass(frozen=True)
class Choice:
    """What a rule decides.

    ``fix``: bool [A, n], among the open positions of the look. ``tokens``: int64 [A, n], what is written there; None
    for the look's candidates. ``reopen``: bool [A, n], fixed positions to be opened again. ``cut``: for each row the
    length that its canvas has from now on, None to leave it. ``details``: figures [A, n] about what is fixed, by name,
    for whoever reads the events.
    """

    fix: Tensor
    tokens: Tensor | None = None
    reopen: Tensor | None = None
    cut: Sequence[int | None] = ()
    details: Mapping[str, Tensor] = field(default_factory=dict)


class Rule(ABC):
    """Which positions are fixed. One object lives as long as the call; what it remembers of a row it keeps by row.

    ``beyond``: whether it wants the logits of the open positions behind the current block as well.
    """

    beyond: bool = False

    @abstractmethod
    def choose(self, look: Look) -> Choice:
        """Fix at least one open position of every row, or cut or reopen some."""


def unmask(
    lm: MaskedLM,
    requests: Sequence[Request],
    rule: Rule,
    *,
    schedule: Schedule | None = None,
    feeding: Feeding | None = None,
    guidance: float | Callable[[int], float] = 0.0,
) -> Iterator[Event]:
    """Fill in every request's canvas, yielding what happens.

    ``guidance``: see ``CanvasSession``; or a function of the step, from 0, where it changes on the way.
    Rows of a batch run together and do not influence each other. The text of a row is given out when its canvas is
    full, up to its first stop token. Raises ``RamifyError`` for a canvas that is longer than the model's, for steps
    that do not fit it, for NaN logits where something is written, and for a rule that comes to no end.
    """
    schedule, feeding = schedule or Schedule(), feeding or Whole()
    rows = [schedule.begin(lm, request, index) for index, request in enumerate(requests)]
    for row in rows:
        yield Prefilled(row.canvas.index, row.canvas.start, 0, 0.0)
    session = CanvasSession(lm, [row.canvas for row in rows], 1.0 if callable(guidance) else guidance)
    step = 0
    while rows:
        began = time.perf_counter()
        if callable(guidance):
            session.guidance = guidance(step)
        look, nodes = _look(session, rows, rule, feeding)
        ended = time.perf_counter()
        yield Scored(step, tuple(row.canvas.index for row in rows), nodes, ended - began)
        written = _apply(lm, look, rule.choose(look))
        _hold(session, rows, feeding, written)
        seconds = (time.perf_counter() - ended) / len(rows)
        alive = []
        for place, (row, done) in enumerate(zip(rows, written, strict=True)):
            index = row.canvas.index
            yield Unmasked(index, step, done.positions, done.tokens, done.confidences, seconds, done.details)
            if done.reopened:
                yield Remasked(index, step, done.reopened)
            if done.cut is not None:
                yield Cut(index, step, done.cut)
            if not done.positions and done.cut is None and not done.reopened:
                raise RamifyError(f"{type(rule).__name__} fixed nothing in request {index}; a rule fixes one a step")
            row.step += 1
            row.steps += 1
            if row.steps > 8 * len(row.canvas) + 64:
                raise RamifyError(f"{type(rule).__name__} opens as many positions as it fixes; it comes to no end")
            row.advance()
            if row.done:
                text, reason = row.text
                yield Accepted(index, step, (), text, 0.0)
                yield Finished(index, step, reason)
            else:
                alive.append(place)
        if alive and len(alive) < len(rows):
            session.select(alive)
        rows = [rows[place] for place in alive]
        step += 1


def _look(session: CanvasSession, rows: Sequence[Filling], rule: Rule, feeding: Feeding) -> tuple[Look, int]:
    """One pass, and what the rule sees of it; also the positions evaluated for each row."""
    fed, wanted, behind = [], [], []
    shift = int(session.lm.facts.shift)
    for place, row in enumerate(rows):
        own = feeding.fed(row, session.held(place))
        if own is None:
            session.forget(place)
            own = list(range(len(row.canvas)))
        fed.append(own)
        # Logits for a position leave the model where it is read; a pass may read fewer positions than are open.
        read = set(own)
        wanted.append([position for position in range(row.begin, row.end) if max(position - shift, 0) in read])
        if rule.beyond:
            later = row.canvas.open[row.end :].nonzero()[:, 0] + row.end
            behind.append([position for position in later.tolist() if max(position - shift, 0) in read])
    both = [own + more for own, more in zip(wanted, behind, strict=True)] if rule.beyond else wanted
    logits, nodes = session.score(both, fed)
    beyond = [
        (torch.tensor(more), logits[place, len(wanted[place]) : len(wanted[place]) + len(more)])
        for place, more in enumerate(behind)
    ]
    positions, inside = _blocks(tuple((row.begin, row.end) for row in rows))
    opened = pad_sequence([row.canvas.open[row.begin : row.end] for row in rows], batch_first=True)
    widest = positions.shape[1]
    if any(len(own) < row.end - row.begin for own, row in zip(wanted, rows, strict=True)):
        logits = _spread(logits, wanted, rows, widest)
        for place, (row, own) in enumerate(zip(rows, wanted, strict=True)):
            seen = torch.zeros_like(opened[place])
            seen[torch.tensor(own, dtype=torch.long) - row.begin] = True
            opened[place] &= seen
    device = logits.device
    return Look(rows, positions, inside.to(device), opened.to(device), logits[:, :widest], beyond), nodes


@functools.lru_cache(maxsize=16)
def _blocks(bounds: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """The positions of blocks and which are no padding: int64 and bool [A, n]; kept, for a block takes many steps."""
    positions = pad_sequence([torch.arange(begin, end) for begin, end in bounds], batch_first=True)
    sizes = torch.tensor([end - begin for begin, end in bounds])
    return positions, torch.arange(positions.shape[1]) < sizes[:, None]


def _spread(logits: Tensor, wanted: Sequence[Sequence[int]], rows: Sequence[Filling], widest: int) -> Tensor:
    """``logits`` of the positions ``wanted`` at their places in the block; the others are certain of what they hold."""
    spread = logits.new_full((len(rows), widest, logits.shape[-1]), -torch.inf)
    for place, (row, own) in enumerate(zip(rows, wanted, strict=True)):
        tokens = row.canvas.tokens[row.begin : row.end].to(logits.device)
        spread[place].scatter_(1, tokens[:, None], 0.0)
        spread[place, len(tokens) :, 0] = 0.0
        spread[place, torch.tensor(own, dtype=torch.long) - row.begin] = logits[place, : len(own)]
    return spread


class Written(NamedTuple):
    """What a step did to one row. ``positions`` were fixed, the others count from the beginning of the prompt too."""

    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    details: dict[str, tuple[float, ...]]
    reopened: tuple[int, ...]
    cut: int | None


def _apply(lm: MaskedLM, look: Look, choice: Choice) -> list[Written]:
    """Write what ``choice`` says."""
    tokens = look.tokens if choice.tokens is None else choice.tokens
    confidences = look.confidence if choice.tokens is None else look.probability(tokens, choice.fix)
    every = zip(look.rows, *(each.tolist() for each in (choice.fix, look.open, tokens, confidences)), strict=True)
    figures = {name: each.tolist() for name, each in choice.details.items()}
    written: list[Written] = []
    for place, (row, fix, opened, said, sure) in enumerate(every):
        columns = [column for column, chosen in enumerate(fix) if chosen]
        positions = tuple(row.begin + column for column in columns)
        values, chances = tuple(said[column] for column in columns), tuple(sure[column] for column in columns)
        _check(lm, [opened[column] for column in columns], values, chances)
        told = {name: tuple(each[place][column] for column in columns) for name, each in figures.items()}
        row.canvas.fix(torch.tensor(positions, dtype=torch.long), torch.tensor(values, dtype=torch.long))
        reopened: tuple[int, ...] = ()
        if choice.reopen is not None and bool(choice.reopen[place].any()):
            back = look.positions[place, choice.reopen[place].cpu()]
            row.canvas.reopen(back, lm.mask_id)
            reopened = tuple(back.tolist())
        cut = choice.cut[place] if choice.cut else None
        if cut is not None:
            row.cut(cut)
        written.append(Written(positions, values, chances, told, reopened, cut))
    return written


def _check(lm: MaskedLM, opened: Sequence[bool], tokens: Sequence[int], confidences: Sequence[float]) -> None:
    """Raise ``RamifyError`` where ``tokens`` must not be written; ``opened``: whether their positions are open."""
    if not all(opened):
        raise RamifyError("a rule may fix open positions only; what is fixed already has to be reopened first")
    if lm.mask_id in tokens:
        raise RamifyError("a rule chose the mask token, which is never an answer; leave the position open instead")
    if not all(map(math.isfinite, confidences)):
        raise RamifyError("the model returned NaN or infinite logits; check its weights, or load it in dtype='float32'")


def _hold(session: CanvasSession, rows: Sequence[Filling], feeding: Feeding, written: Sequence[Written]) -> None:
    """Keep of the last pass what the next ones are to read; what changed since it was held must not be read again."""
    kept = [feeding.hold(row, session.held(place), written[place].positions) for place, row in enumerate(rows)]
    if any(kept):
        session.hold(kept)
    for place, done in enumerate(written):
        held = session.held(place)
        if not held.isdisjoint(done.reopened) or (done.cut is not None and max(held, default=-1) >= done.cut):
            session.forget(place)
