"""Words to sentence: one sentence that has all the given words in it.

easy: words of such parts of speech, and in such an order, that they make a sentence with little between. medium: the
same in any order. hard: any words, so that a sentence has to be found for them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ramify.bench.parallelbench.family import Family, Problem, Score
from ramify.bench.parallelbench.grammar import grammatical
from ramify.bench.parallelbench.words import CONTENT, LEXICON, WORDS
from ramify.errors import RamifyError

SIZES, MOST = (4,), 7
# The parts of speech of easy words, in the order of a sentence, by how many there are.
PATTERNS = (
    ("noun",),
    ("noun", "intransitive"),
    ("noun", "transitive", "noun"),
    ("adjective", "noun", "transitive", "noun"),
    ("adjective", "noun", "transitive", "adjective", "noun"),
    ("adjective", "noun", "transitive", "adjective", "noun", "adverb"),
    ("adjective", "noun", "adverb", "transitive", "adjective", "adjective", "noun"),
)
BY_KIND = {kind: tuple(WORDS[kind].split()) for kind in CONTENT}
ALL = tuple(word for words in BY_KIND.values() for word in words)


def sentence(words: Sequence[str]) -> str:
    """One sentence with all of ``words``: a clause for each verb, and one for what is left over."""
    left = {kind: [word for word in words if kind in LEXICON[word]] for kind in CONTENT}

    def one(kind: str) -> list[str]:
        return [left[kind].pop(0)] if left[kind] else []

    def phrase(otherwise: str) -> list[str]:
        if not left["noun"]:
            return [otherwise]
        # What the last noun cannot leave to others, it takes.
        count = 1 if len(left["noun"]) > 1 else len(left["adjective"])
        qualities = [word for _ in range(count) for word in one("adjective")]
        return ["the", *qualities, *one("noun")]

    clauses = []
    while any(left.values()):
        if left["transitive"]:
            clauses.append([*phrase("she"), *one("transitive"), *phrase("it"), *one("adverb")])
        elif left["intransitive"]:
            clauses.append([*phrase("she"), *one("intransitive"), *one("adverb")])
        elif left["noun"]:
            clauses.append(["she", "saw", *phrase("it"), *one("adverb")])
        elif left["adjective"]:
            clauses.append(["it", "seemed", *one("adjective")])
        else:
            clauses.append(["she", "waited", *one("adverb")])
    text = " and ".join(" ".join(clause) for clause in clauses)
    return f"{text[0].upper()}{text[1:]}."


def _drawn(rng: random.Random, level: str, size: int) -> list[str]:
    if level == "hard":
        return rng.sample(ALL, size)
    found: list[str] = []
    for kind in PATTERNS[size - 1]:
        found.append(rng.choice([word for word in BY_KIND[kind] if word not in found]))
    if level == "medium":
        rng.shuffle(found)
    return found


def _family(level: str) -> Family:
    name = f"words-to-sentence-{level}"

    def draw(rng: random.Random, size: int) -> Problem:
        if not 1 <= size <= MOST:
            raise RamifyError(f"{name} takes 1 to {MOST} words, not {size}")
        words = _drawn(rng, level, size)
        return Problem(name, f"words: {', '.join(words)}", sentence(words), size, tuple(words))

    return Family(name, "Write one English sentence that contains all of the words.", SIZES, draw, score)


def score(problem: Problem, text: str) -> Score:
    """Grammar 0 or 1, strictly with the words of the lexicon only; inclusion: every word is a part of the text."""
    said = text.lower()
    included = all(word.lower() in said for word in problem.items)
    return Score(float(grammatical(text, unknown=True)), float(grammatical(text)), float(included))


FAMILIES = {family.name: family for family in map(_family, ("easy", "medium", "hard"))}
