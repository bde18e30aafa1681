"""One answer of an OpenAI-compatible server, read from the shapes that servers really give it.

Log-probabilities come as a list of entries (chat completions; llama.cpp also for plain completions) or as parallel
lists (completions). With parallel lists, the alternatives of a token are a dictionary: pieces of characters that all
decode to the replacement character share one entry there, and vLLM and OpenAI add the chosen token to the best k.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Alternatives = list[tuple[str, float]]


class Malformed(ValueError):
    """An answer without what every answer has."""


@dataclass(frozen=True)
class Reply:
    """One sampled continuation.

    ``text``: without the stop text that ended it, unless the server was told to keep it. ``finish``: "stop", "length",
    what else the server says ("content_filter"), or "cut" where the caller had enough. ``prompt_tokens``,
    ``completion_tokens``: as the server counts them. ``sample``: which of the samples asked for, from 0. Where
    log-probabilities were asked for, else None: ``tokens`` as strings, ``log_probs`` of each, and ``top``, for each the
    likeliest tokens with theirs, best first (None where no alternatives were asked for). They cover what was generated,
    a stop text and hidden reasoning included.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    tokens: list[str] | None = None
    log_probs: list[float] | None = None
    top: list[Alternatives] | None = None
    sample: int = 0


@dataclass(frozen=True)
class Piece:
    """A part of an answer that comes as a stream: what it adds, and how the answer ended or what it took, once said."""

    text: str = ""
    finish: str = ""
    tokens: list[str] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[Alternatives] = field(default_factory=list)
    usage: tuple[int, int] | None = None


def read_reply(body: str, *, sample: int = 0, top: int = 0, echo: bool = False) -> Reply:
    """The reply in ``body``, with at most ``top`` alternatives for each token; raises ``Malformed``.

    ``echo``: the tokens begin with the prompt's, some of which may lack a log-probability (then NaN).
    """
    with _reading(body):
        answer = json.loads(body)
        if "choices" not in answer:
            raise Malformed(f"no choices in {_short(body)}")
        [choice] = answer["choices"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        usage = answer["usage"]
        tokens, log_probs, best = _read_log_probs(choice.get("logprobs"))
        reply = Reply(
            text="" if text is None else _of(str, text),
            finish=_of(str, choice["finish_reason"]),
            prompt_tokens=_count(usage["prompt_tokens"]),
            completion_tokens=_count(usage["completion_tokens"]),
            tokens=tokens,
            log_probs=log_probs,
            top=[each[:top] for each in best] if best and top else None,
            sample=sample,
        )
    if not echo and any(map(math.isnan, log_probs or ())):
        raise Malformed("a token without log-probability")
    return reply


def read_piece(chunk: dict[str, Any]) -> Piece:
    """What one chunk of a stream adds; the last one may hold the usage alone. Raises ``Malformed``."""
    with _reading(str(chunk)):
        usage = chunk.get("usage")
        counts = (_count(usage["prompt_tokens"]), _count(usage["completion_tokens"])) if usage else None
        if not chunk["choices"]:
            return Piece(usage=counts)
        [choice] = chunk["choices"]
        text = choice["text"] if "text" in choice else choice["delta"].get("content")
        tokens, log_probs, best = _read_log_probs(choice.get("logprobs"))
        if any(map(math.isnan, log_probs or ())):
            raise Malformed("a token without log-probability")
        return Piece(text or "", choice.get("finish_reason") or "", tokens or [], log_probs or [], best or [], counts)


@contextmanager
def _reading(body: str) -> Iterator[None]:
    """Whatever goes wrong in reading ``body`` is ``Malformed``."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise Malformed(f"no JSON: {_short(body)}") from error
    except KeyError as error:
        raise Malformed(f"no {error.args[0]} in {_short(body)}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"{error} in {_short(body)}") from error


def _read_log_probs(found: Any) -> tuple[list[str] | None, list[float] | None, list[Alternatives] | None]:
    """Tokens, their log-probabilities and the alternatives of each, best first; None where there are none."""
    if not found:
        return None, None, None
    entries = found.get("content")
    if entries is None:
        if found.get("tokens") is None:
            return None, None, None
        tokens, values = found["tokens"], found["token_logprobs"]
        tops = [list((best or {}).items()) for best in found.get("top_logprobs") or [None] * len(tokens)]
    else:
        tokens, values = [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]
        tops = [[(best["token"], best["logprob"]) for best in entry.get("top_logprobs") or ()] for entry in entries]
    if not len(tokens) == len(values) == len(tops):
        raise Malformed(f"{len(tokens)} tokens, but {len(values)} log-probs and {len(tops)} alternatives")
    log_probs = [math.nan if value is None else float(value) for value in values]
    if max(log_probs, default=0.0) > 1e-3:
        raise Malformed("log-probs above 0, as from a server that gives logits instead")
    ranked = [sorted(((_of(str, token), float(value)) for token, value in best), key=lambda pair: -pair[1])
              for best in tops]  # fmt: skip
    return [_of(str, token) for token in tokens], log_probs, ranked


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} where {kind.__name__} is due")
    return value


def _count(value: Any) -> int:
    if _of(int, value) < 0:
        raise ValueError(f"{value} tokens")
    return int(value)


def _short(body: str) -> str:
    return repr(body if len(body) <= 80 else body[:77] + "…")
