"""S2D: one draft model with several exits for many targets; every drafted token leaves at the first confident exit.

Kavehzadeh et al., "S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models",
arXiv 2407.01955. The first layers of one model are trained so that their prefixes are language models of their own,
with the same norm and LM head (``s2d_head.py``). A token is drafted by the first exit e_j with

    max softmax(LM head(norm(h_{e_j}))) > τ_j,        τ_m = 0 at the last exit,

and is the likeliest one there; what was skipped is made up for when a later token goes deeper (``s2d_draft.py``). The
target verifies the chain. Training does not look at the target, so one draft model serves several: those that share
its vocabulary. Followed: thresholds (0.5, …, 0), strict comparison, a prompt read by all layers at once, chains of 5
at first, two more after full acceptance and one less after any other, at least 1.

The official code drafts the likeliest token and then accepts it with probability min(1, p/q), q = softmax of the draft,
as if it had been drawn from q. That gives another law than the target's: (.4, .6, 0) for p = (.5, .3, .2) and
q = (.2, .5, .3). Here the engine verifies by matching, which is exact for any draft.

Ours: ``coupled`` drafts with the target's own noise instead of the likeliest token when sampling; the target chooses
with that very noise, so it agrees more often. ``schedule="auto"`` takes the length from both models' cost curves. Left
out: SD2's dynamic tree (a later repository).

Cost per step: for every drafted token a pass over one row or few and e_j layers, and an LM head for each exit that was
asked; the host waits for each. Limits: models that take trees, and a draft within its own context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.s2d_draft import Segments
from ramify.methods.draft.s2d_head import SortedHead, check_exits, proportions
from ramify.methods.draft.schedule import Fastest, Heuristic, Schedule
from ramify.methods.head import fingerprint, load_head
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM, load

SURE = 0.5  # default threshold


@register(
    name="s2d",
    title="S2D: Sorted Speculative Decoding For More Efficient Deployment of Nested Large Language Models",
    paper="arXiv 2407.01955",
    family="draft",
    needs=("logits", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class S2D(DraftMethod):
    """Draft with a few layers, and with a few more where those are not sure.

    ``head``: the trained layers, a folder that ``ramify train s2d`` made; None for the demo model's own. ``draft``: in
    its place a whole model of the target's vocabulary, as ``ramify.load`` takes it or loaded already; it may serve
    several targets. ``exits``: layers behind which a token may leave, None for those of the head, or after half, three
    quarters and all of a draft model. ``thresholds``: one for each exit but the last, None for 0.5. ``length``: tokens
    drafted, at first or always. ``schedule``: "heuristic" (paper), "constant", or "auto". ``coupled``: when sampling,
    draft with the target's noise.
    """

    trains = SortedHead

    head: Any = None
    draft: Any = None
    exits: tuple[int, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    length: int = 5
    schedule: Literal["heuristic", "constant", "auto"] = "heuristic"
    coupled: bool = False

    def __post_init__(self) -> None:
        if self.head is not None and self.draft is not None:
            raise RamifyError("give s2d a head or a draft model, not both")
        if self.exits is not None:
            check_exits(self.exits)
        if self.thresholds is not None and (not self.thresholds or min(self.thresholds) < 0.0):
            raise RamifyError(f"thresholds are probabilities, one for each exit but the last, got {self.thresholds}")
        if self.length < 1:
            raise RamifyError(f"length must be at least 1, got {self.length}")
        if self.schedule not in ("heuristic", "constant", "auto"):
            raise unknown("schedule", self.schedule, ["heuristic", "constant", "auto"])

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        if ("draft", lm) not in self.memory:
            self.memory["draft", lm] = self._draft(lm)
        draft, exits = self.memory["draft", lm]
        thresholds = self._thresholds(exits)
        if self.schedule == "auto":
            schedule: Schedule = Fastest(calibrate(lm), calibrate(draft))
        else:
            schedule = (Heuristic if self.schedule == "heuristic" else Schedule)(self.length)
        return SortedDrafter(draft, exits, thresholds, schedule, request.stop_tokens, self.coupled)

    def _draft(self, lm: CausalLM) -> tuple[CausalLM, list[int]]:
        """The draft model for ``lm`` and its exits."""
        if self.draft is None:
            head = load_head(SortedHead, self.head, lm)
            draft, exits = head.draft(lm), list(self.exits or head.sizes.exits)
        else:
            if "draft" not in self.memory:
                self.memory["draft"] = self.draft if isinstance(self.draft, CausalLM) else load(self.draft)
            draft = self.memory["draft"]
            exits = list(self.exits or proportions(draft.layers))
            if draft.vocab_size != lm.vocab_size or len({fingerprint(draft), fingerprint(lm)} - {""}) > 1:
                raise RamifyError(
                    f"the draft model {draft.name} has another vocabulary than {lm.name}; choose one that shares it"
                )
        draft.require_trees("as a draft model")
        if exits[-1] > draft.layers:
            raise RamifyError(f"{draft.name} has {draft.layers} layers, so there is no exit at {exits[-1]}")
        return draft, exits

    def _thresholds(self, exits: Sequence[int]) -> list[float]:
        """One for each exit, the last one always low enough."""
        given = (SURE,) * (len(exits) - 1) if self.thresholds is None else self.thresholds
        if len(given) == len(exits) and given[-1] == 0.0:
            given = given[:-1]
        if len(given) != len(exits) - 1:
            raise RamifyError(
                f"{len(exits)} exits take {len(exits) - 1} thresholds, one for each but the last, got {given}"
            )
        return [*given, 0.0]


class SortedDrafter(Drafter):
    """Drafts a chain for one sequence. ``left``: of the latest chain, at which exit each token left, from 0."""

    def __init__(
        self,
        draft: CausalLM,
        exits: Sequence[int],
        thresholds: Sequence[float],
        schedule: Schedule,
        stop_tokens: frozenset[int],
        coupled: bool,
    ) -> None:
        self.model, self.thresholds, self.schedule = draft, thresholds, schedule
        self.stop_tokens, self.coupled = stop_tokens, coupled
        self.segments = Segments(draft, exits)
        self.left: list[int] = []

    def draft(self, context: Context) -> TokenTree:
        known = len(context.tokens)
        count = min(self.schedule.choose(), context.levels, self.model.context - known + 1)
        self.left = []
        if count < 1:
            return TokenTree.empty()
        entering = self.segments.follow(context.tokens)
        prefix = torch.tensor([*context.tokens, *[0] * count], device=self.model.device)
        tokens: list[int] = []
        while len(tokens) < count and self.stop_tokens.isdisjoint(tokens):
            logits = self._leave(entering)
            place = known + len(tokens)
            token = self._choose(context, prefix[:place], logits, context.position + len(tokens))
            prefix[place] = token
            tokens.append(token)
            entering = [token]
        self._tell(self.left)
        return TokenTree.chain(tokens)

    def observe(self, outcome: Outcome) -> None:
        self.schedule.observe(outcome.drafted, outcome.accepted)

    def _leave(self, tokens: Sequence[int]) -> Tensor:
        """Logits [V] after ``tokens`` at the first exit that is sure of what follows."""
        logits = self.segments.enter(tokens)
        place = 0
        while place < len(self.thresholds) - 1 and not _surest(logits) > self.thresholds[place]:
            place += 1
            logits = self.segments.deepen(place)
        self.left.append(place)
        return logits

    def _choose(self, context: Context, prefix: Tensor, logits: Tensor, position: int) -> int:
        sampler = context.sampler
        if sampler.is_argmax:
            return int(logits.argmax())
        if self.coupled:
            return sampler.pick(prefix, logits, position)
        return int(sampler.law(prefix, logits).argmax())

    def _tell(self, left: Sequence[int]) -> None:
        """Tell the schedule how many passes over all layers the draft amounts to."""
        exits = self.segments.exits
        layers = list(accumulate((exits[place] for place in left), initial=0))
        for before, after in pairwise(layers):
            if before // exits[-1] < after // exits[-1]:
                self.schedule.ran(1)


def _surest(logits: Tensor) -> float:
    return float(torch.softmax(logits.float(), dim=-1).max())
