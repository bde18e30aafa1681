"""Tri-gram tables: what followed every pair of tokens in a corpus, and the rows that a drafter adapts on top of it."""

from __future__ import annotations

import functools
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ramify.errors import RamifyError, first_line
from ramify.methods.head import fingerprint
from ramify.models.causal import CausalLM

SUCCESSORS = 12  # kept for a pair
MOST = 255  # that a file can hold
FORMAT = "ramify tri-gram table 1"
ROWS = 1 << 16  # rows of the corpus that are kept unpacked
KEYS = 1 << 18  # rows that are adapted


class Row:
    """Successors of one pair: ``tokens`` with their ``weights``."""

    __slots__ = ("_cumulative", "_order", "tokens", "weights")

    def __init__(self, tokens: list[int], weights: list[float]) -> None:
        self.tokens, self.weights = tokens, weights
        self._cumulative: list[float] | None = None
        self._order: list[int] | None = None

    @property
    def cumulative(self) -> list[float]:
        """The running sums of the weights, for sampling."""
        if self._cumulative is None:
            self._cumulative = list(accumulate(self.weights))
        return self._cumulative

    @property
    def order(self) -> list[int]:
        """The places of the successors, the heaviest first."""
        if self._order is None:
            self._order = sorted(range(len(self.weights)), key=self.weights.__getitem__, reverse=True)
        return self._order

    def copy(self) -> Row:
        return Row(self.tokens.copy(), self.weights.copy())

    @property
    def best(self) -> int:
        """The successor of largest weight (the first among equals)."""
        return self.tokens[self.weights.index(max(self.weights))]

    def share(self, token: int) -> float:
        """The part of a successor in all weights, which are not scaled up where they sum to less than 1."""
        return self.weights[self.tokens.index(token)] / max(1.0, self.cumulative[-1])

    def reinforce(self, token: int, by: float, cap: float, limit: int) -> None:
        """weight(token) <- min(cap, weight + by), a new successor taking the place of the lightest of ``limit``."""
        if token in self.tokens:
            place = self.tokens.index(token)
            self.weights[place] = min(cap, self.weights[place] + by)
        else:
            if len(self.tokens) >= limit:
                lightest = self.weights.index(min(self.weights))
                del self.tokens[lightest], self.weights[lightest]
            self.tokens.append(token)
            self.weights.append(min(cap, by))
        self._cumulative = self._order = None


@dataclass(frozen=True, eq=False)
class TrigramTable:
    """P(w | u, v) of a corpus over a vocabulary of V = ``vocab_size`` ids, read only.

    ``pairs``: int64 [K], u · V + v, ascending. The successors of ``pairs[k]`` are ``tokens[starts[k]:starts[k + 1]]``
    (int32), the likeliest first, with their ``weights`` (float32). ``fingerprint``: of the tokenizer, empty if unknown.
    """

    vocab_size: int
    pairs: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray
    fingerprint: str = ""

    @staticmethod
    def empty(vocab_size: int) -> TrigramTable:
        """A table without entries."""
        none = np.empty(0, dtype=np.int64)
        return TrigramTable(vocab_size, none, np.zeros(1, dtype=np.int64), none, none.astype(np.float32))

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.tokens)

    @functools.cached_property
    def _index(self) -> tuple[memoryview, memoryview]:
        return np.ascontiguousarray(self.pairs).data, np.ascontiguousarray(self.starts).data

    @functools.cached_property
    def row(self) -> functools._lru_cache_wrapper[Row | None]:
        """``row(pair)``: the successors of the pair u · V + v, or None; not to be changed."""

        @functools.lru_cache(maxsize=ROWS)
        def find(pair: int) -> Row | None:
            pairs, starts = self._index
            place = bisect_left(pairs, pair)
            if place == len(pairs) or pairs[place] != pair:
                return None
            span = slice(starts[place], starts[place + 1])
            return Row(self.tokens[span].tolist(), self.weights[span].tolist())

        return find

    def refuses(self, lm: CausalLM) -> str:
        """What about ``lm`` does not fit the table, "" when everything does."""
        if self.vocab_size != lm.vocab_size:
            return f"it counts over {self.vocab_size} tokens, not {lm.vocab_size}"
        own = fingerprint(lm) if self.fingerprint else ""
        return "its tokenizer has another vocabulary" if own and own != self.fingerprint else ""

    def save(self, file: Path) -> None:
        """Write the table as safetensors, weights in half precision."""
        narrow = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        tensors = {
            "pairs": np.stack(np.divmod(self.pairs, self.vocab_size), axis=1).astype(narrow),
            "sizes": np.diff(self.starts).astype(np.uint8),
            "tokens": self.tokens.astype(narrow),
            "weights": self.weights.astype(np.float16),
        }
        save_file(tensors, file, {"format": FORMAT, "vocab_size": str(self.vocab_size), "tokenizer": self.fingerprint})

    @staticmethod
    def load(file: Path) -> TrigramTable:
        """The table in ``file``; raises ``RamifyError`` when there is none, or a damaged one."""
        if not file.is_file():
            raise RamifyError(f"there is no tri-gram table {file}; make one with ramify train aded")
        try:
            with safe_open(file, "np") as content:
                told = content.metadata() or {}
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RamifyError(
                f"{file} is damaged ({first_line(error)}); make it again with ramify train aded"
            ) from error
        if told.get("format") != FORMAT:
            raise RamifyError(f"{file} is no tri-gram table; give one that ramify train aded made")
        fault = _fault(tensors, told)
        if fault:
            raise RamifyError(f"{file} is damaged: {fault}; make it again with ramify train aded")
        vocab_size = int(told["vocab_size"])
        first, second = tensors["pairs"].astype(np.int64).T
        return TrigramTable(
            vocab_size,
            first * vocab_size + second,
            np.concatenate([[0], np.cumsum(tensors["sizes"], dtype=np.int64)]),
            tensors["tokens"].astype(np.int32),
            tensors["weights"].astype(np.float32),
            told.get("tokenizer", ""),
        )


