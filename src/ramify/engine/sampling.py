"""From logits to the law that is sampled, and from the law to a token.

``Sampler.law`` is the one function that does it: all processors on the node's own prefix, temperature and
truncation included, softmax in float32, one-hot when greedy. Target, draft and residual laws come from nowhere else.
``Noise`` makes the choice at a position depend on nothing but the seed and the position, so that plain and
speculative decoding with the same seed give the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.models.cache import send

Processor = Callable[[Tensor, Tensor], Tensor]  # a transformers LogitsProcessor

AHEAD = 64  # positions whose noise is kept for those who look ahead
_NO_TEXT = torch.empty(1, 0, dtype=torch.long)  # warpers do not read the text
_STATEFUL = {"UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor"}


def is_stateful(processor: Processor) -> bool:
    """Whether ``processor`` must be called once per token in order, so that no two sequences can share it."""
    return type(processor).__name__ in _STATEFUL


class Noise:
    """Random numbers indexed by position: independent between positions, equal whenever a position is revisited.

    ``stream`` tells the paths of one request apart; stream 0 is that of plain sampling.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.seed, self.stream = seed, stream
        self._generator = torch.Generator()
        self._ahead: dict[tuple[int, int], Tensor] = {}

    def at(self, position: int) -> torch.Generator:
        """The generator of ``position``, at its start (valid until the next call)."""
        number = self.seed * 1_000_003 + position * 7_919 + self.stream * 15_485_863_000_039 + 1
        self._generator.manual_seed(number % (1 << 63))
        return self._generator

    def pick(self, law: Tensor, position: int) -> int:
        """A sample of ``law`` [V] by an exponential race (the Gumbel-max trick)."""
        return int(self.winner(law, position))

    def winner(self, law: Tensor, position: int) -> Tensor:
        """``pick`` as an index on the law's device, for which nobody has to wait."""
        size = law.shape[-1]
        race = self._ahead.pop((size, position), None)
        return (law / send(self.race(size, position) if race is None else race, law.device)).argmax()

    def race(self, size: int, position: int) -> Tensor:
        """One exponential variable [size] for each token, float32; who has the greatest law ÷ variable wins.

        Drawn by NumPy, which takes a third of PyTorch's time; in float64, since a float32 may be zero.
        """
        key = self.seed % (1 << 64) << 64 | ((self.stream << 32) + position) % (1 << 64)
        drawn = np.random.Generator(np.random.Philox(key=key)).standard_exponential(size)
        return torch.from_numpy(drawn).float()

    def ahead(self, size: int, position: int) -> Tensor:
        """``race`` for a drafter that looks ahead, kept until a token is chosen there; not to be changed."""
        race = self._ahead.get((size, position))
        if race is None:
            if len(self._ahead) >= AHEAD:
                del self._ahead[next(iter(self._ahead))]
            race = self._ahead[size, position] = self.race(size, position)
        return race


