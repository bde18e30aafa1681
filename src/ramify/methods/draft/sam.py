"""SAM-Decoding: copy behind the longest match in the text or in a corpus, else ask an auxiliary drafter.

Hu et al., "SAM Decoding: Speculative Decoding via Suffix Automaton", arXiv 2411.10666 (ACL 2025). A dynamic automaton
holds prompt and output, a static one a corpus (``ramify train sam``). With matches of l_dyn and l_stat tokens,

    l = max(l_dyn, l_stat − bias);  l ≥ threshold: a chain of ``length`` tokens behind the earliest end of the match in
    the better automaton (the text's own among equals);  else: the auxiliary drafter's tree.

``auxiliary=None`` drafts min(length, 1 + factor · l) tokens wherever l ≥ 1: a chain from the text; from the corpus the
likeliest continuations, best first and at most ``width`` at a depth, a node's probability being the ratio of the counts
of end positions. Exact for every target law, since the engine verifies by matching.

Published: bias 5, threshold 5, length 40, the auxiliary Token Recycling with 60 nodes, thus ``SAMDecoding(length=40,
auxiliary="token-recycling:nodes=60")``. Ours by default are sizes that pay on this machine: the chain's by the
acceptance seen so far at matches of its kind, the tree's by how far the counts' promises were kept, the auxiliary's its
own; where a match does not pay, the auxiliary is asked. The official code fills short chains up with token 0, and looks
in the text for a shorter match that has more text behind it; here a chain ends with its document or with the text.

Cost per step: amortised O(1) for a token of text, O(log V) for one of a corpus; the auxiliary learns from every step,
whoever drafted. Memory: about 50 bytes for a token of the corpus, 500 for one of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ramify.engine.automaton import SuffixAutomaton
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.parts import parts_of
from ramify.methods.draft.sizing import ChainLength, PromisedSize
from ramify.methods.draft.static_automaton import Reader, StaticAutomaton
from ramify.methods.head import fingerprint
from ramify.methods.registry import register
from ramify.models.calibrate import CostCurve, calibrate
from ramify.models.causal import CausalLM

LONGEST = 40


@register(
    name="sam",
    title="SAM Decoding: Speculative Decoding via Suffix Automaton",
    paper="arXiv 2411.10666",
    family="draft",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class SAMDecoding(DraftMethod):
    """Copy behind the longest match in the text or in a corpus; where it is short, ask another drafter.

    ``corpus``: the file of a static automaton, as ``ramify train sam`` makes it, or None. ``auxiliary``: what drafts at
    short matches, a name with :option=value where wanted, an object (of which there is a copy), or None. ``length``:
    longest draft of its own; None sizes it by acceptance and cost curve, up to 40. ``threshold``: shortest match that
    goes before the auxiliary. ``bias``: taken off a match in the corpus. ``factor``, ``width``: without auxiliary, the
    tokens drafted for each token of the match, and the most candidates from the corpus at one depth.
    """

    corpus: str | Path | StaticAutomaton | None = None
    auxiliary: str | DraftMethod | None = "token-recycling"
    length: int | None = None
    threshold: int = 5
    bias: int = 5
    factor: int = 4
    width: int = 8

    def __post_init__(self) -> None:
        if (self.length is not None and self.length < 1) or self.threshold < 1 or self.width < 1:
            raise RamifyError(
                f"length, threshold and width must be at least 1, got {self.length}, {self.threshold} and {self.width}"
            )
        if self.bias < 0 or self.factor < 0:
            raise RamifyError(f"bias and factor must be at least 0, got {self.bias} and {self.factor}")
        self._other()

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        static, other = self._static(lm), self.memory.setdefault("auxiliary", self._other())
        auxiliary = other.drafter(lm, request) if other is not None else None
        return _SAMDrafter(self, static, auxiliary, calibrate(lm) if self.length is None else None)

    def _other(self) -> DraftMethod | None:
        if self.auxiliary is None:
            return None
        found = parts_of(self.auxiliary, "SAM-Decoding")
        if len(found) != 1:
            raise RamifyError(f"one method is the auxiliary, not {len(found)}; join several in a union")
        return found[0]

    def _static(self, lm: CausalLM) -> StaticAutomaton | None:
        if self.corpus is None:
            return None
        static: StaticAutomaton | None = self.memory.get("corpus")
        if static is None:
            given = self.corpus
            static = given if isinstance(given, StaticAutomaton) else StaticAutomaton.load(Path(given))
            self.memory["corpus"] = static
        own = fingerprint(lm)
        if static.vocab_size != lm.vocab_size or (static.tokenizer and own and static.tokenizer != own):
            raise RamifyError(
                f"the corpus was read with another vocabulary than that of {lm.name}; build its automaton again with: "
                "ramify train sam --model …"
            )
        return static


class _SAMDrafter(Drafter):
    """``kind``: where the last draft's match was and how long, None when the auxiliary drafted; ``promises``: the
    probabilities of its nodes, None for a chain."""

    def __init__(
        self, options: SAMDecoding, static: StaticAutomaton | None, auxiliary: Drafter | None, curve: CostCurve | None
    ) -> None:
        self.options, self.auxiliary = options, auxiliary
        self.automaton = SuffixAutomaton()
        self.corpus = Reader(static) if static is not None else None
        self.chains = ChainLength(curve, LONGEST) if curve is not None else None
        self.trees = PromisedSize(curve, LONGEST) if curve is not None else None
        self.kind: tuple[bool, int] | None = None
        self.promises: list[float] | None = None
        if auxiliary is not None:
            self.wants_prompt_logits, self.hidden_layers = auxiliary.wants_prompt_logits, auxiliary.hidden_layers

    def start(self, prompt: Sequence[int]) -> None:
        if self.auxiliary is not None:
            self.auxiliary.start(prompt)

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        if self.auxiliary is not None:
            self.auxiliary.observe_prompt(tokens, logits, hidden)

    def rewind(self, length: int) -> None:
        if self.auxiliary is not None:
            self.auxiliary.rewind(length)
        if length < len(self.automaton.text):
            self.automaton = self.automaton.beginning(length)
            if self.corpus is not None:
                self.corpus = Reader(self.corpus.automaton)
                self.corpus.extend(self.automaton.text)

    def draft(self, context: Context) -> TokenTree:
        own = self._own(context)
        if len(own) or self.auxiliary is None:
            return own
        self.kind = None
        return self.auxiliary.draft(context)

    def observe(self, outcome: Outcome) -> None:
        if self.auxiliary is not None:
            self.auxiliary.observe(outcome if self.kind is None else replace(outcome, mine=(0,)))
        if self.kind is None or not outcome.drafted:
            return
        if self.trees is not None and self.promises is not None:
            self.trees.observe(self.kind, self.promises[: outcome.drafted], outcome.accepted)
        elif self.chains is not None:
            self.chains.observe(self.kind, outcome.drafted, outcome.accepted)

    def _own(self, context: Context) -> TokenTree:
        new = context.tokens[len(self.automaton.text) :]
        self.automaton.extend(new)
        match, end = self.automaton.match()
        corpus = self.corpus
        if corpus is not None:
            corpus.extend(new)
            if corpus.matched - self.options.bias > match:
                match = corpus.matched - self.options.bias
            else:
                corpus = None
        self.kind, self.promises = (corpus is not None, match.bit_length()), None
        if match < (self.options.threshold if self.auxiliary is not None else 1):
            return TokenTree.empty()
        length = self.options.length or LONGEST
        if self.auxiliary is None:
            length = min(length, 1 + self.options.factor * match)
            if corpus is not None:
                return self._tree(corpus, length, context.levels)
        if self.chains is not None:
            length = min(length, self.chains.choose(self.kind))
        if corpus is not None:
            return TokenTree.chain(corpus.automaton.chain(corpus.state, length))
        return TokenTree.chain(self.automaton.text[end + 1 : end + 1 + length])

    def _tree(self, corpus: Reader, nodes: int, levels: int) -> TokenTree:
        tokens, parents, self.promises = corpus.automaton.tree(corpus.state, nodes, levels, self.options.width)
        if self.trees is not None:
            nodes = self.trees.choose(self.kind, self.promises)
        return TokenTree(torch.tensor(tokens[:nodes], dtype=torch.long), TreeShape.of(parents[:nodes]))