class Adapted:
    """A table as one drafter sees it: the corpus, read only, and on top of it the rows that were adapted.

    ``successors``: most entries of an adapted row. The oldest of these rows make room when there are ``KEYS``.
    """

    def __init__(self, corpus: TrigramTable, successors: int) -> None:
        self.size, self.known, self.successors = corpus.vocab_size, corpus.row, successors
        self.rows: dict[int, Row] = {}

    def pair(self, u: int, v: int) -> int:
        return u * self.size + v

    def next(self, pair: int, token: int) -> int:
        """The pair of a pair's second token and ``token``."""
        return pair % self.size * self.size + token

    def row(self, pair: int) -> Row | None:
        """The successors of a pair, or None."""
        return self.rows.get(pair) or self.known(pair)

    def reinforce(self, pair: int, token: int, by: float, cap: float) -> None:
        """M[pair][token] <- min(cap, M[pair][token] + by)."""
        row = self.rows.get(pair)
        if row is None:
            if len(self.rows) >= KEYS:
                del self.rows[next(iter(self.rows))]
            known = self.known(pair)
            row = self.rows[pair] = known.copy() if known else Row([], [])
        row.reinforce(token, by, cap, self.successors)


def _fault(tensors: dict[str, np.ndarray], told: dict[str, str]) -> str:
    """What is wrong with the content of a file, or nothing."""
    if set(tensors) != {"pairs", "sizes", "tokens", "weights"}:
        return f"it holds {', '.join(sorted(tensors)) or 'nothing'} instead of pairs, sizes, tokens and weights"
    vocab_size = int(told["vocab_size"]) if told.get("vocab_size", "").isdecimal() else 0
    pairs, sizes, tokens, weights = (tensors[name] for name in ("pairs", "sizes", "tokens", "weights"))
    if [array.dtype.kind for array in (pairs, sizes, tokens, weights)] != ["u", "u", "u", "f"]:
        return "its arrays are of other types"
    if (sizes.ndim, tokens.ndim, weights.ndim) != (1, 1, 1):
        return "its arrays are no lists"
    if pairs.shape != (len(sizes), 2) or len(tokens) != len(weights) or int(sizes.sum(dtype=np.int64)) != len(tokens):
        return "its arrays do not fit each other"
    if max(int(pairs.max(initial=0)), int(tokens.max(initial=0))) >= max(vocab_size, 1):
        return f"it has tokens outside its vocabulary of {vocab_size}"
    joined = pairs[:, 0].astype(np.int64) * vocab_size + pairs[:, 1]
    if not (np.diff(joined) > 0).all():
        return "its pairs are not in order"
    if not ((weights > 0) & (weights <= 1)).all() or not (sizes > 0).all():
        return "its weights are no probabilities"
    return ""
