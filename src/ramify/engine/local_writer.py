"""A loaded model that answers prompts, under constraints and with exact probabilities of replies."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import torch

from ramify.constrain.answers import Trace, score_answers, trace
from ramify.constrain.constraint import Constraint
from ramify.constrain.processor import Constrained
from ramify.constrain.vocabulary import Vocabulary
from ramify.engine.events import Decided, Grown, Prefilled, Scored
from ramify.engine.request import Criterion, Request
from ramify.engine.roster import Roster
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.search import Decision, WholePolicy, search
from ramify.engine.writer import CALLS, TEMPERATURE, Writer
from ramify.models.causal import CausalLM


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
        sampler.noise = Noise(self.seed * CALLS + number)
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


class _Samples(WholePolicy):
    """So many paths, and all of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def begin(self, pool: Roster) -> None:
        pool.start(self.count)

    def decide(self, pool: Roster) -> Decision:
        return Decision(pool.paths, None)
