"""A pool whose paths take one token at a time, as policies see it, wherever the model is: here or behind a server."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ramify.engine.events import Grown
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.roster import Roster
from ramify.engine.sampling import Noise
from ramify.errors import RamifyError


@dataclass(frozen=True)
class Choice:
    """``path`` grows by ``token``, whose log-probability under the law it was drawn from is ``sampled_log_prob``.

    Without one, it counts as chosen under the model's own law. The second and later choices for a path fork it.
    """

    path: Path
    token: int
    sampled_log_prob: float | None = None


class StepPool(Roster, ABC):
    """Paths that take a token at a time, with the laws of their next ones: float32 [n, V], where V may grow."""

    def __init__(self, request: Request, row: int, budget: int | None) -> None:
        super().__init__(row, budget)
        self.request = request
        self._noise: dict[int, Noise] = {}

    # ---- what there is to see ----

    @abstractmethod
    def log_probs(self, paths: Sequence[Path]) -> Tensor:
        """The model's own log-probabilities of the next token of each path: float32 [n, V]."""

    @abstractmethod
    def laws(self, paths: Sequence[Path], *, soft: bool = False) -> Tensor:
        """The laws that the next tokens are drawn from, all processors applied: float32 [n, V].

        ``soft``: the softmax where decoding is greedy, too.
        """

    @abstractmethod
    def processed(self, paths: Sequence[Path]) -> Tensor:
        """The model's own log-probabilities, then all processors, not normalised again: what beams add up."""

    @abstractmethod
    def confidence(self, path: Path) -> float:
        """Confidence of the model in its next token behind ``path``."""

    @abstractmethod
    def entropy(self, path: Path) -> float:
        """Entropy of the model's own law of the next token behind ``path``, in nats."""

    @abstractmethod
    def text_of(self, token: int) -> str:
        """The text of one token by itself."""

    @abstractmethod
    def reason(self, path: Path, token: int) -> str | None:
        """Why ``path`` would end if it grew by ``token``: "stop" or "length"; None where it would go on."""

    # ---- what a policy may do ----

    def fork(self, path: Path) -> Path:
        """A new path with everything that ``path`` has so far, and randomness of its own."""
        return self._enter(path.fork(len(self.paths)))

    @abstractmethod
    def sample(self, paths: Sequence[Path]) -> list[Choice]:
        """One token for each of ``paths``, drawn from its law by its own noise.

        The noise belongs to the path's number and the position, so a path's tokens do not depend on the others.
        """

    def advance(self, choices: Iterable[Choice]) -> None:
        """Give paths their next tokens, and score those that go on, all together."""
        began = time.perf_counter()
        choices = [self._forked(choice, seen) for choice, seen in _counted(choices)]
        log_probs = self._log_probs_of(choices)
        reasons = {choice.path: self.reason(choice.path, choice.token) for choice in choices}
        grown = []
        for choice, log_prob in zip(choices, log_probs, strict=True):
            path = choice.path
            path.confidences.append(self.confidence(path))
            path.entropies.append(self.entropy(path))
            path.tokens.append(choice.token)
            path.log_probs.append(log_prob)
            path.sampled_log_probs.append(log_prob if choice.sampled_log_prob is None else choice.sampled_log_prob)
            grown.append(path.confidences[-1])
        for choice in choices:
            reason = reasons[choice.path]
            if reason:
                self._end(choice.path, reason)
        active = [choice.path for choice in choices if choice.path.finish is None]
        seconds = time.perf_counter() - began
        if active:
            self._score(active)
        numbers, tokens = tuple(choice.path.number for choice in choices), tuple(choice.token for choice in choices)
        self.events.append(Grown(self.row, self.step, numbers, tokens, tuple(grown), self._held, seconds))
        self._grew(len(choices))

    # ---- where the model is ----

    @abstractmethod
    def _log_probs_of(self, choices: Sequence[Choice]) -> list[float]:
        """The log-probability of each choice's token under the model's own law."""

    @abstractmethod
    def _score(self, active: list[Path]) -> None:
        """Find the laws behind the newest tokens of ``active``; the other live paths wait."""

    @property
    @abstractmethod
    def _held(self) -> int:
        """Positions that a cache holds for all paths together."""

    def _forked(self, choice: Choice, seen: int) -> Choice:
        if choice.path.finish is not None:
            raise RamifyError(f"path {choice.path.number} has ended ({choice.path.finish}) and cannot grow")
        return choice if seen == 0 else Choice(self.fork(choice.path), choice.token, choice.sampled_log_prob)

    def _noise_of(self, path: Path) -> Noise:
        if path.number not in self._noise:
            self._noise[path.number] = Noise(self.request.sampler.noise.seed, path.number)
        return self._noise[path.number]


def _counted(choices: Iterable[Choice]) -> list[tuple[Choice, int]]:
    """Each choice with the number of earlier ones for the same path; forks come first, from the path as it was."""
    seen: defaultdict[Path, int] = defaultdict(int)
    counted = []
    for choice in choices:
        counted.append((choice, seen[choice.path]))
        seen[choice.path] += 1
    return counted
