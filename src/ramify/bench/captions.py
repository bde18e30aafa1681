"""Captions of one scene as an exact model: six templates, three words for each slot, and what captions are worth.

The next-token law is the exact conditional of the mixture, mixed with 0.1 % uniform, so that a search's doing is seen
and nothing else: no training, no sampling of references.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ramify.bench.table_model import table_lm
from ramify.models.causal import CausalLM

TEMPLATES = {
    "a S is V on the P": 0.60,
    "the S V near a P": 0.15,
    "there is a S V at the P": 0.10,
    "one S can be seen V by the P": 0.07,
    "at the P a S is V": 0.05,
    "an image of a S that V in a P": 0.03,
}
SHARES = (0.40, 0.33, 0.27)  # of the three words of a slot
SLOTS = "SVP"
UNIFORM = 0.001
START, END = 0, 1

Words = tuple[str, ...]


@functools.cache
def captions() -> dict[Words, float]:
    """Every caption with its probability."""
    found: dict[Words, float] = {}
    for template, weight in TEMPLATES.items():
        for picks in itertools.product(range(len(SHARES)), repeat=len(SLOTS)):
            chosen = dict(zip(SLOTS, picks, strict=True))
            words = tuple(f"{word}{chosen[word]}" if word in SLOTS else word for word in template.split())
            found[words] = weight * math.prod(SHARES[pick] for pick in picks)
    return found


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """The words by id; the first two are the start and the end of a caption."""
    return ("<start>", "<end>", *dict.fromkeys(word for caption in captions() for word in caption))


def caption_model() -> CausalLM:
    """The model; prompts are ``[START]``, and ``END`` ends a caption."""
    words = vocabulary()
    ids = {word: place for place, word in enumerate(words)}
    ahead: dict[tuple[int, ...], dict[int, float]] = {}
    for caption, probability in captions().items():
        tokens = (START, *(ids[word] for word in caption), END)
        for place in range(1, len(tokens)):
            following = ahead.setdefault(tokens[:place], {})
            following[tokens[place]] = following.get(tokens[place], 0.0) + probability

    def law(prefix: tuple[int, ...]) -> Tensor:
        uniform = torch.full((len(words),), 1 / len(words), dtype=torch.float64)
        following = ahead.get(prefix)
        if following is None:
            return uniform
        exact = torch.zeros(len(words), dtype=torch.float64)
        for token, weight in following.items():
            exact[token] = weight
        return (1 - UNIFORM) * exact / exact.sum() + UNIFORM * uniform

    return table_lm(len(words), law, "captions")


def worth(found: Sequence[Words]) -> dict[str, float]:
    """How different ``found`` are, and how near the best of them comes to what could have been said.

    distinct-n: different n-grams over all words. coverage: share of the templates. oracle: the expected BLEU-2 of the
    best of them with a caption drawn from the model. duplicates: share of those that were there before.
    """
    words = sum(map(len, found))
    distinct = {
        f"distinct-{n}": len({gram for caption in found for gram in grams(caption, n)}) / words for n in (1, 2, 4)
    }
    shapes = {_shape(caption) for caption in found} & {tuple(template.split()) for template in TEMPLATES}
    return distinct | {
        "coverage": len(shapes) / len(TEMPLATES),
        "oracle": sum(p * max(bleu2(each, caption) for each in found) for caption, p in captions().items()),
        "duplicates": 1 - len(set(found)) / len(found),
    }


def bleu2(found: Words, reference: Words) -> float:
    """Geometric mean of the precisions of words and pairs of words, with the brevity penalty."""
    precisions = []
    for n in (1, 2):
        mine, theirs = Counter(grams(found, n)), Counter(grams(reference, n))
        precisions.append((mine & theirs).total() / max(1, mine.total()))
    brevity = math.exp(min(0.0, 1 - len(reference) / len(found))) if found else 0.0
    return brevity * math.sqrt(math.prod(precisions))


def _shape(caption: Words) -> Words:
    return tuple(word[0] if word[0] in SLOTS else word for word in caption)


def grams(caption: Words, n: int) -> list[Words]:
    """The n-grams of a text, one after the other."""
    return [caption[place : place + n] for place in range(len(caption) - n + 1)]
