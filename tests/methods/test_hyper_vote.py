"""The vote by length and confidence, and finding its direction."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.engine.aggregate import vote
from ramify.engine.path import Path
from ramify.errors import RamifyError
from ramify.methods.search.hyper_vote import calibrate_length, how_many, ranks, values, vote_by_length


def path(length: int, confidence: float, answer: str | None, finish: str = "stop") -> Path:
    return Path(tokens=[1] * length, confidences=[confidence] * length, answer=answer, finish=finish)


EXAMPLE = [path(100, 2, "A"), path(80, 4, "B"), path(60, 3, "B"), path(40, 1, "A")]


def test_worked_numbers() -> None:
    assert ranks([100, 80, 60, 40]) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert ranks([2, 4, 3, 1]) == pytest.approx([1 / 3, 1, 2 / 3, 0])
    assert ranks([5, 5, 7, 5]) == pytest.approx([1 / 3, 1 / 3, 1, 1 / 3])
    assert values(EXAMPLE, 1) == pytest.approx([0.7333, 0.8, 0.4667, 0], abs=1e-4)
    assert values(EXAMPLE, -1) == pytest.approx([0.1333, 0.6, 0.6667, 0.6], abs=1e-4)
    for sign in (1, -1):
        decision = vote_by_length(EXAMPLE, sign)
        assert decision.answer == "B"
        assert decision.votes == pytest.approx({"B": 1.2667, "A": 0.7333}, abs=1e-4)
        assert [each.answer for each in decision.paths] == ["B", "B", "A", "A"]


def test_only_the_best_vote() -> None:
    assert vote_by_length(EXAMPLE, 1, top=1).votes == pytest.approx({"B": 0.8})
    assert vote_by_length(EXAMPLE, -1, top=2).votes == pytest.approx({"B": 1.2667}, abs=1e-4)
    assert [how_many(size, 4, 3) for size in (1, 12, 13, 32)] == [3, 3, 4, 8]


def test_the_tail_counts() -> None:
    late = Path(tokens=[1] * 8, confidences=[0.0] * 6 + [9.0] * 2, answer="A", finish="stop")
    early = Path(tokens=[1] * 8, confidences=[9.0] * 6 + [0.0] * 2, answer="B", finish="stop")
    assert vote_by_length([early, late], 1).answer == "A"
    assert vote_by_length([early, late], 1, tail=1.0).answer == "B"


def test_who_does_not_vote() -> None:
    cut = path(500, 9, "C", "length")
    silent = path(500, 9, None)
    decision = vote_by_length([*EXAMPLE, cut, silent], 1)
    assert decision.votes == vote_by_length(EXAMPLE, 1).votes
    assert len(decision.paths) == 6
    assert vote_by_length([cut], 1).answer == "C"
    assert vote_by_length([silent], 1).answer is None
    assert vote_by_length([], 1).answer is None


def test_ties() -> None:
    even = [path(5, 1, "A"), path(5, 1, "A"), path(5, 1, "B"), path(5, 1, "B"), path(5, 1, "C")]
    assert vote_by_length(even, 1).votes["A"] == vote_by_length(even, 1).votes["B"]
    # 0.3 + 0.3 against 0.6: the larger count, then the greatest value
    assert vote_by_length([path(9, 1, "B"), path(1, 1, "A"), path(5, 1, "A")], 1, weights=(1.0, 0.0)).answer == "B"
    many = [path(1, 1, "A"), path(1, 1, "A"), path(1, 1, "A"), path(2, 1, "B")]
    assert ranks([1, 1, 1, 2]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert vote_by_length(many, 1, weights=(1.0, 0.0)).answer == "A"


PATHS = st.lists(
    st.builds(path, st.integers(1, 9), st.integers(0, 9).map(float), st.sampled_from(["A", "B", "C"])), min_size=1
)


@given(PATHS, st.sampled_from([1, -1]), st.randoms())
def test_the_order_of_paths_does_not_matter(paths: list[Path], sign: int, rng: random.Random) -> None:
    decision = vote_by_length(paths, sign)
    shuffled = vote_by_length(rng.sample(paths, len(paths)), sign)
    assert shuffled.votes == pytest.approx(decision.votes)
    best = sorted(decision.votes.values())[-2:]
    if len(best) == 1 or best[1] - best[0] > 1e-6:
        assert shuffled.answer == decision.answer


@given(PATHS)
def test_equal_lengths_leave_confidence_and_equal_both_the_majority(paths: list[Path]) -> None:
    same = [path(5, each.confidences[0], each.answer) for each in paths]
    sure = ranks([each.confidences[0] for each in same])
    for sign in (1, -1):
        assert values(same, sign) == pytest.approx([0.3 + 0.4 * rank for rank in sure])
    equal = [path(5, 1.0, each.answer) for each in paths]
    counts = vote(equal).votes
    assert vote_by_length(equal, 1).votes == pytest.approx({answer: count / 2 for answer, count in counts.items()})


def pools(longer_is_right: bool, count: int = 50, seed: int = 0) -> list[tuple[list[Path], object]]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        right, wrong = (12, 4) if longer_is_right else (4, 12)
        paths = [path(right + rng.randint(0, 2), 5.0, "yes") for _ in range(2)]
        paths += [path(wrong + rng.randint(0, 2), 5.0, f"no{rng.randint(0, 2)}") for _ in range(2)]
        found.append((paths, lambda answer: answer == "yes"))
    return found


def test_calibration() -> None:
    assert calibrate_length(pools(True)) == 1  # type: ignore[arg-type]
    assert calibrate_length(pools(False)) == -1  # type: ignore[arg-type]
    one = [([path(9, 1, "yes"), path(1, 1, "yes"), path(5, 1, "no")], lambda answer: answer == "yes")] * 50
    with pytest.raises(RamifyError, match="length says nothing"):
        calibrate_length([([path(5, 1, "yes"), path(5, 1, "no")], lambda answer: answer == "yes")] * 50)
    assert calibrate_length([([path(9, 1, "yes"), path(8, 1, "yes"), path(5, 1, "no")], one[0][1])] * 50) == 1
    with pytest.raises(RamifyError, match="49 questions do not settle"):
        calibrate_length(pools(True, 49))  # type: ignore[arg-type]
