"""What a drafter of blocks is worth: accepted lengths while decoding, and agreement with the target place by place.

Agreement is read on texts that the target itself wrote greedily, at many cuts of each, with all tokens of a draft
guessed from the text before the cut: a denoiser guesses them at once, an autoregressive drafter reads its own guesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ramify.engine.events import Accepted, Scored
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.session import Session
from ramify.engine.speculate import speculate
from ramify.engine.tree import TokenTree, TreeShape
from ramify.methods.base import DraftMethod
from ramify.methods.draft.deer_head import DeerHead
from ramify.methods.draft.deer_layout import layout
from ramify.models.causal import CausalLM

Guess = Callable[[Sequence[int], Sequence[int], int], Tensor]
LONG = 8  # accepted tokens that the paper calls a long run
TOGETHER = 16  # texts in one batch


@dataclass
class Decoded:
    """``texts``: what was written, a list for each start. ``accepted``: how often 0, 1, … draft tokens were."""

    texts: list[list[int]] = field(default_factory=list)
    calls: int = 0
    accepted: Counter[int] = field(default_factory=Counter)

    @property
    def tokens_per_call(self) -> float:
        return sum(map(len, self.texts)) / self.calls

    @property
    def long_share(self) -> float:
        """Share of the calls that accepted at least ``LONG`` tokens."""
        return sum(count for length, count in self.accepted.items() if length >= LONG) / self.calls


def decode(
    lm: CausalLM, method: DraftMethod | None, starts: Sequence[Sequence[int]], new_tokens: int, degrees: float = 0.0
) -> Decoded:
    """Continue ``starts`` by ``new_tokens`` each, greedily or at ``degrees``; without a method plainly."""
    from transformers import TemperatureLogitsWarper

    found = Decoded()
    for first in range(0, len(starts), TOGETHER):
        part = starts[first : first + TOGETHER]
        warpers: list[Any] = [TemperatureLogitsWarper(degrees)] if degrees > 0 else []
        requests = [
            Request(list(text), len(text) + new_tokens, Sampler(warpers, greedy=not warpers, noise=Noise(first + row)))
            for row, text in enumerate(part)
        ]
        written: list[list[int]] = [[] for _ in part]
        drafters = [method.drafter(lm, request) for request in requests] if method is not None else []
        present = [drafter for drafter in drafters if drafter is not None]
        rule = {} if method is None else {"verifier": method.rule.function}
        for event in speculate(lm, requests, present or None, **rule):
            if isinstance(event, Scored):
                found.calls += len(event.rows)
            elif isinstance(event, Accepted):
                written[event.row] += event.tokens
                found.accepted[len(event.path)] += 1
        found.texts += written
    return found


def agreement(
    guess: Guess, starts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], ahead: int, every: int
) -> dict[str, Tensor]:
    """By place [ahead]: how often a guess is the target's token, "any"; and "then", once all before it were.

    ``texts``: what the target wrote behind ``starts``, with a cut at every ``every``th place.
    """
    right = []
    for start, text in zip(starts, texts, strict=True):
        whole = [*start, *text]
        cuts = list(range(len(start), len(whole) - ahead + 1, every))
        truth = torch.tensor(whole).unfold(0, ahead, 1)[cuts]
        right.append((guess(whole, cuts, ahead).cpu() == truth).double())
    found = torch.cat(right)
    alive = found.cumprod(1)
    before = torch.nn.functional.pad(alive, (1, -1), value=1.0)
    return {"any": found.mean(0), "then": alive.sum(0) / before.sum(0).clamp(min=1.0)}


def filled(head: DeerHead, lm: CausalLM) -> Guess:
    """Guesses of a denoiser: all masks at once."""

    @torch.no_grad()
    def guess(text: Sequence[int], cuts: Sequence[int], ahead: int) -> Tensor:
        blocks = [(cut, ahead) for cut in cuts]
        passes = [blocks] if head.sizes.sight == "causal" else [[block] for block in blocks]
        read = torch.tensor([list(text)], device=lm.device)
        found = [head.guess(lm, read, layout(part, head.sizes.sight, head.sizes.shift)) for part in passes]
        return torch.cat([logits[0].argmax(-1) for logits in found]).view(len(cuts), ahead)

    return guess


def continued(draft: CausalLM) -> Guess:
    """Guesses of an autoregressive drafter, each read before the next: one branch of a tree for every cut."""

    def guess(text: Sequence[int], cuts: Sequence[int], ahead: int) -> Tensor:
        session = Session(draft)
        tokens = list(text[: max(cuts)])
        parents = list(range(-1, len(tokens) - 1))
        tips = [cut - 1 for cut in cuts]
        found = []
        for _ in range(ahead):
            tree = TokenTree(torch.tensor(tokens), TreeShape(tuple(parents)))
            said = session.score(tree, logits_at=tips).logits[0].argmax(-1)
            found.append(said)
            parents += tips
            tips = list(range(len(tokens), len(tokens) + len(tips)))
            tokens += said.tolist()
        return torch.stack(found, dim=1)

    return guess
