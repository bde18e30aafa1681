"""Drafts of an assistant with another tokenizer, translated by text.

Every step decodes the committed tokens, gives the text to the assistant in tokens of its own, and puts what it adds
into the target's tokens, so that they continue the committed ones:

* where the text ends within a character (byte-level tokens), the assistant sees it up to the character before, and its
  continuation is only of use if it writes that very character;
* the continuation is encoded behind the last committed tokens, as the target's own tokenizer would have it. Where that
  would merge across the boundary (what is committed is no longer how the whole would be written), it is encoded by
  itself. Tokens are proposed only if, behind the committed ones, they decode to the text that is meant.

A translation is a guess and no draw: the engine accepts each token with the probability that the target gives it, so
decoding stays exact. Special tokens are left out of the text. Cost per step, beside the assistant's: decoding the text
(0.2 ms for a thousand tokens) and encoding its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM

LONG = 16  # assistant's tokens for one of the target's, at most
WINDOW = 16  # tokens at the end of a text that are encoded anew when it grows
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


class Tongue:
    """A tokenizer as far as translating needs it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of ``text``; ``special``: with what the tokenizer puts around a text of its own."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special ones left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Translated(Drafter):
    """``drafter``, which proposes chains in the tokens of ``assistant``, as a drafter in the tokens of ``target``."""

    def __init__(self, drafter: Drafter, target: CausalLM, assistant: CausalLM) -> None:
        self.drafter = drafter
        self.target, self.own = Tongue(target.require_tokenizer()), Tongue(assistant.require_tokenizer())
        self.text = ""
        self.ids: list[int] = []

    def draft(self, context: Context) -> TokenTree:
        self._read(self.target.decode(context.tokens).rstrip(UNFINISHED))
        if not self.ids:
            return TokenTree.empty()
        within = Context(self.ids, LONG * context.levels, Sampler(), context.generator, len(self.ids))
        added = self.drafter.draft(within).tokens.tolist()
        end = self.ids[-WINDOW:]
        before, after = self.own.decode(end), self.own.decode([*end, *added]).rstrip(UNFINISHED)
        if not after.startswith(before):
            return TokenTree.empty()
        return TokenTree.chain(continuation(self.target, context.tokens, after[len(before) :])[: context.levels])

    def observe(self, outcome: Outcome) -> None:
        self.drafter.observe(outcome)

    def _read(self, text: str) -> None:
        """Keep ``ids`` those of ``text``; only its end is encoded, where the last ids stand for themselves."""
        end = self.ids[-WINDOW:]
        known = self.own.decode(end)
        if text.startswith(self.text) and self.text.endswith(known) and self.own.encode(known) == end:
            self.ids[-WINDOW:] = self.own.encode(known + text[len(self.text) :])
        else:
            self.ids = self.own.encode(text, special=True)
        self.text = text


def continuation(tongue: Tongue, tokens: Sequence[int], more: str) -> list[int]:
    """Tokens that continue ``tokens`` by the text ``more``; none where none are found.

    ``tokens`` may end within the first character of ``more``.
    """
    end = list(tokens[-WINDOW:])
    while tongue.decode(end).startswith(UNFINISHED):
        del end[0]
    whole = len(end)
    while tongue.decode(end[:whole]).endswith(UNFINISHED):
        whole -= 1
    known, begun = tongue.decode(end[:whole]), end[whole:]
    text = tongue.decode(end).rstrip(UNFINISHED) + more
    # Behind a line break, what does not stand at the start of a text is not given a space in front.
    for anchor in (known, "", "\n"):
        ids = tongue.encode(anchor + text[len(known) :])
        places = [whole] if ids[:whole] == end[:whole] else range(len(ids))
        place = next((place for place in places if tongue.decode(ids[:place]) == anchor), len(ids))
        found = ids[place + len(begun) :]
        if ids[place : place + len(begun)] == begun and tongue.decode([*end, *found]) == text:
            return found
    return []


def same_vocabulary(target: CausalLM, assistant: CausalLM) -> bool:
    """Whether the same id means the same token to both models; ids in reserve at the end are nobody's tokens.

    Raises ``RamifyError`` where it cannot be so, and a text is not to be had either.
    """
    if target.tokenizer is not None and assistant.tokenizer is not None:
        return bool(target.tokenizer.get_vocab() == assistant.tokenizer.get_vocab())
    if target.vocab_size != assistant.vocab_size:
        raise RamifyError(
            f"the assistant {assistant.name} has another vocabulary ({assistant.vocab_size} tokens) than "
            f"{target.name} ({target.vocab_size}); load both with their tokenizers, or choose one with the same"
        )
    return True
