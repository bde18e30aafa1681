"""What happened, step by step. Streaming, statistics, tables, plots and reports are views of this one stream.

Seconds are wall time of the named part of the step, shared by all rows of the batch that took part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

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


Event = Prefilled | Drafted | Scored | Accepted | Finished | Noted
