"""Errors that a user can mend: one sentence that names the cause and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RamifyError(ValueError):
    """Bad input or an unsupported request; the message is meant for people and fits one line."""


def unknown(kind: str, name: str, known: Iterable[str]) -> RamifyError:
    """The error for a name that does not exist, quoting the nearest one that does."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(names) or 'none'}"
    return RamifyError(f"unknown {kind} {name!r}; {hint}")


def first_line(error: BaseException) -> str:
    """What another library's ``error`` says, without its later lines and full stop; its type when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
