"""An answer that arrives as a stream, so that a caller may have enough of it and say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ramify.models.reply import Alternatives, Reply, read_piece

CUT = "cut"  # how a reply finished that its caller had enough of

Watch = Callable[[Reply], bool]  # whether to go on, from what has arrived so far


@dataclass
class Arriving:
    """One sample so far, with at most ``top`` alternatives for each token."""

    sample: int
    top: int
    text: str = ""
    finish: str = ""
    usage: tuple[int, int] | None = None
    tokens: list[str] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    best: list[Alternatives] = field(default_factory=list)

    def take(self, chunk: dict[str, Any]) -> None:
        """Add what ``chunk`` holds; raises ``Malformed``."""
        piece = read_piece(chunk)
        self.text += piece.text
        self.finish = piece.finish or self.finish
        self.usage = piece.usage or self.usage
        self.tokens += piece.tokens
        self.log_probs += piece.log_probs
        self.best += [each[: self.top] for each in piece.top]

    def reply(self, prompt_tokens: int) -> Reply:
        """What has arrived, sharing its lists; ``prompt_tokens``: where the server has not counted them."""
        read, written = self.usage or (prompt_tokens, len(self.tokens))
        top = self.best if self.top else None
        return Reply(self.text, self.finish, read, written, self.tokens, self.log_probs, top, self.sample)
