"""The length- and confidence-aware vote: among finished paths, the better half by two signs counts for more.

    v_i = w_L · L_i + w_C · C_i        longer is better (sign +1)
    v_i = w_L · (1 − L_i) + w_C · C_i  shorter is better (sign −1)

L and C are ranks within the pool, 0 to 1, of the length and of the mean confidence of the last quarter; equal values
share their mean rank. An answer weighs the sum over its paths; ties go to the larger count, then to the greatest v.
Weights 0.6 and 0.4 are the paper's. Ranks, the last quarter, and how many paths vote are reconstruction.

In which direction length counts could not be established, and the wrong one is worse than no vote at all. So there is
no default: ``calibrate_length`` finds it on questions with known answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from ramify.engine.path import Path, mean
from ramify.engine.search import Decision
from ramify.errors import RamifyError

WEIGHTS = (0.6, 0.4)
HELD_OUT = 50  # questions that a calibration needs


def values(
    paths: Sequence[Path], sign: int, *, weights: tuple[float, float] = WEIGHTS, tail: float = 0.25
) -> list[float]:
    """v of each of ``paths``."""
    lengths = ranks([len(path) for path in paths])
    confidences = ranks([_tail_confidence(path, tail) for path in paths])
    length, confidence = weights
    return [
        length * (long if sign > 0 else 1 - long) + confidence * sure
        for long, sure in zip(lengths, confidences, strict=True)
    ]


def vote_by_length(
    paths: Sequence[Path],
    sign: int,
    *,
    top: int | None = None,
    weights: tuple[float, float] = WEIGHTS,
    tail: float = 0.25,
) -> Decision:
    """The answer that weighs most among the ``top`` paths of the greatest v (None: all).

    Paths without an answer do not vote, nor do those that were cut by the greatest length if any came to a stop.
    """
    able = [path for path in paths if path.answer is not None]
    voters = [path for path in able if path.finish == "stop"] or able
    found = sorted(
        zip(voters, values(voters, sign, weights=weights, tail=tail), strict=True), key=lambda each: -each[1]
    )
    votes: dict[str, float] = {}
    counts: Counter[str] = Counter()
    greatest: dict[str, float] = {}
    for path, value in found[:top]:
        answer = str(path.answer)
        votes[answer] = votes.get(answer, 0.0) + value
        greatest.setdefault(answer, value)
        counts[answer] += 1
    winner = max(votes, key=lambda answer: (round(votes[answer], 9), counts[answer], greatest[answer]), default=None)
    value_of = dict(found)
    ranked = sorted(paths, key=lambda path: (path.answer != winner or winner is None, -value_of.get(path, -1.0)))
    return Decision(ranked, winner, votes)


def calibrate_length(
    pools: Sequence[tuple[Sequence[Path], Callable[[str], bool]]], *, weights: tuple[float, float] = WEIGHTS
) -> int:
    """The sign under which more of the ``pools`` come to the right answer: +1 longer, −1 shorter.

    ``pools``: for each of at least 50 held-out questions of the same model and kind, its finished paths and what tells
    whether an answer is right. Where both do equally well, the sign of the mean rank that right paths have above wrong
    ones decides. Raises ``RamifyError`` for fewer, and where nothing tells the signs apart.
    """
    if len(pools) < HELD_OUT:
        raise RamifyError(f"{len(pools)} questions do not settle the sign of the length; give at least {HELD_OUT}")
    right = {1: 0, -1: 0}
    slope = 0.0
    for paths, is_right in pools:
        for sign in right:
            answer = vote_by_length(paths, sign, weights=weights).answer
            right[sign] += answer is not None and is_right(answer)
        for path, rank in zip(paths, ranks([len(path) for path in paths]), strict=True):
            if path.answer is not None:
                slope += (rank - 0.5) * (1 if is_right(path.answer) else -1)
    difference = right[1] - right[-1] or round(slope, 6)
    if difference == 0:
        raise RamifyError("length says nothing about these answers; decide by self-consistency or deepconf instead")
    return 1 if difference > 0 else -1


def how_many(size: int, share: int, least: int) -> int:
    """K: one in ``share`` of ``size`` paths, at least ``least``."""
    return max(least, math.ceil(size / share))


def ranks(numbers: Sequence[float]) -> list[float]:
    """Places in ascending order, from 0 to 1; equal numbers share the mean of theirs, and a single one has 0.5."""
    if len(numbers) < 2:
        return [0.5] * len(numbers)
    ordered = sorted(numbers)
    first = {number: place for place, number in reversed(list(enumerate(ordered)))}
    last = {number: place for place, number in enumerate(ordered)}
    return [(first[number] + last[number]) / 2 / (len(numbers) - 1) for number in numbers]


def _tail_confidence(path: Path, tail: float) -> float:
    return mean(path.confidences[-max(1, math.ceil(tail * len(path))) :])
