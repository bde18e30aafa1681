"""Votes, windows and percentiles, by the worked numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.engine.aggregate import (
    agreement,
    best,
    bottom,
    confidence_bar,
    diversity,
    expected_accuracy,
    groups,
    keep_confident,
    lowest,
    tail,
    vote,
)
from ramify.engine.path import Path
from ramify.errors import RamifyError


def path(answer: str | None, *confidences: float, number: int = 0) -> Path:
    return Path(number, answer=answer, confidences=list(confidences), finish="stop")


def test_the_majority_wins_and_a_tie_goes_to_the_first() -> None:
    decision = vote([path("A"), path("B"), path(None), path("B")])
    assert decision.answer == "B"
    assert decision.votes == {"A": 1, "B": 2}
    assert decision.paths[0].answer == "B"
    assert vote([path("A"), path("B"), path("B"), path("A")]).answer == "A"
    assert vote([path(None)]).answer is None
    assert expected_accuracy([path("A"), path("B"), path("C"), path("B"), path("A")], lambda a: a == "A") == 0.5


def test_weights_can_overrule_heads() -> None:
    decision = vote([path("A", 9.0), path("B", 4.0), path("B", 4.5)], lambda each: each.confidence)
    assert (decision.answer, decision.votes) == ("A", {"A": 9.0, "B": 8.5})


@given(st.lists(st.sampled_from(["A", "B", "C", None]), min_size=1, max_size=9), st.floats(0.1, 9))
def test_equal_confidences_are_a_majority(answers: list[str | None], confidence: float) -> None:
    paths = [path(answer, confidence, number=i) for i, answer in enumerate(answers)]
    plain, weighted = vote(paths), vote(paths, lambda each: each.confidence)
    most = [a for a, n in plain.votes.items() if n == max(plain.votes.values())]
    assert weighted.answer == plain.answer or (len(most) > 1 and weighted.answer in most)


@given(st.permutations(["A", "B", "B", "C", "B", "A"]))
def test_the_order_of_paths_does_not_matter(answers: list[str]) -> None:
    assert vote([path(answer) for answer in answers]).answer == "B"


def test_best_ranks_by_the_score_and_ties_go_to_the_first() -> None:
    paths = [Path(0, log_probs=[-1.0, -3.0]), Path(1, log_probs=[-1.5]), Path(2, log_probs=[-1.0, -2.0])]
    assert [each.number for each in best(paths).paths] == [1, 2, 0]
    assert best(paths, lambda each: sum(each.log_probs)).paths[0].number == 1


def test_windows() -> None:
    one = path("A", 5.0, 1.0, 3.0, 7.0)
    assert groups(one, 2) == [3.0, 2.0, 5.0]
    assert groups(one, 9) == [4.0]
    assert (lowest(one, 2), lowest(one, 9), tail(one, 2), bottom(one, 2)) == (2.0, 4.0, 5.0, 2.0)
    # A fifth of ten windows are two.
    assert bottom(path("A", *map(float, range(10))), 1, share=0.2) == 0.5


def test_the_bar_is_a_percentile() -> None:
    scores = [12, 11, 9, 8, 8, 7]
    assert confidence_bar(scores, 10) == 11.5
    assert confidence_bar(scores, 90) == 7.5
    paths = [path(str(score), float(score)) for score in scores]
    assert [each.answer for each in keep_confident(paths, lowest, 10)] == ["12"]
    assert [each.answer for each in keep_confident(paths, lowest, 90)] == ["12", "11", "9", "8", "8"]
    assert keep_confident(paths, lowest, 100) == paths
    with pytest.raises(RamifyError, match="eta is 0"):
        keep_confident(paths, lowest, 0)


def test_agreement_and_diversity() -> None:
    assert agreement([path("A"), path("A"), path(None), path("B")]) == pytest.approx(2 / 3)
    assert agreement([path(None)]) == 0
    twins = [Path(0, tokens=[1, 2, 3, 4]), Path(1, tokens=[1, 2, 3, 4])]
    assert diversity(twins) == 0
    assert diversity([twins[0], Path(1, tokens=[1, 2, 3, 5])]) == pytest.approx(2 / 3)
    assert diversity([*twins, Path(2, tokens=[7, 8, 9, 10])]) == pytest.approx(2 / 3)
    assert diversity(twins[:1]) == 1
