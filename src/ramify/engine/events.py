"""What happened, step by step. Streaming, statistics, tables, plots and reports are views of this one stream.

Seconds are wall time of the named part of the step, shared by all rows of the batch that took part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ramify.engine.path import Path
from ramify.engine.tree import TokenTree


@dataclass(frozen=True)
class Prefilled:
    """``tokens`` prompt tokens of ``row`` entered the cache in ``calls`` forward passes."""

    row: int
    tokens: int
    calls: int
    seconds: float


@dataclass(frozen=True)
class Drafted:
    """A tree was proposed for ``row``; its nodes hang below the pending token."""

    row: int
    step: int
    tree: TokenTree
    seconds: float


@dataclass(frozen=True)
class Scored:
    """One forward pass of the target over ``nodes`` nodes for each of ``rows`` rows, padding included."""

    step: int
    rows: tuple[int, ...]
    nodes: int
    seconds: float


@dataclass(frozen=True)
class Accepted:
    """``tokens`` were committed to ``row``: the tokens of draft nodes ``path``, then the target's own next token.

    ``path`` counts draft nodes as in ``Drafted.tree``. When the sequence ends inside the path, ``tokens`` is shorter
    than ``path`` plus one.
    """

    row: int
    step: int
    path: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Finished:
    """``row`` ended: ``reason`` is "stop" (a stop token, string or criterion) or "length"."""

    row: int
    step: int
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something about the call that its caller should know, as one sentence."""

    text: str


@dataclass(frozen=True)
class Forked:
    """``path`` of ``row`` began: with the first ``length`` tokens of path ``parent``, or at the prompt (None)."""

    row: int
    step: int
    path: int
    parent: int | None
    length: int


@dataclass(frozen=True)
class Grown:
    """Each of ``paths`` of ``row`` grew by its entry of ``tokens``, where the model had that confidence.

    ``cached``: entries in the cache afterwards, all rows together. ``seconds``: of keeping the record alone.
    """

    row: int
    step: int
    paths: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    cached: int
    seconds: float


@dataclass(frozen=True)
class Refined:
    """The newest token of each of ``paths`` of ``row`` was read in ``routes`` more ways, for a better next law."""

    row: int
    step: int
    paths: tuple[int, ...]
    routes: int


@dataclass(frozen=True)
class Ended:
    """``path`` of ``row`` ended: ``reason`` is "stop" or "length", or why it was pruned."""

    row: int
    step: int
    path: int
    reason: str


@dataclass(frozen=True)
class Decided:
    """The paths of ``row``, best first, and the answer that they support by ``votes``; None where none has any.

    ``answer`` is what the aggregator chose; it need not be that of the best path.
    """

    row: int
    step: int
    paths: tuple[Path, ...]
    answer: str | None
    votes: dict[str, float]


@dataclass(frozen=True)
class Unmasked:
    """``tokens`` were written at ``positions`` of ``row``'s canvas, where the model gave them those ``confidences``.

    Positions count from the beginning of the prompt. ``seconds``: of choosing and writing, shared by all rows of the
    step. ``details``: what else the rule tells of them, by name, a figure for each.
    """

    row: int
    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    seconds: float
    details: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Remasked:
    """``positions`` of ``row``'s canvas, which had been written, are open again."""

    row: int
    step: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """``row``'s canvas ends before position ``length`` from now on."""

    row: int
    step: int
    length: int


Event = (
    Prefilled | Drafted | Scored | Accepted | Finished | Noted
    | Forked | Grown | Refined | Ended | Decided
    | Unmasked | Remasked | Cut
)  # fmt: skip
