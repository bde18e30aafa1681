"""Questions and answers from a JSONL file: GSM8K's format, and what comes near it."""

from __future__ import annotations

import json
from pathlib import Path

from ramify.bench.lines import entries, read_text
from ramify.bench.tasks.answers import BOXED, MARK, canonical, parse_answer
from ramify.bench.tasks.task import Task
from ramify.errors import RamifyError

QUESTION = ("question", "problem", "prompt")
ANSWER = ("answer", "solution", "target")


def read_tasks(path: str | Path) -> tuple[list[Task], list[str]]:
    """The tasks of a ``.jsonl`` file, and one sentence per line that had to be left out.

    A line is an object with a ``question`` (or ``problem``, ``prompt``) and an ``answer`` (or ``solution``,
    ``target``): a number or text, or a worked answer that ends in "#### 42" or holds a \\boxed{42}; and if wanted an
    ``id`` and a ``family``. Raises ``RamifyError`` when the file cannot be read or holds no task.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise RamifyError(f"questions come from a .jsonl file, not {path.name!r}")
    found: dict[str, Task] = {}
    problems: list[str] = []
    for line, task in entries(read_text(path, "questions"), _task):
        if isinstance(task, str):
            problems.append(f"{path}, line {line}: {task}")
        elif task.id in found:
            problems.append(f"{path}, line {line}: the id {task.id!r} was already used")
        else:
            found[task.id] = task
    if not found:
        raise RamifyError(f"no question in {path}: " + (problems[0] if problems else "the file is empty"))
    return list(found.values()), problems


def _task(entry: object, number: int) -> Task | str:
    if not isinstance(entry, dict):
        return f"an object is needed, not {json.dumps(entry)[:40]}"
    question = next((entry[key] for key in QUESTION if key in entry), None)
    given = next((entry[key] for key in ANSWER if key in entry), None)
    if not isinstance(question, str) or not question.strip():
        return f"needs a question, as a text under one of {', '.join(QUESTION)}"
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return f"needs an answer, as a text or number under one of {', '.join(ANSWER)}"
    text = str(given)
    worked = MARK in text or BOXED.search(text) is not None
    answer = parse_answer(text) if worked else canonical(text)
    if answer is None:
        return f"there is no answer in {text[:40]!r}"
    family, name = str(entry.get("family", "")), str(entry.get("id", number))
    return Task(name, question, f"{question}\n", answer, family, text if worked else "")
