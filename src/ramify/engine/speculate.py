"""The draft–verify loop: draft a tree for every row, score them in one pass, accept, keep, repeat.

It owns prefill, stopping and counting for every method of this kind; plain decoding is the loop without a drafter.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence

from ramify.engine.drafter import Drafter
from ramify.engine.events import Accepted, Drafted, Event, Finished, Prefilled, Scored
from ramify.engine.request import Request
from ramify.engine.row import Row, hidden_layers, read
from ramify.engine.sampling import is_stateful, likeliest
from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree
from ramify.engine.verify import Verifier, match
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM


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
        request.check(lm)
    if drafters is not None:
        lm.require_trees("drafts")
        for request in requests:
            request.sampler.require_stateless()
    _check_unshared(requests)
    rows = [
        Row(index, request, drafters[index] if drafters else None, lm.device) for index, request in enumerate(requests)
    ]
    if lm.trees:
        yield from _run(lm, rows, verifier)
    else:
        for row in rows:
            yield from _run(lm, [row], verifier)


def _check_unshared(requests: Sequence[Request]) -> None:
    """Refuse one stateful processor for several sequences, whose states it would mix up."""
    stateful = [p for request in requests for p in request.sampler.processors if is_stateful(p)]
    if len({id(processor) for processor in stateful}) < len(stateful):
        raise RamifyError(
            f"{type(stateful[0]).__name__} keeps a state from token to token, so several sequences cannot share it; "
            "generate them one by one"
        )


def _run(lm: CausalLM, rows: list[Row], verifier: Verifier) -> Iterator[Event]:
    capacity = max(len(row.tokens) for row in rows) + 256
    session = Session(lm, rows=len(rows), capacity=capacity)
    yield from _prefill(session, rows)
    step = 0
    while rows:
        began = time.perf_counter()
        trees = []
        for row in rows:
            draft = row.draft(row.levels)
            if row.drafter is not None:
                ended = time.perf_counter()
                yield Drafted(row.index, step, draft, ended - began)
                began = time.perf_counter()
            trees.append(draft.rooted(row.tokens[-1]))
        scores = session.score(trees, hidden_layers=hidden_layers(rows))
        ended = time.perf_counter()
        yield Scored(step, tuple(row.index for row in rows), scores.rows_run, ended - began)
        best = _best_tokens(rows, trees, scores)
        kept = []
        for place, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            began = time.perf_counter()
            verdict, tokens = row.judge(tree, scores.logits[place, : len(tree)], verifier, best[place])
            row.learn(tree, scores, verdict.path, tokens, place)
            kept.append(verdict.path)
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
    rows: Sequence[Row], trees: Sequence[TokenTree], scores: Scores
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


def _entry(found: Callable[[], list[list[int]]], place: int) -> list[int]:
    return found()[place]


def _prefill(session: Session, rows: Sequence[Row]) -> Iterator[Event]:
    """Read every prompt but its last token, which is the first pending one."""
    began = time.perf_counter()
    for row in rows:
        if row.drafter is not None:
            row.drafter.start(row.tokens)
    calls = read(session, rows, [row.tokens[:-1] for row in rows])
    seconds = time.perf_counter() - began
    for row in rows:
        yield Prefilled(row.index, len(row.tokens), calls, seconds)
