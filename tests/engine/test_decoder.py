"""The decoder: the tokens of plain decoding from any text, however it was set back before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from families import CONTEXT, VOCABULARY, fresh, lm, text
from torch import Tensor

from ramify.engine.decoder import FEW, Decoder
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree

PROMPT = text(12, 2, period=5)
GENERATOR = torch.Generator()


def likely(family: str, tokens: Sequence[int], count: int) -> list[int]:
    """``count`` greedy tokens after ``tokens``, each from a forward pass over all of the text."""
    grown = list(tokens)
    for _ in range(count):
        grown.append(int(fresh(family, grown)[-1].argmax()))
    return grown[len(tokens) :]


def decoder(family: str, drafter: Drafter | None = None, prompt: Sequence[int] = PROMPT, limit: int = 90) -> Decoder:
    return Decoder(lm(family), Request(list(prompt), limit), drafter)


class Watching(Drafter):
    """Guesses at random, half of it right, and checks that it hears of every token once, with its logits and states."""

    wants_prompt_logits = True

    def __init__(self, family: str, layers: Sequence[int] = ()) -> None:
        self.family, self.hidden_layers = family, layers
        self.random = random.Random(3)
        self.seen: list[int] = []
        self.rewinds: list[int] = []
        self.proposed: list[int] = []
        self.drafts = 0

    def start(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        assert logits is not None
        assert list(hidden) == list(self.hidden_layers)
        for index, token in enumerate(tokens):
            self.hear(token, logits[index])

    def observe(self, outcome: Outcome) -> None:
        assert list(outcome.hidden) == list(self.hidden_layers)
        assert all(len(states) == len(outcome.tree) for states in outcome.hidden.values())
        assert len(outcome.tokens) == len(outcome.path)
        followed = [int(outcome.tree.tokens[node]) for node in outcome.path]
        assert followed[1:] == list(outcome.tokens[:-1])
        for token, node in zip(followed, outcome.path, strict=True):
            self.hear(token, outcome.logits[node])
        own = [] if outcome.mine is None else outcome.tree.tokens[list(outcome.mine)[1:]].tolist()
        assert own == (self.proposed if outcome.mine else [])
        self.proposed = []

    def hear(self, token: int, logits: Tensor) -> None:
        self.seen.append(token)
        torch.testing.assert_close(logits, fresh(self.family, self.seen)[-1], atol=1e-4, rtol=1e-4)

    def rewind(self, length: int) -> None:
        self.rewinds.append(length)
        del self.seen[length:]

    def draft(self, context: Context) -> TokenTree:
        self.drafts += 1
        if self.hidden_layers:
            assert self.seen == context.tokens[:-1]
        right = likely(self.family, context.tokens, 3)
        wrong = [self.random.randrange(VOCABULARY) for _ in range(2)]
        paths = [wrong, right] if self.random.random() < 0.5 else [[*right[:1], *wrong], wrong]
        tree = TokenTree.from_paths(paths).cut(context.levels)
        self.proposed = tree.tokens.tolist()
        return tree


class Deep(Drafter):
    """Proposes more than there is room for."""

    def draft(self, context: Context) -> TokenTree:
        return TokenTree.chain([7] * 30)


@pytest.mark.parametrize("layers", [(), (-1,)], ids=["logits", "states"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_from_any_text_it_goes_on_as_the_model_would(family: str, layers: tuple[int, ...]):
    numbers = random.Random(8)
    drafter = Watching(family, layers)
    own = decoder(family, drafter)
    tokens = list(PROMPT)
    for _ in range(12):
        own.follow(tokens, GENERATOR)
        added: list[int] = []
        for _ in range(numbers.randrange(1, 3)):
            added += own.step(2)
        assert added == likely(family, tokens, len(added))
        kept = numbers.randrange(len(added) + 1)  # as a target that accepts so many, and then has its own way
        tokens += [*added[:kept], *([] if kept == len(added) else [(added[kept] + 1) % VOCABULARY])]
        if numbers.random() < 0.5:
            tokens += [7]
    assert own.session.lengths[0] == len(own.row.tokens) - 1
    assert drafter.drafts > 10
    assert len(drafter.rewinds) > 2


@pytest.mark.parametrize("missing", [1, 2, FEW, FEW + 1, FEW + 20])
def test_what_was_not_read_yet_comes_along_with_the_next_pass(missing: int):
    own = decoder("llama")
    own.follow(PROMPT, GENERATOR)
    own.step()
    grown = [*own.row.tokens[:-1], *text(missing, 4)]
    own.follow(grown, GENERATOR)
    assert list(own.step()) == likely("llama", grown, 1)
    assert own.rows_run == (1 if missing > FEW + 1 else missing)
    assert own.session.lengths[0] == len(grown)


def test_a_text_may_be_cut_to_its_own_beginning():
    own = decoder("llama", Watching("llama"))
    own.follow(PROMPT, GENERATOR)
    first = [*own.step(3), *own.step(3)]
    for cut in (1, 5, len(PROMPT)):
        own.follow(PROMPT[:cut], GENERATOR)
        assert list(own.step(3)) == likely("llama", PROMPT[:cut], len(own.row.tokens) - cut)
    own.follow(PROMPT, GENERATOR)
    assert [*own.step(3), *own.step(3)][:3] == first[:3]


def test_it_ends_at_its_limit_and_not_before():
    for limit in (len(PROMPT) + 1, len(PROMPT) + 2, len(PROMPT) + 6):
        own = decoder("llama", Watching("llama"), limit=limit)
        own.follow(PROMPT, GENERATOR)
        while own.left:
            own.step(8)
        assert len(own.row.tokens) == limit
        own.follow([*own.row.tokens[:-1]], GENERATOR)
        assert len(own.step(8)) == 1
    prompt = text(CONTEXT - 3, 5, period=9)
    own = decoder("gpt2", Deep(), prompt, CONTEXT + 1)  # the last token needs no place in the context
    own.follow(prompt, GENERATOR)
    added: list[int] = []
    while own.left:
        added += own.step(8)
    assert added[:3] == likely("gpt2", prompt, 3)
    assert len(added) == 4


@pytest.mark.parametrize("vocabulary", [VOCABULARY - 30, VOCABULARY + 30])
def test_logits_of_another_width(vocabulary: int):
    own = Decoder(lm("llama"), Request(PROMPT[:4], 40), None, vocabulary)
    own.follow([token % 60 for token in PROMPT], GENERATOR)
    [token] = own.step()
    logits = fresh("llama", [token % 60 for token in PROMPT])[-1]
    assert token == int(logits[: min(vocabulary, VOCABULARY)].argmax())
