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
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.models.masked import MaskedLM

TOKENS, ORDER, RACE = 1, 2, 3  # streams of a row's noise: which tokens, which order, and what a rule draws besides


@dataclass(eq=False)
class Look:
    """What a rule sees of A rows after a pass, and must not change: n positions each, the current block first to last.

    ``positions``: int64 [A, n], on the canvas; rows with shorter blocks are padded at the end. ``inside``: bool [A, n],
    no padding. ``open``: bool [A, n], still to be fixed and read by this pass. ``logits``: float32 [A, n, V], the mask
    token's −inf.
    ``beyond``: for rules that ask for it, positions and logits of the open ones behind the block, row by row.
    ``rows``: what is known of each row, its schedule and its request.
    """

    rows: Sequence[Filling]
    positions: Tensor
    inside: Tensor
    open: Tensor
    logits: Tensor
    beyond: Sequence[tuple[Tensor, Tensor]] = ()

    @functools.cached_property
    def law(self) -> Tensor:
        """What the model itself says: float64 [A, n, V], for confidences in half precision tie."""
        return torch.softmax(self.logits, dim=-1, dtype=torch.float64)

    def law_at(self, columns: Tensor) -> Tensor:
        """``law`` at some of the n positions of each row, ``columns`` [A, m]: float64 [A, m, V]."""
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        return torch.softmax(self.logits[rows, columns], dim=-1, dtype=torch.float64)

    @functools.cached_property
    def tokens(self) -> Tensor:
        """The candidate of every open position: int64 [A, n], the likeliest token, or one drawn for who samples.

        It is drawn from the law that the request's processors make (of the fixed tokens of its canvas as the prefix).
        What stands at other positions means nothing.
        """
        found = likeliest(self._opened)
        for place, row in enumerate(self.rows):
            sampler = row.request.sampler
            if sampler.is_argmax:
                continue
            own = self.open.nonzero()[:, 0] == place
            prefix = row.canvas.tokens[~row.canvas.open].to(self.logits.device)
            laws = sampler.laws(prefix.expand(int(own.sum()), -1), self._opened[own])
            if not sampler.greedy:
                # float64: in lower precision the noise is coarse, which sharpens the law without saying so.
                race = torch.empty(laws.shape, dtype=torch.float64).exponential_(generator=row.noise(TOKENS))
                laws = laws.double() / race.to(laws.device)
            found[own] = laws.argmax(dim=-1)
        return _placed(found, self.open, 0)

    @functools.cached_property
    def confidence(self) -> Tensor:
        """The law's probability of the candidate of every open position, 1 at all others: float64 [A, n]."""
        each, total = self._odds
        candidates = self.tokens.masked_select(self.open)[:, None]
        return _placed(each.gather(1, candidates)[:, 0] / total, self.open, 1.0)

    def greatest(self, where: Tensor) -> Tensor:
        """The law's greatest probability at the positions ``where`` [A, n], 1 at all others: float64 [A, n]."""
        return _placed(1.0 / odds(self._at(where))[1], where, 1.0)

    def probability(self, tokens: Tensor, where: Tensor) -> Tensor:
        """The law's probability of ``tokens`` [A, n] at the positions ``where`` [A, n], 1 at all others: float64."""
        each, total = odds(self._at(where))
        return _placed(each.gather(1, tokens[where][:, None])[:, 0] / total, where, 1.0)

    @functools.cached_property
    def margin(self) -> Tensor:
        """The law's greatest probability minus the second greatest where it is open, else 0: float64 [A, n]."""
        each, total = self._odds
        return _placed((1.0 - each.topk(2, dim=-1).values[:, 1]) / total, self.open, 0.0)

    @functools.cached_property
    def entropy(self) -> Tensor:
        """The law's entropy at every open position, in nats, 0 at all others: float64 [A, n]."""
        # −Σ p ln p with ln p = l − ln Σ exp l, which spares a logarithm of every entry.
        each, total = self._odds
        mean: Tensor = torch.linalg.vecdot(each, self._opened.clamp(min=-1e30).double()) / total
        return _placed(self._opened.amax(dim=-1).double() + total.log() - mean, self.open, 0.0)

    @functools.cached_property
    def _opened(self) -> Tensor:
        """The logits of the k open positions: [k, V]; those of the others are seldom asked for."""
        return self._at(self.open)

    @functools.cached_property
    def _odds(self) -> tuple[Tensor, Tensor]:
        """What probabilities at the open positions are made of, see ``odds``."""
        return odds(self._opened)

    def _at(self, where: Tensor) -> Tensor:
        """The logits at the k positions ``where`` [A, n]: [k, V]."""
        return self.logits.flatten(0, 1).index_select(0, where.flatten().nonzero()[:, 0])

    @functools.cached_property
    def quota(self) -> Tensor:
        """How many positions the schedule wants to be fixed now: int64 [A], never more than are open."""
        opened = map(sum, self.open.tolist())
        wanted = [min(row.quota, count) for row, count in zip(self.rows, opened, strict=True)]
        return torch.tensor(wanted, device=self.open.device)

    @functools.cached_property
    def first(self) -> Tensor:
        """Whether this is a row's first step in its block: bool [A]."""
        return torch.tensor([row.step == 0 for row in self.rows], device=self.open.device)

    def uniform(self, stream: int = ORDER) -> Tensor:
        """Numbers of [0, 1), float64 [A, n], that depend on a row's seed and step alone."""
        numbers = torch.zeros(self.open.shape, dtype=torch.float64)
        for place, row in enumerate(self.rows):
            count = int(self.inside[place].sum())
            numbers[place, :count] = torch.rand(count, dtype=torch.float64, generator=row.noise(stream))
        return numbers.to(self.open.device)

    def best(self, scores: Tensor, count: Tensor) -> Tensor:
        """The ``count`` [A] open positions with the highest ``scores`` [A, n], the first among equals: bool [A, n]."""
        order = scores.double().where(self.open, -torch.inf).argsort(dim=1, descending=True, stable=True)
        return (order.argsort(dim=1) < count[:, None]) & self.open


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token of every row of ``logits`` [..., V], the first among equals: int64 [...]."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))  # ten times as fast as torch's
    return logits.argmax(dim=-1)


def odds(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of every token over that of the likeliest, from ``logits`` [k, V], and their sum: float64.

    [k, V] and [k]. A softmax would divide all of them; who asks for a few probabilities of each law divides those.
    """
    each = logits.double().sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return each, each.sum(dim=-1)


def _placed(values: Tensor, where: Tensor, others: float) -> Tensor:
    """``values`` [k] at the k positions ``where`` [A, n], ``others`` elsewhere: [A, n]."""
    return values.new_full(where.shape, others).masked_scatter_(where, values)


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
