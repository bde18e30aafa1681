"""Paraphrases and summaries: a user's own texts, since the published ones belong to others and are not copied here.

A file has one JSON object on a line: ``family`` ("paraphrase" or "summarize"), ``text``, for summaries ``reference``.
The published scores need a Java service (LanguageTool) and a language model (BERTScore); what is here needs neither:
for paraphrases 1 − BLEU with respect to the text, how much of it was said otherwise, and for summaries ROUGE-L with
respect to the reference. Both say nothing about grammar, and nothing about whether a paraphrase keeps the meaning.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path

from ramify.bench.lines import entries, read_text
from ramify.bench.parallelbench.family import Family, Problem, Score
from ramify.errors import RamifyError

INSTRUCTIONS = {
    "paraphrase": "Say the text in other words.",
    "summarize": "Summarise the text in one sentence.",
}
WORD = re.compile(r"\w+")
ORDER = 4  # of BLEU


def read_texts(path: str | Path) -> tuple[list[Problem], list[str]]:
    """The problems of a ``.jsonl`` file, and one sentence per line that had to be left out.

    Raises ``RamifyError`` when the file cannot be read or holds no problem.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise RamifyError(f"texts come from a .jsonl file, not {path.name!r}")
    found: list[Problem] = []
    problems: list[str] = []
    for line, problem in entries(read_text(path, "texts"), _problem):
        if isinstance(problem, str):
            problems.append(f"{path}, line {line}: {problem}")
        else:
            found.append(problem)
    if not found:
        raise RamifyError(f"no text in {path}: " + (problems[0] if problems else "the file is empty"))
    return found, problems


def _problem(entry: object, number: int) -> Problem | str:
    if not isinstance(entry, dict):
        return "an object is needed"
    family, text, reference = (entry.get(key) for key in ("family", "text", "reference"))
    if family not in INSTRUCTIONS:
        return f"needs a family, {' or '.join(INSTRUCTIONS)}"
    if not isinstance(text, str) or not text.strip():
        return "needs a text"
    if family == "summarize" and (not isinstance(reference, str) or not reference.strip()):
        return "a summary needs a reference"
    return Problem(family, text, reference if isinstance(reference, str) else "", len(WORD.findall(text)))


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def bleu(text: str, reference: str) -> float:
    """Of one sentence, runs of up to 4 words, with one added to the counts of runs longer than a word."""
    given, wanted = words_of(text), words_of(reference)
    if not given or not wanted:
        return 0.0
    total = 0.0
    for length in range(1, ORDER + 1):
        runs, known = _runs(given, length), _runs(wanted, length)
        added = length > 1
        hits = (runs & known).total() + added
        if not hits:
            return 0.0
        total += math.log(hits / (runs.total() + added))
    return min(1.0, math.exp(1 - len(wanted) / len(given))) * math.exp(total / ORDER)


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words."""
    given, wanted = words_of(text), words_of(reference)
    row = [0] * (len(wanted) + 1)
    for word in given:
        before = 0
        for place, other in enumerate(wanted, 1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(given) + len(wanted)) if given and wanted else 0.0


def _runs(words: list[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _family(name: str) -> Family:
    def draw(rng: random.Random, size: int) -> Problem:
        raise RamifyError(f"{name} has no texts of its own; give a .jsonl file with yours")

    def score(problem: Problem, text: str) -> Score:
        if name == "summarize":
            found = rouge_l(text, problem.label)
        else:
            found = 1 - bleu(text, problem.question) if words_of(text) else 0.0
        return Score(found, found)

    return Family(name, INSTRUCTIONS[name], (), draw, score)


FAMILIES = {name: _family(name) for name in INSTRUCTIONS}
