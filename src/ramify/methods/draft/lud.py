"""Lexical unit decoding: a fine-tuned model emits a span at once where it is sure of it. LOSSY by design.

Sun et al., "Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs", arXiv
2405.15208. k [PAD]s stand behind the text. With c_0 the law at the last real token and c_q the law at [PAD] q:

    y_0 is the next token as ever;  y_q = argmax c_q is committed for q = 1, 2, … while max c_q >= beta

How the model is trained is in ``lud_head.py``. There is no published code; where the paper is silent, we follow:

* alpha 0.5, beta 0.9, k = 4 (not established in the paper). Repetition control: y_q = y_{q−1} is not committed, so only
  a real step repeats a token.
* Sampling: y_0 is sampled; spans are emitted up to temperature 0.3 and not at all above. Processors choose y_q too (the
  argmax of what they make of c_q), but its confidence is the model's own: max c_q as computed.
* The paper fine-tunes the model. Here a head holds the changes and is merged into a COPY of the target, which then
  decodes; the caller's model is never changed, and memory holds both.

In the draft–verify loop, a span found by one pass is the chain of the next, which feeds it anyway: its input is the a
committed tokens and k [PAD]s, as in the paper, and the cache never holds a [PAD]. The rule of the lossy mode takes the
whole chain on trust. ``verify=True`` lets the model check it instead: exactly the tokens of the fine-tuned model, which
is another model than the target. The output of neither mode is the target's.

Cost of a step: a + k rows. Limits: tokens at different [PAD]s are chosen without knowledge of each other, so that two
likely continuations can mix; beta is the only guard against it, and must be set on held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.events import Event
from ramify.engine.request import Request
from ramify.engine.sampling import NodeLaws, Sampler
from ramify.engine.tree import Ghosts, TokenTree, TreeShape
from ramify.engine.verify import VERIFIERS, Rule, Verdict
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.lud_head import LudHead
from ramify.methods.head import load_head
from ramify.methods.registry import register
from ramify.models.causal import CausalLM

COLD = 0.3  # spans are emitted up to this temperature


def trust(tree: TokenTree, target: NodeLaws, generator: torch.Generator) -> Verdict:
    """Accept a chain unseen, and sample the token behind it. LOSSY."""
    last = len(tree) - 1
    return Verdict(tree.shape.path(last), target.pick(last))


TRUST = Rule(trust, False, "accept the whole chain unseen (LUD)")


@register(
    name="lud",
    title="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
    paper="arXiv 2405.15208",
    family="draft",
    needs=("logits", "training"),
    lossless=False,
    stable=False,
)
@dataclass(frozen=True)
class LUD(DraftMethod):
    """Emit the tokens that appended [PAD]s of a fine-tuned copy of the model are sure of.

    ``head``: the trained part, a folder that ``ramify train lud`` made or a head object; None for the bundled one of
    the demo model. ``k``: [PAD]s per step. ``beta``: confidence above which a token is emitted; above 1 none is.
    ``verify``: check spans instead, which gives exactly the fine-tuned model's own text. ``repetition``: never emit a
    token that repeats the one before it (paper).
    """

    trains = LudHead

    head: Any = None
    k: int = 4
    beta: float = 0.9
    verify: bool = False
    repetition: bool = True

    def __post_init__(self) -> None:
        if self.k < 0:
            raise RamifyError(f"k must be at least 0, got {self.k}")
        if self.beta <= 0:
            raise RamifyError(f"beta must be above 0, got {self.beta}")

    @property
    def rule(self) -> Rule:
        return VERIFIERS["match"] if self.verify else TRUST

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        yield from super().run(self.model(lm), requests)

    def model(self, lm: CausalLM) -> CausalLM:
        """The fine-tuned copy of ``lm`` that decodes."""
        lm.refresh()
        student: CausalLM | None = self.memory.get(("student", lm.forward))
        if student is None:
            student = self.memory["student", lm.forward] = load_head(LudHead, self.head, lm).merged(lm)
        return student

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        return UnitDrafter(self, load_head(LudHead, self.head, lm).pad)


class UnitDrafter(Drafter):
    """Puts [PAD]s behind the chain, and proposes what those of the step before were sure of."""

    def __init__(self, options: LUD, pad: Tensor) -> None:
        self.options, self.pad = options, pad
        self.guesses: Tensor | None = None

    def draft(self, context: Context) -> TokenTree:
        if self.options.k == 0 or not (self.options.verify or temperature(context.sampler) <= COLD):
            return TokenTree.empty()
        unit = [] if self.guesses is None else self._confident(context, self.guesses)
        n, k = len(unit), self.options.k
        ghosts = Ghosts(tuple(range(n - 1, n + k - 1)), (0,) * k, 0, self._states)
        return TokenTree(torch.tensor(unit, dtype=torch.long), TreeShape.chain(n), ghosts=ghosts)

    def observe(self, outcome: Outcome) -> None:
        # Behind a chain that was cut short, the [PAD]s read what was not committed.
        whole = len(outcome.path) == len(outcome.tree)
        self.guesses = outcome.ghosts if whole else None

    def rewind(self, length: int) -> None:
        self.guesses = None

    def _states(self, sources: Tensor, kinds: Tensor) -> Tensor:
        return self.pad.expand(len(kinds), -1)

    def _confident(self, context: Context, guesses: Tensor) -> list[int]:
        """y_1, y_2, … up to the first one that is not sure enough, or repeats its predecessor."""
        confidence = torch.softmax(guesses.float(), dim=-1)
        best, chosen = (part.tolist() for part in confidence.max(dim=-1))
        choosing = Sampler(context.sampler.processors, greedy=True)
        unit: list[int] = []
        for q in range(len(guesses)):
            token, sure = chosen[q], best[q]
            if context.sampler.processors:
                prefix = torch.tensor([*context.tokens, *unit], device=guesses.device)
                token = int(choosing.law(prefix, guesses[q]).argmax())
                sure = float(confidence[q, token])
            before = unit[-1] if unit else context.tokens[-1]
            if sure < self.options.beta or (self.options.repetition and token == before):
                break
            unit.append(token)
        return unit


def temperature(sampler: Sampler) -> float:
    """The sampling temperature: 0 when greedy."""
    from transformers import TemperatureLogitsWarper

    product = 0.0 if sampler.greedy else 1.0
    for processor in sampler.processors:
        if isinstance(processor, TemperatureLogitsWarper):
            product *= processor.temperature
    return product
