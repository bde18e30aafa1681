"""Files with one entry on a line: read whole, and told line by line what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ramify.errors import RamifyError

T = TypeVar("T")


def read_text(path: Path, what: str) -> str:
    """The text of ``path``, without a byte order mark; ``RamifyError`` where that fails, saying ``what`` it holds."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RamifyError(f"cannot read {what} from {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RamifyError(f"{path}, line {line}: {what} are UTF-8 text, and this is not") from None


def entries(content: str, make: Callable[[object, int], T | str]) -> Iterator[tuple[int, T | str]]:
    """(line number, what ``make`` makes of the line's JSON, or what is wrong with it) for every non-empty line."""
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield number, f"not JSON ({error.msg if isinstance(error, json.JSONDecodeError) else 'nested too deeply'})"
            continue
        yield number, make(entry, number)
