"""The pool loop over a server: paths that are seen whole, or a token at a time where the server tells likely ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from ramify.engine.events import Event, Grown, Noted, Prefilled, Scored
from ramify.engine.path import Path, mean
from ramify.engine.pool import TOP
from ramify.engine.request import Parser, Request
from ramify.engine.roster import Roster
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.search import StepPolicy, WholePolicy, close, grow
from ramify.engine.server_pool import ServerPool
from ramify.errors import RamifyError
from ramify.models.arriving import CUT
from ramify.models.endpoint import RemoteError
from ramify.models.offers import Interface
from ramify.models.query import Chat, check
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
    Where the policy may give up a path that is not done, answers come as streams, and its stream is closed.
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
    gives_up = type(policy).gives_up is not WholePolicy.gives_up
    read = False
    try:
        while pool.running:
            asked, began = list(pool.live), time.perf_counter()

            def goes_on(reply: Reply, asked: Sequence[Path] = asked) -> bool:
                path = asked[reply.sample]
                _fill(path, reply)
                return policy.gives_up(path) is None

            for reply in lm.as_completed(
                prompt,
                samples=len(asked),
                seed=seed + asked[0].number,
                log_probs=log_probs,
                top_log_probs=top,
                watch=goes_on if gives_up else None,
                **settings,
            ):
                if not read:
                    yield Prefilled(row, reply.prompt_tokens, 0, 0.0)
                    read = True
                path = asked[reply.sample]
                _fill(path, reply)
                reason = policy.gives_up(path) if reply.finish == CUT else None
                _receive(pool, path, reason or reply.finish, answer, time.perf_counter() - began)
                policy.reduce(pool)
                yield from pool.drain()
                if pool.stopped or not pool.live:
                    break
    except RemoteError as error:
        yield _give_way(pool, error)
    yield from close(pool, policy)


def step_distant(
    lm: RemoteLM,
    prompt: str | Chat,
    policy: StepPolicy,
    *,
    answer: Parser,
    greedy: bool,
    seed: int = 0,
    budget: int | None = None,
    row: int = 0,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
) -> Iterator[Event]:
    """Continue one text along paths that take a token at a time from the likeliest ones that a server tells.

    ``greedy``: the policy draws nothing, and ``temperature`` and ``top_p`` are not looked at. Tokens are numbers that
    mean something within the call only; see ``ServerPool`` for what else differs. Failures: as ``search_distant``.
    Raises ``RamifyError`` for settings that no server takes, for chats, and for a server without alternatives.
    """
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    check(prompt, 1, max_new_tokens, temperature, top_p, seed, 0)
    if not isinstance(prompt, str) or not _by_text(lm, prompt):
        raise RamifyError(
            f"a token at a time needs plain completions of a text, and {lm.base_url} is asked by chat; give a text, "
            "with the chat's template applied, to a server that completes texts"
        )
    warpers = [] if greedy else [TemperatureLogitsWarper(temperature or 1.0), TopPLogitsWarper(top_p)]
    sampler = Sampler(warpers, greedy=greedy, noise=Noise(seed))
    request = Request((), max_new_tokens, sampler, answer=answer)
    pool = ServerPool(lm, prompt, request, [stop] if isinstance(stop, str) else stop, row, budget)
    try:
        yield from grow(pool, policy)
    except RemoteError as error:
        yield _give_way(pool, error)
    yield from close(pool, policy)


def _give_way(pool: Roster, error: RemoteError) -> Noted:
    """Stop where a server failed for good, if anything had come to its end by then; else raise."""
    if not pool.ended:
        raise error
    pool.stop("server")
    return Noted(f"{str(error).rstrip('.')}; the answer is that of the {len(pool.ended)} paths that arrived before")


def _fill(path: Path, reply: Reply) -> None:
    """Make ``reply``, as far as it goes, the whole of ``path``; only what is new is read."""
    log_probs, best = reply.log_probs or [], reply.top or []
    if len(log_probs) < len(path.log_probs):  # a stream that broke off has begun anew
        path.log_probs, path.confidences = [], []
    path.log_probs += log_probs[len(path.log_probs) :]
    path.confidences += [-mean([value for _, value in likely]) for likely in best[len(path.confidences) :]]
    path.text, path.tokens = reply.text, [UNKNOWN] * reply.completion_tokens


def _receive(pool: Roster, path: Path, reason: str, answer: Parser, seconds: float) -> None:
    """``path`` has all that it will get."""
    pool.events.append(Scored(pool.step, (pool.row,), len(path), seconds))
    numbers = (path.number,) * len(path)
    pool.events.append(Grown(pool.row, pool.step, numbers, tuple(path.tokens), tuple(path.confidences), 0, 0.0))
    pool.receive(path, reason)
    path.answer = answer(path.text) if path.complete else None


def interface(lm: RemoteLM, prompt: str | Chat) -> Interface:
    """The interface that ``prompt`` goes by."""
    return lm.offers.text if _by_text(lm, prompt) else lm.offers.chat


def _by_text(lm: RemoteLM, prompt: str | Chat) -> bool:
    """Whether ``prompt`` goes through plain completions."""
    return isinstance(prompt, str) and lm.chat is not True and not lm.offers.text.refusal
