"""Speculative decoding with an assistant: a small model drafts a chain, the large one verifies it.

Leviathan, Kalman & Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192; Chen et
al., arXiv 2302.01318. The assistant samples under the target's own processors and temperature, so that its law q is
comparable with p and is the law that its tokens were drawn from. ``verifier``: "speculative" (token by token, as in
the papers), "block" (arXiv 2403.10444, never accepts less), or "match" (the same tokens as plain decoding with the
same seed; the assistant then draws with the target's own noise). ``schedule``: "heuristic" is transformers' classic
one (+2 tokens after full acceptance, else −1, at least 1), "constant" keeps ``length`` (default 5), "auto" drafts what
the cost curves of both models and the acceptance in this sequence say is fastest, which may be nothing (``Fastest``).

A drafter inside the drafter (``inner``): the assistant decodes by draft and verification itself, so that trees are
verified by the small model and the target sees a short chain of good tokens (HierSpec, arXiv 2505.22179, is such a
composition: ``ramify.methods.draft.specmquant``). It steps until the chain has ``length`` tokens; the last step may add
up to ``levels`` more. At every node it takes one sample of its own law, with the target's noise or drawn for the
occasion, and follows the child that carries it: whatever its drafter proposes, the chain's law is q, and where it ends
depends on tokens before the end only, so every rule stays exact for it. An assistant inside an assistant draws best
with the same ``verifier`` as the outer one.

Another tokenizer (ours, automatic): what the assistant writes is translated by text (``Translated``); the drafts are
then no draws, and every rule accepts each with the probability that the target gives it. Vocabularies that only differ
in unused ids at their end are one vocabulary.

Cost per step: a pass of the assistant for every drafted token, or every few with a drafter of its own. It pays when it
is many times smaller than the target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ramify.engine.decoder import Decoder
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.drawn import Drawn, draw
from ramify.engine.request import Request
from ramify.engine.sampling import NodeLaws
from ramify.engine.tree import TokenTree, TreeShape
from ramify.engine.verify import Verdict, Verifier, match, walk
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod, verification_rule
from ramify.methods.draft.parts import Parts, parts_of
from ramify.methods.draft.schedule import FADE_ALL, Agreement, Fastest, Heuristic, Schedule
from ramify.methods.draft.translate import LONG, Translated, same_vocabulary
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM, load


@register(
    name="assistant",
    title="Fast Inference from Transformers via Speculative Decoding",
    paper="arXiv 2211.17192",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class Assistant(DraftMethod):
    """A smaller model drafts a chain.

    ``model``: the assistant, as ``ramify.load`` takes it or loaded already. ``length``: tokens drafted, at first or
    always. ``schedule``: "heuristic", "constant", or "auto". ``verifier``: "speculative", "block", or "match".
    ``inner``: what the assistant itself decodes with, a draft method's name with :option=value where wanted, or an
    object, of which it takes a copy. ``levels``: how deep its trees are at most. ``plain_first``: after a refusal the
    assistant first decodes a token without it.
    """

    model: Any = None
    length: int = 5
    schedule: Literal["heuristic", "constant", "auto"] = "heuristic"
    verifier: Literal["speculative", "block", "match"] = "speculative"
    inner: Parts | None = None
    levels: int = 3
    plain_first: bool = False

    def __post_init__(self) -> None:
        if self.model is None:
            raise RamifyError("the assistant method needs a model: -o model=PATH, or Assistant(model=…)")
        for name, value in (("length", self.length), ("levels", self.levels)):
            if value < 1:
                raise RamifyError(f"{name} must be at least 1, got {value}")
        if self.schedule not in ("heuristic", "constant", "auto"):
            raise unknown("schedule", self.schedule, ["heuristic", "constant", "auto"])
        if not verification_rule(self.verifier).lossless:
            raise RamifyError(f"verifier {self.verifier!r} is not lossless, which this method promises to be")
        if self.inner is not None:
            _part(self.inner)

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        assistant = self._assistant()
        shared = self.memory.get(("shared", lm))
        if shared is None:
            shared = self.memory["shared", lm] = same_vocabulary(lm, assistant)
        if self.schedule == "auto":
            before = self.memory.setdefault(("agreement", lm), Agreement(FADE_ALL))
            schedule: Schedule = Fastest(calibrate(lm), calibrate(assistant), before=before)
        else:
            schedule = (Heuristic if self.schedule == "heuristic" else Schedule)(self.length)
        if self.inner is not None and "inner" not in self.memory:
            self.memory["inner"] = _part(self.inner)
        inner = self.memory.get("inner")
        if shared:
            limit = min(request.max_length - 1, assistant.context + 1)
            return Chain(self, assistant, replace(request, max_length=limit), schedule, inner, lm.vocab_size)
        # A law over the target's tokens says nothing of the assistant's, whose best guess is its likeliest one.
        request = Request([], min(LONG * request.max_length, assistant.context + 1))
        return Translated(Chain(self, assistant, request, schedule, inner, assistant.vocab_size), lm, assistant)

    def _assistant(self) -> CausalLM:
        assistant: CausalLM | None = self.memory.get("assistant")
        if assistant is None:
            assistant = self.model if isinstance(self.model, CausalLM) else load(self.model)
            assistant.require_trees("as an assistant")
            self.memory["assistant"] = assistant
        return assistant


class Chain(Drafter):
    """The assistant at work on one sequence: its decoder follows the committed text and writes on.

    ``request``: settings, and how long the text with a draft may get. ``vocabulary``: of whom the drafts are for.
    """

    def __init__(
        self,
        options: Assistant,
        lm: CausalLM,
        request: Request,
        schedule: Schedule,
        inner: DraftMethod | None,
        vocabulary: int,
    ) -> None:
        self.options, self.lm, self.request, self.schedule = options, lm, request, schedule
        self.inner, self.vocabulary = inner, vocabulary
        self.decoder: Decoder | None = None
        self.refused = False

    def draft(self, context: Context) -> TokenTree:
        count = min(self.schedule.choose(), context.levels, self.request.max_length - len(context.tokens))
        # A text beyond the assistant's context or vocabulary is within the target's all the same.
        if count < 1 or (self.lm.vocab_size < self.vocabulary and max(context.tokens) >= self.lm.vocab_size):
            return TokenTree.empty()
        decoder = self._follow(context)
        drawn: list[Drawn] = []
        # The noise that "match" chooses by is the target's own, so that agreement is likely (Gumbel coupling).
        coupled = self.request.sampler.greedy or self.options.verifier == "match"
        verifier = match if coupled else _drawing(drawn)
        tokens: list[int] = []
        while len(tokens) < count and self.request.stop_tokens.isdisjoint(tokens):
            levels = min(self.options.levels, context.levels - len(tokens) - 1)
            tokens += decoder.step(0 if self.refused else levels, verifier)
            self.refused = False
            self.schedule.ran(decoder.rows_run)
        return TokenTree(torch.tensor(tokens), TreeShape.chain(len(tokens)), dict(enumerate(drawn, -1)))

    def observe(self, outcome: Outcome) -> None:
        self.schedule.observe(outcome.drafted, outcome.accepted)
        self.refused = self.options.plain_first and outcome.accepted < outcome.drafted

    def _follow(self, context: Context) -> Decoder:
        decoder = self.decoder
        if decoder is None:
            request = replace(self.request, prompt=list(context.tokens))
            drafter = self.inner.drafter(self.lm, request) if self.inner else None
            decoder = self.decoder = Decoder(self.lm, request, drafter, self.vocabulary)
        decoder.follow(context.tokens, context.generator)
        return decoder


def _drawing(drawn: list[Drawn]) -> Verifier:
    """A verifier that draws a token after every node that it visits, and notes the draw."""

    def verify(tree: TokenTree, target: NodeLaws, generator: torch.Generator) -> Verdict:
        def choose(node: int) -> int:
            drawn.append(draw(target.law(node), 1, generator))
            return drawn[-1].tokens[0]

        return walk(tree, choose)

    return verify


def _part(given: Parts) -> DraftMethod:
    """The one method that ``given`` means."""
    found = parts_of(given, "an assistant")
    if len(found) != 1:
        raise RamifyError(f"an assistant decodes with one method, not {len(found)}; put several into a union")
    return found[0]
