"""Spans: a run of words that stands in a text just so.

The suffix automaton of the texts, with a mark between any two words, reads a span from behind a mark to a mark. So a
span begins and ends with a word wherever the tokens' borders are, and no span reaches from one text into another.
"""

from __future__ import annotations

from collections.abc import Sequence

from ramify.constrain.graph import Branches, Graph
from ramify.constrain.vocabulary import Vocabulary, pieces
from ramify.engine.automaton import SuffixAutomaton
from ramify.errors import RamifyError

MARK = -2  # between words; the automaton's own separator of texts is −1


def span(vocabulary: Vocabulary, texts: Sequence[str], literals: Sequence[str] = ()) -> Graph:
    """A contiguous run of words of one of ``texts``, or one of ``literals`` ("yes", "no") as a whole.

    The first word may stand behind a blank or not, whatever it does in the text. At most twice as many states as the
    texts have tokens and words. Raises ``RamifyError`` where there is no word.
    """
    automaton = SuffixAutomaton()
    firsts: dict[tuple[int, ...], set[tuple[int, ...]]] = {}  # a word's tokens in its text: those it may begin with
    for text in [*texts, *literals]:
        marked = [MARK]
        for piece in [text.strip()] if text in literals else pieces(text):
            tokens = vocabulary.encode(piece)
            if not tokens:
                raise RamifyError(f"the tokenizer makes nothing of {piece.strip()!r}; leave that text out")
            other = vocabulary.encode(piece[1:] if piece.startswith(" ") else " " + piece)
            firsts.setdefault(tokens, set()).add(other or tokens)
            marked += [*tokens, MARK]
        automaton.add(marked if len(marked) > 1 else [])
    if not firsts:
        raise RamifyError("the texts hold no word, so there is no span to choose; give evidence")
    return _graph(vocabulary, automaton, firsts)


def _graph(
    vocabulary: Vocabulary, automaton: SuffixAutomaton, firsts: dict[tuple[int, ...], set[tuple[int, ...]]]
) -> Graph:
    branches = Branches()
    branches.steps = [dict(steps) for steps in automaton.steps]
    start = branches.steps[0][MARK]
    jumps = {node: [steps.pop(MARK)] for node, steps in enumerate(branches.steps) if MARK in steps}
    ends = jumps.keys() - {0, start}
    aside = branches.node()  # first words as they are not in their text
    for tokens, others in firsts.items():
        state = start
        for token in tokens:
            state = branches.steps[state][token]
        for other in others:
            jumps.setdefault(branches.add(other, aside), []).append(state)
    jumps.setdefault(start, []).append(aside)
    return Graph(vocabulary, branches.steps, ends, jumps, start)
