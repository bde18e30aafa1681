"""Regular expressions and JSON schemas, by llguidance (https://github.com/guidance-ai/llguidance).

An optional part: ``pip install 'ramify[grammar]'``. llguidance reports errors in a matcher's state instead of raising
them, and stops without an end token where nothing can follow; both are turned into what the other constraints do. Its
masks are unpacked here, since its own torch helper goes through ``torch.compile``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ramify.constrain.constraint import Constraint, State
from ramify.constrain.vocabulary import Vocabulary
from ramify.errors import RamifyError, first_line


class Grammar(Constraint):
    """The language of a grammar in llguidance's own form; see ``regex`` and ``json_schema``."""

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        super().__init__(vocabulary)
        self._start = _Matched(self, _matcher(vocabulary, grammar))

    def start(self) -> State:
        return self._start


class _Matched(State):
    """A matcher that is copied before it moves; a copy shares the compiled grammar."""

    def __init__(self, grammar: Grammar, matcher: Any) -> None:
        self.grammar, self.matcher = grammar, matcher
        self.accepting = bool(matcher.is_accepting())

    def allowed(self) -> Sequence[int]:
        return self._allowed

    def advance(self, token: int) -> State | None:
        if token not in self._members:
            return None
        matcher = self.matcher.deep_copy()
        if not matcher.consume_token(token):
            why = first_line(ValueError(matcher.get_error()))
            raise RamifyError(f"llguidance allowed token {token} and then refused it ({why}); simplify the grammar")
        return _Matched(self.grammar, matcher)

    @functools.cached_property
    def _allowed(self) -> list[int]:
        if self.matcher.is_stopped():
            return []
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        vocabulary = self.grammar.vocabulary
        found: list[int] = bits[: vocabulary.known].nonzero()[0].tolist()
        return [token for token in found if token not in vocabulary.ends]

    @functools.cached_property
    def _members(self) -> frozenset[int]:
        return frozenset(self._allowed)


def regex(vocabulary: Vocabulary, pattern: str) -> Grammar:
    """Texts that ``pattern`` matches as a whole, in the syntax of Rust's ``regex`` (no look-around, no references)."""
    return Grammar(vocabulary, _llguidance().LLMatcher.grammar_from_regex(pattern))


def json_schema(vocabulary: Vocabulary, schema: Mapping[str, Any], *, blanks: bool = False) -> Grammar:
    """JSON texts that fit ``schema``.

    ``blanks``: allow any between the parts; a weak model may then emit them for ever. Objects may hold what the schema
    does not name, unless it says ``"additionalProperties": false``.
    """
    options = {"whitespace_flexible": blanks}
    return Grammar(vocabulary, _llguidance().LLMatcher.grammar_from_json_schema(json.dumps(schema), options))


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise RamifyError("regex and JSON constraints need llguidance; pip install 'ramify[grammar]'") from error
    return llguidance


def _matcher(vocabulary: Vocabulary, grammar: str) -> Any:
    library = _llguidance()
    tokenizer = _tokenizer(vocabulary)
    problem = library.LLMatcher.validate_grammar(grammar, tokenizer)
    if problem:
        raise RamifyError(f"that is no grammar: {' '.join(problem.split())}")
    matcher = library.LLMatcher(tokenizer, grammar)
    if matcher.is_error():
        raise RamifyError(f"the grammar cannot be used: {first_line(ValueError(matcher.get_error()))}")
    return matcher


@functools.lru_cache(maxsize=8)
def _tokenizer(vocabulary: Vocabulary) -> Any:
    """llguidance's view of the tokenizer, which takes about a second to make for a large one."""
    if vocabulary.tokenizer is None:
        raise RamifyError("regex and JSON constraints need a tokenizer; load the model with one")
    if not vocabulary.tokenizer.is_fast:
        raise RamifyError("llguidance reads fast tokenizers only; load the model with a fast one")
    return _llguidance().hf.from_tokenizer(
        vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=min(vocabulary.ends)
    )
