"""Prompts for comparisons: read from a file, or cut from standard-library modules that the demo model never saw.

Files:

* ``.txt``: one prompt per non-empty line; or, as soon as the file has a line that is just ``---``, one prompt per
  block between such lines (so that prompts may span lines).
* ``.jsonl``: one object per line with ``prompt`` or ``text`` (and, if wanted, ``id`` and ``group``), or a Spec-Bench
  question (``question_id``, ``category``, ``turns``), of which the first turn is taken. Its eight MT-Bench categories
  form the one group ``mt_bench``, as in the published tables.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ramify.bench.lines import entries, read_text
from ramify.errors import RamifyError

MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
)
SEPARATOR = "---"


@dataclass(frozen=True)
class Prompt:
    """A text to continue. ``id`` is unique within its source; ``group`` is the task it belongs to, or empty."""

    id: str
    text: str
    group: str = ""


def load_prompts(path: str | Path) -> tuple[list[Prompt], list[str]]:
    """The prompts of a file, and one sentence per line that had to be left out.

    Raises ``RamifyError`` when the file cannot be read, is neither ``.txt`` nor ``.jsonl``, or holds no prompt.
    """
    path = Path(path)
    readers = {".txt": _read_text, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise RamifyError(f"prompts come from a .txt or .jsonl file, not {path.name!r}")
    content = read_text(path, "prompts")
    prompts: list[Prompt] = []
    problems: list[str] = []
    places: dict[str, int] = {}
    for line, prompt in readers[path.suffix](content):
        if isinstance(prompt, str):
            problems.append(f"{path}, line {line}: {prompt}")
        elif prompt.id in places:
            problems.append(f"{path}, line {line}: the id {prompt.id!r} was already used in line {places[prompt.id]}")
        else:
            places[prompt.id] = line
            prompts.append(prompt)
    if not prompts:
        raise RamifyError(f"no prompt in {path}: " + (problems[0] if problems else "the file is empty"))
    return prompts, problems


def _read_text(content: str) -> Iterator[tuple[int, Prompt | str]]:
    """(line number, prompt or what is wrong with it) for every prompt of a ``.txt`` file; ids are line numbers."""
    lines = content.split("\n")
    if SEPARATOR not in (line.strip() for line in lines):
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, Prompt(str(number), line.strip("\r"))
        return
    start = 1
    for number, line in enumerate([*lines, SEPARATOR], 1):
        if line.strip() == SEPARATOR:
            block = "\n".join(lines[start - 1 : number - 1]).replace("\r", "").strip("\n")
            if block.strip():
                yield start, Prompt(str(start), block)
            start = number + 1


def _read_jsonl(content: str) -> Iterator[tuple[int, Prompt | str]]:
    """(line number, prompt or what is wrong with it) for every non-empty line of a ``.jsonl`` file."""
    return entries(content, _from_entry)


def _from_entry(entry: object, number: int) -> Prompt | str:
    if not isinstance(entry, dict):
        return f"an object is needed, not {json.dumps(entry)[:40]}"
    if "turns" in entry:
        turns = entry["turns"]
        text = turns[0] if isinstance(turns, list) and turns else None
        category = str(entry.get("category", ""))
        group = "mt_bench" if category in MT_BENCH else category
        key, name = "turns", entry.get("question_id", number)
    else:
        key = next((k for k in ("prompt", "text") if k in entry), "")
        if not key:
            return "needs a 'prompt', a 'text' or Spec-Bench's 'turns'"
        text, group, name = entry[key], str(entry.get("group", "")), entry.get("id", number)
    if not isinstance(text, str) or not text.strip():
        return f"{key!r} holds no text"
    return Prompt(str(name), text, group)


def held_out_prompts(count: int = 16, seed: int = 0, size: int = 1000) -> list[Prompt]:
    """``count`` prompts of about ``size`` characters from the standard-library modules held out of the demo model.

    A prompt ends at the end of a line: half of them right after the header and docstring of a function or class
    (group ``start``), half between two statements of a function (group ``inside``). Modules take turns, so that each
    gives as many prompts as any other, as far as it has them. The result depends on ``seed`` and on the interpreter's
    version only, and fewer prompts are the first of more.
    """
    from ramify.train.data import library_files

    rng = random.Random(f"held-out prompts {seed}")
    cuts: list[list[Prompt]] = []
    for file in library_files()[1]:
        name = file.relative_to(sysconfig.get_path("stdlib")).as_posix()
        candidates = list(_cuts(name, file.read_text(encoding="utf-8"), size))
        rng.shuffle(candidates)
        cuts.append(candidates)
    if not any(cuts):
        raise RamifyError("this Python has no source of its library to take prompts from; give a file")
    rng.shuffle(cuts)
    chosen: list[Prompt] = []
    turn = 0
    while len(chosen) < count and any(cuts):
        turn += 1
        for place, candidates in enumerate(cuts):
            if candidates and len(chosen) < count:
                wanted = ("start", "inside")[(place + turn) % 2]
                best = next((c for c in candidates if c.group == wanted), candidates[0])
                chosen.append(best)
                candidates[:] = [c for c in candidates if _apart(c, best, size)]
    return chosen


def _apart(one: Prompt, other: Prompt, size: int) -> bool:
    return abs(int(one.id.split(":")[1]) - int(other.id.split(":")[1])) > size // 40


def _cuts(name: str, source: str, size: int) -> Iterator[Prompt]:
    """Every place of a module where a prompt may end; ids are ``module:last line``."""
    lines = source.split("\n")
    ends: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        body, start = node.body, node.body[0].lineno - 1
        if ast.get_docstring(node, clean=False) is not None:
            start = body[0].end_lineno or start
            body = body[1:]
        if body:
            ends[start] = "start"
        if isinstance(node, ast.FunctionDef) and len(body) > 3:
            ends.setdefault(body[len(body) // 2].lineno - 1, "inside")
    for end, group in sorted(ends.items()):
        first, length = end, 0
        while first > 0 and length < size:
            first -= 1
            length += len(lines[first]) + 1
        text = "\n".join(lines[first:end]).rstrip()
        remaining = sum(len(line) + 1 for line in lines[end:])
        if length >= size and remaining >= size // 2:
            yield Prompt(f"{name}:{end}", text, group)
