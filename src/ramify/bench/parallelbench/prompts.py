"""Problems as prompts, in several templates, since rankings of decoders flip with the template; and the infill mode.

The texts are ours. Every template has one example in it and ends where the answer begins, on a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ramify.bench.parallelbench.family import Problem
from ramify.bench.parallelbench.tasks import Problems
from ramify.errors import RamifyError, unknown

TEMPLATES = {
    "instruction": (
        "{instruction}\n\nExample\nInput:\n{example}\nOutput:\n{answer}\n\nNow it is your turn.\nInput:\n{question}\n"
        "Output:\n"
    ),
    "pairs": "# {instruction}\n\n{example}\n=>\n{answer}\n\n{question}\n=>\n",
    "dialogue": (
        "User: {instruction} Reply with the result only.\n{example}\nAssistant:\n{answer}\n"
        "User: {instruction} Reply with the result only.\n{question}\nAssistant:\n"
    ),
}


def prompt(problems: Problems, problem: Problem, template: str = "instruction") -> str:
    """The text that an answer to ``problem`` continues."""
    if template not in TEMPLATES:
        raise unknown("template", template, TEMPLATES)
    return TEMPLATES[template].format(
        instruction=problems.family.instruction,
        example=problems.example.question,
        answer=problems.example.label,
        question=problem.question,
    )


@dataclass(frozen=True)
class Infill:
    """An answer of which only the items are open: ``ids`` of a right one, ``open``: whether a token is to be found."""

    ids: list[int]
    open: list[bool]


def infill(problem: Problem, encode: Callable[[str], Sequence[int]]) -> Infill:
    """The answer with its brackets, quotes and commas given; ``encode``: text to tokens, without any at the ends.

    Every slot has as many tokens as each item of the problem, for their number must not tell which item comes.
    Raises ``RamifyError`` for a family without fixed parts, and where items differ in length.
    """
    if not problem.slots:
        raise RamifyError(f"{problem.family} has no fixed form to fill in; the infill mode is for lists and puzzles")
    items = {*problem.items, *problem.slots[1::2], *filter(None, [problem.word])}
    widths = {len(encode(item)) for item in items}
    if len(widths) > 1:
        raise RamifyError(
            f"the items take {min(widths)} to {max(widths)} tokens, so slots would tell which is which; "
            "draw the problems with items='letters'"
        )
    ids: list[int] = []
    open: list[bool] = []
    for place, piece in enumerate(problem.slots):
        tokens = list(encode(piece))
        ids += tokens
        open += [place % 2 == 1] * len(tokens)
    return Infill(ids, open)
