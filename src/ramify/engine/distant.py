"""The pool loop over a server: paths that are only seen whole, for policies that need no more than that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ramify.engine.events import Event, Grown, Noted, Prefilled, Scored
from ramify.engine.path import Path, mean
from ramify.engine.pool import TOP
from ramify.engine.request import Parser
from ramify.engine.roster import Roster
from ramify.engine.search import WholePolicy, conclude
from ramify.models.endpoint import RemoteError
from ramify.models.offers import Interface
from ramify.models.query import Chat
from ramify.models.remote import RemoteLM
from ramify.models.reply import Reply

UNKNOWN = -1  # the id of a token that a server gives as text


def search_distant(
    lm: RemoteLM,
    prompt: str | Chat,
    policy: WholePolicy,
    *,
    answer: Parser,
    seed: int = 0,
    budget: int | None = None,
    log_probs: bool = False,
    row: int = 0,
    **settings: Any,
) -> Iterator[Event]:
    """Continue one prompt along many paths that a server completes, several at a time, yielding what happens.

    Path i is drawn with ``seed`` + i. ``log_probs``: the policy reads them; they are the server's, and a token's
    confidence is that of the ``TOP`` likeliest ones, or of as many as the server gives. Tokens have no ids here.
    ``settings``: as ``RemoteLM.complete`` takes them. When the server fails for good, what arrived until then is
    decided upon, and a note says so; without any finished path the error goes to the caller.
    """
    pool = Roster(row, budget)
    policy.begin(pool)
    yield from pool.drain()
    top = 0
    if log_probs:
        found = interface(lm, prompt)
        top = min(TOP, found.top_log_probs)
        if found.tempered:
            yield Noted("the server's log-probabilities are those at the temperature, not the model's own")
    read = False
    try:
        while pool.running:
            asked, began = list(pool.live), time.perf_counter()
            for reply in lm.as_completed(
                prompt,
                samples=len(asked),
                seed=seed + asked[0].number,
                log_probs=log_probs,
                top_log_probs=top,
                **settings,
            ):
                if not read:
                    yield Prefilled(row, reply.prompt_tokens, 0, 0.0)
                    read = True
                _receive(pool, asked[reply.sample], reply, answer, time.perf_counter() - began)
                policy.reduce(pool)
                yield from pool.drain()
                if pool.stopped or not pool.live:
                    break
    except RemoteError as error:
        if not pool.ended:
            raise
        pool.stop("server")
        yield Noted(f"{str(error).rstrip('.')}; the answer is that of the {len(pool.ended)} paths that arrived before")
    for path in list(pool.live):
        pool.prune(path, pool.stopped or "unused")
    yield from pool.drain()
    yield from conclude(pool, policy.decide(pool) if pool.ended else None)


def _receive(pool: Roster, path: Path, reply: Reply, answer: Parser, seconds: float) -> None:
    """Make ``reply`` the whole of ``path``."""
    path.tokens = [UNKNOWN] * reply.completion_tokens
    path.text = reply.text
    path.log_probs = list(reply.log_probs or ())
    path.confidences = [-mean([log_prob for _, log_prob in likely]) for likely in reply.top or () if likely]
    pool.events.append(Scored(pool.step, (pool.row,), len(path), seconds))
    numbers = (path.number,) * len(path)
    pool.events.append(Grown(pool.row, pool.step, numbers, tuple(path.tokens), tuple(path.confidences), 0, 0.0))
    pool.receive(path, reply.finish)
    path.answer = answer(path.text) if path.complete else None


def interface(lm: RemoteLM, prompt: str | Chat) -> Interface:
    """The interface that ``prompt`` goes by."""
    offers = lm.offers
    by_text = isinstance(prompt, str) and lm.chat is not True and not offers.text.refusal
    return offers.text if by_text else offers.chat
