"""A model as methods see it that grow trees of texts: a prompt in, texts out, probabilities where it has them.

Three of one interface: ``LocalWriter`` over a loaded model, with masks and exact probabilities of replies;
``ServerWriter`` over a server, with those of a first token where it gives alternatives; ``TextWriter`` over any
function. Every call is kept with what it cost, until ``drain`` hands it over.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ramify.constrain.constraint import Constraint
from ramify.constrain.vocabulary import Vocabulary
from ramify.engine.distant import UNKNOWN

TEMPERATURE = 0.7  # of texts that are drawn, where nothing else is asked for
CALLS = 100_003  # seeds between two calls on a server, and between two requests here for the calls that each makes

Ask = Callable[[str], str]


@dataclass(frozen=True)
class Call:
    """One prompt that was put to the model.

    ``number``: counts the calls of a writer. ``read``: tokens of the prompt; ``prefills``: passes over it. ``passes``:
    rows of each pass behind it. ``tokens``: drawn, of all texts together; ``UNKNOWN`` where they have no ids.
    """

    number: int
    read: int
    prefills: int
    passes: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: float


class Writer(ABC):
    """What answers prompts.

    ``vocabulary``: what constraints on its texts are built over; None where they cannot be held to any. ``seed``: of
    what is drawn.
    """

    vocabulary: Vocabulary | None = None
    seed: int = 0

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._calls: list[Call] = []

    @abstractmethod
    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        """``samples`` texts behind ``prompt``, of at most ``most`` tokens each.

        ``drawn``: at the caller's sampling settings; else as predictably as it can. ``line``: nothing behind the first
        line is wanted. ``constraint``: over ``vocabulary``, what the texts are held to.
        """

    def weigh(self, prompt: str, choices: Sequence[Sequence[str]]) -> list[float] | None:
        """For each choice, ln of the probability that the reply begins with one of its forms; None where unknown."""
        return None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; ``UNKNOWN`` for each of its words where the model's tokens have none."""
        return [UNKNOWN] * len(text.split())

    def drain(self) -> list[Call]:
        """The calls since this was last asked."""
        calls, self._calls = self._calls, []
        return calls

    def _enter(
        self, number: int, began: float, read: int, prefills: int, passes: Sequence[int], tokens: Sequence[int]
    ) -> None:
        seconds = time.perf_counter() - began
        self._calls.append(Call(number, read, prefills, tuple(passes), tuple(tokens), seconds))


class TextWriter(Writer):
    """A function from a prompt to a reply, which limits the length of replies by itself.

    ``ask``: answers as predictably as it can. ``draw``: at a higher temperature, None for ``ask``.
    """

    def __init__(self, ask: Ask, draw: Ask | None = None) -> None:
        super().__init__()
        self.ask, self.draw = ask, draw or ask

    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        number, began = next(self._numbers), time.perf_counter()
        replies = [(self.draw if drawn else self.ask)(prompt) for _ in range(samples)]
        tokens = [token for reply in replies for token in self.encode(reply)]
        self._enter(number, began, len(self.encode(prompt)), 0, [len(tokens)], tokens)
        return replies
