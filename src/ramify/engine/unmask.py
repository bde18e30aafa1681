"""The masked loop: read the canvas, fix some of its open positions, until none is open.

It owns blocks, schedules, passes, caches and counting for every method of this kind. A ``Rule`` says which positions
are fixed (reduce), a ``Feeding`` which positions a pass evaluates and which it reads from what earlier passes held.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
    """What a rule sees of A rows after a pass: n positions each, those of the current block first to last.

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

    @functools.cached_property
    def tokens(self) -> Tensor:
        """The candidate of every open position: int64 [A, n], the likeliest token, or one drawn for who samples.

        It is drawn from the law that the request's processors make (of the fixed tokens of its canvas as the prefix).
        What stands at other positions means nothing.
        """
        drawn = torch.zeros(self.open.shape, dtype=torch.long, device=self.open.device)
        drawn[self.open] = self._opened.argmax(dim=-1)
        for place, row in enumerate(self.rows):
            sampler = row.request.sampler
            if sampler.is_argmax:
                continue
            opened = self.open[place].nonzero()[:, 0]
            prefix = row.canvas.tokens[~row.canvas.open].to(self.logits.device)
            laws = sampler.laws(prefix.expand(len(opened), -1), self.logits[place, opened])
            if not sampler.greedy:
                # float64: in lower precision the noise is coarse, which sharpens the law without saying so.
                race = torch.empty(laws.shape, dtype=torch.float64).exponential_(generator=row.noise(TOKENS))
                laws = laws.double() / race.to(laws.device)
            drawn[place, opened] = laws.argmax(dim=-1)
        return drawn

    @functools.cached_property
    def confidence(self) -> Tensor:
        """The law's probability of the candidate of every open position, 1 at all others: float64 [A, n]."""
        return self.probability(self.tokens, self.open)

    def probability(self, tokens: Tensor, where: Tensor) -> Tensor:
        """The law's probability of ``tokens`` [A, n] at the positions ``where`` [A, n], 1 at all others: float64."""
        law = torch.softmax(self._opened if where is self.open else self.logits[where], dim=-1, dtype=torch.float64)
        found = torch.ones(where.shape, dtype=torch.float64, device=where.device)
        found[where] = law.gather(-1, tokens[where][:, None])[:, 0]
        return found

    @functools.cached_property
    def _opened(self) -> Tensor:
        """The logits of all open positions: [k, V]; those of the others are seldom asked for."""
        return self.logits[self.open]

    @functools.cached_property
    def entropy(self) -> Tensor:
        """The law's entropy at every position, in nats: float64 [A, n]."""
        # −Σ p ln p with ln p = l − ln Σ exp l, which spares a logarithm of every entry.
        best, token = self.logits.max(dim=-1, keepdim=True)
        total = best.double() - self.law.gather(-1, token).log()
        mean: Tensor = torch.linalg.vecdot(self.law, self.logits.clamp(min=-1e30).double())
        return total[..., 0] - mean

    @functools.cached_property
    def quota(self) -> Tensor:
        """How many positions the schedule wants to be fixed now: int64 [A], never more than are open."""
        wanted = torch.tensor([row.quota for row in self.rows], device=self.open.device)
        return torch.minimum(wanted, self.open.sum(dim=1))

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
        ranks = scores.double().masked_fill(~self.open, -torch.inf).argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(self.open).scatter_(1, ranks, self._below(count))
        return chosen & self.open

    def _below(self, count: Tensor) -> Tensor:
        return torch.arange(self.open.shape[1], device=count.device)[None] < count[:, None]


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
    that do not fit it, for NaN logits, and for a rule that comes to no end.
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
        choice = rule.choose(look)
        written = _apply(lm, look, choice)
        _hold(session, rows, feeding, written)
        seconds = (time.perf_counter() - ended) / len(rows)
        for place, (row, (fixed, tokens, confidences, reopened, cut)) in enumerate(zip(rows, written, strict=True)):
            index = row.canvas.index
            told = {name: tuple(of[place, choice.fix[place]].tolist()) for name, of in choice.details.items()}
            yield Unmasked(index, step, tuple(fixed), tuple(tokens), tuple(confidences), seconds, told)
            if reopened:
                yield Remasked(index, step, tuple(reopened))
            if cut is not None:
                yield Cut(index, step, cut)
            if not fixed and cut is None and not reopened:
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
        alive = [place for place, row in enumerate(rows) if not row.done]
        if alive and len(alive) < len(rows):
            session.select(alive)
        rows = [rows[place] for place in alive]
        step += 1


