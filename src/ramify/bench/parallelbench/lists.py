"""The list operations, on printed lists of names: copy, reverse, sort, shuffle; replace, insert and remove.

``sort`` has the labels of the published benchmark, which order by the full name although its prompt asks for the last
name; ``sort-lastname`` has the labels that fit. The paper's scorers look at the list that an answer holds, so the
lenient score reads it from the last "[" on and forgives quotes and blanks; the strict one wants the form asked for.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ramify.bench.parallelbench.family import Family, Problem, Score
from ramify.bench.parallelbench.names import LETTERS, NAMES
from ramify.errors import RamifyError, unknown

POOLS = {"names": NAMES, "letters": LETTERS}
SIZES = (3, 4, 5, 6)
STRICT = re.compile(r'\[(?:"[^"]*"(?:, "[^"]*")*)?\]')

List = Sequence[str]


def printed(items: List) -> str:
    """``["A", "B"]``."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def read(text: str) -> list[str] | None:
    """The last list of an answer, however it is written; None where there is no bracket."""
    if "[" not in text:
        return None
    inside = text.rpartition("[")[2].partition("]")[0]
    return [item.strip(" \t\n\"'") for item in inside.split(",")] if inside.strip() else []


def read_strictly(text: str) -> list[str] | None:
    """The same of an answer that is nothing but a list as ``printed`` writes it."""
    return re.findall(r'"([^"]*)"', text) if STRICT.fullmatch(text.strip()) else None


@dataclass(frozen=True)
class Operation:
    """``target``: a right answer. ``right``: whether a list is one of them; None: there is only one.

    ``word``: whether a new name is given, ``index``: how many more places than items there are, None for no index.
    """

    instruction: str
    target: Callable[[random.Random, list[str], str, int], list[str]]
    right: Callable[[Problem, list[str]], bool] | None = None
    word: bool = False
    index: int | None = None


def last_name(name: str) -> tuple[str, str]:
    """What ``sort-lastname`` sorts by."""
    return name.rpartition(" ")[2], name


def _shuffled(rng: random.Random, items: list[str], word: str, index: int) -> list[str]:
    found = list(items)
    while found == items:
        rng.shuffle(found)
    return found


def _without(items: List, index: int) -> list[str]:
    return [*items[:index], *items[index + 1 :]]


def _with(items: List, index: int, word: str) -> list[str]:
    return [*items[:index], word, *items[index:]]


def _replaced(items: List, index: int, word: str) -> list[str]:
    return [*items[:index], word, *items[index + 1 :]]


def _replaced_somewhere(problem: Problem, given: list[str]) -> bool:
    if problem.word not in given or (place := given.index(problem.word)) >= len(problem.items):
        return False
    return given == _replaced(problem.items, place, problem.word)


def _inserted_somewhere(problem: Problem, given: list[str]) -> bool:
    return problem.word in given and _without(given, given.index(problem.word)) == list(problem.items)


def _removed_somewhere(problem: Problem, given: list[str]) -> bool:
    return any(given == _without(problem.items, place) for place in range(len(problem.items)))


def _other_order(problem: Problem, given: list[str]) -> bool:
    return sorted(given) == sorted(problem.items) and given != list(problem.items)


OPERATIONS = {
    "copy": Operation("Repeat the list as it is.", lambda rng, items, word, index: items),
    "reverse": Operation("Write the list in reverse order.", lambda rng, items, word, index: items[::-1]),
    "sort": Operation(
        "Sort the list alphabetically by last name.", lambda rng, items, word, index: sorted(items)
    ),
    "sort-lastname": Operation(
        "Sort the list alphabetically by last name.", lambda rng, items, word, index: sorted(items, key=last_name)
    ),
    "shuffle": Operation("Write the list in another order, any but the given one.", _shuffled, _other_order),
    "replace-index": Operation(
        "Replace the name at the given index, counted from 0, by the new name.",
        lambda rng, items, word, index: _replaced(items, index, word),
        word=True,
        index=0,
    ),
    "replace-random": Operation(
        "Replace one name of the list, any of them, by the new name.",
        lambda rng, items, word, index: _replaced(items, rng.randrange(len(items)), word),
        _replaced_somewhere,
        word=True,
    ),
    "insert-index": Operation(
        "Insert the new name so that it stands at the given index, counted from 0.",
        lambda rng, items, word, index: _with(items, index, word),
        word=True,
        index=1,
    ),
    "insert-random": Operation(
        "Insert the new name anywhere in the list.",
        lambda rng, items, word, index: _with(items, rng.randrange(len(items) + 1), word),
        _inserted_somewhere,
        word=True,
    ),
    "remove-index": Operation(
        "Remove the name at the given index, counted from 0.",
        lambda rng, items, word, index: _without(items, index),
        index=0,
    ),
    "remove-random": Operation(
        "Remove one name from the list, any of them.",
        lambda rng, items, word, index: _without(items, rng.randrange(len(items))),
        _removed_somewhere,
    ),
}  # fmt: skip


@functools.cache
def families(pool: str = "names") -> dict[str, Family]:
    """The list operations on items of a pool: ``names``, or ``letters``, which most tokenizers write as one token."""
    if pool not in POOLS:
        raise unknown("pool of items", pool, POOLS)
    return families_of(POOLS[pool])


def families_of(pool: List) -> dict[str, Family]:
    """The list operations on items of any pool."""
    return {name: _family(name, operation, pool) for name, operation in OPERATIONS.items()}


def _family(name: str, operation: Operation, pool: List) -> Family:
    def draw(rng: random.Random, size: int) -> Problem:
        if not 2 <= size < len(pool):
            raise RamifyError(f"a list of {name} has between 2 and {len(pool) - 1} items, not {size}")
        drawn = rng.sample(pool, size + 1)
        items, word = drawn[:size], drawn[size] if operation.word else ""
        index = -1 if operation.index is None else rng.randrange(size + operation.index)
        label = operation.target(rng, items, word, index)
        lines = [printed(items)]
        lines += [f"index: {index}"] if index >= 0 else []
        lines += [f'new name: "{word}"'] if word else []
        slots = tuple(piece for item in label for piece in ('", "', item))[1:]
        fixed = ('["', *slots, '"]')
        return Problem(name, "\n".join(lines), printed(label), size, tuple(items), word, index, fixed)

    def score(problem: Problem, text: str) -> Score:
        def right(given: list[str] | None) -> float:
            if given is None:
                return 0.0
            return float(operation.right(problem, given) if operation.right else printed(given) == problem.label)

        return Score(right(read(text)), right(read_strictly(text)))

    return Family(name, operation.instruction, SIZES, draw, score)
