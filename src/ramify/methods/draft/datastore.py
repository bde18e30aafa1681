"""A datastore: texts of token ids, one behind the other, and the order of all their suffixes, for fast searches."""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ramify.errors import RamifyError, first_line
from ramify.methods.head import fingerprint
from ramify.models.causal import CausalLM

FORMAT = "ramify datastore 1"
SORTED = 32  # suffixes are ordered by so many tokens; a search and what it reads behind a match must stay within


@dataclass(frozen=True, eq=False)
class Datastore:
    """Texts over a vocabulary of ``vocab_size`` ids, each followed by the mark ``vocab_size``, which is no token.

    ``tokens``: [n], unsigned. ``order``: int32 [n], the places of ``tokens`` sorted by the ``SORTED`` tokens from each
    on. ``fingerprint``: of the tokenizer, empty if unknown.
    """

    vocab_size: int
    tokens: np.ndarray
    order: np.ndarray
    fingerprint: str = ""

    @staticmethod
    def of(documents: Iterable[Sequence[int]], vocab_size: int, fingerprint: str = "") -> Datastore:
        """The datastore of documents of token ids."""
        kind = np.uint16 if vocab_size < 1 << 16 else np.uint32
        parts = [np.array([*document, vocab_size], dtype=np.int64) for document in documents if len(document)]
        if not parts:
            raise RamifyError("the datastore would be empty; give at least one text")
        tokens = np.concatenate(parts)
        if int(tokens.min()) < 0 or int((tokens >= vocab_size).sum()) > len(parts):
            raise RamifyError(
                f"the text has tokens outside the vocabulary of {vocab_size}; use the model's own tokenizer"
            )
        tokens = tokens.astype(kind)
        return Datastore(vocab_size, tokens, suffix_order(tokens), fingerprint)

    def __len__(self) -> int:
        """Number of tokens, marks included."""
        return len(self.tokens)

    @functools.cached_property
    def _index(self) -> tuple[memoryview, bytes, str]:
        """The order, and the tokens as bytes that compare as the tokens do, with the type that makes them so."""
        kind = f">u{self.tokens.dtype.itemsize}"
        return np.ascontiguousarray(self.order).data, self.tokens.astype(kind).tobytes(), kind

    def find(self, piece: Sequence[int]) -> np.ndarray:
        """The places [m] at which ``piece`` begins, ordered by what follows it."""
        order, text, kind = self._index
        width, wanted = int(kind[-1]), np.array(piece, dtype=kind).tobytes()

        def begins(place: int) -> bytes:
            return text[place * width : place * width + len(wanted)]

        low = bisect_left(order, wanted, key=begins)
        return self.order[low : bisect_right(order, wanted, low, key=begins)]

    def longest(self, text: Sequence[int], most: int, least: int) -> tuple[int, np.ndarray]:
        """Length of the longest suffix of ``text`` that occurs, from ``most`` down to ``least`` tokens, and where.

        0 and nothing where none does.
        """
        best, found = 0, self.order[:0]
        low, high = least, min(most, len(text))
        while low <= high:  # whatever ends a piece that occurs does too
            middle = (low + high) // 2
            places = self.find(text[-middle:])
            if len(places):
                best, found, low = middle, places, middle + 1
            else:
                high = middle - 1
        return best, found

    def behind(self, places: np.ndarray, length: int) -> np.ndarray:
        """The ``length`` tokens from each of ``places`` [m] on: int64 [m, length], from the end of a text on all −1."""
        inside = np.minimum(places[:, None].astype(np.int64) + np.arange(length), len(self.tokens) - 1)
        rows: np.ndarray = self.tokens[inside].astype(np.int64)
        rows[np.logical_or.accumulate(rows == self.vocab_size, axis=1)] = -1
        return rows

    def refuses(self, lm: CausalLM) -> str:
        """What about ``lm`` does not fit the datastore, "" when everything does."""
        if self.vocab_size != lm.vocab_size:
            return f"it was made for {self.vocab_size} tokens, not {lm.vocab_size}"
        own = fingerprint(lm) if self.fingerprint else ""
        return "its tokenizer has another vocabulary" if own and own != self.fingerprint else ""

    def save(self, file: Path, *, order: bool = True) -> None:
        """Write it as safetensors; without the ``order`` it is much smaller, but has to be sorted when loaded."""
        tensors = {"tokens": self.tokens} | ({"order": self.order} if order else {})
        save_file(tensors, file, {"format": FORMAT, "vocab_size": str(self.vocab_size), "tokenizer": self.fingerprint})

    @staticmethod
    def load(file: Path) -> Datastore:
        """The datastore in ``file``; raises ``RamifyError`` when there is none, or a damaged one."""
        if not file.is_file():
            raise RamifyError(f"there is no datastore {file}; make one with ramify train rest")
        try:
            with safe_open(file, "np") as content:
                told = content.metadata() or {}
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RamifyError(
                f"{file} is damaged ({first_line(error)}); make it again with ramify train rest"
            ) from error
        if told.get("format") != FORMAT:
            raise RamifyError(f"{file} is no datastore; give one that ramify train rest made")
        fault = _fault(tensors, told)
        if fault:
            raise RamifyError(f"{file} is damaged: {fault}; make it again with ramify train rest")
        tokens = tensors["tokens"]
        order = tensors["order"] if "order" in tensors else suffix_order(tokens)
        return Datastore(int(told["vocab_size"]), tokens, order, told.get("tokenizer", ""))


