"""Passages to answer from, and perhaps the question, from a file: plain text, or JSON as question answering has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ramify.bench.lines import read_text
from ramify.errors import RamifyError

PASSAGES = ("passages", "context")


def read_passages(path: str | Path) -> tuple[str | None, list[str]]:
    """The question, None where there is none, and the passages of a file.

    A text file holds passages with empty lines between them. A ``.json`` file holds a list of them, or an object with
    "passages" (or "context") and perhaps a "question"; a passage is a text, or a title and its sentences, as HotpotQA
    has them. Raises ``RamifyError`` where the file cannot be read so, or holds no passage.
    """
    path = Path(path)
    content = read_text(path, "passages")
    question, found = None, content.replace("\r\n", "\n").split("\n\n")
    if path.suffix == ".json":
        question, found = _of_json(path, content)
    passages = [text.strip() for text in found if text.strip()]
    if not passages:
        raise RamifyError(f"there is no passage in {path}; write texts into it with empty lines between them")
    return question, passages


def _of_json(path: Path, content: str) -> tuple[str | None, list[str]]:
    try:
        entry = json.loads(content)
    except (json.JSONDecodeError, RecursionError):
        raise RamifyError(f"{path} is not JSON; end its name in .txt if it is plain text") from None
    question = None
    if isinstance(entry, dict):
        question, entry = entry.get("question"), next((entry[key] for key in PASSAGES if key in entry), None)
    found = [_passage(each) for each in entry] if isinstance(entry, list) else [None]
    passages = [text for text in found if text is not None]
    if len(passages) < len(found) or not isinstance(question, str | None):
        raise RamifyError(
            f'{path} needs "passages", each a text or a title with its sentences, and its "question" has to be a text'
        )
    return question, passages


def _passage(entry: Any) -> str | None:
    """The text of a passage; None where it is none."""
    match entry:
        case str():
            return entry
        case [str(title), [*sentences]] if all(isinstance(sentence, str) for sentence in sentences):
            return f"{title}: {''.join(sentences).strip()}"
        case _:
            return None
