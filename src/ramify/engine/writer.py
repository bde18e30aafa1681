"""A model as methods see it that grow trees of texts: a prompt in, texts out, probabilities where it has them.

Three of one interface: ``LocalWriter`` over a loaded model, with masks and exact probabilities of replies;
``ServerWriter`` over a server, with those of a first token where it gives alternatives; ``TextWriter`` over any
function. Every call is kept with what it cost, until ``drain`` hands it over.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ramify.constrain.answers import Trace, score_answers, trace
from ramify.constrain.constraint import Constraint
from ramify.constrain.processor import Constrained
from ramify.constrain.vocabulary import Vocabulary
from ramify.engine.distant import UNKNOWN, interface
from ramify.engine.events import Decided, Grown, Prefilled, Scored
from ramify.engine.request import Criterion, Request
from ramify.engine.roster import Roster
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.search import Decision, WholePolicy, search
from ramify.models.causal import CausalLM
from ramify.models.endpoint import RemoteError
from ramify.models.remote import RemoteLM
from ramify.models.reply import Reply

TEMPERATURE = 0.7  # of texts that are drawn, where nothing else is asked for
ALTERNATIVES = 20  # asked of a server for the first token of a reply
_CALLS = 100_003  # seeds between those of two requests, for the calls that each makes

Ask = Callable[[str], str]


@dataclass(frozen=True)
class Call:
    """One prompt that was put to the model.

    ``number``: counts the calls of a writer. ``read``: tokens of the prompt; ``prefills``: passes over it. ``passes``:
    rows of each pass behind it. ``tokens``: drawn, of all texts together; ``UNKNOWN`` where they have no ids.
    """

    number: int
    read: int
    prefills: int
    passes: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: float


class Writer(ABC):
    """What answers prompts.

    ``vocabulary``: what constraints on its texts are built over; None where they cannot be held to any. ``seed``: of
    what is drawn.
    """

    vocabulary: Vocabulary | None = None
    seed: int = 0

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._calls: list[Call] = []

    @abstractmethod
    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        """``samples`` texts behind ``prompt``, of at most ``most`` tokens each.

        ``drawn``: at the caller's sampling settings; else as predictably as it can. ``line``: nothing behind the first
        line is wanted. ``constraint``: over ``vocabulary``, what the texts are held to.
        """

    def weigh(self, prompt: str, choices: Sequence[Sequence[str]]) -> list[float] | None:
        """For each choice, ln of the probability that the reply begins with one of its forms; None where unknown."""
        return None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; ``UNKNOWN`` for each of its words where the model's tokens have none."""
        return [UNKNOWN] * len(text.split())

    def drain(self) -> list[Call]:
        """The calls since this was last asked."""
        calls, self._calls = self._calls, []
        return calls

    def _enter(
        self, number: int, began: float, read: int, prefills: int, passes: Sequence[int], tokens: Sequence[int]
    ) -> None:
        seconds = time.perf_counter() - began
        self._calls.append(Call(number, read, prefills, tuple(passes), tuple(tokens), seconds))


class LocalWriter(Writer):
    """A loaded model; the samples of one prompt share it and run as one batch.

    ``sampler``: of texts that are drawn, by default at temperature 0.7. ``stop_tokens``, ``criteria``: what ends a
    text, by default the model's own end tokens. ``most``: longest text of any call. ``chat``: put prompts through the
    tokenizer's chat template; None where it has one. ``traced``: keep what constraints left of the model's law in
    ``traces``, for one more pass a text.
    """

    def __init__(
        self,
        lm: CausalLM,
        sampler: Sampler | None = None,
        *,
        stop_tokens: frozenset[int] | None = None,
        criteria: Sequence[Criterion] = (),
        most: int | None = None,
        chat: bool | None = None,
        traced: bool = False,
    ) -> None:
        super().__init__()
        tokenizer = lm.require_tokenizer()
        self.lm, self.criteria, self.most, self.traced = lm, criteria, most, traced
        self.sampler = sampler or Sampler([lambda _, scores: scores / TEMPERATURE], greedy=False)
        self.seed = self.sampler.noise.seed
        self.stop_tokens = Vocabulary.of(lm).ends if stop_tokens is None else stop_tokens
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        self.traces: list[Trace] = []
        feed = tokenizer("\n", add_special_tokens=False)["input_ids"]
        self._lines = self.stop_tokens | set(feed if len(feed) == 1 else [])

    @staticmethod
    def of(lm: CausalLM, request: Request) -> LocalWriter:
        """A writer with the sampling settings and the length of ``request``."""
        most = request.max_length - len(request.prompt)
        return LocalWriter(lm, request.sampler, stop_tokens=request.stop_tokens, criteria=request.criteria, most=most)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]  # made when it is first needed
        """A constrained text is one line."""
        return Vocabulary.of(self.lm, self._lines)

    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        number, began, ids = next(self._numbers), time.perf_counter(), self._ids(prompt)
        sampler = Sampler(self.sampler.processors if drawn else (), greedy=not drawn or self.sampler.greedy)
        if constraint is not None:
            sampler = Sampler([*sampler.processors, Constrained(constraint, len(ids))], greedy=sampler.greedy)
        sampler.noise = Noise(self.seed * _CALLS + number)
        length = max(1, min(most, self.most or most, self.lm.context - len(ids)))
        stops = self._lines if line or constraint is not None else self.stop_tokens
        events = list(
            search(self.lm, Request(ids, len(ids) + length, sampler, stops, self.criteria), _Samples(samples))
        )
        [decided] = [event for event in events if isinstance(event, Decided)]
        paths = sorted(decided.paths, key=lambda path: path.number)
        self._enter(
            number,
            began,
            sum(event.tokens for event in events if isinstance(event, Prefilled)),
            sum(event.calls for event in events if isinstance(event, Prefilled)),
            [event.nodes for event in events if isinstance(event, Scored)],
            [token for event in events if isinstance(event, Grown) for token in event.tokens],
        )
        if constraint is None:
            return [path.text for path in paths]
        kept = [constraint.cut(path.tokens) for path in paths]
        if self.traced:
            self.traces += [trace(self.lm, ids, tokens, constraint) for tokens in kept if tokens]
        return [self.vocabulary.decode(tokens).strip() for tokens in kept]

    def weigh(self, prompt: str, choices: Sequence[Sequence[str]]) -> list[float] | None:
        """Exactly, each form with a blank before it or without."""
        number, began, ids = next(self._numbers), time.perf_counter(), self._ids(prompt)
        owners: dict[tuple[int, ...], int] = {}
        for place, forms in enumerate(choices):
            for form in forms:
                for spelled in (form, " " + form):
                    if path := self.vocabulary.encode(spelled):
                        owners.setdefault(path, place)
        scores = score_answers(self.lm, ids, list(owners), ())
        nodes = {path[: end + 1] for path in owners for end in range(len(path))}
        self._enter(number, began, len(ids), 1, [1 + len(nodes)], ())
        owned = torch.tensor(list(owners.values()))
        return [float(torch.logsumexp(scores.log_probs[owned == place], dim=0)) for place in range(len(choices))]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.lm.require_tokenizer()(text, add_special_tokens=False)["input_ids"]
        return ids

    def _ids(self, prompt: str) -> list[int]:
        return self.lm.encode([{"role": "user", "content": prompt}] if self.chat else prompt)


