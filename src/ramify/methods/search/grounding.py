"""Questions over passages: answers as HotpotQA compares them, sentences as evidence, and the words it offers."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence

from ramify.constrain.vocabulary import words

_ARTICLES = {"a", "an", "the"}
_AUXILIARIES = "is are was were do does did has have had can could will would am"
_FUNCTION_WORDS = (
    f"{_AUXILIARIES} be been who whom whose what which when where why how of in on at by for to from with and or as it "
    "its this that these those he she they his her their"
)
_STOP = _ARTICLES | set(_FUNCTION_WORDS.split())
_ASKS_YES_OR_NO = set(_AUXILIARIES.split())
_FIXED = ("yes", "no", "noanswer")  # score by identity only
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_MARKS = re.compile(r"[^\w\s]|_")


@functools.lru_cache(maxsize=4096)
def normalise(answer: str) -> str:
    """``answer`` in lower case, without marks, articles and further blanks: HotpotQA's normaliser."""
    return " ".join(word for word in _MARKS.sub("", answer.lower()).split() if word not in _ARTICLES)


def exact_match(answer: str, gold: str) -> bool:
    """Whether two answers are the same once normalised."""
    return normalise(answer) == normalise(gold)


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words in common; "yes", "no" and "noanswer" score by identity."""
    one, other = normalise(answer), normalise(gold)
    if one != other and (one in _FIXED or other in _FIXED):
        return 0.0
    return _f1(one.split(), other.split())


def similarity(one: str, other: str) -> float:
    """F1 of the words that two questions have in common, stop words aside (unless nothing else is left)."""
    sides = [normalise(text).split() for text in (one, other)]
    content = [[word for word in side if word not in _STOP] for side in sides]
    return _f1(*(content if all(content) else sides))


def _f1(one: Sequence[str], other: Sequence[str]) -> float:
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other)) if common else float(list(one) == list(other))


def sentences(passages: Sequence[str]) -> list[str]:
    """The sentences of all ``passages`` in order."""
    return [part for passage in passages for part in _SENTENCE.split(passage.strip()) if part]


def nearest(question: str, texts: Sequence[str], count: int = 3, k1: float = 1.5, b: float = 0.75) -> list[str]:
    """The ``count`` of ``texts`` with the best BM25 score for ``question``, best first; none that shares no word."""
    split = [normalise(text).split() for text in texts]
    mean = sum(map(len, split)) / max(1, len(split))
    holding = Counter(word for each in split for word in set(each))
    scores = []
    for each in split:
        counts = Counter(each)
        score = 0.0
        for word in set(normalise(question).split()) & counts.keys():
            rarity = math.log(1 + (len(split) - holding[word] + 0.5) / (holding[word] + 0.5))
            score += rarity * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(each) / mean))
        scores.append(score)
    ranked = sorted(range(len(texts)), key=lambda place: -scores[place])
    return [texts[place] for place in ranked[:count] if scores[place] > 0]


def literals(question: str) -> list[str]:
    """Answers that need no evidence: yes and no, where ``question`` begins as such questions do."""
    first = question.split(maxsplit=1)
    return ["yes", "no"] if first and first[0].lower() in _ASKS_YES_OR_NO else []


def bank(question: str, evidence: Sequence[str]) -> list[str]:
    """The vocabulary bank: words of the question and of its evidence, numerals among them, and yes or no if asked."""
    return list(dict.fromkeys([*words(" \n".join([question, *evidence])), *literals(question)]))


def covers(words_offered: Sequence[str], answer: str) -> bool:
    """Whether every word of ``answer`` is among ``words_offered``; False for an answer without words."""
    offered = {normalise(word) for word in words_offered}
    needed = {normalise(word) for word in words(answer)} - {""}
    return bool(needed) and needed <= offered
