"""What constraints need to know of a model's tokens, and how texts fall into words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ramify.errors import RamifyError
from ramify.models.causal import CausalLM

# A word keeps inner marks ("1,000", "well-known", "O'Neil"); any other mark is a piece of its own.
_PIECE = re.compile(r"(\s*)(\w+(?:[-'’.,/]\w+)*|[^\w\s])")
_ANCHORS = ("\n", ":", "1")  # texts that what stands behind them seldom merges with


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """``size``: number of logits. ``known``: ids from here on mean nothing to the tokenizer and are never allowed.

    ``ends``: ids that end a text. ``tokenizer``: None where constraints are given as ids only.
    """

    size: int
    known: int
    ends: frozenset[int]
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if not self.ends:
            raise RamifyError("a constraint needs a token that ends the text, and none is known; give ends=[…]")
        if not 0 < self.known <= self.size:
            raise RamifyError(
                f"the tokenizer knows {self.known} tokens and the model {self.size}; they do not belong together"
            )
        self.check(self.ends)

    @staticmethod
    def of(lm: CausalLM, ends: Iterable[int] | None = None) -> Vocabulary:
        """Of a loaded model; ``ends`` by default those of its generation settings or of its tokenizer."""
        if ends is None:
            given = lm.model.generation_config.eos_token_id
            if given is None and lm.tokenizer is not None:
                given = lm.tokenizer.eos_token_id
            ends = [] if given is None else [given] if isinstance(given, int) else given
        known = lm.vocab_size if lm.tokenizer is None else min(len(lm.tokenizer), lm.vocab_size)
        return Vocabulary(lm.vocab_size, known, frozenset(ends), lm.tokenizer)

    def check(self, tokens: Iterable[int]) -> None:
        """Raise ``RamifyError`` for an id that the tokenizer does not know."""
        for token in tokens:
            if not 0 <= token < self.known:
                raise RamifyError(f"token {token} is outside the {self.known} tokens that the tokenizer knows")

    def encode(self, text: str, behind: str | None = None) -> tuple[int, ...]:
        """Ids of ``text`` as it stands behind a text that ends a token, by default behind any.

        A prompt that would merge with it is tokenised already when it is continued, so then the text stands alone.
        Empty where the tokenizer makes nothing of it, or only by way of its unknown token.
        """
        for anchor in _ANCHORS if behind is None else (behind,):
            alone, whole = self._ids(anchor), self._ids(anchor + text)
            if whole[: len(alone)] == alone:
                return self._expressed(whole[len(alone) :])
        return self._expressed(self._ids(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``, end tokens and other special ones left out."""
        text: str = self._tokenizer().decode(list(tokens), skip_special_tokens=True)
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer()(text, add_special_tokens=False)["input_ids"]
        return ids

    def _expressed(self, ids: list[int]) -> tuple[int, ...]:
        unknown = self._tokenizer().unk_token_id
        return () if unknown is not None and unknown in ids else tuple(ids)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise RamifyError("constraints over texts need a tokenizer; load the model with one, or give token ids")
        return self.tokenizer


def pieces(text: str) -> list[str]:
    """Words and marks in order, each with one blank before it where the text has any."""
    return [(" " if space else "") + piece for space, piece in _PIECE.findall(text)]


def words(text: str) -> list[str]:
    """The words of ``text`` in order, each as it is spelled and once."""
    found = (piece.strip() for piece in pieces(text))
    return list(dict.fromkeys(word for word in found if word[0].isalnum() or word[0] == "_"))
