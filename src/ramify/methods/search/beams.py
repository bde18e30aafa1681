"""One set of beams: what beam search and its relatives do at every step, over the paths of a pool.

A path's ``score`` is the running sum of what its tokens scored; when the path ends, that sum divided by the length to
the power of ``length_penalty``. Ties go to the earlier beam, then to the lower token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ramify.engine.path import Path
from ramify.engine.step_pool import Choice, StepPool
from ramify.errors import RamifyError

EarlyStopping = bool | str
BEATEN = "beaten"


@dataclass
class Beams:
    """``width`` beams; ``live``: those that run, best first; ``finished``: the best that ended, best first.

    ``early_stopping``: True ends with ``width`` finished ones; False and "never" go on while the best running beam
    could still displace one of them, judged by its length now, or by the greatest one where longer texts score better.
    ``taken``: the tokens that the running beams took last, and behind which paths, also where that ended all of them.
    """

    width: int
    length_penalty: float
    early_stopping: EarlyStopping
    live: list[Path]
    finished: list[Path] = field(default_factory=list)
    taken: list[Choice] = field(default_factory=list)

    def grow(self, pool: StepPool, scores: Tensor, plain: Tensor, handicap: Tensor | None = None) -> list[Choice]:
        """The beams' next tokens, by ``scores`` [live, V]; beams that are out are pruned, and forked where one has two.

        ``plain``: [live, V], the scores without what a method added; they become the choices' log-probabilities.
        ``handicap``: [live, V], what candidates lose in this choice only; their sums do not remember it.
        """
        sums = scores + torch.tensor([path.score for path in self.live], device=scores.device)[:, None]
        wanted = max(2, 1 + len(pool.request.stop_tokens)) * self.width
        running: list[_Grown] = []
        ended: list[_Grown] = []
        for rank, (beam, token) in enumerate(best_of(sums if handicap is None else sums - handicap, wanted)):
            grown = _Grown(self.live[beam], token, float(sums[beam, token]), float(plain[beam, token]))
            if pool.reason(grown.parent, token) != "stop":
                if len(running) < self.width:
                    running.append(grown)
            elif rank < self.width:
                ended.append(grown)
        if not running and not ended:
            raise RamifyError("no token is possible behind any beam, the processors exclude all; relax their settings")
        self.taken = [Choice(each.parent, each.token) for each in running]
        step, longest = len(self.live[0]) + 1, pool.request.max_length - len(pool.request.prompt)
        if step == longest:
            running, ended = [], [*ended, *running]
        length = float(step**self.length_penalty)
        marks = [*(path.score for path in self.finished), *(each.total / length for each in ended)]
        if len(marks) >= self.width:
            bar = sorted(marks, reverse=True)[self.width - 1]
            ended = [each for each in ended if each.total / length >= bar]
            if running and self._closed(max(each.total for each in running), bar, step, longest):
                running = []
        choices = self._commit(pool, [*running, *ended])
        self.live = [choice.path for choice in choices[: len(running)]]
        for choice in choices[len(running) :]:
            choice.path.score /= length
            self.finished.append(choice.path)
        self.finished = sorted(self.finished, key=lambda path: -path.score)[: self.width]
        return choices

    def _closed(self, best: float, bar: float, step: int, longest: int) -> bool:
        """Whether running beams, the best of them at ``best``, have lost against finished ones of at least ``bar``."""
        if self.early_stopping is True:
            return True
        hoped = longest if self.early_stopping == "never" and self.length_penalty > 0 else step
        return bool(best / hoped**self.length_penalty <= bar)

    def _commit(self, pool: StepPool, grown: Sequence[_Grown]) -> list[Choice]:
        """Choices on paths of their own: a parent's first continuation keeps it, the others fork it."""
        taken: set[Path] = set()
        paths = []
        for each in grown:
            paths.append(pool.fork(each.parent) if each.parent in taken else each.parent)
            taken.add(each.parent)
        for path in self.live:
            if path not in taken:
                pool.prune(path, BEATEN)
        for path, each in zip(paths, grown, strict=True):
            path.score = each.total
        return [Choice(path, each.token, each.plain) for path, each in zip(paths, grown, strict=True)]


@dataclass(frozen=True)
class _Grown:
    parent: Path
    token: int
    total: float
    plain: float


def best_of(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """Row and column of the ``count`` greatest finite entries of ``scores`` [n, V], the greatest first.

    Equal ones come in the order of rows and columns, which torch's own top-k does not promise.
    """
    flat = scores.flatten()
    least = flat.topk(min(count, len(flat))).values[-1]
    index = (flat >= least).logical_and(flat.isfinite()).nonzero()[:, 0]
    order = flat[index].sort(descending=True, stable=True).indices
    return [divmod(place, scores.shape[-1]) for place in index[order[:count]].tolist()]


def check_beams(length_penalty: float, early_stopping: EarlyStopping) -> None:
    """Raise ``RamifyError`` for settings that transformers would not know either."""
    if early_stopping not in (True, False, "never"):
        raise RamifyError(f"early_stopping is {early_stopping!r}; it is True, False or 'never'")
    if not -10 <= length_penalty <= 10:
        raise RamifyError(f"length_penalty is {length_penalty:g}; it is a power of the length, between -10 and 10")
