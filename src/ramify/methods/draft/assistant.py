"""Speculative decoding with an assistant: a small model drafts a chain, the large one verifies it.

Leviathan, Kalman & Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192; Chen et
al., arXiv 2302.01318. The assistant samples under the target's own processors and temperature, so that its law q is
comparable with p and is the law that its tokens were drawn from. ``verifier``: "speculative" (token by token, as in
the papers), "block" (arXiv 2403.10444, never accepts less), or "match" (the same tokens as plain decoding with the
same seed; the assistant then draws with the target's own noise). ``schedule``: "heuristic" is transformers' classic
one (+2 tokens after full acceptance, else −1, at least 1), "constant" keeps ``length`` (default 5).

An assistant pays when it is many times smaller than the target and shares its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.drawn import Drawn, draw
from ramify.engine.request import Request
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod, verification_rule
from ramify.methods.registry import register
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
    """A smaller model of the same vocabulary drafts a chain.

    ``model``: the assistant, as ``ramify.load`` takes it or loaded already.
    """

    model: Any = None
    length: int = 5
    schedule: Literal["heuristic", "constant"] = "heuristic"
    verifier: Literal["speculative", "block", "match"] = "speculative"

    def __post_init__(self) -> None:
        if self.model is None:
            raise RamifyError("the assistant method needs a model: -o model=PATH, or Assistant(model=…)")
        if self.length < 1:
            raise RamifyError(f"length must be at least 1, got {self.length}")
        if self.schedule not in ("heuristic", "constant"):
            raise unknown("schedule", self.schedule, ["heuristic", "constant"])
        if not verification_rule(self.verifier).lossless:
            raise RamifyError(f"verifier {self.verifier!r} is not lossless, which this method promises to be")

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        assistant = self.memory.get("assistant")
        if assistant is None:
            given = self.model if isinstance(self.model, CausalLM) else load(self.model)
            assistant = self.memory["assistant"] = given
        _same_vocabulary(lm, assistant)
        assistant.require_trees("as an assistant")
        return _AssistantDrafter(assistant, self)


class _AssistantDrafter(Drafter):
    """Keeps the assistant's cache in step with the committed text."""

    def __init__(self, lm: CausalLM, options: Assistant) -> None:
        self.session = Session(lm)
        self.options = options
        self.length = options.length
        self.cached: list[int] = []

    def draft(self, context: Context) -> TokenTree:
        known = len(context.tokens)
        count = min(self.length, context.levels, self.session.lm.context - known + 1)
        if count < 1:  # the text has outgrown the assistant's context, though not the target's
            return TokenTree.empty()
        self._catch_up(context.tokens)
        prefix = torch.tensor([*context.tokens, *[0] * count], device=self.session.lm.device)
        tokens: list[int] = []
        drawn: dict[int, Drawn] = {}
        for place in range(count):
            last = int(prefix[known + place - 1])
            logits = self.session.score(TokenTree.chain([last])).logits[0, 0]
            self.session.keep([[0]])
            self.cached.append(last)
            if context.sampler.is_argmax:
                token = int(logits.argmax())
            elif self.options.verifier == "match":
                # The target will choose with this very noise, so agreement is likely (Gumbel coupling).
                law = context.sampler.law(prefix[: known + place], logits)
                token = context.sampler.noise.pick(law, context.position + place)
            else:
                choice = draw(context.sampler.law(prefix[: known + place], logits), 1, context.generator)
                drawn[place - 1] = choice
                [token] = choice.tokens
            tokens.append(token)
            prefix[known + place] = token
        return TokenTree(torch.tensor(tokens, dtype=torch.long), TreeShape.chain(len(tokens)), drawn)

    def observe(self, outcome: Outcome) -> None:
        if self.options.schedule == "heuristic":
            full = len(outcome.path) == len(outcome.tree)
            self.length = self.length + 2 if full else max(1, self.length - 1)

    def _catch_up(self, tokens: Sequence[int]) -> None:
        """Cache everything but the pending token, forgetting drafts that were not accepted."""
        wanted = tokens[:-1]
        same = 0
        for mine, theirs in zip(self.cached, wanted, strict=False):
            if mine != theirs:
                break
            same += 1
        self.session.truncate([same])
        if same < len(wanted):
            self.session.prefill([wanted[same:]])
        self.cached = list(wanted)


def _same_vocabulary(target: CausalLM, assistant: CausalLM) -> None:
    """Raise ``RamifyError`` unless the same id means the same token to both models."""
    differ = target.vocab_size != assistant.vocab_size
    if target.tokenizer is not None and assistant.tokenizer is not None:
        differ = differ or target.tokenizer.get_vocab() != assistant.tokenizer.get_vocab()
    if differ:
        raise RamifyError(
            f"the assistant {assistant.name} has another vocabulary ({assistant.vocab_size} tokens) than "
            f"{target.name} ({target.vocab_size}); choose an assistant with the same tokenizer"
        )
