"""The suffix automaton of a growing text: which suffix of it occurred before, and where.

Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985): the smallest automaton of all
substrings, built online in amortised O(1) a token. A state stands for strings that end at the same positions; the
longest has ``longest`` tokens, the next shorter ones are those of the state ``link``. ``StaticAutomaton`` is its
frozen form over a corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = -1  # between documents in ``text``; no string of the automaton crosses it


class SuffixAutomaton:
    """Automaton of all substrings of ``text``, with the longest repeated suffix at hand.

    States are numbers; state 0 is the empty string. ``steps``: the next state by token. ``first_end``: the earliest
    position at which the state's strings end.
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self.longest, self.link, self.first_end = [0], [-1], [-1]
        self.steps: list[dict[int, int]] = [{}]
        self.last = 0
        self.state, self.matched = 0, 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to the text."""
        for token in tokens:
            self._follow(token)
            self._append(token)

    def add(self, document: Sequence[int]) -> None:
        """Append a document of its own; ``match`` is not kept up."""
        if self.text and document:
            self.text.append(SEPARATOR)
        self.last = 0
        for token in document:
            self._append(token)

    def beginning(self, length: int) -> SuffixAutomaton:
        """The automaton of the first ``length`` tokens of a single text, built anew: an automaton does not shrink."""
        shorter = SuffixAutomaton()
        shorter.extend(self.text[:length])
        return shorter

    def match(self) -> tuple[int, int]:
        """Length of the longest suffix that also ends earlier in the text, and the first position where it ends."""
        return self.matched, self.first_end[self.state]

    def _follow(self, token: int) -> None:
        """Move the matching state by ``token`` before the automaton knows that occurrence of it."""
        while self.state and token not in self.steps[self.state]:
            self.state = self.link[self.state]
            self.matched = self.longest[self.state]
        if token in self.steps[self.state]:
            self.state = self.steps[self.state][token]
            self.matched += 1

    def _append(self, token: int) -> None:
        end = len(self.text)
        self.text.append(token)
        at = self.last
        if token in self.steps[at]:  # an earlier document began with the same tokens
            self.last = self._split(at, token)
            return
        new = self.last = self._state(self.longest[at] + 1, 0, end, {})
        while at >= 0 and token not in self.steps[at]:
            self.steps[at][token] = new
            at = self.link[at]
        if at >= 0:
            self.link[new] = self._split(at, token)

    def _split(self, at: int, token: int) -> int:
        """The state of the longest string of ``at`` and ``token``, which gets one of its own where it has none."""
        next_ = self.steps[at][token]
        size = self.longest[at] + 1
        if self.longest[next_] == size:
            return next_
        clone = self._state(size, self.link[next_], self.first_end[next_], dict(self.steps[next_]))
        while at >= 0 and self.steps[at].get(token) == next_:
            self.steps[at][token] = clone
            at = self.link[at]
        self.link[next_] = clone
        if self.state == next_ and self.matched <= size:
            self.state = clone
        return clone

    def _state(self, longest: int, link: int, first_end: int, steps: dict[int, int]) -> int:
        self.longest.append(longest)
        self.link.append(link)
        self.first_end.append(first_end)
        self.steps.append(steps)
        return len(self.longest) - 1
