"""Pools on disk come back as they were, and only to whoever asks for the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path as File

from families import byte_lm

import ramify
from ramify.bench.kept import Pooled, kept
from ramify.engine.path import Path
from ramify.methods.search.self_consistency import SelfConsistency


def pools() -> list[list[Pooled]]:
    result = ramify.generate(
        byte_lm(), "one", SelfConsistency(3), max_new_tokens=7, do_sample=True, answer=lambda text: text[:1]
    )
    found = [*result.paths, result.paths[0].fork(3), Path(4, finish="confidence")]
    return [[Pooled(found[:2], 14, {"refined": 3, "changed": 0.7}), Pooled([], 0)], [Pooled(found[2:], 99)]]


def plain(found: list[list[Pooled]]) -> object:
    return [[([asdict(path) for path in pool.paths], pool.spent, pool.counts) for pool in seeds] for seeds in found]


def test_pools_come_back_as_they_were(tmp_path: File) -> None:
    made = pools()
    folder = tmp_path / "new"
    assert kept(folder, "HyPER, 2 paths", "a", lambda: made) is made
    assert [file.name for file in folder.iterdir()] == ["hyper-2-paths.npz"]

    def never() -> list[list[Pooled]]:
        raise AssertionError("sampled again")

    assert plain(kept(folder, "HyPER, 2 paths", "a", never)) == plain(made)


def test_others_are_made_anew(tmp_path: File) -> None:
    first, second = pools(), pools()[:1]
    kept(tmp_path, "x", "a", lambda: first)
    assert kept(tmp_path, "x", "b", lambda: second) is second
    assert plain(kept(tmp_path, "x", "b", lambda: first)) == plain(second)
    assert kept(None, "x", "b", lambda: first) is first
