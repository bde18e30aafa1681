"""How Chimera drafts: a template of ranks laid out in levels, and one call of the encoder for each of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.tree import TokenTree
from ramify.methods.draft.borrowed import lm_head, product
from ramify.methods.draft.chimera_head import ChimeraHead, started
from ramify.methods.draft.template import Template
from ramify.models.cache import RowCache, send
from ramify.models.causal import CausalLM
from ramify.models.fused import SLOTS

TRIALS = 12


@dataclass(frozen=True)
class Level:
    """One depth of a draft. Its R rows are the nodes of the depth before that have children.

    ``nodes`` [R]: their places among the nodes of that depth; ``above`` [R]: the rows of which those are children.
    ``mask`` [R, all rows so far], added to scores: 0 on a row's own branch. ``chosen`` [C]: the children, as places in
    the R × ``ranks`` best guesses.
    """

    nodes: Tensor
    above: Tensor
    mask: Tensor
    ranks: int
    chosen: Tensor


class Plan:
    """A template laid out for drafting: its ``levels``, and ``order``, which sorts their children as it does."""

    def __init__(self, template: Template, lm: CausalLM) -> None:
        self.shape = template.shape
        self.levels: list[Level] = []
        rows: list[tuple[int, ...]] = []
        above: list[tuple[int, ...]] = [()]
        before: list[tuple[int, ...]] = [()]
        found: list[tuple[int, ...]] = []

        def index(numbers: list[int]) -> Tensor:
            return send(torch.tensor(numbers, dtype=torch.long), lm.device)

        for depth in range(1, max(map(len, template.ranks), default=0) + 1):
            nodes = [path for path in template.ranks if len(path) == depth]
            inner = [path for path in before if any(node[:-1] == path for node in nodes)]
            rows += inner
            ranks = 1 + max(path[-1] for path in nodes)
            seen = torch.tensor([[own[: len(row)] == row for row in rows] for own in inner])
            mask = torch.zeros(seen.shape, dtype=lm.dtype).masked_fill_(~seen, torch.finfo(lm.dtype).min)
            self.levels.append(
                Level(
                    index([before.index(path) for path in inner]),
                    index([above.index(path[:-1]) for path in inner]),
                    send(mask, lm.device),
                    ranks,
                    index([inner.index(path[:-1]) * ranks + path[-1] for path in nodes]),
                )
            )
            found += nodes
            before, above = nodes, inner
        self.order = index([found.index(path) for path in template.ranks])


class Encoder:
    """A head as it drafts: in the target's dtype, its matrices packed where the machine has that."""

    def __init__(self, head: ChimeraHead, lm: CausalLM) -> None:
        self.lm = lm
        self.shared = lm_head(lm) if head.sizes.head == "shared" else None
        self.head = copy.deepcopy(head)
        if self.head.layer is not None:
            self.head.layer.fold()
        self.head.to(lm.dtype)
        # As plain attributes: looking modules up and calling them takes a tenth of a level's time.
        found = [product(lm, each) for each in self.head.heads if isinstance(each, nn.Linear)]
        for module in (self.head, self.head.layer):
            for name, child in list(module.named_children()) if module is not None else ():
                if isinstance(child, nn.Linear):
                    delattr(module, name)
                    setattr(module, name, product(lm, child))
        del self.head.heads
        self.head.__dict__["heads"] = found
        self._turns: tuple[Tensor, Tensor] | None = None

    def remember(self, cache: RowCache, states: Tensor) -> None:
        """Append the keys and values of verified states [n, D] to ``cache``."""
        layer = self.head.layer
        if layer is not None:
            _, keys, values = layer.project(states[None], self._at(cache.lengths[0], len(states)))
            cache.expect(len(states), states.device)
            cache.row_layers[0].update(keys, values)
        cache.lengths[0] += len(states)

    def rank(self, step: int, cache: RowCache, state: Tensor, newest: Tensor, position: int, level: Level) -> Tensor:
        """The children [C] that ``level`` asks for: of the rows with the tokens ``newest`` [R, 3] at ``position``.

        ``state`` [D]: the last verified one. The rows enter ``cache``, behind what is there.
        """
        head, count = self.head, len(newest)
        o = head.trigrams(self.lm.forward.embed(newest))[None]
        if head.layer is not None:
            queries, keys, values = head.layer.project(o, self._at(position, 1))
            end = cache.expect(count, o.device)
            cache.seen = min(-(-end // SLOTS) * SLOTS, cache.capacity)
            keys, values = cache.row_layers[0].update(keys, values)
            cache.lengths[0] = end
            mask = level.mask.new_full((count, cache.seen), torch.finfo(level.mask.dtype).min)
            mask[:, : end - level.mask.shape[1]] = 0.0
            mask[:, end - level.mask.shape[1] : end] = level.mask
            o = head.layer.finish(o, head.layer.level(queries, keys, values, mask))
        z = head.fuse(step, state, o)
        if self.shared is not None:
            z = self.shared(z)
        return z.topk(level.ranks, dim=-1).indices.flatten()[level.chosen]

    def _at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Rotation tables [count, 1, size] for positions from ``first`` on."""
        end = first + count
        if self._turns is None or end > len(self._turns[0]):
            assert self.head.layer is not None
            places = torch.arange(max(256, 1 << (end - 1).bit_length()), device=self.lm.device)
            cos, sin = self.head.layer.turns(places)
            self._turns = cos.to(self.lm.dtype), sin.to(self.lm.dtype)
        cos, sin = self._turns
        return cos[first:end], sin[first:end]


class BranchDrafter(Drafter):
    """Drafts ``plan`` for one sequence; the keys and values of its verified states lie in a cache of its own."""

    hidden_layers = (-1,)

    def __init__(self, encoder: Encoder, plan: Plan) -> None:
        self.encoder, self.plan = encoder, plan
        self.cache = RowCache(1, rows=1)
        self.state: Tensor | None = None

    @torch.inference_mode()
    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        self._verified(hidden[-1])

    @torch.inference_mode()
    def observe(self, outcome: Outcome) -> None:
        self._verified(outcome.hidden[-1][list(outcome.path)])

    def rewind(self, length: int) -> None:
        if length < self.cache.lengths[0]:
            self.cache.lengths[0] = length
            self.state = None

    def _verified(self, states: Tensor) -> None:
        if len(states):
            self.encoder.remember(self.cache, states)
            self.state = states[-1]

    @torch.inference_mode()
    def draft(self, context: Context) -> TokenTree:
        if self.state is None or not self.plan.levels:
            return TokenTree.empty()
        known, first = self.cache.lengths[0], context.tokens[0]
        newest = send(torch.tensor([[first, first, *context.tokens[-3:]][-3:]]), self.state.device)
        found: list[Tensor] = []
        for step, level in enumerate(self.plan.levels):
            if step > 0:
                newest = torch.cat([newest[level.above, 1:], found[-1][level.nodes, None]], dim=1)
            read = started(newest) if known + step == 1 else newest
            found.append(self.encoder.rank(step, self.cache, self.state, read, known + step, level))
        self.cache.lengths[0] = known
        return TokenTree(torch.cat(found)[self.plan.order], self.plan.shape)


def level_seconds(encoder: Encoder) -> float:
    """The least time that a level of four rows took, behind a text of 64 tokens."""
    [level] = Plan(Template(((0,),)), encoder.lm).levels
    states = torch.zeros(64, encoder.head.fit.hidden_size, dtype=encoder.lm.dtype, device=encoder.lm.device)
    newest = torch.zeros(4, 3, dtype=torch.long, device=encoder.lm.device)
    seconds = float("inf")
    with torch.inference_mode():
        for _ in range(TRIALS):
            cache = RowCache(1, rows=1)
            encoder.remember(cache, states)
            began = time.perf_counter()
            encoder.rank(0, cache, states[-1], newest, 64, level).tolist()
            seconds = min(seconds, time.perf_counter() - began)
    return seconds
