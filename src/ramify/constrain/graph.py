"""A constraint as a graph of tokens: what tries and span automata have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ramify.constrain.constraint import Constraint, State
from ramify.constrain.vocabulary import Vocabulary
from ramify.errors import RamifyError


class Graph(Constraint):
    """Every path from ``root`` to one of ``ends`` is a sequence of the language.

    ``steps``: by node, the next node by token. ``jumps``: nodes that are entered along with a node, without a token.
    A text may stand at several nodes at once (where one word of a bank begins another one, say), so a state is a set.
    End tokens take no part in ``steps``: they would end the text before they could be read.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        steps: Sequence[Mapping[int, int]],
        ends: Iterable[int],
        jumps: Mapping[int, Sequence[int]] | None = None,
        root: int = 0,
    ) -> None:
        super().__init__(vocabulary)
        self.steps, self.ends, self.jumps = steps, frozenset(ends), jumps or {}
        for tokens in steps:
            vocabulary.check(tokens)
            if clash := vocabulary.ends & tokens.keys():
                raise RamifyError(f"token {min(clash)} ends the text, so it cannot be part of what is allowed")
        self._start = Spot(self, [root])

    def start(self) -> State:
        return self._start


class Spot(State):
    """A set of nodes of a ``Graph``, with all those that can be reached from them without a token."""

    def __init__(self, graph: Graph, nodes: Iterable[int]) -> None:
        self.graph = graph
        reached: set[int] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting.extend(graph.jumps.get(node, ()))
        self.nodes = frozenset(reached)
        self.accepting = not graph.ends.isdisjoint(reached)
        self._allowed: list[int] | None = None

    def allowed(self) -> Sequence[int]:
        if self._allowed is None:
            self._allowed = sorted({token for node in self.nodes for token in self.graph.steps[node]})
        return self._allowed

    def advance(self, token: int) -> State | None:
        following = [self.graph.steps[node][token] for node in self.nodes if token in self.graph.steps[node]]
        return Spot(self.graph, following) if following else None


class Branches:
    """A trie under construction: node 0 is its root."""

    def __init__(self) -> None:
        self.steps: list[dict[int, int]] = [{}]

    def node(self) -> int:
        """A new node that nothing leads to yet."""
        self.steps.append({})
        return len(self.steps) - 1

    def add(self, path: Iterable[int], root: int = 0) -> int:
        """Add ``path`` below ``root``; returns the node that it ends at."""
        at = root
        for token in path:
            if token not in self.steps[at]:
                self.steps[at][token] = self.node()
            at = self.steps[at][token]
        return at
