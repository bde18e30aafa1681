"""Tries: one answer out of a set, or any run of words out of a bank.

Inside a word only what continues one of the words is allowed, so no new words are made of old pieces. A phrase that
begins another one ("Paris", "Parisian") competes with it: behind it the end is allowed as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ramify.constrain.graph import Branches, Graph
from ramify.constrain.vocabulary import Vocabulary
from ramify.errors import RamifyError


def phrases(vocabulary: Vocabulary, answers: Sequence[str], behind: str | None = None) -> Graph:
    """Exactly one of ``answers``, with or without a blank before it.

    ``behind``: the prompt, where the tokenizer's treatment of its border matters.
    """
    branches = Branches()
    ends: set[int] = set()
    for answer in answers:
        for path in spellings(vocabulary, answer, behind):
            ends.add(branches.add(path))
    if not ends:
        raise RamifyError("the set of answers is empty; give at least one")
    return Graph(vocabulary, branches.steps, ends)


def spellings(vocabulary: Vocabulary, answer: str, behind: str | None = None) -> list[tuple[int, ...]]:
    """The token paths of ``answer``, as it is and behind a blank; raises ``RamifyError`` where there are none."""
    plain = answer.strip()
    paths = dict.fromkeys(vocabulary.encode(text, behind) for text in (plain, " " + plain) if plain)
    paths.pop((), None)
    if not paths:
        raise RamifyError(f"the tokenizer makes nothing of the answer {answer!r}; leave it out or spell it otherwise")
    return list(paths)


def trie(vocabulary: Vocabulary, bank: Iterable[str], *, any_case: bool = False) -> Graph:
    """Any run of words of ``bank``, at least one, with blanks between them.

    ``any_case``: also in lower case and with a capital at the beginning. Words that the tokenizer cannot express are
    left out. Raises ``RamifyError`` when no word is left.
    """
    branches = Branches()
    ends: set[int] = set()
    later = branches.node()  # behind the first word, where a blank is due
    for word in cased(bank) if any_case else bank:
        for text, roots in ((word, (0,)), (" " + word, (0, later))):
            if path := vocabulary.encode(text):
                ends.update(branches.add(path, root) for root in roots)
    if not ends:
        raise RamifyError("the vocabulary bank is empty: there is no word in it that the tokenizer can express")
    return Graph(vocabulary, branches.steps, ends, dict.fromkeys(ends, (later,)))


def cased(bank: Iterable[str]) -> list[str]:
    """``bank`` with its words in lower case and with a capital at the beginning."""
    return list(dict.fromkeys(form for word in bank for form in (word, word.lower(), word[:1].upper() + word[1:])))
