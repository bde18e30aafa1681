"""Prompt lookup decoding: copy what followed the last n tokens where they occurred before.

Apoorv Saxena, "Prompt Lookup Decoding" (2023), github.com/apoorvumang/prompt-lookup-decoding. For n = ``ngram``
down to 1, the last n tokens are searched in the text so far, and the ``length`` tokens behind a match are proposed as
a chain. Exact for every target law, since the engine verifies by matching.

Defaults: ngram 3 as in Spec-Bench (arXiv 2401.07851), which drafts ``length=10``; transformers uses 2 and 10. Ours by
default is the length, up to ten, that pays on this machine with the acceptance seen so far (none where nothing does).
``match="first"`` is what both do; ``"recent"`` takes the latest occurrence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.sizing import ChainLength
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

LONGEST = 10


@register(
    name="prompt-lookup",
    title="Prompt Lookup Decoding",
    paper="github.com/apoorvumang/prompt-lookup-decoding",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class PromptLookup(DraftMethod):
    """Copy what followed the last few tokens earlier in the text.

    ``ngram``: longest piece to look up. ``length``: tokens to copy; None sizes the copy by acceptance and cost curve.
    ``match``: "first" occurrence or most "recent" one.
    """

    ngram: int = 3
    length: int | None = None
    match: Literal["first", "recent"] = "first"

    def __post_init__(self) -> None:
        if self.ngram < 1 or (self.length is not None and self.length < 1):
            raise RamifyError(f"ngram and length must be at least 1, got {self.ngram} and {self.length}")
        if self.match not in ("first", "recent"):
            raise unknown("match", self.match, ["first", "recent"])

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        sizing = ChainLength(calibrate(lm), LONGEST) if self.length is None else None
        return _Lookup(self, sizing)


class _Lookup(Drafter):
    """Positions that follow every n-gram of the text so far, extended as it grows."""

    def __init__(self, options: PromptLookup, sizing: ChainLength | None) -> None:
        self.options, self.sizing = options, sizing
        self.kind = 0
        self.ends: list[dict[tuple[int, ...], int]] = [{} for _ in range(options.ngram)]
        self.read = 0

    def draft(self, context: Context) -> TokenTree:
        tokens = context.tokens
        self._index(tokens)
        for size in range(min(self.options.ngram, len(tokens) - 1), 0, -1):
            gram = tuple(tokens[-size:])
            end = self.ends[size - 1].get(gram, len(tokens))
            if tuple(tokens[end - size : end]) != gram:
                del self.ends[size - 1][gram]  # it stood in a text that was taken back
            elif end < len(tokens):
                self.kind = size
                length = self.sizing.choose(size) if self.sizing else self.options.length or 0
                return TokenTree.chain(tokens[end : end + length])
        return TokenTree.empty()

    def observe(self, outcome: Outcome) -> None:
        if self.sizing and outcome.drafted:
            self.sizing.observe(self.kind, outcome.drafted, outcome.accepted)

    def rewind(self, length: int) -> None:
        self.read = min(self.read, length)

    def _index(self, tokens: Sequence[int]) -> None:
        """Enter all n-grams that end before the last token: only they have a continuation."""
        for end in range(max(self.read, 1), len(tokens)):
            for size in range(1, min(self.options.ngram, end) + 1):
                gram = tuple(tokens[end - size : end])
                if self.options.match == "recent":
                    self.ends[size - 1][gram] = end
                else:
                    self.ends[size - 1].setdefault(gram, end)
        self.read = len(tokens)
