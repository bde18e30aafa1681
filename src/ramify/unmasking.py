"""Unmask: a canvas with open positions in, the same canvas filled in out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ramify.api import Stream, prepare, ready
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod, Method
from ramify.methods.registry import create
from ramify.models.masked import MaskedLM

Canvas = str | Sequence[int | None] | Sequence[str | int]
NEW_TOKENS = 64


def unmask(
    lm: MaskedLM | str,
    canvas: Canvas,
    method: str | Method = "threshold",
    *,
    options: dict[str, Any] | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Result:
    """Fill in the open positions of ``canvas``; ``result.text`` begins at the first of them.

    ``lm``: from ``load_masked``, or what it takes. ``canvas``: a text, behind which ``max_new_tokens`` positions are
    open (by default 64); token ids with None at the open positions; or texts and numbers in turn, a number being that
    many open positions: ``["def add(a, b):\\n    return ", 5, "\\n"]``. ``method``: one that fills in a canvas, see
    ``ramify.methods()``. ``settings``: as ``generate`` takes them (do_sample, temperature, top_p, …).

    Raises ``RamifyError`` for an autoregressive model or method, for a canvas without an open position or too long,
    and for steps and blocks that do not fit it.
    """
    chosen = create(method, **(options or {}))
    denoiser = require(lm, chosen)
    return chosen.complete(denoiser, [request(denoiser, chosen, canvas, max_new_tokens, seed, **settings)])[0]


def stream(
    lm: MaskedLM | str,
    canvas: Canvas,
    method: str | Method = "threshold",
    *,
    options: dict[str, Any] | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Stream:
    """Like ``unmask``, to be watched: iterate over ``.follow()`` for events as they happen, then read ``.result``."""
    chosen = create(method, **(options or {}))
    denoiser = require(lm, chosen)
    return Stream(denoiser, chosen, request(denoiser, chosen, canvas, max_new_tokens, seed, **settings))


def require(lm: MaskedLM | str, method: Method) -> MaskedLM:
    """``lm`` as a loaded denoiser; raises ``RamifyError`` for a method or a model that reads from left to right."""
    if not isinstance(method, MaskedMethod):
        raise RamifyError(f"{method.card.name} fills in no canvas; use method='unmask' or another of its family")
    denoiser = ready(lm, method)
    assert isinstance(denoiser, MaskedLM)
    return denoiser


def request(
    lm: MaskedLM, method: Method, canvas: Canvas, max_new_tokens: int | None, seed: int, **settings: Any
) -> Request:
    """``canvas`` as the engine takes it."""
    template = tokens_of(lm, canvas)
    if None in template:
        if max_new_tokens is not None:
            raise RamifyError("the canvas has open positions of its own; leave out max_new_tokens")
    else:
        template = [*template, *[None] * (NEW_TOKENS if max_new_tokens is None else max_new_tokens)]
    first = template.index(None) if None in template else len(template)
    prompt = [token for token in template[:first] if token is not None]
    # transformers prepares processors for a prompt, of which an image may have none.
    [prepared] = prepare(lm, [prompt or [0]], method, max_new_tokens=1, seed=seed, **settings)
    return replace(prepared, prompt=prompt, max_length=len(template), canvas=template[first:])


def tokens_of(lm: MaskedLM, canvas: Canvas) -> list[int | None]:
    """Token ids of ``canvas``, None at its open positions."""
    if isinstance(canvas, str):
        return list(lm.encode(canvas))
    if not any(isinstance(part, str) for part in canvas):
        return [part for part in canvas if not isinstance(part, str)]
    tokens: list[int | None] = []
    for part in canvas:
        if isinstance(part, str):
            tokens += lm.require_tokenizer()(part, add_special_tokens=not tokens)["input_ids"]
        elif part is None or part < 1:
            raise RamifyError(f"between texts stand numbers of open positions, at least 1, not {part}")
        else:
            tokens += [None] * part
    return tokens
