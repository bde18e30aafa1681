"""Pools of paths on disk: sampled once, read again by every measurement on them.

A file holds whole pools, every path with its tokens and what is known of each, and a line about how they came to be.
What the line does not match is sampled anew. Numbers come back exactly: they were float32 when they were measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import numpy as np

from ramify.engine.path import Path

KNOWN = ("log_probs", "sampled_log_probs", "confidences", "entropies")


@dataclass(frozen=True)
class Pooled:
    """The ``paths`` of one request by number, the effective tokens ``spent`` on it, and counts of what was done."""

    paths: list[Path]
    spent: int
    counts: dict[str, float] = field(default_factory=dict)


def kept(folder: File | None, name: str, about: str, make: Callable[[], list[list[Pooled]]]) -> list[list[Pooled]]:
    """For every question and seed the pool that ``make`` gives; read from ``folder`` where it holds the same.

    ``about``: everything that the pools depend on. None for ``folder`` keeps nothing.
    """
    if folder is None:
        return make()
    file = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.npz"
    if file.exists() and (found := _read(file, about)) is not None:
        return found
    pools = make()
    folder.mkdir(parents=True, exist_ok=True)
    _write(file, about, pools)
    return pools


def _write(file: File, about: str, pools: Sequence[Sequence[Pooled]]) -> None:
    paths = [path for seeds in pools for pool in seeds for path in pool.paths]
    meta = {
        "about": about,
        "pools": [[[len(pool.paths), pool.spent, pool.counts] for pool in seeds] for seeds in pools],
        "paths": [[p.number, p.parent, p.start, len(p), p.score, p.finish, p.text, p.answer] for p in paths],
    }
    columns: dict[str, Any] = {
        name: np.asarray([value for path in paths for value in getattr(path, name)], np.float32) for name in KNOWN
    }
    columns["tokens"] = np.asarray([token for path in paths for token in path.tokens], np.int32)
    columns["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    temporary = file.with_suffix(".part.npz")
    np.savez(temporary, **columns)
    temporary.replace(file)


def _read(file: File, about: str) -> list[list[Pooled]] | None:
    """The pools in ``file``; None where they are others."""
    with np.load(file) as found:
        meta = json.loads(found["meta"].tobytes())
        if meta["about"] != about:
            return None
        tokens, columns = found["tokens"].tolist(), {name: found[name].tolist() for name in KNOWN}
    paths, at = [], 0
    for number, parent, start, length, score, finish, text, answer in meta["paths"]:
        known = {name: column[at : at + length] for name, column in columns.items()}
        paths.append(
            Path(
                number,
                parent,
                start,
                tokens[at : at + length],
                **known,
                score=score,
                finish=finish,
                text=text,
                answer=answer,
            )
        )
        at += length
    rest = iter(paths)
    return [
        [Pooled([next(rest) for _ in range(size)], spent, counts) for size, spent, counts in seeds]
        for seeds in meta["pools"]
    ]
