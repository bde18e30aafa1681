"""A tree of texts as a pool of paths: each line from the root to a leaf is one, forked where lines part.

So results, reports and the cost meter read a tree as they read any search. A path's text is that of its line, its
tokens are those of that text; what the model was asked on the way, and its proposals that came to nothing, are in the
bill alone. A step is one call, and a cell of the page is as dark as its line is likely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ramify.engine.events import Event, Grown, Prefilled, Scored
from ramify.engine.path import Path
from ramify.engine.roster import Roster
from ramify.engine.search import Decision, conclude
from ramify.engine.writer import Call


class Branch(Protocol):
    """A node of a tree of texts, identified by itself.

    ``text``: what it adds to its line; "" for nothing. ``calls``: what the model was asked for it. ``weight``: how
    likely the line is, or how good. ``finish``: for a leaf, "stop" or "length", or why its line was cut.
    """

    @property
    def text(self) -> str: ...
    @property
    def calls(self) -> Sequence[Call]: ...
    @property
    def weight(self) -> float: ...
    @property
    def finish(self) -> str: ...
    @property
    def parent(self) -> Branch | None: ...
    @property
    def children(self) -> Sequence[Branch]: ...


class Grove(Roster):
    """The paths of a tree that is complete: the first of a node's children goes on its path, the others fork it."""

    def __init__(self, root: Branch, encode: Callable[[str], list[int]], row: int = 0) -> None:
        super().__init__(row)
        self._encode = encode
        self._path_of: dict[Branch, Path] = {}
        nodes = list(_below(root))
        calls = sorted(((call, node) for node in nodes for call in node.calls), key=lambda each: each[0].number)
        ends = {node.calls[-1].number: node for node in nodes if node.calls and not node.children}
        for call, node in calls:
            self._tell(call, node)
            if call.number in ends:
                self._close(node)
        for node in nodes:
            if not node.children and self.path(node).finish is None:
                self._close(node)

    def path(self, node: Branch) -> Path:
        """The path that ``node`` is on."""
        if node not in self._path_of:
            parent = node.parent
            if parent is None:
                [self._path_of[node]] = self.start(1)
            elif parent.children and node is not parent.children[0]:
                before = self.path(parent)
                start = len(self._encode(_line(parent)))
                self._path_of[node] = self._enter(Path(len(self.paths), before.number, start))
            else:
                self._path_of[node] = self.path(parent)
        return self._path_of[node]

    def decided(
        self, leaves: Sequence[tuple[Branch, str | None]], answer: str | None, votes: dict[str, float]
    ) -> Iterator[Event]:
        """All events, of a tree that came to ``answer``; ``leaves``: what each has for one, the best first."""
        for leaf, found in leaves:
            self.path(leaf).answer = found
        yield from self.drain()
        ranked = [self.path(leaf) for leaf, _ in leaves]
        yield from conclude(self, Decision(ranked, answer, votes) if self.ended else None)

    def _tell(self, call: Call, node: Branch) -> None:
        path = self.path(node)
        if call.read:
            self.events.append(Prefilled(self.row, call.read, call.prefills, 0.0))
        for rows in call.passes:
            self.events.append(Scored(self.step, (self.row,), rows, call.seconds / len(call.passes)))
        numbers, likely = (path.number,) * len(call.tokens), (node.weight,) * len(call.tokens)
        self.events.append(Grown(self.row, self.step, numbers, call.tokens, likely, call.read + len(numbers), 0.0))
        self._grew(len(call.tokens))

    def _close(self, leaf: Branch) -> None:
        path = self.path(leaf)
        path.text = _line(leaf)
        path.tokens = self._encode(path.text)
        path.score = leaf.weight
        self._end(path, leaf.finish)


def _line(node: Branch) -> str:
    """The text of a line, one node's below the other."""
    above = "" if node.parent is None else _line(node.parent)
    return "\n".join(text for text in (above, node.text) if text)


def _below(node: Branch) -> Iterator[Branch]:
    yield node
    for child in node.children:
        yield from _below(child)
