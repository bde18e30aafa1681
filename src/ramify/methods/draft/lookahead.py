"""Lookahead decoding: solve several later positions at once, and keep what comes out as n-grams to guess with.

Fu, Bailis, Stoica & Zhang, "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding", arXiv
2402.02057 (ICML 2024). With N = ``ngram``, W = ``window``, G = ``guesses``, a window of N − 1 levels of W tokens is
scored beside every step. Level 0 is a chain that begins with the pending token x_L; the token at level l of column j
follows the one at level l − 1. It stands at position L + j + l, and sees the text, level 0 up to column j and its own
column: the window is a token tree. With y_j the argmax behind the top level,

    pool[level 0, j] <- (level 1, …, level N − 2, y)_j      n-grams by their first token, the latest G of each
    level l <- level l + 1, top level <- y                  the new x_L being column 0 of level 0

and the n-grams known for x_L are further branches below it. At first level 0 is copied at random from the text, and
N − 2 steps fill the levels above it. Blank columns get random tokens of the text.

Exact for every target law, since the engine verifies by matching (the paper's rule for sampling has the same law). The
window is greedy even under sampling, as published. Paper and official code disagree; ours beside them:

* ``advance="one"`` moves the window by one column, whatever was accepted: the code's default, better here in greedy
  text and as good when sampled. "accepted" keeps every column at its position, so that a accepted tokens cost it a more
  columns, as the paper tells.
* all nodes are verified, the window's too, and already while it fills; equal paths are one node, so steps are smaller.
  A guess that is right to its end commits N tokens (N − 1 in the code).
* ``seed_from_prompt`` enters all n-grams of the text, prompt included (POOL_FROM_PROMPT in the code, off as there).
* ``sized=True`` (ours) is for machines where rows are dear: W = G = s, with the s from 0 (plain decoding) to the given
  sizes that pays by the cost curve and by what each s would have given, noted while the largest runs.

Cost per step: up to (N − 1)(W + G) rows, 56 by default (30 where paths coincide), of which those of the window pay only
through the pool. On a CPU that is 1.5 to 3 plain steps' time, more than sampled text gains by it: there use ``sized``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.ngram_pool import Pool
from ramify.methods.draft.sizing import NestedSize
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

BLANK = -1  # a place in the window that a random token of the text is to fill


@register(
    name="lookahead",
    title="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
    paper="arXiv 2402.02057",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Lookahead(DraftMethod):
    """Guess with n-grams that Jacobi iteration over a window of later positions has found.

    ``ngram``: tokens of an n-gram, N. ``window``: columns of the window, W. ``guesses``: n-grams that are kept for a
    token and verified, G. ``advance``: after a step the window moves by "one" column, or by all "accepted" tokens.
    ``seed_from_prompt``: the n-grams of the text are guesses too. ``sized``: no more of window and guesses than pays.
    """

    ngram: int = 5
    window: int = 7
    guesses: int = 7
    advance: Literal["one", "accepted"] = "one"
    seed_from_prompt: bool = False
    sized: bool = False

    def __post_init__(self) -> None:
        if self.ngram < 2 or self.window < 1 or self.guesses < 0:
            raise RamifyError(
                "ngram must be at least 2, window at least 1 and guesses at least 0, "
                f"got {self.ngram}, {self.window} and {self.guesses}"
            )
        if self.advance not in ("accepted", "one"):
            raise unknown("advance", self.advance, ["one", "accepted"])

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        sizing: NestedSize | None = None
        if self.sized:
            sizing = self.memory.get((lm, request.sampler.greedy))
            if sizing is None:
                rows = [max(1, (self.ngram - 1) * sum(self.part(s))) for s in range(self.largest + 1)]
                sizing = self.memory[lm, request.sampler.greedy] = NestedSize(calibrate(lm), rows)
        return _LookaheadDrafter(self, request.stop_tokens, sizing)

    @property
    def largest(self) -> int:
        return max(self.window, self.guesses)

    def part(self, size: int) -> tuple[int, int]:
        """Window and guesses of a step of this size."""
        return min(size, self.window), min(size, self.guesses)


class _LookaheadDrafter(Drafter):
    """``levels``: the window, of level 0 without the pending token. ``columns``: its columns' paths as last drafted."""

    def __init__(self, options: Lookahead, stops: frozenset[int], sizing: NestedSize | None) -> None:
        self.options, self.stops, self.sizing = options, stops, sizing
        self.pool = Pool(options.guesses)
        self.levels: list[list[int]] = [[]]
        self.columns: list[list[int]] = []
        self.size = options.largest
        self.read = 0

    def rewind(self, length: int) -> None:
        self.read = min(self.read, length)

    def draft(self, context: Context) -> TokenTree:
        if self.options.seed_from_prompt:
            self._seed(context.tokens)
        if self.sizing is not None:
            self.size = self.sizing.choose()
        if not self.size:
            self.levels, self.columns = [[]], []
            return TokenTree.empty()
        self._fill(context)
        self.columns = [
            [*self.levels[0][:column], *(level[column] for level in self.levels[1:])]
            for column in range(len(self.levels[0]) + 1)
        ]
        return TokenTree.from_paths([*self._guesses(context.tokens[-1], self.size), *self.columns])

    def observe(self, outcome: Outcome) -> None:
        pending = int(outcome.tree.tokens[0])
        if self.sizing is not None and self.size == self.options.largest:
            self.sizing.observe([self._would_commit(s, pending, outcome.tokens) for s in range(self.size + 1)])
        steps = len(outcome.tokens) if self.options.advance == "accepted" else 1
        full = bool(self.columns) and len(self.levels) == self.options.ngram - 1
        if self.columns:
            found = self._best(outcome)
            if full:
                for column, (first, token) in enumerate(zip([pending, *self.levels[0]], found, strict=False)):
                    self.pool.enter(first, (*(level[column] for level in self.levels[1:]), token), column)
            # A stop token is worth guessing, but nothing that comes after it.
            self.levels.append([BLANK if token in self.stops else token for token in found])
        if full:
            del self.levels[0]
            self.levels = [self.levels[0][steps:], *(level[steps - 1 :] for level in self.levels[1:])]
        else:
            self.levels = [level[steps:] for level in self.levels]
        self.columns = []

    def _guesses(self, token: int, size: int) -> list[tuple[int, ...]]:
        return self.pool.after(token, size)[: self.options.part(size)[1]]

    def _fill(self, context: Context) -> None:
        """Give every level its columns, N − 2 more while the first ones fill, and every blank a token of the text."""
        window, _ = self.options.part(self.size)
        width = window + self.options.ngram - 1 - len(self.levels)
        for number, level in enumerate(self.levels):
            wanted = width - (number == 0)
            level[:] = level[:wanted] + [BLANK] * (wanted - len(level))
        tokens = context.tokens
        blanks = sum(level.count(BLANK) for level in self.levels)
        picks = iter(torch.randint(len(tokens), (blanks,), generator=context.generator).tolist())
        self.levels = [[tokens[next(picks)] if old == BLANK else old for old in level] for level in self.levels]

    def _best(self, outcome: Outcome) -> list[int]:
        """The likeliest token behind each column, up to the first that was not scored."""
        nodes = list(takewhile(lambda node: node >= 0, _ends(outcome.tree, self.columns)))
        tokens: list[int] = outcome.logits[nodes].argmax(dim=-1).tolist() if nodes else []
        return tokens

    def _seed(self, tokens: Sequence[int]) -> None:
        size = self.options.ngram
        for end in range(max(self.read + 1, size), len(tokens) + 1):
            self.pool.enter(tokens[end - size], tuple(tokens[end - size + 1 : end]))
        self.read = len(tokens)

    def _would_commit(self, size: int, pending: int, tokens: Sequence[int]) -> int:
        """How many of the committed ``tokens`` a step of this size would have given."""
        paths: list[Sequence[int]] = [*self._guesses(pending, size), *self.columns[:size]]
        return 1 + max((_common(path, tokens[:-1]) for path in paths), default=0)


def _ends(tree: TokenTree, paths: Sequence[Sequence[int]]) -> Iterator[int]:
    """The node at the end of each path below the pending token, −1 where the tree lacks it.

    Paths are found by their tokens, since a union has other nodes beside ours and near the end of the text some of ours
    are cut; equal paths have equal logits.
    """
    tokens, children = tree.tokens.tolist(), tree.shape.children
    for path in paths:
        node = 0
        for token in path:
            node = next((child for child in children[node] if tokens[child] == token), -1)
            if node < 0:
                break
        yield node


def _common(path: Sequence[int], text: Sequence[int]) -> int:
    pairs = zip(path, text, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
