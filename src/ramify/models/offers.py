"""What a server offers, found out by asking it: servers differ, and their documentation lags behind.

Some refuse what they do not know, some pass over it in silence; alternatives for each token are at most 5, 20, or as
many as one likes; log-probabilities are the model's own (vLLM, llama.cpp) or those of the tempered law (SGLang); echo
returns the prompt's log-probabilities (vLLM, SGLang) or is passed over (llama.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ramify.models.endpoint import Refused
from ramify.models.reply import Reply

LADDER = (100, 20, 10, 5, 1, 0)  # numbers of alternatives to ask for, until one is granted
ABSENT = (404, 405)  # statuses of a path that is not there

Ask = Callable[[float, int | None, bool], Reply]


@dataclass(frozen=True)
class Interface:
    """What one interface of a server gives.

    ``refusal``: why the interface cannot be used, "" where it can. ``log_probs``: whether tokens come with their
    log-probabilities. ``top_log_probs``: how many alternatives with theirs, as far as was tried (up to 100).
    ``tempered``: whether log-probabilities are those of the law at the request's temperature instead of the model's
    own; None where that could not be seen. ``echo``: whether the prompt's tokens come with theirs, too.
    """

    refusal: str = ""
    log_probs: bool = False
    top_log_probs: int = 0
    tempered: bool | None = None
    echo: bool = False

    def __str__(self) -> str:
        if self.refusal:
            return "not offered"
        if not self.log_probs:
            return "text only"
        law = {None: "", False: " of the model's own law", True: " of the tempered law"}[self.tempered]
        prompt = ", the prompt's too" if self.echo else ""
        return f"log-probs{law}{prompt}, {self.top_log_probs} alternatives"


@dataclass(frozen=True)
class Offers:
    """What a server gives for plain texts (``text``) and for chats (``chat``)."""

    text: Interface
    chat: Interface

    def __str__(self) -> str:
        return f"text: {self.text}; chat: {self.chat}"


def probe(ask: Ask, *, echo: bool) -> Interface:
    """What the interface behind ``ask(temperature, alternatives, echo)``, a request for one token, gives.

    ``alternatives``: None for a request without log-probabilities. Costs two answered requests, and the refused ones.
    """
    refusal = ""
    for top in (*LADDER, None):
        try:
            first = ask(1.0, top, False)
            break
        except Refused as error:
            refusal = str(error)
            if error.status in ABSENT:
                return Interface(refusal)
    else:
        return Interface(refusal)
    if top is None or first.log_probs is None:
        return Interface()
    granted = _granted(top, first)
    try:
        second = ask(2.0, top, echo)
    except Refused:
        return Interface(log_probs=True, top_log_probs=granted)
    return Interface("", True, granted, _tempered(first, second), _echoed(second))


def _granted(asked: int, reply: Reply) -> int:
    best = reply.top[0] if reply.top else []
    # Where pieces of characters share an entry, fewer arrive than are granted.
    return asked if any("\N{REPLACEMENT CHARACTER}" in token for token, _ in best) else len(best)


def _tempered(first: Reply, second: Reply) -> bool | None:
    """Whether the gap between two tokens halves when the temperature doubles from ``first`` to ``second``."""
    if not first.top or not second.top:
        return None
    later = dict(second.top[-1])
    common = [(value, later[token]) for token, value in first.top[0] if token in later and value > -100.0]
    if len(common) < 2:
        return None
    gap, gap_later = common[0][0] - common[-1][0], common[0][1] - common[-1][1]
    return gap_later < 0.75 * gap


def _echoed(reply: Reply) -> bool:
    values = reply.log_probs or []
    return len(values) > reply.completion_tokens and not any(map(math.isnan, values[1:]))
