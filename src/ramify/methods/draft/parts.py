"""Methods inside a method: given as names or objects, checked, and copied so that nothing is learned twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ramify.engine.verify import match
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod, Method
from ramify.methods.options import build_specs

Parts = str | DraftMethod | Sequence[str | DraftMethod]


def parts_of(given: Parts, what: str) -> list[DraftMethod]:
    """The methods in ``given``, without anything learned, as parts of ``what``.

    Names are separated by commas or plus signs, each with :option=value where wanted; of an object there is a copy.
    Raises ``RamifyError`` for one that makes no drafts or changes what the model says.
    """
    methods: list[Method] = []
    for entry in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        known: Any = entry
        methods += build_specs(entry) if isinstance(entry, str) else [replace(known)]
    return [_drafting(method, what) for method in methods]


def require_match(method: DraftMethod, what: str) -> DraftMethod:
    """``method``, or a ``RamifyError`` unless it verifies by matching, which needs no law of the drafts."""
    if method.rule.function is not match:
        rule = method.rule.function.__name__.replace("_", " ")
        raise RamifyError(
            f"{method.card.name} verifies by {rule}, but {what} by matching, since laws of drafts cannot be merged; "
            "give it verifier=match"
        )
    return method


def _drafting(method: Method, what: str) -> DraftMethod:
    name = method.card.name
    if not isinstance(method, DraftMethod) or method.card.family != "draft":
        raise RamifyError(f"{name} makes no drafts, so it cannot be part of {what}; name a draft method")
    if not method.card.lossless:
        raise RamifyError(f"{name} changes what the model says, so it cannot be part of {what}, which promises not to")
    return method