class ServerWriter(Writer):
    """A server. A text that is not drawn is greedy; call i of a writer takes seeds from ``seed`` + 100,003 i on.

    ``temperature``, ``top_p``: of texts that are drawn. ``stop``: texts that end one. ``most``: longest text of any
    call. When the server fails for good, the error's ``replies`` hold all that ever arrived.
    """

    def __init__(
        self,
        lm: RemoteLM,
        *,
        temperature: float = TEMPERATURE,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.lm, self.temperature, self.top_p, self.stop = lm, temperature, top_p, stop
        self.most, self.seed = most, seed
        self.replies: list[Reply] = []

    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        longest, hot = most if self.most is None else min(most, self.most), self.temperature if drawn else 0.0
        return [reply.text for reply in self._complete(prompt, longest, samples, hot)]

    def weigh(self, prompt: str, choices: Sequence[Sequence[str]]) -> list[float] | None:
        """From the alternatives of the first token; one that is not among them counts as their least likely."""
        top = min(ALTERNATIVES, interface(self.lm, prompt).top_log_probs)
        if top < len(choices):
            return None
        [reply] = self._complete(prompt, 1, 1, 1.0, top)
        first = reply.top[0] if reply.top else []
        masses = [
            math.fsum(math.exp(value) for token, value in first if token.strip() in forms and token.strip())
            for forms in choices
        ]
        if not any(masses):
            return None
        return [math.log(mass) if mass else min(value for _, value in first) for mass in masses]

    def _complete(self, prompt: str, most: int, samples: int, temperature: float, top: int = 0) -> list[Reply]:
        number, began = next(self._numbers), time.perf_counter()
        try:
            replies = self.lm.complete(
                prompt, samples=samples, max_new_tokens=most, temperature=temperature, top_p=self.top_p, stop=self.stop,
                seed=self.seed + _CALLS * number, top_log_probs=top,
            )  # fmt: skip
        except RemoteError as error:
            error.replies = [*self.replies, *error.replies]
            raise
        self.replies += replies
        lengths = [reply.completion_tokens for reply in replies]
        self._enter(number, began, replies[0].prompt_tokens, 0, lengths, [UNKNOWN] * sum(lengths))
        return replies


class TextWriter(Writer):
    """A function from a prompt to a reply, which limits the length of replies by itself.

    ``ask``: answers as predictably as it can. ``draw``: at a higher temperature, None for ``ask``.
    """

    def __init__(self, ask: Ask, draw: Ask | None = None) -> None:
        super().__init__()
        self.ask, self.draw = ask, draw or ask

    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        number, began = next(self._numbers), time.perf_counter()
        replies = [(self.draw if drawn else self.ask)(prompt) for _ in range(samples)]
        tokens = [token for reply in replies for token in self.encode(reply)]
        self._enter(number, began, len(self.encode(prompt)), 0, [len(tokens)], tokens)
        return replies


class _Samples(WholePolicy):
    """So many paths, and all of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def begin(self, pool: Roster) -> None:
        pool.start(self.count)

    def decide(self, pool: Roster) -> Decision:
        return Decision(pool.paths, None)
