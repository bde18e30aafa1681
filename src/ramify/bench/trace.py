"""The steps of a generation in a few plain integers, for views that show what was drafted and what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ramify.engine.result import Result


@dataclass(frozen=True)
class Step:
    """One decoding step. ``parents``, ``tokens``: the draft's nodes as in ``TokenTree`` (empty: nothing was drafted).
    ``path``: the accepted nodes. ``committed``: the tokens that the step added; the target's own one comes last, after
    those of ``path``, unless the sequence ended inside the path."""

    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    path: tuple[int, ...]
    committed: tuple[int, ...]


def steps_of(result: Result) -> list[Step]:
    """Every decoding step of ``result``; empty for a method that does not report its steps."""
    steps = []
    for drafted, accepted in result.steps:
        parents = drafted.tree.shape.parents if drafted else ()
        tokens = tuple(int(token) for token in drafted.tree.tokens.tolist()) if drafted else ()
        steps.append(Step(tuple(parents), tokens, tuple(accepted.path), tuple(accepted.tokens)))
    return steps


def pieces(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text that each token adds in the middle of a text; a token that is no whole character by itself is shown as
    the tokenizer writes it, and without a tokenizer as its number."""
    texts: dict[int, str] = {}
    if tokenizer is None:
        return {index: f"{index} " for index in ids}
    anchor = tokenizer.encode("x", add_special_tokens=False)[-1:]
    known = tokenizer.decode(anchor)
    for index in sorted(set(ids)):
        text = tokenizer.decode([*anchor, index])
        text = text[len(known) :] if text.startswith(known) else tokenizer.decode([index])
        if not text or "\ufffd" in text:
            text = str(tokenizer.convert_ids_to_tokens(index))
        texts[index] = text
    return texts
