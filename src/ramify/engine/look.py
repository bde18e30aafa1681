"""What a rule of the masked loop sees: the open positions of the current block and the laws there, worked out once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.filling import Filling

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