def suffix_order(tokens: np.ndarray) -> np.ndarray:
    """The places of ``tokens`` [n] sorted by the ``SORTED`` tokens from there (earlier places first among equals).

    Prefix doubling: from the order by h tokens, that by 2h is found by sorting the ties by the rank h tokens on.
    """
    size = len(tokens)
    bits = int(tokens.max()).bit_length() + 1
    reach = min(63 // bits, SORTED)
    padded = np.zeros(size + SORTED, dtype=np.int64)
    padded[:size] = tokens.astype(np.int64) + 1  # 0: behind the end
    key = np.zeros(size, dtype=np.int64)
    for ahead in range(reach):
        key = key << bits | padded[ahead : ahead + size]
    order = np.argsort(key, kind="stable")
    rank = np.zeros(size + SORTED, dtype=np.int64)  # 1 + the first place in the order of those that are equal so far
    rank[order] = _firsts(key[order]) + 1
    while reach < SORTED:
        ranks = rank[order]
        equal = np.concatenate([[False], ranks[1:] == ranks[:-1], [False]])
        tied = np.flatnonzero(equal[1:] | equal[:-1])
        if not len(tied):
            break
        places = order[tied]
        key = rank[places] * (size + 1) + rank[places + reach]
        turn = np.argsort(key, kind="stable")
        order[tied] = places[turn]
        rank[places[turn]] = tied[_firsts(key[turn])] + 1
        reach *= 2
    return order.astype(np.int32)


def _firsts(ordered: np.ndarray) -> np.ndarray:
    """For every entry of an ordered array the index of the first that equals it."""
    fresh = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return np.maximum.accumulate(np.where(fresh, np.arange(len(ordered)), 0))


def _fault(tensors: dict[str, np.ndarray], told: dict[str, str]) -> str:
    """What is wrong with the content of a file, or nothing."""
    if set(tensors) not in ({"tokens"}, {"tokens", "order"}):
        return f"it holds {', '.join(sorted(tensors)) or 'nothing'} instead of tokens and their order"
    vocab_size = int(told["vocab_size"]) if told.get("vocab_size", "").isdecimal() else 0
    tokens = tensors["tokens"]
    if tokens.dtype.kind != "u" or tokens.ndim != 1 or not len(tokens):
        return "its tokens are no list of ids"
    if vocab_size < 1 or int(tokens.max()) != vocab_size or int(tokens[-1]) != vocab_size:
        return f"its tokens are not of a vocabulary of {vocab_size}"
    if "order" in tensors:
        order = tensors["order"]
        if order.dtype != np.int32 or order.shape != tokens.shape or int(order.min()) < 0:
            return "its order is no order of its tokens"
        if int(np.bincount(order, minlength=len(order)).max()) > 1 or len(np.bincount(order)) > len(order):
            return "its order is no order of its tokens"
    return ""
