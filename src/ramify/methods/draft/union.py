"""Union: several drafters at once, their trees merged into one under a budget of nodes.

A composition of this library, no published system. Every step each part drafts its own tree; siblings with the same
token become one node, so that what several parts agree on costs one row. Of the merged nodes the most useful ones are
drafted, each with its parent. What a part learns and knows is its own: it observes every step, with the places of its
own nodes in the scored tree, whoever proposed the tokens that were accepted. Exact for every target law, since the
engine verifies by matching; a method that verifies otherwise is refused, for draws of different laws cannot be merged.

``share``: who gets the rows. "useful" (default): the nodes with the highest product, along their path, of how often
proposals of their kind were right (``Usefulness``), measured all the time for drafted and undrafted nodes alike; for
sampled text with a view to the noise that chooses each token, which does not depend on the text and so is known ahead
(Gumbel coupling, as in Daliri, Musco & Suresh, arXiv 2408.07978).
"turns": the parts' nodes in turn, each in its part's own order. "order": part after part.
``nodes``: most nodes of the merged tree. None sizes it step by step: of the nodes in the order of ``share`` as many as
have the most expected tokens per second on the machine's cost curve, (1 + Σ rates) / (cost(rows) + fixed work), ghost
nodes counted as rows. With a number as many are drafted as there are, and ghosts come on top.

Cost per step: all parts' drafts, and about 4 µs for each of their nodes. Limit: parts whose ghost nodes join the pass
at different layers cannot share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.merging import Merged, Taken
from ramify.methods.draft.parts import Parts, parts_of, require_match
from ramify.methods.draft.usefulness import Usefulness, luck
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

SHARES = ("useful", "turns", "order")
FIXED = 0.15  # what a step takes beside its pass, in units of a plain pass: drafting, verifying, learning


@register(
    name="union",
    title="Drafters in parallel",
    paper="this library",
    family="draft",
    needs=("logits",),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Union(DraftMethod):
    """Several drafters at once, their trees merged under one budget of nodes.

    ``methods``: names separated by commas or plus signs, each with :option=value where wanted, or a list of names and
    objects; of an object the union takes a copy, which learns as long as the union lives. ``nodes``: most nodes of the
    merged tree; None sizes it by acceptance and cost curve. ``share``: "useful" nodes first, the parts in "turns", or
    one after the other in "order".
    """

    methods: Parts = "aded:search=full:nodes=16,token-recycling:nodes=16,suffix"
    nodes: int | None = None
    share: Literal["useful", "turns", "order"] = "useful"

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 0:
            raise RamifyError(f"nodes must be at least 0, got {self.nodes}")
        if self.share not in SHARES:
            raise unknown("share", self.share, SHARES)
        self.parts()

    def parts(self) -> list[DraftMethod]:
        """The methods that draft, without anything learned."""
        found = parts_of(self.methods, "a union")
        if not found:
            raise RamifyError("a union needs at least one method: -o methods=token-recycling,suffix")
        return [require_match(method, "a union") for method in found]

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        parts = self.memory.setdefault("parts", self.parts())
        usefulness = self.memory.setdefault(("usefulness", lm, request.sampler.greedy), Usefulness())
        cost = self.memory.get(("cost", lm))
        if cost is None and self.nodes is None:
            curve = calibrate(lm)
            fixed = FIXED * curve.cost(1)
            cost = self.memory["cost", lm] = functools.cache(lambda rows: curve.cost(rows) + fixed)
        return Parallel(self, [part.drafter(lm, request) for part in parts], usefulness, cost, lm.vocab_size)


class Parallel(Drafter):
    """Drafts with all of ``parts`` and takes what is worth a row; ``cost``: seconds of a pass over so many rows.

    ``vocab_size``: over how many tokens the noise of a position is drawn.
    """

    def __init__(
        self,
        options: Union,
        parts: Sequence[Drafter | None],
        usefulness: Usefulness,
        cost: Callable[[int], float] | None,
        vocab_size: int,
    ) -> None:
        self.options, self.usefulness, self.cost, self.vocab_size = options, usefulness, cost, vocab_size
        self.parts = [part for part in parts if part is not None]
        self.wants_prompt_logits = any(part.wants_prompt_logits for part in self.parts)
        self.hidden_layers = sorted({layer for part in self.parts for layer in part.hidden_layers})
        self._forget()

    def start(self, prompt: Sequence[int]) -> None:
        for part in self.parts:
            part.start(prompt)

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        for part in self.parts:
            if part.wants_prompt_logits or part.hidden_layers:
                part.observe_prompt(tokens, logits if part.wants_prompt_logits else None, hidden)

    def rewind(self, length: int) -> None:
        for part in self.parts:
            part.rewind(length)
        self._forget()

    def draft(self, context: Context) -> TokenTree:
        self.merged = Merged.of([part.draft(context).cut(context.levels) for part in self.parts])
        if self._rated and not context.sampler.greedy:
            self.merged.luck = self._luck(context)
        self.taken = self.merged.take(self._choose())
        return self.taken.tree

    def observe(self, outcome: Outcome) -> None:
        at = self.taken.places(outcome)
        if at and self._rated:
            self.usefulness.observe(self.merged, outcome.tokens[outcome.tree.shape.depth[at[-1]] :])
        for part, seen in zip(self.parts, self.taken.outcomes(outcome), strict=True):
            part.observe(seen)
        self._forget()

    @property
    def _rated(self) -> bool:
        """Whether it matters how often nodes are right."""
        return self.options.share == "useful" or self.cost is not None

    def _luck(self, context: Context) -> list[int]:
        """The class of the noise that every node's token meets."""
        noise, first, depths = context.sampler.noise, context.position, self.merged.depth
        races = [noise.ahead(self.vocab_size, first + depth).numpy() for depth in range(max(depths, default=-1) + 1)]
        return [luck(races[depth][token]) for token, depth in zip(self.merged.tokens, depths, strict=True)]

    def _forget(self) -> None:
        """There is no draft under way; the next step may come without one, inside a switch or another drafter."""
        self.merged, self.taken = Merged.of([]), Taken.nothing(len(self.parts))

    def _choose(self) -> list[int]:
        """The nodes of the merged tree to draft."""
        merged, share = self.merged, self.options.share
        order = list(range(len(merged)))
        rates = self.usefulness.rates(merged) if self._rated else []
        if share == "useful":
            order.sort(key=lambda node: -rates[node])
        elif share == "turns":
            order.sort(key=lambda node: min((number, part) for part, number, _ in merged.proposals[node]))
        if self.cost is None:
            return order[: self.options.nodes]
        rows = merged.rows()
        tokens = accumulate((rates[node] for node in order), initial=1.0)
        costs = map(self.cost, accumulate((rows[node] for node in order), initial=1 + rows[-1]))
        speeds = [expected / cost for expected, cost in zip(tokens, costs, strict=True)]
        return order[: speeds.index(max(speeds))]
