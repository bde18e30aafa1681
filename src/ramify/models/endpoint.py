"""A server behind the official ``openai`` client: what the client's retries lack, a token budget, and clear errors.

The client itself tries again, with exponential back-off and jitter, on connection errors, timeouts and the statuses
408, 409, 429 and 5xx, and waits as long as Retry-After says (up to two minutes). Here the same number of tries also
covers answers that are no answers: no JSON, missing fields.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ramify.errors import RamifyError, first_line
from ramify.models.arriving import CUT, Arriving, Watch
from ramify.models.reply import Malformed, Reply

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds, as the client has them


class RemoteError(RamifyError):
    """A server that fails for good. ``replies``: all that had arrived by then."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.replies: list[Reply] = []


class Refused(RemoteError):
    """The server refuses the request as such, with ``status``; the same again would be refused again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BudgetSpent(RemoteError):
    """The next request might take more tokens than are left; it was not sent."""


class Meter:
    """Tokens spent so far, and those that requests under way may still take, under one cap.

    What a failed attempt took is known to the server only, and is not counted.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.spent = 0
        self.promised = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, bound: Callable[[], int]) -> Iterator[None]:
        """Hold ``bound()`` tokens for a request; waits for requests under way, which may take less than they hold."""
        with self.changed:
            while self.budget is not None and self.spent + self.promised + bound() > self.budget:
                if not self.promised:
                    raise BudgetSpent(
                        f"the budget of {self.budget} tokens is spent: {self.spent} are used and the next request may "
                        f"take {bound()}; raise budget, or lower max_new_tokens"
                    )
                self.changed.wait()
            held = bound()
            self.promised += held
        try:
            yield
        finally:
            with self.changed:
                self.promised -= held
                self.changed.notify_all()

    def spend(self, tokens: int) -> None:
        with self.changed:
            self.spent += tokens


class Endpoint:
    """The text and chat completions of the server at ``base_url``."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float, retries: int, budget: int | None) -> None:
        try:
            import openai
        except ImportError as error:
            raise RamifyError("RemoteLM needs the openai client; run: pip install 'ramify[remote]'") from error
        self.library = openai
        self.base_url, self.timeout, self.retries = base_url, timeout, retries
        self.meter = Meter(budget)
        # The client insists on a key; servers that need none take any.
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout)

    def ask(self, body: dict[str, Any], bound: Callable[[], int], read: Callable[[str], Reply]) -> Reply:
        """The reply to one request, counted; raises ``RemoteError`` once all tries are used up.

        ``body``: the request's fields, with "messages" for a chat. ``bound``: tokens that it can take at most.
        """
        return self._until(body, bound, lambda raw: read(raw.text))

    def follow(
        self,
        body: dict[str, Any],
        bound: Callable[[], int],
        begin: Callable[[], Arriving],
        known: Callable[[], int],
        watch: Watch,
    ) -> Reply:
        """Like ``ask``, but as a stream that ends as soon as ``watch`` says so; the reply is then "cut".

        ``begin``: where the pieces go. ``known``: tokens of the prompt, for the server counts them at the end only.
        """

        def read(raw: Any) -> Reply:
            arrived = begin()
            with contextlib.closing(raw.parse()) as stream:
                for chunk in _chunks(stream):
                    arrived.take(chunk)
                    if not arrived.finish and arrived.tokens and not watch(arrived.reply(known())):
                        arrived.finish = CUT
                        break
            if not arrived.finish:
                raise Malformed("the stream breaks off")
            return arrived.reply(known())

        return self._until(body | {"stream": True, "stream_options": {"include_usage": True}}, bound, read)

    def _until(self, body: dict[str, Any], bound: Callable[[], int], read: Callable[[Any], Reply]) -> Reply:
        """The first answer to ``body`` that can be read."""
        with self.meter.reserve(bound):
            left = self.retries
            while True:
                raw = self._send(body, left)
                left -= raw.retries_taken + 1
                try:
                    reply = read(raw)
                except Malformed as error:
                    if left < 0:
                        raise RemoteError(f"{self.base_url} gives no usable answer ({error})") from error
                    pause = min(FIRST_PAUSE * 2 ** (self.retries - left - 1), LONGEST_PAUSE)
                    time.sleep(pause * random.uniform(0.75, 1.0))
                    continue
                self.meter.spend(reply.prompt_tokens + reply.completion_tokens)
                return reply

    def _send(self, body: dict[str, Any], tries: int) -> Any:
        client = self.client.with_options(max_retries=tries)
        interface: Any = client.chat.completions if "messages" in body else client.completions
        try:
            return interface.with_raw_response.create(**body)
        except self.library.APIError as error:
            failure = self._explain(error)
        if "max_completion_tokens" in str(failure) and "max_tokens" in body:
            # Hosted reasoning models know the length by its new name only, other servers by its old one only.
            renamed = body | {"max_completion_tokens": body["max_tokens"]}
            del renamed["max_tokens"]
            return self._send(renamed, tries)
        raise failure

    def _explain(self, error: Any) -> RemoteError:
        openai, where = self.library, self.base_url
        if isinstance(error, openai.APITimeoutError):
            return RemoteError(f"{where} did not answer within {self.timeout:g} s, however often asked; raise timeout")
        if not isinstance(error, openai.APIStatusError):
            cause = first_line(error.__cause__ or error)
            return RemoteError(f"{where} cannot be reached ({cause}); check base_url, and that the server runs")
        status, said = error.status_code, _said(error)
        if status in (401, 403):
            return RemoteError(f"{where} refuses the key ({said}); give api_key, or set OPENAI_API_KEY")
        if status == 429:
            return RemoteError(f"{where} goes on limiting the rate ({said}); lower concurrency, or come back later")
        if status in (408, 409) or status >= 500:
            return RemoteError(f"{where} goes on failing with status {status} ({said})")
        return Refused(f"{where} refuses the request with status {status} ({said})", status)


def _chunks(stream: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; whatever breaks it is ``Malformed``, for the client tries again only before the first."""
    try:
        for chunk in stream:
            yield chunk.to_dict()
    except Exception as error:
        raise Malformed(f"the stream breaks off: {first_line(error)}") from error


def _said(error: Any) -> str:
    """The server's own words, one line of them."""
    body = error.body
    words = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    return first_line(ValueError(str(words or "no explanation")[:200]))
