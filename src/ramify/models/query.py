"""What is asked of an OpenAI-compatible server: the fields of one request, what it may cost, how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ramify.errors import RamifyError
from ramify.models.reply import Malformed, Reply, read_reply

Chat = list[dict[str, str]]

# What ``query`` sets, or what its answers must not have otherwise.
FIELDS = frozenset((
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed",
    "logprobs", "top_logprobs", "echo", "n", "best_of", "stream", "stream_options",
))  # fmt: skip
TEMPLATE_TOKENS = 128  # more than a chat template adds to a chat


@dataclass
class Query:
    """A request, to be sent once for each sample.

    ``body``: its fields, with "messages" for a chat and "prompt" for a text. ``top``: alternatives to keep for each
    token. ``granted``: whether the server is known to give the log-probabilities asked for. ``prompt_tokens``: of the
    prompt, once a reply counted them.
    """

    body: dict[str, Any]
    top: int = 0
    granted: bool = True
    prompt_tokens: int | None = None

    def bound(self) -> int:
        """Most tokens that one request can take."""
        return self.read_at_most() + int(self.body["max_tokens"])

    def read_at_most(self) -> int:
        """Tokens of the prompt, or the most they can be; no tokenizer reads less than a byte with each token."""
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        chat = "messages" in self.body
        text = json.dumps(self.body["messages"], ensure_ascii=False) if chat else self.body["prompt"]
        return len(text.encode()) + (TEMPLATE_TOKENS if chat else 2)

    def read(self, answer: str, sample: int) -> Reply:
        """The reply in ``answer``; raises ``Malformed``, also where granted log-probabilities are missing."""
        reply = read_reply(answer, sample=sample, top=self.top, echo="echo" in self.body)
        if self.granted and "logprobs" in self.body and reply.log_probs is None:
            if reply.text:
                raise Malformed("no log-probs, though they were asked for")
            reply = replace(reply, tokens=[], log_probs=[], top=[] if self.top else None)
        self.prompt_tokens = reply.prompt_tokens
        return reply


def query(
    model: str,
    prompt: str | Chat,
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None = None,
    stop: str | Sequence[str] = (),
    alternatives: int | None = None,
    echo: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Query:
    """The query for ``prompt``; ``alternatives``: of each token to ask for, None for no log-probabilities at all."""
    body: dict[str, Any] = {"model": model, "max_tokens": max_new_tokens}
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    else:
        body["prompt"] = prompt
    if alternatives is not None:
        body["logprobs"] = True if chat else alternatives
        if chat and alternatives:
            body["top_logprobs"] = alternatives
    optional: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "echo": echo or None, "extra_body": extra}
    optional["stop"] = ([stop] if isinstance(stop, str) else list(stop)) or None
    return Query(body | {name: value for name, value in optional.items() if value is not None})


def check(
    prompt: str | Chat,
    samples: int,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    top_log_probs: int,
) -> None:
    """Raise ``RamifyError`` for what no server can do."""
    if not prompt:
        raise RamifyError("the prompt is empty; give a text, or a chat of at least one message")
    for message in [] if isinstance(prompt, str) else prompt:
        fields = message if isinstance(message, dict) else {}
        if not (isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str)):
            raise RamifyError(f"a chat is a list of messages with a role and a content, and {message!r} is not one")
    try:
        json.dumps(prompt, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RamifyError("the prompt holds half a surrogate pair, which no server can read; decode it anew") from error
    for name, value, least in (("samples", samples, 1), ("max_new_tokens", max_new_tokens, 1), ("seed", seed, 0),
                               ("top_log_probs", top_log_probs, 0), ("temperature", temperature, 0)):  # fmt: skip
        if value is not None and value < least:
            raise RamifyError(f"{name} is {value}; give at least {least}")
    if top_p is not None and not 0 < top_p <= 1:
        raise RamifyError(f"top_p is {top_p}; give more than 0 and at most 1")
