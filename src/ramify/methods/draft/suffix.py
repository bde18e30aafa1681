"""Suffix lookup: continue the longest suffix of the text that occurred before, found by a suffix automaton.

The dynamic part of SAM-Decoding, "SAM Decoding: Speculative Decoding via Suffix Automaton", arXiv 2411.10666. The
automaton of the text so far is extended token by token in amortised O(1); beside it runs the state of the longest
suffix with an earlier occurrence, of ``match`` tokens. What followed the earliest occurrence is proposed as a chain.
``length=40``: a chain of min(length, 1 + ``factor`` · match) tokens, the paper's setting without an auxiliary drafter
(factor 4). ``length=None`` (ours, default): within that bound, the length that pays on this machine with the
acceptance seen so far at matches of this length. ``min_match`` (ours, default 1): the shortest suffix worth a draft.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.automaton import SuffixAutomaton
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.sizing import ChainLength
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

LONGEST = 40


@register(
    name="suffix",
    title="SAM Decoding: Speculative Decoding via Suffix Automaton",
    paper="arXiv 2411.10666",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Suffix(DraftMethod):
    """Continue the longest repeated suffix of the text, found by a suffix automaton.

    ``length``: longest chain; None sizes it by acceptance and cost curve, up to 40. ``factor``: tokens drafted for each
    token of the match. ``min_match``: shortest match that is continued.
    """

    length: int | None = None
    factor: int = 4
    min_match: int = 1

    def __post_init__(self) -> None:
        if (self.length is not None and self.length < 1) or self.min_match < 1 or self.factor < 0:
            raise RamifyError(
                f"length and min_match must be at least 1 and factor at least 0, "
                f"got {self.length}, {self.min_match} and {self.factor}"
            )

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        sizing = ChainLength(calibrate(lm), LONGEST) if self.length is None else None
        return _SuffixDrafter(self, sizing)


class _SuffixDrafter(Drafter):
    def __init__(self, options: Suffix, sizing: ChainLength | None) -> None:
        self.options, self.sizing = options, sizing
        self.kind = 0
        self.automaton = SuffixAutomaton()

    def rewind(self, length: int) -> None:
        if length < len(self.automaton.text):
            self.automaton = self.automaton.beginning(length)

    def draft(self, context: Context) -> TokenTree:
        self.automaton.extend(context.tokens[len(self.automaton.text) :])
        match, end = self.automaton.match()
        if match < self.options.min_match:
            return TokenTree.empty()
        length = min(self.options.length or LONGEST, 1 + self.options.factor * match)
        if self.sizing:
            self.kind = match.bit_length()  # 1, 2–3, 4–7, …: matches of like length are alike
            length = min(length, self.sizing.choose(self.kind))
        return TokenTree.chain(context.tokens[end + 1 : end + 1 + length])

    def observe(self, outcome: Outcome) -> None:
        if self.sizing and outcome.drafted:
            self.sizing.observe(self.kind, outcome.drafted, outcome.accepted)