class Sampler:
    """Sampling settings of one sequence.

    ``processors``: transformers ``LogitsProcessor`` objects in order, warpers included. ``greedy``: take the most
    likely token (the lowest id among equals). ``noise``: the source of every random choice.
    """

    def __init__(
        self, processors: Sequence[Processor] = (), *, greedy: bool = True, noise: Noise | None = None
    ) -> None:
        self.processors = tuple(processors)
        self.greedy = greedy
        self.noise = noise or Noise(0)
        self._warpers = [each for each in self.processors if type(each).__name__.endswith("LogitsWarper")]

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is the argmax of the raw logits, so that no law needs to be computed."""
        return self.greedy and not self.processors

    def require_stateless(self) -> None:
        """Refuse processors that must be called once per token in order, which several paths at once cannot do."""
        for processor in self.processors:
            if is_stateful(processor):
                raise RamifyError(
                    f"{type(processor).__name__} keeps a state from token to token, so drafts and paths cannot be "
                    "scored under it; use method='greedy' or method='sample'"
                )

    def law(self, prefix: Tensor, logits: Tensor) -> Tensor:
        """The law of the next token after ``prefix`` [n], from ``logits`` [V]: float32 [V], summing to 1."""
        return self.laws(prefix[None], logits[None])[0]

    def laws(self, prefixes: Tensor, logits: Tensor) -> Tensor:
        """``law`` for several prefixes of one length [B, n] with ``logits`` [B, V]: float32 [B, V]."""
        scores = self.scores(prefixes, logits)
        if self.greedy:
            best, tokens = scores.max(dim=-1)
            _fetch(tokens, best)
            return torch.zeros_like(scores).scatter_(1, tokens[:, None], 1.0)
        laws = torch.softmax(scores, dim=-1)
        _fetch(laws[:, 0], laws[:, 0])
        return laws

    def pick(self, prefix: Tensor, logits: Tensor, position: int) -> int:
        """The token after ``prefix``, as the noise at ``position`` samples it from ``law``; waits for a GPU once."""
        scores = self.scores(prefix[None], logits[None])[0]
        if self.greedy:
            best, token = scores.max(dim=-1)
            return _fetch(token, best)[0]
        law = torch.softmax(scores, dim=-1)
        return _fetch(self.noise.winner(law, position), law[0])[0]

    def foresee(
        self, logits: Tensor, positions: Sequence[int], size: int | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """How surely each token will be the one at a position, in logs [w, V], by guesses ``logits`` [w, V].

        The token there will be the one of largest log p(w) − log e_w, and its noise e is known ahead (Gumbel coupling,
        as in Daliri, Musco & Suresh, arXiv 2408.07978). If the target's scores differ from a guess q by independent
        Gumbel variables of scale 1, w wins with the share softmax(log q(w) − log e_w), which for greedy text, without
        noise, is the guess itself. Temperature and truncation apply to the guess; processors that read the text before
        it do not. What is drafted by it changes no token as long as the verifier takes its own from the noise.

        ``positions``: one for each row, or one for all. ``ids`` [V]: the tokens guessed at, where these are not the
        whole vocabulary, of ``size`` tokens.
        """
        if self.greedy:
            return logits.log_softmax(dim=-1, dtype=torch.float32)
        scores = logits.to(torch.float32, copy=True)
        for warper in self._warpers:
            scores = warper(_NO_TEXT, scores)
        races = torch.stack([self.noise.ahead(size or logits.shape[-1], position) for position in positions])
        races = races if ids is None else races[:, ids.cpu()]
        return scores.sub_(send(races, logits.device).log()).log_softmax(dim=-1)

    def scores(self, prefixes: Tensor, logits: Tensor) -> Tensor:
        """What the processors make of ``logits`` [B, V] behind ``prefixes`` [B, n]: float32 [B, V]."""
        scores = logits.to(torch.float32, copy=True)
        for processor in self.processors:
            scores = processor(prefixes, scores)
        return scores


def likeliest(logits: Tensor) -> list[list[int]]:
    """The most likely tokens of ``logits`` [B, N, V], the lowest id among equals; waits for a GPU once."""
    best, tokens = logits.max(dim=-1)
    found = _fetch(tokens, best)
    size = logits.shape[1]
    return [found[begin : begin + size] for begin in range(0, len(found), size)]


def _fetch(tokens: Tensor, witness: Tensor) -> list[int]:
    """``tokens`` as numbers, flattened; raises ``RamifyError`` unless ``witness``, a number for each, is finite.

    The witness, a maximum or an entry of a softmax, shows whether the logits were NaN or infinite. Both come in one
    transfer, as float64, which holds every token id.
    """
    numbers, shown = torch.stack([tokens.double(), witness.double()]).view(2, -1).tolist()
    if not all(map(math.isfinite, shown)):
        raise RamifyError(
            "the model returned NaN or infinite logits; check its weights, or load it with dtype='float32'"
        )
    return list(map(int, numbers))


class NodeLaws:
    """The target's laws at the nodes of one scored tree, computed when a verifier asks for them.

    ``tokens`` is the row's token buffer [capacity], whose first ``length`` entries are committed, the pending token
    (node 0 of ``tree``) included; the rest is scratch space for node prefixes. ``logits``: [N, V], one row per node.
    ``best`` gives the likeliest token of every node, where those of several rows are found together.
    """

    def __init__(
        self,
        sampler: Sampler,
        tree: TokenTree,
        logits: Tensor,
        tokens: Tensor,
        length: int,
        best: Callable[[], list[int]] | None = None,
    ) -> None:
        self.sampler, self.tree, self.logits = sampler, tree, logits
        self._tokens, self._length, self._best = tokens, length, best
        self._laws: dict[int, Tensor] = {}
        self._argmax: list[int] | None = None

    def position(self, node: int) -> int:
        """Absolute position of the token that follows ``node``."""
        return self._length + self.tree.shape.depth[node]

    def law(self, node: int) -> Tensor:
        """The law of the token after ``node``: float32 [V]."""
        law = self._laws.get(node)
        if law is None:
            law = self._laws[node] = self.sampler.law(self._prefix(node), self.logits[node])
        return law

    def pick(self, node: int) -> int:
        """The one token that is sampled after ``node`` (the argmax when greedy); always the same for a node."""
        if self.sampler.is_argmax:
            if self._argmax is None:
                self._argmax = self._best() if self._best else likeliest(self.logits[None])[0]
            return self._argmax[node]
        return self.sampler.pick(self._prefix(node), self.logits[node], self.position(node))

    def _prefix(self, node: int) -> Tensor:
        path = self.tree.shape.path(node)[1:]
        if not path:
            return self._tokens[: self._length]
        end = self._length + len(path)
        self._tokens[self._length : end] = send(self.tree.tokens[list(path)], self._tokens.device)
        return self._tokens[:end]
