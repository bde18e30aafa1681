"""What a task is, and tasks without end from the generated families.

A hash of the question decides which split it belongs to, so no question of one split can turn up in another, whatever
the seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ramify.bench.tasks.answers import canonical, parse_answer
from ramify.bench.tasks.problems import FAMILIES
from ramify.errors import RamifyError, unknown

# What the demo reasoner is trained on; "sum" is the small shared task of the search methods, with a model of its own.
REASONING = ("story", "relations", "table")
SPLITS = {"train": range(80), "validation": range(80, 90), "test": range(90, 100)}


@dataclass(frozen=True)
class Task:
    """A question with its answer. ``prompt``: the text to continue; ``worked``: one way to the answer, may be empty."""

    id: str
    question: str
    prompt: str
    answer: str
    family: str = ""
    worked: str = ""

    def right(self, text: str) -> bool:
        """Whether ``text``, a completion of the prompt, gives the answer."""
        given = parse_answer(text)
        return given is not None and given == canonical(self.answer)


def split_of(question: str) -> str:
    """The split that a generated question belongs to."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    return next(split for split, places in SPLITS.items() if place in places)


def draws(split: str = "train", seed: object = 0, families: Sequence[str] = REASONING) -> Iterator[Task]:
    """Questions of ``split`` without end, the families in turn; the same for the same arguments. They may repeat.

    Raises ``RamifyError`` for an unknown split or family.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    for family in families:
        if family not in FAMILIES:
            raise unknown("family of questions", family, FAMILIES)
    if not families:
        raise RamifyError(f"no family of questions is given; there are: {', '.join(FAMILIES)}")
    return _draws(split, seed, families)


def _draws(split: str, seed: object, families: Sequence[str]) -> Iterator[Task]:
    rng = random.Random(f"{split} {seed}")
    count = 0
    while True:
        family = families[count % len(families)]
        problem = FAMILIES[family](rng)
        if split_of(problem.question) == split:
            name = f"{family}-{seed}-{count}"
            worked = problem.work(random.Random(f"{name} {problem.question}"))
            yield Task(name, problem.question, problem.prompt, str(problem.answer), family, worked)
            count += 1


def tasks(count: int = 400, split: str = "test", seed: int = 0, families: Sequence[str] = REASONING) -> list[Task]:
    """``count`` different questions of ``split``, the families in turn; fewer are the first of more."""
    if count < 1:
        raise RamifyError(f"{count} questions were asked for; ask for at least 1")
    found: dict[str, Task] = {}
    for task in itertools.islice(draws(split, seed, families), 2 * count + 100):
        found.setdefault(task.question, task)
        if len(found) == count:
            return list(found.values())
    raise RamifyError(f"{', '.join(families)}: there are not {count} different questions; ask for at most {len(found)}")
