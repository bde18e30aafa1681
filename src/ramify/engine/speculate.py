"""The draft–verify loop: draft a tree for every row, score them in one pass, accept, keep, repeat.

It owns prefill, stopping and counting for every method of this kind; plain decoding is the loop without a drafter.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.events import Accepted, Drafted, Event, Finished, Prefilled, Scored
from ramify.engine.request import Request
from ramify.engine.sampling import NodeLaws, is_stateful, likeliest
from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree
from ramify.engine.verify import Verifier, match
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM


class _Row:
    """One sequence in flight: its committed tokens and when it ends."""

    def __init__(self, index: int, request: Request, drafter: Drafter | None, device: torch.device) -> None:
        self.index, self.request, self.drafter = index, request, drafter
        self.tokens = list(request.prompt)
        self.start = len(request.padding)
        self.buffer = torch.zeros(self.start + request.max_length + 1, dtype=torch.long, device=device)
        self.length = self.start + len(self.tokens)
        self.buffer[: self.length] = torch.tensor([*request.padding, *self.tokens])
        seed = request.sampler.noise.seed
        self.drafting = torch.Generator().manual_seed(2 * seed + 1_000_000_007)
        self.verifying = torch.Generator().manual_seed(2 * seed + 1_000_000_008)
        self.finish: str | None = None

    @property
    def levels(self) -> int:
        """How deep a draft may be, so that it and the target's own token stay within ``max_length``."""
        return self.request.max_length - len(self.tokens) - 1

    def commit(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Append tokens one by one until the sequence ends; returns those that were appended."""
        request = self.request
        for count, token in enumerate(tokens, 1):
            self.tokens.append(token)
            self.buffer[self.length] = token
            self.length += 1
            if token in request.stop_tokens or (request.criteria and self._criterion_met()):
                self.finish = "stop"
            elif len(self.tokens) >= request.max_length:
                self.finish = "length"
            if self.finish:
                return tuple(tokens[:count])
        return tuple(tokens)

    def _criterion_met(self) -> bool:
        ids = self.buffer[None, : self.length]
        return any(bool(torch.as_tensor(criterion(ids, None)).any()) for criterion in self.request.criteria)


def speculate(
    lm: CausalLM,
    requests: Sequence[Request],
    drafters: Sequence[Drafter] | None = None,
    verifier: Verifier = match,
) -> Iterator[Event]:
    """Continue every request, yielding what happens.

    ``drafters``: one for each request, or None for plain decoding. ``verifier`` decides what is accepted; see
    ``ramify.engine.verify``. Rows of a batch run together and do not influence each other's tokens. Raises
    ``RamifyError`` for an empty prompt, for lengths beyond the context, and for a drafter on a model without trees.
    """
    for request in requests:
        _check(lm, request)
    if drafters is not None:
        lm.require_trees("drafts")
        for request in requests:
            request.sampler.require_stateless()
    _check_unshared(requests)
    rows = [
        _Row(index, request, drafters[index] if drafters else None, lm.device) for index, request in enumerate(requests)
    ]
    if lm.trees:
        yield from _run(lm, rows, verifier)
    else:
        for row in rows:
            yield from _run(lm, [row], verifier)


def _check(lm: CausalLM, request: Request) -> None:
    if not request.prompt:
        raise RamifyError("the prompt is empty; give at least one token")
    if request.max_length <= len(request.prompt):
        raise RamifyError(
            f"the prompt has {len(request.prompt)} tokens and max_length is {request.max_length}: nothing is left to "
            "generate; raise max_new_tokens to at least 1"
        )
    if request.max_length > lm.context:
        raise RamifyError(
            f"{len(request.prompt)} prompt tokens and {request.max_length - len(request.prompt)} new ones do not fit "
            f"the context of {lm.context} tokens of {lm.name}; shorten the prompt or lower max_new_tokens"
        )


def _check_unshared(requests: Sequence[Request]) -> None:
    """Refuse one stateful processor for several sequences, whose states it would mix up."""
    stateful = [p for request in requests for p in request.sampler.processors if is_stateful(p)]
    if len({id(processor) for processor in stateful}) < len(stateful):
        raise RamifyError(
            f"{type(stateful[0]).__name__} keeps a state from token to token, so several sequences cannot share it; "
            "generate them one by one"
        )


def _run(lm: CausalLM, rows: list[_Row], verifier: Verifier) -> Iterator[Event]:
    capacity = max(len(row.tokens) for row in rows) + 256
    session = Session(lm, rows=len(rows), capacity=capacity)
    yield from _prefill(session, rows)
    step = 0
    while rows:
        began = time.perf_counter()
        trees = []
        for row in rows:
            draft = TokenTree.empty()
            if row.drafter is not None:
                if row.levels > 0:
                    context = Context(row.tokens, row.levels, row.request.sampler, row.drafting, row.length)
                    draft = row.drafter.draft(context).cut(row.levels)
                ended = time.perf_counter()
                yield Drafted(row.index, step, draft, ended - began)
                began = time.perf_counter()
            trees.append(draft.rooted(row.tokens[-1]))
        scores = session.score(trees, hidden_layers=_hidden_layers(rows))
        ended = time.perf_counter()
        yield Scored(step, tuple(row.index for row in rows), scores.rows_run, ended - began)
        best = _best_tokens(rows, trees, scores)
        kept = []
        for place, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            began = time.perf_counter()
            logits = scores.logits[place, : len(tree)]
            laws = NodeLaws(row.request.sampler, tree, logits, row.buffer, row.length, best[place])
            verdict = verifier(tree, laws, row.verifying)
            tokens = row.commit([*tree.tokens[list(verdict.path[1:])].tolist(), verdict.token])
            kept.append(verdict.path)
            if row.drafter is not None and not row.finish:
                hidden = {layer: states[place, : len(tree)] for layer, states in scores.hidden.items()}
                ghosts = None
                if tree.ghosts is not None and scores.ghosts is not None:
                    ghosts = scores.ghosts[place, : len(tree.ghosts)]
                row.drafter.observe(Outcome(tree, logits, verdict.path, tokens, hidden, ghosts))
            ended = time.perf_counter()
            yield Accepted(row.index, step, tuple(node - 1 for node in verdict.path[1:]), tokens, ended - began)
            if row.finish:
                yield Finished(row.index, step, row.finish)
        session.keep(kept)
        alive = [place for place, row in enumerate(rows) if not row.finish]
        if alive and len(alive) < len(rows):
            session.select(alive)
        rows = [rows[place] for place in alive]
        step += 1


def _best_tokens(
    rows: Sequence[_Row], trees: Sequence[TokenTree], scores: Scores
) -> Sequence[Callable[[], list[int]] | None]:
    """For each row what finds the likeliest tokens of its nodes, when the first row asks, for all rows at once.

    That is one wait for a GPU instead of one for every row. On a CPU, rows of different trees do better by themselves.
    """
    if len(rows) == 1 or not all(row.request.sampler.is_argmax for row in rows):
        return [None] * len(rows)
    if not scores.logits.is_cuda and len({len(tree) for tree in trees}) > 1:
        return [None] * len(rows)
    found = functools.cache(functools.partial(likeliest, scores.logits))
    return [functools.partial(_entry, found, place) for place in range(len(rows))]


def _hidden_layers(rows: Sequence[_Row]) -> list[int]:
    """The target's layers whose states some drafter wants."""
    return sorted({layer for row in rows if row.drafter is not None for layer in row.drafter.hidden_layers})


def _entry(found: Callable[[], list[list[int]]], place: int) -> list[int]:
    return found()[place]


def _prefill(session: Session, rows: Sequence[_Row]) -> Iterator[Event]:
    """Read every prompt but its last token, which is the first pending one."""
    began = time.perf_counter()
    drafters = [row.drafter for row in rows]
    for row in rows:
        if row.drafter is not None:
            row.drafter.start(row.tokens)

    def observe(row: int, tokens: list[int], logits: torch.Tensor | None, hidden: dict[int, torch.Tensor]) -> None:
        drafter = drafters[row]
        if drafter is not None and (drafter.wants_prompt_logits or drafter.hidden_layers):
            drafter.observe_prompt(tokens, logits if drafter.wants_prompt_logits else None, hidden)

    logits = any(drafter is not None and drafter.wants_prompt_logits for drafter in drafters)
    hidden = _hidden_layers(rows)
    calls = session.prefill(
        [row.tokens[:-1] for row in rows],
        observe=observe if logits or hidden else None,
        logits=logits,
        hidden_layers=hidden,
    )
    seconds = time.perf_counter() - began
    for row in rows:
        yield Prefilled(row.index, len(row.tokens), calls, seconds)
