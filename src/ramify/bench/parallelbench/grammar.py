"""Whether a sentence is English, as far as a small context-free grammar tells: the grammar score without LanguageTool.

The published benchmark asks a Java service. This acceptor needs none, and is no substitute for it on free text: it
knows main clauses in the past tense with coordination, subordinate clauses, prepositional phrases, adjectives and
adverbs, "a" and "an", the capital and the full stop, and the lexicon of ``words.py``. With ``unknown`` it takes every
word that it does not know for a noun, verb, adjective, adverb or name, so it judges the skeleton of function words.
Number agreement is not judged at all.

Cocke, Younger and Kasami's algorithm on binary rules: O(n³) in the words of the sentence.
"""

from __future__ import annotations

import itertools
import re

from ramify.bench.parallelbench.words import LEXICON, LOOSE, OPEN

# Above two parts what they make together; below, what a part is by itself.
RULES = {
    ("Subject", "Verbal"): "Clause",
    ("Clause", "Continued"): "Clause",
    ("conjunction", "Clause"): "Continued",
    ("and", "Clause"): "Continued",
    ("comma", "Continued"): "Continued",
    ("determiner", "Nominal"): "phrase",
    ("phrase", "Relation"): "phrase",
    ("adjective", "Nominal"): "Nominal",
    ("adverb", "Qualified"): "Qualified",
    ("Qualified", "Nominal"): "Nominal",
    ("preposition", "Object"): "Relation",
    ("Subject", "AndSubject"): "Subject",
    ("and", "Subject"): "AndSubject",
    ("Object", "AndObject"): "Object",
    ("and", "Object"): "AndObject",
    ("transitive", "Object"): "Verbal",
    ("copula", "Quality"): "Verbal",
    ("adverb", "Verbal"): "Verbal",
    ("Verbal", "Manner"): "Verbal",
    ("Verbal", "Relation"): "Verbal",
    ("Verbal", "AndVerbal"): "Verbal",
    ("and", "Verbal"): "AndVerbal",
    ("Manner", "AndManner"): "Manner",
    ("and", "Manner"): "AndManner",
    ("Quality", "AndQuality"): "Quality",
    ("and", "Quality"): "AndQuality",
    ("adverb", "Quality"): "Quality",
}
ALONE = {
    "phrase": ("Subject", "Object"),
    "subject": ("Subject",),
    "object": ("Object",),
    "pronoun": ("Subject", "Object"),
    "noun": ("Nominal",),
    "adjective": ("Qualified", "Quality"),
    "intransitive": ("Verbal",),
    "adverb": ("Manner",),
}
TOKEN = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|,|.")


def grammatical(text: str, unknown: bool = False) -> bool:
    """Whether ``text`` is one sentence of the grammar; ``unknown``: words outside the lexicon may be anything open."""
    text = text.strip()
    if text[-1:] not in {".", "!"}:
        return False
    tokens = [token for token in TOKEN.findall(text[:-1]) if token != " "]
    if not tokens or not tokens[0][0].isupper():
        return False
    if tokens[0] != "I":
        tokens[0] = tokens[0].lower()
    for article, following in itertools.pairwise(tokens):
        if article in {"a", "an"} and (article == "an") != (following[0].lower() in "aeiou"):
            return False
    kinds = [_kinds(token, unknown) for token in tokens]
    return all(kinds) and "Clause" in _parse(kinds)


def _kinds(token: str, unknown: bool) -> frozenset[str]:
    if token == ",":
        return frozenset({"comma"})
    known = LEXICON.get(token, frozenset())
    if unknown:
        known |= LOOSE.get(token, frozenset())
        if not known and token[0].isalpha():
            return OPEN
    return known


def _parse(kinds: list[frozenset[str]]) -> frozenset[str]:
    """What the whole may be."""
    spans: dict[tuple[int, int], frozenset[str]] = {
        (place, place + 1): _closed(kind) for place, kind in enumerate(kinds)
    }
    for length in range(2, len(kinds) + 1):
        for start in range(len(kinds) - length + 1):
            end = start + length
            spans[start, end] = _closed(
                frozenset(
                    RULES[one, other]
                    for middle in range(start + 1, end)
                    for one in spans[start, middle]
                    for other in spans[middle, end]
                    if (one, other) in RULES
                )
            )
    return spans[0, len(kinds)]


def _closed(found: frozenset[str]) -> frozenset[str]:
    return found.union(*(ALONE.get(kind, ()) for kind in found))
