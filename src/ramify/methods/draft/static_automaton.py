"""The suffix automaton of a corpus, frozen into flat arrays: built once, saved as safetensors, read by every request.

About 50 bytes for a token of the corpus; beside the states of ``SuffixAutomaton`` it holds how often their strings
occur, so that the ratio of two counts is the corpus' own estimate of what comes next.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ramify.engine.automaton import SEPARATOR, SuffixAutomaton
from ramify.errors import RamifyError, first_line

FORMAT = "ramify suffix automaton 1"
_ARRAYS = ("text", "longest", "link", "first_end", "count", "offsets", "tokens", "targets")
Likeliest = tuple[
    list[int], list[int], list[float]
]  # tokens, parents and probabilities of a tree, likeliest node first


@dataclass(frozen=True, eq=False)
class StaticAutomaton:
    """All substrings of a corpus; int32 arrays over n tokens, S states and E steps.

    ``text`` [n], with −1 between documents. ``longest``, ``link``, ``first_end`` [S]: as in ``SuffixAutomaton``.
    ``count`` [S]: at how many positions the state's strings end. ``offsets`` [S + 1]: the steps of state s are
    ``offsets[s]`` … ``offsets[s + 1]`` − 1, by rising ``tokens`` [E], to the states ``targets`` [E]. ``vocab_size``
    and ``tokenizer``, its fingerprint or "": of what read the corpus.
    """

    text: np.ndarray
    longest: np.ndarray
    link: np.ndarray
    first_end: np.ndarray
    count: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    vocab_size: int
    tokenizer: str = ""

    @staticmethod
    def build(documents: Iterable[Sequence[int]], vocab_size: int, tokenizer: str = "") -> StaticAutomaton:
        """The automaton of ``documents``, each a list of token ids."""
        grown = SuffixAutomaton()
        for document in documents:
            grown.add(document)
        return StaticAutomaton.freeze(grown, vocab_size, tokenizer)

    @staticmethod
    def freeze(grown: SuffixAutomaton, vocab_size: int, tokenizer: str = "") -> StaticAutomaton:
        """The static form of an automaton that will not grow any more."""
        known = grown.steps[0]
        if not known:
            raise RamifyError("the corpus is empty; give documents with at least one token")
        if not 0 <= min(known) <= max(known) < vocab_size:
            raise RamifyError(f"the corpus has tokens outside the vocabulary of {vocab_size}; encode it again")
        steps = [sorted(step.items()) for step in grown.steps]
        edges = np.array([edge for step in steps for edge in step], dtype=np.int32).reshape(-1, 2)
        return StaticAutomaton(
            np.array(grown.text, dtype=np.int32),
            np.array(grown.longest, dtype=np.int32),
            np.array(grown.link, dtype=np.int32),
            np.array(grown.first_end, dtype=np.int32),
            np.array(_counts(grown), dtype=np.int32),
            np.cumsum([0, *map(len, steps)], dtype=np.int32),
            np.ascontiguousarray(edges[:, 0]),
            np.ascontiguousarray(edges[:, 1]),
            vocab_size,
            tokenizer,
        )

    def save(self, file: Path) -> None:
        """Write the arrays; ``load`` reads them."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        told = {"format": FORMAT, "vocab_size": str(self.vocab_size), "tokenizer": self.tokenizer}
        save_file(arrays, file, told)

    @staticmethod
    def load(file: Path) -> StaticAutomaton:
        """Read what ``save`` wrote; raises ``RamifyError`` for anything else."""
        if not file.is_file():
            raise RamifyError(f"there is no automaton {file}; build one with: ramify train sam --data FILE --out DIR")
        try:
            with safe_open(file, "np") as opened:
                told = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise RamifyError(f"the automaton {file} is damaged ({first_line(error)}); build it again") from error
        if told.get("format") != FORMAT or arrays.keys() != set(_ARRAYS):
            raise RamifyError(f"{file} holds no suffix automaton; build one with: ramify train sam")
        found = StaticAutomaton(**arrays, vocab_size=int(told["vocab_size"]), tokenizer=told.get("tokenizer", ""))
        if not found._fits():
            raise RamifyError(f"the automaton {file} is damaged (its arrays do not fit each other); build it again")
        return found

    def _fits(self) -> bool:
        """Whether every index leads somewhere, and every link to a shorter string."""
        states, steps, tokens = len(self.link), len(self.tokens), len(self.text)
        whole = all(getattr(self, name).dtype == np.int32 and getattr(self, name).ndim == 1 for name in _ARRAYS)
        return (
            whole
            and len(self.longest) == len(self.first_end) == len(self.count) == states == len(self.offsets) - 1 > 0
            and len(self.targets) == steps == self.offsets[-1]
            and (self.offsets[0], self.longest[0]) == (0, 0)
            and _within(np.diff(self.offsets), 0, steps + 1)
            and _within(self.targets, 1, states)
            and _within(self.link[1:], 0, states)
            and bool((self.longest[self.link[1:]] < self.longest[1:]).all())
            and _within(self.first_end, -1, tokens)
            and _within(self.count, 1, tokens + 1)
            and _within(self.tokens, 0, self.vocab_size)
            and _within(self.text, SEPARATOR, self.vocab_size)
        )

    def step(self, state: int, token: int) -> int | None:
        """The state after ``token``, None where the corpus has no such string."""
        low, high = int(self.offsets[state]), int(self.offsets[state + 1])
        place = bisect_left(self.tokens, token, low, high)
        return int(self.targets[place]) if place < high and self.tokens[place] == token else None

    def chain(self, state: int, length: int) -> list[int]:
        """Up to ``length`` tokens of the document behind the earliest end of the state's strings."""
        start = int(self.first_end[state]) + 1
        tokens: list[int] = self.text[start : start + length].tolist()
        return tokens[: tokens.index(SEPARATOR)] if SEPARATOR in tokens else tokens

    def tree(self, state: int, nodes: int, levels: int, width: int) -> Likeliest:
        """The likeliest continuations best first, at most ``nodes`` in all, ``levels`` deep and ``width`` at a depth.

        A node's probability is how often its path follows the state's strings in the corpus.
        """
        tokens: list[int] = []
        parents: list[int] = []
        probabilities: list[float] = []
        used = [0] * levels
        heap = [(-1.0, 0, -1, state, -1)]  # −probability, depth of its children, token, state, parent
        while heap and len(tokens) < nodes:
            probability, depth, token, at, parent = heapq.heappop(heap)
            if depth:
                if used[depth - 1] == width:
                    continue
                used[depth - 1] += 1
                tokens.append(token)
                parents.append(parent)
                probabilities.append(-probability)
            if depth < levels:
                edges = slice(self.offsets[at], self.offsets[at + 1])
                counts = self.count[self.targets[edges]]
                for place in np.argsort(-counts, kind="stable")[:width].tolist():
                    share = probability * int(counts[place]) / int(self.count[at])
                    following = int(self.tokens[edges][place]), int(self.targets[edges][place])
                    heapq.heappush(heap, (share, depth + 1, *following, len(tokens) - 1))
        return tokens, parents, probabilities


class Reader:
    """The longest suffix of a growing text that occurs in a corpus: ``matched`` tokens, those of ``state``."""

    def __init__(self, automaton: StaticAutomaton) -> None:
        self.automaton = automaton
        self.state, self.matched = 0, 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Move on by ``tokens``, in amortised O(log V) each."""
        automaton = self.automaton
        for token in tokens:
            following = automaton.step(self.state, token)
            while following is None and self.state:
                self.state = int(automaton.link[self.state])
                self.matched = int(automaton.longest[self.state])
                following = automaton.step(self.state, token)
            if following is not None:
                self.state, self.matched = following, self.matched + 1


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return bool(((low <= values) & (values < high)).all())


def _counts(grown: SuffixAutomaton) -> list[int]:
    """How often the strings of every state occur: once where the text passes, and wherever a longer one ends."""
    counts = [0] * len(grown.link)
    state = 0
    for token in grown.text:
        state = 0 if token == SEPARATOR else grown.steps[state][token]
        counts[state] += token != SEPARATOR
    for state in sorted(range(1, len(counts)), key=lambda state: -grown.longest[state]):
        counts[grown.link[state]] += counts[state]
    return counts
