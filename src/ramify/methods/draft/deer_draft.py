"""How DEER drafts: one pass of a masked denoiser over a block of masks, and one token drawn from each of its laws."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.drawn import draw
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.methods.draft.deer_head import MASK, SEPARATOR, DeerHead
from ramify.methods.draft.sizing import PromisedSize
from ramify.models.cache import send
from ramify.models.calibrate import CostCurve, calibrate
from ramify.models.causal import CausalLM

FEW = 64  # new tokens that are read along with the masks; more are worth passes of their own


class Filler:
    """The trained denoiser at work for any number of sequences of ``lm``."""

    def __init__(self, head: DeerHead, lm: CausalLM) -> None:
        self.lm = head.draft(lm)
        self.lm.require_trees("a block of masks")
        self.causal, self.shift = head.sizes.sight == "causal", head.sizes.shift
        self.marks = head.marks.weight.detach().to(lm.device, lm.dtype)

    def fill(self, session: Session, text: Sequence[int], count: int) -> Tensor:
        """Logits [count, V] about the tokens behind ``text``.

        ``session`` holds a beginning of the text and, where the text is seen causally, then all of it.
        """
        session.truncate([min(session.lengths[0], len(text) - 1) if self.causal else 0])
        if self.causal and len(text) - session.lengths[0] > FEW:
            session.prefill([text[session.lengths[0] : -1]])
        unread = list(text[session.lengths[0] :])
        before = len(unread)
        shape = TreeShape.block(before, count + 1) if self.causal else TreeShape.block(0, before + count + 1)
        tokens = torch.tensor([*unread, *[0] * (count + 1)])
        soft = torch.arange(len(tokens)) >= before
        states = self.marks[MASK].repeat(len(tokens), 1)
        states[-1] = self.marks[SEPARATOR]
        begin = before - 1 if self.shift else before
        tree = TokenTree(tokens, shape, embeddings=states, soft=soft)
        scores = session.score(tree, logits_at=range(begin, begin + count))
        session.keep([range(before if self.causal else 0)])
        return scores.logits[0]


class BlockDrafter(Drafter):
    """Drafts blocks of ``masks`` for one sequence; ``pace`` says how many of the tokens are verified, None for all.

    ``coupled``: tokens are chosen with the target's own noise instead of being drawn; the same where it is greedy.
    """

    def __init__(
        self, filler: Filler, masks: int, pace: PromisedSize | None, stop_tokens: frozenset[int], coupled: bool
    ) -> None:
        self.filler, self.masks, self.pace = filler, masks, pace
        self.stop_tokens, self.coupled = stop_tokens, coupled
        self.session = Session(filler.lm)
        self.promises: list[float] = []

    def rewind(self, length: int) -> None:
        self.session.truncate([min(length, self.session.lengths[0])])

    @torch.inference_mode()
    def draft(self, context: Context) -> TokenTree:
        self.promises = []
        text = context.tokens
        count = min(self.masks, context.levels, self.filler.lm.context - len(text) - 1)
        if count < 1:
            return TokenTree.empty()
        logits = self.filler.fill(self.session, text, count)
        sampler = context.sampler
        # The positions are guessed independently of each other: processors see the text, and none of the draft.
        prefixes = send(torch.tensor([text]), logits.device).expand(count, -1)
        scores = sampler.scores(prefixes, logits) if sampler.greedy else None
        laws = sampler.laws(prefixes, logits) if scores is None else torch.softmax(scores, dim=-1)
        if self.pace is not None:
            # By laws, not by the tokens drawn from them: a length that looked at these would no longer be exact.
            promises = torch.cumprod(laws.amax(dim=-1), dim=0).tolist()
            laws = laws[: self.pace.choose("block", promises)]
            self.promises = promises[: len(laws)]
        if sampler.greedy:
            return TokenTree.chain(self._until_stop(laws.argmax(dim=-1).tolist()))
        if self.coupled:
            picked = [sampler.noise.pick(law, place) for place, law in enumerate(laws, context.position)]
            return TokenTree.chain(self._until_stop(picked))
        drawn = [draw(law, 1, context.generator) for law in laws]
        tokens = self._until_stop([each.tokens[0] for each in drawn])
        shape = TreeShape.chain(len(tokens))
        return TokenTree(torch.tensor(tokens, dtype=torch.long), shape, dict(enumerate(drawn[: len(tokens)], -1)))

    def observe(self, outcome: Outcome) -> None:
        if self.pace is not None and self.promises:
            self.pace.observe("block", self.promises[: outcome.drafted], outcome.accepted)

    def _until_stop(self, tokens: Sequence[int]) -> list[int]:
        """``tokens`` up to the first that ends the text."""
        ends = [place for place, token in enumerate(tokens) if token in self.stop_tokens]
        return list(tokens[: ends[0] + 1]) if ends else list(tokens)


def fastest(lm: CausalLM, filler: Filler, rates: list[float]) -> int:
    """How many masks give the most expected tokens per second, 0 where none beats plain decoding.

    ``rates``: how likely a token is accepted once those before it were. Of a drafter without a cache the passes are
    taken to read no text, for its length is not known.
    """
    target, own = calibrate(lm), calibrate(filler.lm)
    expected = accumulate(accumulate(rates, operator.mul), initial=1.0)
    speeds = [tokens / _step(target, own, n, n) for n, tokens in enumerate(expected)]
    return speeds.index(max(speeds))


def verifying(lm: CausalLM, filler: Filler, masks: int) -> CostCurve:
    """What a step takes whose draft of ``masks`` tokens is there, by rows: its first n and the pending token."""
    target, own = calibrate(lm), calibrate(filler.lm)
    rows = list(range(1, masks + 2))
    return CostCurve(f"{target.key} beside {own.key}", rows, [_step(target, own, masks, n - 1) for n in rows])


def _step(target: CostCurve, own: CostCurve, masks: int, verified: int) -> float:
    """Seconds of a step: a pass over the masks, the separator and the pending token, and one that verifies."""
    return target.cost(verified + 1) + (own.cost(masks + 2) if masks else 0.0)
