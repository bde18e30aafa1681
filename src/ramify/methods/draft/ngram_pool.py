"""The n-gram pool of lookahead decoding: what may follow a token, the least recently used forgotten first."""

from __future__ import annotations


class Pool:
    """N-grams by their first token, at most ``limit`` each, and the column of the window that saw each last."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.grams: dict[int, dict[tuple[int, ...], int]] = {}

    def enter(self, first: int, rest: tuple[int, ...], column: int = 0) -> None:
        """Note an n-gram; the least recently noted one makes room."""
        known = self.grams.setdefault(first, {})
        known.pop(rest, None)
        known[rest] = column
        if len(known) > self.limit:
            del known[next(iter(known))]

    def after(self, first: int, columns: int) -> list[tuple[int, ...]]:
        """What may follow ``first``, as far as so many columns have seen it, the latest first."""
        known = self.grams.get(first, {})
        return [rest for rest in reversed(known) if known[rest] < columns]
