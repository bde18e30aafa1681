"""The parser of answers, and when two answers are the same. Frozen: accuracies are comparable only under one parser.

The answer of a text is, by the first rule that finds something:

1. what follows the last ``####`` (the notation of GSM8K), to the end of its line;
2. what the last ``\\boxed{…}`` holds;
3. what follows the last "answer is" or "answer:", to the end of its line or sentence;
4. the last number of a text that ends with a full stop, or a text that is nothing but a number. A text that was cut off
   by a length limit seldom ends so, and then has no answer and no vote.

Numbers are compared as numbers: "1/2" is "0.5", "1,000" is "1000", "$42." is "42". Other answers are compared without
case, articles, outer punctuation and extra spaces.
"""

from __future__ import annotations

import re
from fractions import Fraction

MARK = "####"
# A sign only where no operand stands before it; thousands in groups of three; a decimal part; a denominator.
NUMBER = re.compile(r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?")
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
SAID = re.compile(r"\banswer(?: is|:)\s*(.+?)(?:\.\s|\.?$)", re.IGNORECASE | re.MULTILINE)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def parse_answer(text: str) -> str | None:
    """The answer that ``text`` gives, in the form of ``canonical``; None when it gives none."""
    if MARK in text:
        lines = text.rsplit(MARK, 1)[1].strip().splitlines()
        return canonical(lines[0]) if lines else None
    for pattern in (BOXED, SAID):
        found = pattern.findall(text)
        if found:
            return canonical(found[-1])
    numbers = NUMBER.findall(_plain(text))
    ended = text.rstrip().endswith(".") or (numbers and number(text) is not None)
    return canonical(numbers[-1]) if numbers and ended else None


def canonical(answer: str) -> str | None:
    """One spelling for all spellings of an answer: equal answers have equal forms. None for an empty answer."""
    value = number(answer)
    if value is not None:
        return str(value)
    words = ARTICLES.sub(" ", answer.lower()).split()
    return " ".join(words).strip(" .,;:!?\"'$") or None


def number(answer: str) -> Fraction | None:
    """The number that ``answer`` is, without currency, percent sign, thousands separators and a final full stop."""
    bare = _plain(answer).strip().strip("$€£").rstrip(".%").replace("$", "")
    if not NUMBER.fullmatch(bare):
        return None
    above, _, below = bare.replace(",", "").replace(" ", "").partition("/")
    if not below:
        return Fraction(above)
    return Fraction(above) / Fraction(below) if int(below) else None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are equal; an empty one equals nothing."""
    form = canonical(one)
    return form is not None and form == canonical(other)


def _plain(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")
