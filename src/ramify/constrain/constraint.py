"""What a constraint is: a language of token sequences, read one token at a time by states that never change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ramify.constrain.vocabulary import Vocabulary
from ramify.errors import RamifyError


class State(ABC):
    """Where a text stands in a constraint. States are never changed, so beams, trees and drafts may share them.

    ``accepting``: whether the text may end here.
    """

    accepting: bool = False

    @abstractmethod
    def allowed(self) -> Sequence[int]:
        """Ids that may follow, the end tokens aside."""

    @abstractmethod
    def advance(self, token: int) -> State | None:
        """The state behind ``token``, None where it may not follow; an end token is none of its business."""


class _Final(State):
    """Nothing may follow but the end: the text has ended, or has left the language."""

    def __init__(self, accepting: bool) -> None:
        self.accepting = accepting

    def allowed(self) -> Sequence[int]:
        return ()

    def advance(self, token: int) -> State | None:
        return None


ENDED = _Final(accepting=True)
OUTSIDE = _Final(accepting=False)


class Constraint(ABC):
    """A language of token sequences over a ``vocabulary``; every sequence in it is followed by an end token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @abstractmethod
    def start(self) -> State:
        """The state before the first token."""

    def advance(self, state: State, token: int) -> State:
        """The state behind ``token``, end tokens included.

        ``ENDED`` behind an end token; ``OUTSIDE``, from which only the end is left, behind one that was not allowed.
        """
        if token in self.vocabulary.ends and (state.accepting or state is OUTSIDE):
            return ENDED
        return state.advance(token) or OUTSIDE

    def read(self, tokens: Iterable[int], state: State | None = None) -> State:
        """The state behind ``tokens``, from the start or from ``state``."""
        at = state or self.start()
        for token in tokens:
            at = self.advance(at, token)
        return at

    def accepts(self, tokens: Iterable[int]) -> bool:
        """Whether ``tokens``, without an end token or with, are a whole sequence of the language."""
        return self.read(tokens).accepting

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """The longest beginning of ``tokens`` that is a whole sequence, without its end token; [] if none is."""
        state, longest = self.start(), 0
        for place, token in enumerate(tokens, 1):
            state = self.advance(state, token)
            if state is ENDED or state is OUTSIDE:
                break
            if state.accepting:
                longest = place
        return list(tokens[:longest])

    def mask(self, states: Sequence[State]) -> Tensor:
        """What may follow each state, end tokens included: bool [B, V]. Raises ``RamifyError`` at a dead end."""
        mask = torch.zeros(len(states), self.vocabulary.size, dtype=torch.bool)
        ends = list(self.vocabulary.ends)
        for row, state in zip(mask, states, strict=True):
            allowed = state.allowed()
            if state.accepting or state is OUTSIDE:
                row[ends] = True
            elif not len(allowed):
                raise RamifyError(
                    f"{type(self).__name__} came to a dead end: no token of the vocabulary can go on; widen the grammar"
                )
            row[torch.as_tensor(allowed, dtype=torch.long)] = True
        return mask
