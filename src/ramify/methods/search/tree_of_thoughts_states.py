"""The states of a tree of thoughts, its steps from one set of them to the next, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from ramify.engine.request import Parser
from ramify.engine.writer import Call
from ramify.methods.search.tree_of_thoughts_prompts import Thinker

if TYPE_CHECKING:
    from ramify.methods.search.tree_of_thoughts import TreeOfThoughts

FAILED = "server"  # the end of a state that a server left where it was


@dataclass(eq=False)
class State:
    """A list of thoughts: those of its parent and one more.

    ``thought``: the last one. ``reply``, ``answer``: at the end, what the model answered and the answer in it, None
    before or where there is none. ``score``: its own at the step that made it. ``finish``: "stop" for a last state that
    was kept; else why it was not followed. ``calls``: what the model was asked for it.
    """

    thought: str = ""
    parent: State | None = None
    reply: str | None = None
    answer: str | None = None
    score: float = 0.0
    finish: str = "not kept"
    children: list[State] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def thoughts(self) -> tuple[str, ...]:
        before = () if self.parent is None else self.parent.thoughts
        return (*before, self.thought) if self.thought else before

    @property
    def text(self) -> str:
        return self.thought if self.reply is None else f"Answer: {self.reply}"

    @property
    def weight(self) -> float:
        return self.score


@dataclass(frozen=True, eq=False)
class Thoughts:
    """What a search came to.

    ``root``: the tree. ``states``: those of the last step that were kept, the best first. ``failure``: why the tree is
    unfinished, "" where it is whole.
    """

    root: State
    states: Sequence[State]
    failure: str = ""

    @property
    def answer(self) -> str | None:
        """The answer of the best last state; None where it has none."""
        return self.states[0].answer

    def mean(self, right: Callable[[str], bool]) -> float:
        """Share of the last states whose answer is right."""
        return sum(self._right(right)) / len(self.states)

    def any(self, right: Callable[[str], bool]) -> bool:
        """Whether the answer of any last state is right."""
        return any(self._right(right))

    def _right(self, right: Callable[[str], bool]) -> list[bool]:
        return [state.answer is not None and right(state.answer) for state in self.states]


class Breadth:
    """One search under way. ``states``: what the last step kept. ``newest``: the candidates of the step under way."""

    def __init__(
        self, options: TreeOfThoughts, thinker: Thinker, question: str, answer: Parser, generator: Random
    ) -> None:
        self.options, self.thinker, self.question = options, thinker, question
        self.read, self.generator = answer, generator
        self.root = State()
        self.states, self.newest, self.taken = [self.root], [self.root], 0

    def step(self) -> None:
        """From the states to the next ones: expand, score, keep."""
        self.taken += 1
        self.newest = []
        for state in self.states:
            self.newest += self.expand(state)
        self.score()
        self.states = self.select()

    def expand(self, state: State) -> list[State]:
        """The candidates below ``state``; itself where the model has no further thought."""
        last, count = self.taken == self.options.depth, self.options.proposals
        ask = self.thinker.answer if last else self.thinker.propose
        try:
            found = [text for text in ask(self.question, state.thoughts, count) if text.strip()]
        finally:
            state.calls += self.thinker.drain()
        if last:
            state.children = [State("", state, text, self.read(text)) for text in found]
        else:
            state.children = [State(text, state) for text in found]
        return state.children or [state]

    def score(self) -> None:
        """Score the candidates; one that repeats another, and a last one without an answer, gets 0."""
        last = self.taken == self.options.depth
        fresh: dict[tuple[tuple[str, ...], str | None], State] = {}
        for state in self.newest:
            state.score = 0.0
            if not last or state.answer is not None:
                fresh.setdefault((state.thoughts, state.reply), state)
        if self.options.evaluate == "vote" and fresh:
            self.vote(list(fresh.values()))
            return
        for state in fresh.values() if self.options.evaluate == "value" else ():
            try:
                samples = self.options.evaluations
                state.score = self.thinker.value(self.question, state.thoughts, state.reply, samples)
            finally:
                state.calls += self.thinker.drain()

    def vote(self, states: Sequence[State]) -> None:
        """Score ``states`` by votes over all of them; the bill goes to the root."""
        try:
            listed = [(state.thoughts, state.reply) for state in states]
            votes = self.thinker.vote(self.question, listed, self.options.evaluations)
        finally:
            self.root.calls += self.thinker.drain()
        for state, count in zip(states, votes, strict=True):
            state.score = count

    def select(self) -> list[State]:
        """Those that are kept."""
        if self.options.select == "greedy":
            return sorted(self.newest, key=lambda state: -state.score)[: self.options.keep]
        scores = [state.score for state in self.newest]
        weights = scores if any(scores) else None
        return list(dict.fromkeys(self.generator.choices(self.newest, weights, k=self.options.keep)))

    def finished(self) -> list[State]:
        """The last states, the best first."""
        for state in self.states:
            state.finish = "stop"
        return sorted(self.states, key=lambda state: (state.answer is None, -state.score))

    def abandon(self) -> list[State]:
        """The states that have an answer when a server fails, the best first; the others end where they are."""
        for state in (*self.states, *self.newest):
            state.finish = FAILED if state.answer is None else "stop"
        return sorted((state for state in self.newest if state.answer is not None), key=lambda state: -state.score)
