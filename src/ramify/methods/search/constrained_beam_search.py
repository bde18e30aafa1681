"""Lexically constrained beam search: texts that contain given phrases, https://arxiv.org/abs/1704.07138

Beams are told apart by how many tokens of the phrases they still miss. Every step considers the likeliest
continuations and, for each beam, the tokens that begin or continue a missing phrase; the next beams are taken in turn
from the classes of equal need, the least needy first, and within a class the likeliest first. So there is always a beam
on its way to the phrases, and others wait for a place where they cost less:

    need(y) = Σ shortest phrase of each unmet constraint − what the last tokens of y have of one of them

Texts end only with every constraint met. What met means is transformers' ``force_words_ids``: phrases as lists of ids,
each of which must occur; a list of such lists means one of them.

The search is Hokamp & Liu's grid, with beams shared among its classes as in transformers until it moved the mode out of
its core. The texts are not those: at the greatest length it also gave texts without the phrases (version 4.44.2 did in
each of our trials). Here that happens only where no beam came to contain them in time, and is then said.

Cost: B rows a step, and the prompt is read once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from ramify.engine.events import Noted
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.search import Decision, Policy
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.methods.search.beams import BEATEN, Beams, best_of, check_beams
from ramify.models.causal import CausalLM

Phrase = tuple[int, ...]
Candidate = tuple[int, int]


@register(
    name="constrained-beam-search",
    title="Lexically Constrained Decoding for Sequence Generation Using Grid Beam Search",
    paper="1704.07138",
    family="search",
    needs=("log-probs",),
    lossless=False,
)
@dataclass(frozen=True)
class ConstrainedBeamSearch(SearchMethod):
    """Beam search for a text that contains given phrases.

    ``force_words_ids``: phrases of token ids; in place of a phrase, a list of phrases of which one is to occur.
    ``num_beams``, ``length_penalty``, ``early_stopping``: as for beam search. ``budget``: tokens after which running
    beams are cut.
    """

    pinned = {"do_sample": False}  # noqa: RUF012 - a constant of the class, no option
    force_words_ids: Any = ()
    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise RamifyError(f"num_beams must be at least 1, got {self.num_beams}")
        check_beams(self.length_penalty, self.early_stopping)
        object.__setattr__(self, "force_words_ids", _constraints(self.force_words_ids))

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        constraints: list[list[Phrase]] = [list(choices) for choices in self.force_words_ids]
        for token in chain.from_iterable(chain.from_iterable(constraints)):
            if not 0 <= token < lm.vocab_size:
                raise RamifyError(f"token {token} of force_words_ids is outside the vocabulary of {lm.name}")
        return _Constrained(self, constraints)


class _Constrained(Policy):
    def __init__(self, options: ConstrainedBeamSearch, constraints: list[list[Phrase]]) -> None:
        self.options, self.constraints = options, constraints

    def begin(self, pool: Pool) -> None:
        options = self.options
        self.beams = Beams(options.num_beams, options.length_penalty, options.early_stopping, pool.start(1))

    def expand(self, pool: Pool) -> Sequence[Choice]:
        scores = pool.processed(self.beams.live)
        sums = scores + torch.tensor([path.score for path in self.beams.live], device=scores.device)[:, None]
        order = self._order(pool, sums)
        if not order and self.beams.finished:
            for path in self.beams.live:
                pool.prune(path, BEATEN)
            return []
        # What the beams lose in this choice turns their sums into their places in the order.
        handicap = torch.full_like(sums, torch.inf)
        for place, (beam, token) in enumerate(order):
            handicap[beam, token] = sums[beam, token] + place
        return self.beams.grow(pool, scores, scores, handicap)

    def reduce(self, pool: Pool) -> None:
        if not pool.live and self.beams.finished and need(self.beams.finished[0].tokens, self.constraints):
            pool.events.append(
                Noted("no beam came to contain all phrases within the length; give it more tokens or fewer phrases")
            )

    def decide(self, pool: Pool) -> Decision:
        return Decision(self.beams.finished, self.beams.finished[0].answer)

    def _order(self, pool: Pool, sums: Tensor) -> list[Candidate]:
        """Candidates by beam and token, one of each class in turn, the least needy class first."""
        found = best_of(sums, 2 * self.options.num_beams * max(2, 1 + len(pool.request.stop_tokens)))
        for beam, path in enumerate(self.beams.live):
            found += [(beam, token) for token in helpful(path.tokens, self.constraints)]
        classes: defaultdict[int, list[Candidate]] = defaultdict(list)
        ending = False
        for beam, token in dict.fromkeys(found):
            path = self.beams.live[beam]
            needed = need([*path.tokens, token], self.constraints)
            reason = pool.reason(path, token)
            ending = ending or reason == "length"
            if bool(sums[beam, token].isfinite()) and not (needed and reason == "stop"):
                classes[needed].append((beam, token))
        if ending and (0 in classes or self.beams.finished):
            classes = defaultdict(list, {0: classes[0]})
        ranked = [sorted(classes[needed], key=lambda each: -float(sums[each])) for needed in sorted(classes)]
        return [each for turn in zip_longest(*ranked) for each in turn if each is not None]


def need(tokens: Sequence[int], constraints: Sequence[Sequence[Phrase]]) -> int:
    """How many tokens a text still misses: see above."""
    missing, begun = 0, 0
    for choices in constraints:
        if any(_contains(tokens, phrase) for phrase in choices):
            continue
        shortest = min(map(len, choices))
        missing += shortest
        begun = max(begun, *(shortest - len(phrase) + _begun(tokens, phrase) for phrase in choices))
    return missing - begun


def helpful(tokens: Sequence[int], constraints: Sequence[Sequence[Phrase]]) -> set[int]:
    """The tokens that begin or continue a phrase of a constraint that ``tokens`` does not meet."""
    unmet = [choices for choices in constraints if not any(_contains(tokens, phrase) for phrase in choices)]
    phrases = list(chain.from_iterable(unmet))
    return {phrase[place] for phrase in phrases for place in (0, _begun(tokens, phrase))}


def _contains(tokens: Sequence[int], phrase: Phrase) -> bool:
    return any(tuple(tokens[place : place + len(phrase)]) == phrase for place in range(len(tokens) - len(phrase) + 1))


def _begun(tokens: Sequence[int], phrase: Phrase) -> int:
    """How many tokens of ``phrase``, not all of them, the text ends with."""
    most = min(len(phrase) - 1, len(tokens))
    return next(size for size in range(most, -1, -1) if tuple(tokens[len(tokens) - size :]) == phrase[:size])


def _constraints(given: Any) -> tuple[tuple[Phrase, ...], ...]:
    """Every constraint as a tuple of phrases, from what transformers takes as ``force_words_ids``."""
    try:
        nested = [[each] if all(isinstance(token, int) for token in each) else list(each) for each in given]
        found = tuple(tuple(tuple(int(token) for token in phrase) for phrase in choices) for choices in nested)
    except TypeError:
        found = ()
    if not found or not all(choices and all(choices) for choices in found):
        raise RamifyError(
            f"force_words_ids is {given!r}; give lists of token ids, at least one, or lists of them to choose from"
        )
    return found
