"""SuffixDecoding: speculate by how often texts went on so, in this request and in the outputs of earlier ones.

Oliaro et al., "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications", arXiv 2411.04975 (NeurIPS
2025). One suffix tree holds prompt and output of the request, another one the outputs of the latest ``requests``
requests, both strings of up to ``depth`` tokens with their counts. For every suffix of the text, of m = 1, 2, … tokens,
that a tree holds, up to

    min(length, factor · m + offset)

tokens are speculated behind it, the likeliest first: a token's probability is its parent's, times the ratio of their
counts, and at least ``floor``. The score of a speculation is the sum of its probabilities; the best score is the draft,
the longer match among equals, the request's own tree before the other. ``mode="path"`` goes on with the most frequent
child only, as the official code does by default; "tree" takes the likeliest nodes wherever they are. Exact for every
target law, since the engine verifies by matching.

Followed: depth 64, factor 1, offset 0, floor 0.1 as in the official code (vLLM: depth 24); outputs enter the shared
tree token by token and leave it first in, first out. The text's own end counts as an occurrence, as it does there, so
that what followed a string once has probability ½. Children of equal count: the latest. Ours by default is the number
of nodes, likeliest first, that pays on this machine (``length=None``): promises are taken to be wrong by one factor,
that seen so far at matches of like length.

Cost per step: some microseconds for each token of the match, in either tree. Memory: about 700 bytes for a token held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.sizing import PromisedSize
from ramify.methods.draft.suffix_tree import Place, Speculation, SuffixTree, Text
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM


@register(
    name="suffix-decoding",
    title="SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications",
    paper="arXiv 2411.04975",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class SuffixDecoding(DraftMethod):
    """Speculate by the counts of suffix trees over the request and over the outputs of earlier requests.

    ``mode``: "path" (a chain) or "tree". ``length``: most nodes of a draft; None takes what pays by the promised
    probabilities and the cost curve. ``factor``, ``offset``: nodes for each token of the match, and beside these.
    ``floor``: least probability of a node. ``depth``: longest strings that are counted. ``requests``: outputs that are
    remembered, for as long as the method object lives; 0 for none.
    """

    mode: Literal["path", "tree"] = "path"
    length: int | None = None
    factor: float = 1.0
    offset: float = 0.0
    floor: float = 0.1
    depth: int = 64
    requests: int = 10_000

    def __post_init__(self) -> None:
        if self.mode not in ("path", "tree"):
            raise unknown("mode", self.mode, ["path", "tree"])
        if (self.length is not None and self.length < 1) or self.depth < 2 or self.requests < 0:
            raise RamifyError(
                "length must be at least 1, depth at least 2 and requests at least 0, "
                f"got {self.length}, {self.depth} and {self.requests}"
            )
        if self.factor < 0 or self.offset < 0 or not 0 < self.floor <= 1:
            raise RamifyError(
                "factor and offset must be at least 0 and floor between 0 and 1, "
                f"got {self.factor}, {self.offset} and {self.floor}"
            )

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        past: Outputs | None = self.memory.get(lm)
        if past is None:
            past = self.memory[lm] = Outputs(SuffixTree(self.depth), self.requests)
        sizing = PromisedSize(calibrate(lm), self.depth) if self.length is None else None
        return _SuffixDecoder(self, past, sizing)


class Outputs:
    """The outputs of the latest ``limit`` requests in one tree."""

    def __init__(self, tree: SuffixTree, limit: int) -> None:
        self.tree, self.limit = tree, limit
        self.texts: dict[Text, None] = {}  # in the order of their beginning

    def begin(self) -> Text:
        """A new output; the oldest makes room for it."""
        text = Text()
        self.texts[text] = None
        if len(self.texts) > self.limit:
            oldest = next(iter(self.texts))
            del self.texts[oldest]
            self.tree.remove(oldest)
            oldest.tokens, oldest.active = [], []
        return text

    def extend(self, text: Text, tokens: Sequence[int]) -> None:
        """Append to an output, unless it had to make room meanwhile."""
        if text in self.texts:
            self.tree.extend(text, tokens)

    def replace(self, text: Text, tokens: Sequence[int]) -> None:
        """Let an output begin anew with ``tokens``."""
        if text in self.texts:
            self.tree.remove(text)
            text.tokens, text.active = [], []
            self.tree.extend(text, tokens)


class _SuffixDecoder(Drafter):
    def __init__(self, options: SuffixDecoding, past: Outputs, sizing: PromisedSize | None) -> None:
        self.options, self.past, self.sizing = options, past, sizing
        self.own, self.text = SuffixTree(options.depth), Text()
        self.output = past.begin()
        self.drafted = Speculation([], [], [], 0)

    def start(self, prompt: Sequence[int]) -> None:
        self.own.extend(self.text, prompt)

    def rewind(self, length: int) -> None:
        tokens = self.text.tokens
        if length < len(tokens):
            prompt = len(tokens) - len(self.output.tokens)
            self.own, self.text = SuffixTree(self.options.depth), Text()
            self.own.extend(self.text, tokens[:length])
            self.past.replace(self.output, tokens[prompt:length])

    def draft(self, context: Context) -> TokenTree:
        new = context.tokens[len(self.text.tokens) :]
        self.own.extend(self.text, new)
        self.past.extend(self.output, new)
        best = self.drafted = self._best(min(self.options.length or self.options.depth, context.levels))
        nodes = len(best.tokens)
        if self.sizing is not None:
            nodes = self.sizing.choose(best.match.bit_length(), best.probabilities)
        return TokenTree(torch.tensor(best.tokens[:nodes], dtype=torch.long), TreeShape.of(best.parents[:nodes]))

    def observe(self, outcome: Outcome) -> None:
        if self.sizing is not None and outcome.drafted:
            promises = self.drafted.probabilities[: outcome.drafted]
            self.sizing.observe(self.drafted.match.bit_length(), promises, outcome.accepted)

    def _best(self, longest: int) -> Speculation:
        """The speculation of highest score over all matches, both trees' longest first."""
        options, best, score = self.options, Speculation([], [], [], 0), 0.0
        for tree, text in ((self.own, self.text), (self.past.tree, self.output)):
            for match, place in reversed(self._matches(tree, text)):
                nodes = min(longest, int(match * options.factor + options.offset + 1e-6))
                if nodes <= score:
                    continue  # a score is at most the number of nodes
                found = tree.speculate(place, match, nodes, options.floor, options.mode == "tree")
                if found.score > score:
                    best, score = found, found.score
        return best

    def _matches(self, tree: SuffixTree, text: Text) -> list[tuple[int, Place]]:
        """Every suffix of the sequence that ``tree`` holds and can continue, by its length.

        Those within ``text``, what the tree has of the sequence, are known; longer ones reach into the prompt.
        """
        active = sorted((node for node in text.active if node.children), key=lambda node: node.depth)
        matches = [(node.depth, Place(node)) for node in active]
        within = len(text.tokens)
        if within and (not matches or matches[-1][0] < within):
            return matches
        tokens = self.text.tokens
        for match in range(within + 1, min(len(tokens), tree.depth)):
            place = tree.find(tokens[-match:])
            if place is None:
                break
            matches.append((match, place))
        return matches