def _look(session: CanvasSession, rows: Sequence[Filling], rule: Rule, feeding: Feeding) -> tuple[Look, int]:
    """One pass, and what the rule sees of it; also the positions evaluated for each row."""
    fed, wanted, behind = [], [], []
    for place, row in enumerate(rows):
        own = feeding.fed(row, session.held(place))
        if own is None:
            session.forget(place)
            own = list(range(len(row.canvas)))
        fed.append(own)
        # Logits for a position leave the model where it is read; a pass may read fewer positions than are open.
        read, shift = set(own), int(session.lm.facts.shift)
        wanted.append([position for position in range(row.begin, row.end) if max(position - shift, 0) in read])
        later = row.canvas.open[row.end :].nonzero()[:, 0] + row.end if rule.beyond else torch.empty(0)
        behind.append([position for position in later.tolist() if max(position - shift, 0) in read])
    logits, nodes = session.score([own + more for own, more in zip(wanted, behind, strict=True)], fed)
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise RamifyError("the model returned NaN or infinite logits; check its weights, or load it in dtype='float32'")
    beyond = [
        (torch.tensor(more), logits[place, len(own) : len(own) + len(more)])
        for place, (own, more) in enumerate(zip(wanted, behind, strict=True))
    ]
    sizes = torch.tensor([row.end - row.begin for row in rows])
    offsets = torch.arange(int(sizes.max()))
    inside = offsets < sizes[:, None]
    positions = (torch.tensor([row.begin for row in rows])[:, None] + offsets).where(inside, 0)
    opened = torch.stack([row.canvas.open[place] for row, place in zip(rows, positions, strict=True)]) & inside
    if any(len(own) < row.end - row.begin for own, row in zip(wanted, rows, strict=True)):
        logits = _spread(logits, wanted, rows, inside.shape[1])
        for place, (row, own) in enumerate(zip(rows, wanted, strict=True)):
            seen = torch.zeros_like(opened[place])
            seen[torch.tensor(own, dtype=torch.long) - row.begin] = True
            opened[place] &= seen
    device = logits.device
    logits = logits[:, : inside.shape[1]]
    return Look(rows, positions, inside.to(device), opened.to(device), logits, beyond), nodes


def _spread(logits: Tensor, wanted: Sequence[Sequence[int]], rows: Sequence[Filling], widest: int) -> Tensor:
    """``logits`` of the positions ``wanted`` at their places in the block; the others are certain of what they hold."""
    spread = logits.new_full((len(rows), widest, logits.shape[-1]), -torch.inf)
    for place, (row, own) in enumerate(zip(rows, wanted, strict=True)):
        tokens = row.canvas.tokens[row.begin : row.end].to(logits.device)
        spread[place].scatter_(1, tokens[:, None], 0.0)
        spread[place, len(tokens) :, 0] = 0.0
        spread[place, torch.tensor(own, dtype=torch.long) - row.begin] = logits[place, : len(own)]
    return spread


Written = tuple[list[int], list[int], list[float], list[int], int | None]


def _apply(lm: MaskedLM, look: Look, choice: Choice) -> list[Written]:
    """Write what ``choice`` says; for each row what was fixed, tokens and confidences, what reopened, and the cut."""
    if bool((choice.fix & ~look.open).any()):
        raise RamifyError("a rule may fix open positions only; what is fixed already has to be reopened first")
    tokens = look.tokens if choice.tokens is None else choice.tokens
    confidences = look.confidence if choice.tokens is None else look.probability(tokens, choice.fix)
    fix, tokens, confidences = choice.fix.cpu(), tokens.cpu(), confidences.cpu()
    reopen = None if choice.reopen is None else choice.reopen.cpu()
    written: list[Written] = []
    for place, row in enumerate(look.rows):
        chosen = fix[place]
        fixed, values = look.positions[place, chosen], tokens[place, chosen]
        if bool((values == lm.mask_id).any()):
            raise RamifyError("a rule chose the mask token, which is never an answer; leave the position open instead")
        row.canvas.fix(fixed, values)
        again: list[int] = []
        if reopen is not None and bool(reopen[place].any()):
            back = look.positions[place, reopen[place]]
            row.canvas.reopen(back, lm.mask_id)
            again = back.tolist()
        cut = choice.cut[place] if choice.cut else None
        if cut is not None:
            row.cut(cut)
        written.append((fixed.tolist(), values.tolist(), confidences[place, chosen].tolist(), again, cut))
    return written


def _hold(session: CanvasSession, rows: Sequence[Filling], feeding: Feeding, written: Sequence[Written]) -> None:
    """Keep of the last pass what the next ones are to read; what changed since it was held must not be read again."""
    session.hold([feeding.hold(row, session.held(place), written[place][0]) for place, row in enumerate(rows)])
    for place, (_, _, _, reopened, cut) in enumerate(written):
        held = session.held(place)
        if not held.isdisjoint(reopened) or (cut is not None and max(held, default=-1) >= cut):
            session.forget(place)
