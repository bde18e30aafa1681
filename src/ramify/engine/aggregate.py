"""From finished paths to one answer, and what paths say together: plain functions, none of which changes a path.

An answer is what the request's parser found in a path's text; paths without one do not vote.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ramify.engine.path import Path, mean
from ramify.engine.search import Decision
from ramify.errors import RamifyError

Weight = Callable[[Path], float]
TAIL = 2048  # tokens of a window and of a tail: DeepConf, section 4


def vote(paths: Sequence[Path], weight: Weight = lambda path: 1.0) -> Decision:
    """The answer of the most weight, and the paths that gave it first.

    With the default weight this is the majority of self-consistency (Wang et al., arXiv 2203.11171). A tie goes to the
    answer that came first.
    """
    votes: dict[str, float] = {}
    for path in paths:
        if path.answer is not None:
            votes[path.answer] = votes.get(path.answer, 0.0) + weight(path)
    winner = max(votes, key=votes.__getitem__, default=None)
    ranked = sorted(paths, key=lambda path: (path.answer != winner or winner is None, -votes.get(path.answer or "", 0)))
    return Decision(ranked, winner, votes)


def best(paths: Sequence[Path], score: Weight = lambda path: path.mean_log_prob) -> Decision:
    """The path of the highest score, by default the mean log-probability: best-of-N. Ties go to the first."""
    ranked = sorted(paths, key=lambda path: -score(path))
    return Decision(ranked, ranked[0].answer, {} if ranked[0].answer is None else {ranked[0].answer: score(ranked[0])})


def agreement(paths: Sequence[Path]) -> float:
    """Share of the commonest answer among the paths that have one; 0 without any."""
    answers = Counter(path.answer for path in paths if path.answer is not None)
    return answers.most_common(1)[0][1] / answers.total() if answers else 0.0


def expected_accuracy(paths: Sequence[Path], right: Callable[[str], bool]) -> float:
    """Chance that a majority vote with ties broken at random is right."""
    answers = Counter(path.answer for path in paths if path.answer is not None)
    if not answers:
        return 0.0
    most = max(answers.values())
    tied = [answer for answer, count in answers.items() if count == most]
    return mean([float(right(answer)) for answer in tied])


def groups(path: Path, window: int = TAIL) -> list[float]:
    """Mean confidence of every full window of ``window`` tokens; one of the whole path where it is shorter."""
    found = np.asarray(path.confidences)
    if len(found) == 0:
        return [0.0]
    if len(found) <= window:
        return [float(found.mean())]
    sums = np.concatenate([[0.0], np.cumsum(found)])
    return list(((sums[window:] - sums[:-window]) / window).tolist())


def lowest(path: Path, window: int = TAIL) -> float:
    """Confidence of the least confident window."""
    return min(groups(path, window))


def bottom(path: Path, window: int = TAIL, share: float = 0.1) -> float:
    """Mean confidence of the ``share`` of the windows that are least confident, at least one."""
    found = sorted(groups(path, window))
    return mean(found[: max(1, int(share * len(found)))])


def tail(path: Path, window: int = TAIL) -> float:
    """Mean confidence of the last ``window`` tokens."""
    return mean(path.confidences[-window:])


def keep_confident(paths: Sequence[Path], weight: Weight, eta: float) -> list[Path]:
    """The ``eta`` per cent of the paths with the greatest weight: those at or above the percentile 100 − eta."""
    if not 0 < eta <= 100:
        raise RamifyError(f"eta is {eta:g}; it is the percentage of paths to keep, above 0 and at most 100")
    bar = confidence_bar([weight(path) for path in paths], eta)
    return [path for path in paths if weight(path) >= bar]


def confidence_bar(confidences: Sequence[float], eta: float) -> float:
    """The percentile 100 − eta, interpolated linearly, which ``eta`` per cent of ``confidences`` reach."""
    return float(np.percentile(np.asarray(confidences), 100 - eta))


def diversity(paths: Sequence[Path], *, window: int = 64, n: int = 3, pairs: int = 64, seed: int = 0) -> float:
    """1 − mean overlap (Jaccard) of the n-grams in the last ``window`` tokens of two paths; 1 with fewer than two.

    Over at most ``pairs`` pairs, drawn at random.
    """
    sets = [
        {tuple(gram) for gram in zip(*(path.tokens[-window:][k:] for k in range(n)), strict=False)} for path in paths
    ]
    both = list(itertools.combinations(sets, 2))
    if not both:
        return 1.0
    if len(both) > pairs:
        both = random.Random(seed).sample(both, pairs)
    return 1.0 - mean([len(one & other) / len(one | other) if one | other else 1.0 for one, other in both])
