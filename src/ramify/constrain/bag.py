"""The vocabulary bank as a bag: any token that occurs in any of its words, in any order.

The loosest constraint, and perhaps nearest to STOC-TOT's (arXiv 2407.03687). Pieces of words may form words that are
in no text: whoever needs the words themselves takes ``trie``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ramify.constrain.constraint import Constraint, State
from ramify.constrain.trie import cased
from ramify.constrain.vocabulary import Vocabulary
from ramify.errors import RamifyError


class Bag(Constraint):
    """At least one of ``tokens``, and then any number of them."""

    def __init__(self, vocabulary: Vocabulary, tokens: Iterable[int]) -> None:
        super().__init__(vocabulary)
        self.tokens = sorted(set(tokens) - vocabulary.ends)
        vocabulary.check(self.tokens)
        if not self.tokens:
            raise RamifyError("the vocabulary bank is empty: there is no word in it that the tokenizer can express")
        self._start, self._inside = _Level(self, accepting=False), _Level(self, accepting=True)

    def start(self) -> State:
        return self._start

    @property
    def inside(self) -> State:
        """The state behind any of the tokens."""
        return self._inside


class _Level(State):
    def __init__(self, bag: Bag, accepting: bool) -> None:
        self.bag, self.accepting = bag, accepting
        self._members = frozenset(bag.tokens)

    def allowed(self) -> Sequence[int]:
        return self.bag.tokens

    def advance(self, token: int) -> State | None:
        return self.bag.inside if token in self._members else None


def bag(vocabulary: Vocabulary, bank: Iterable[str], *, any_case: bool = False) -> Bag:
    """The tokens of the words of ``bank``, with and without a blank before them; ``any_case`` as in ``trie``."""
    texts = [text for word in (cased(bank) if any_case else bank) for text in (word, " " + word)]
    return Bag(vocabulary, (token for text in texts for token in vocabulary.encode(text)))
