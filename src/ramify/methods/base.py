"""What a method is: a frozen dataclass of options that continues requests, also inside ``transformers.generate``."""

from __future__ import annotations

import functools
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ramify.engine.drafter import Drafter
from ramify.engine.events import Accepted, Event, Noted, Scored
from ramify.engine.feeding import Blockwise, Delayed, Feeding, Sequential, Whole
from ramify.engine.filling import Schedule
from ramify.engine.request import Request
from ramify.engine.result import Result, Stats
from ramify.engine.sampling import Noise, Sampler, is_stateful
from ramify.engine.search import Policy, StepPolicy, WholePolicy, search
from ramify.engine.speculate import speculate
from ramify.engine.unmask import Rule, unmask
from ramify.engine.verify import VERIFIERS
from ramify.engine.verify import Rule as VerificationRule
from ramify.errors import RamifyError, unknown
from ramify.methods.modes import check
from ramify.methods.registry import Card
from ramify.models.causal import CausalLM, wrap
from ramify.models.masked import MaskedLM, masked

LM = CausalLM | MaskedLM
CACHES = ("none", "prefix", "dual", "delayed")


class Method(ABC):
    """Base of all methods. A subclass is a frozen dataclass of options, declared with ``@register``.

    ``pinned``: generation settings that the method fixes (greedy decoding pins ``do_sample`` to False). ``prepares``:
    ``run`` hands requests to another library, which prepares its own processors and criteria within the timed call.
    ``trains``: the class of the part that ``ramify train`` trains for it (a ``ramify.methods.head.Head``), if any.
    """

    card: ClassVar[Card]
    pinned: ClassVar[dict[str, Any]] = {}
    prepares: ClassVar[bool] = False
    trains: ClassVar[Any] = None

    @abstractmethod
    def run(self, lm: Any, requests: Sequence[Request]) -> Iterator[Event]:
        """Continue all requests with the kind of model that the method takes, yielding what happens."""

    @functools.cached_property
    def memory(self) -> dict[Any, Any]:
        """What this object has learned so far, carried from call to call; a copy of the object starts afresh."""
        return {}

    def complete(self, lm: LM, requests: Sequence[Request]) -> list[Result]:
        """Run to the end; one result for each request."""
        wall, cpu = time.perf_counter(), time.process_time()
        events = list(self.run(lm, requests))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        shares = apart(events, len(requests))
        return [gather(lm, request, shares[row], row, wall, cpu) for row, request in enumerate(requests)]

    def bind(self, streamer: Any) -> Any:
        """This method with a transformers streamer, for ``model.generate(custom_generate=method.bind(streamer))``."""
        return functools.partial(self, streamer=streamer)

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """Entry for ``model.generate(..., custom_generate=method)``: ids [B, n] with the caller's settings prepared.

        Returns ids [B, n + new], padded at the end as transformers pads them.
        """
        lm = self.wrapped(model)
        if generation_config.return_dict_in_generate:
            raise RamifyError("return_dict_in_generate is not offered through custom_generate; use ramify.generate")
        streamer = streamer or _callers_streamer()
        if streamer is not None and len(input_ids) > 1:
            raise RamifyError(f"a streamer shows one sequence, but the batch has {len(input_ids)}")
        settings = self._settings(generation_config)
        seed = int(torch.randint(1 << 31, ()))
        # Not a named parameter: transformers would then pass it twice.
        attention_mask = model_kwargs.get("attention_mask")
        masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        requests = []
        for row, (ids, mask) in enumerate(zip(input_ids.tolist(), masks.tolist(), strict=True)):
            start = mask.index(1) if 1 in mask else len(ids)
            if 0 in mask[start:]:
                raise RamifyError("custom_generate needs prompts that are padded on the left only")
            requests.append(
                request_of(
                    ids[start:],
                    [_of_row(processor, row, len(input_ids)) for processor in logits_processor or ()],
                    stopping_criteria or (),
                    greedy=not settings["do_sample"],
                    seed=seed + row,
                    padding=ids[:start],
                )
            )
        tokens: list[list[int]] = [[] for _ in requests]
        for event in self.run(lm, requests):
            if isinstance(event, Accepted):
                tokens[event.row].extend(event.tokens)
                if streamer is not None:
                    streamer.put(torch.tensor(event.tokens))
        if streamer is not None:
            streamer.end()
        longest = max(map(len, tokens))
        pad = generation_config._pad_token_tensor
        filler = int(pad) if pad is not None else 0
        new = torch.tensor([row + [filler] * (longest - len(row)) for row in tokens], device=input_ids.device)
        return torch.cat([input_ids, new], dim=1)

    def wrapped(self, model: Any) -> LM:
        """A transformers model as this method takes it."""
        return _wrapped(model)

    def _settings(self, generation_config: Any) -> dict[str, Any]:
        settings = {"do_sample": bool(generation_config.do_sample), "num_beams": generation_config.num_beams or 1}
        check(generation_config.to_dict(), self)
        if settings["num_beams"] > 1:
            raise RamifyError(
                f"num_beams={settings['num_beams']} repeats every prompt; leave it to {type(self).__name__}"
            )
        return settings | self.pinned


@dataclass(frozen=True)
class MaskedMethod(Method):
    """A method of the masked loop: its rule says which open positions of the canvas are fixed after every pass.

    ``block``: positions of a block; blocks are filled from left to right; None for those in which the model sees, or
    one of all. ``steps``: passes by the schedule, None for one a position. ``cache``: "none"; "prefix" or "dual"
    (Fast-dLLM: within a block, hold what stands before it, or all outside it); "delayed" (dKV-Cache: hold what was
    written a step ago). All but the first are approximations unless the model sees in blocks. ``refresh``: a whole pass
    every so many steps; None for the first of each block, or every 8 with "delayed". ``guidance``: weight w of a second
    pass without the prompt.
    """

    block: int | None = None
    steps: int | None = None
    cache: Literal["none", "prefix", "dual", "delayed"] = "none"
    refresh: int | None = None
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise unknown("cache", self.cache, CACHES)
        for name in ("block", "steps", "refresh"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RamifyError(f"{name} is {value}; it is at least 1, or None")
        if self.refresh is not None and self.cache == "none":
            raise RamifyError("refresh says how often a cache is renewed; name a cache, or leave it out")
        if self.guidance < 0:
            raise RamifyError(f"guidance is {self.guidance:g}; it is 0 for none, or more")

    @abstractmethod
    def rule(self, lm: MaskedLM, requests: Sequence[Request]) -> Rule:
        """The rule of one call, for all of its rows."""

    def plan(self, lm: MaskedLM) -> Schedule:
        """Blocks and passes of one call."""
        return Schedule(self.block, self.steps)

    def feeding(self, lm: MaskedLM) -> Feeding:
        """What the passes of one call are fed."""
        shift, own = lm.facts.shift, lm.facts.block
        if own is not None:
            if self.cache in ("dual", "delayed"):
                raise RamifyError(f"{lm.name} sees in blocks, so that cache='prefix' is exact and best; use that")
            return Sequential(own, self.cache == "prefix", shift)
        if self.cache == "none":
            return Whole()
        if self.cache == "delayed":
            return Delayed(self.refresh or 8, shift)
        return Blockwise(self.cache == "dual", self.refresh, shift)

    def run(self, lm: MaskedLM, requests: Sequence[Request]) -> Iterator[Event]:
        yield from unmask(
            lm,
            requests,
            self.rule(lm, requests),
            schedule=self.plan(lm),
            feeding=self.feeding(lm),
            guidance=self.guidance,
        )

    def wrapped(self, model: Any) -> MaskedLM:
        return masked(_wrapped(model))


class DraftMethod(Method):
    """A method of the draft–verify loop: it says how drafts are made and which rule verifies them."""

    @abstractmethod
    def drafter(self, lm: CausalLM, request: Request) -> Drafter | None:
        """The drafter of one sequence; None for plain decoding."""

    @property
    def rule(self) -> VerificationRule:
        """The verification rule, by default one sample per visited node (greedy at temperature zero)."""
        return verification_rule(getattr(self, "verifier", "match"))

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        drafters = [self.drafter(lm, request) for request in requests]
        present = [drafter for drafter in drafters if drafter is not None]
        yield from speculate(lm, requests, present or None, self.rule.function)


class SearchMethod(Method):
    """A method of the pool loop: its policy says which paths grow, fork and end, and what the answer is.

    ``budget``: tokens drawn for all paths together, after which the live ones are cut; None for no bound. An option of
    those methods that name it.
    """

    budget: int | None = None

    @abstractmethod
    def policy(self, lm: CausalLM, request: Request) -> Policy:
        """The policy of one request."""

    def distant(self) -> WholePolicy | StepPolicy | None:
        """The policy of one request to a server, for whole paths or for likely next tokens; None if it needs more."""
        return None

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        for row, request in enumerate(requests):
            yield from search(lm, request, self.policy(lm, request), row=row, budget=self.budget)


def verification_rule(name: str) -> VerificationRule:
    """The rule called ``name``; raises ``RamifyError`` with the nearest name when there is none."""
    if name not in VERIFIERS:
        raise unknown("verifier", name, VERIFIERS)
    return VERIFIERS[name]


def request_of(
    prompt: Sequence[int],
    processors: Sequence[Any],
    criteria: Sequence[Any],
    *,
    greedy: bool,
    seed: int,
    padding: Sequence[int] = (),
) -> Request:
    """A request from processors and stopping criteria as transformers prepares them."""
    from transformers import EosTokenCriteria, MaxLengthCriteria

    stop_tokens: set[int] = set()
    max_length = 1 << 30
    others = []
    for criterion in criteria:
        if isinstance(criterion, EosTokenCriteria):
            stop_tokens.update(criterion.eos_token_id.flatten().tolist())
        elif isinstance(criterion, MaxLengthCriteria):
            max_length = min(max_length, criterion.max_length - len(padding))
        else:
            others.append(criterion)
    sampler = Sampler(processors, greedy=greedy, noise=Noise(seed))
    return Request(prompt, max_length, sampler, frozenset(stop_tokens), others, padding)


def apart(events: Sequence[Event], rows: int) -> list[list[Event]]:
    """For each of ``rows`` requests the events that are about it, those about no request in particular included."""
    shares: list[list[Event]] = [[] for _ in range(rows)]
    for event in events:
        match event:
            case Noted():
                about: Iterable[int] = range(rows)
            case Scored():
                about = event.rows
            case _:
                about = (event.row,)
        for row in about:
            shares[row].append(event)
    return shares


def gather(lm: LM, request: Request, events: Sequence[Event], row: int, wall: float, cpu: float) -> Result:
    """The result of ``row`` from the ``events`` about it."""
    own = list(events)
    stats = Stats.of(own, row)
    stats.wall_seconds, stats.cpu_seconds = wall, cpu
    tokens = [token for event in own if isinstance(event, Accepted) for token in event.tokens]
    text = lm.tokenizer.decode(tokens, skip_special_tokens=True) if lm.tokenizer is not None else ""
    return Result(text, tokens, list(request.prompt), Result.finish_reason(own), stats, own)


def _of_row(processor: Any, row: int, rows: int) -> Any:
    """``processor`` of a batch as its row ``row`` meets it: some hold a value for each row, or count the rows."""
    if rows == 1 or is_stateful(processor):
        return processor

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        processed: Tensor = processor(ids.repeat(rows, 1), scores.repeat(rows, 1))
        return processed[row : row + 1]

    return process


def _wrapped(model: Any) -> CausalLM:
    """The model as the engine sees it; probed at its first use and remembered on the model itself."""
    lm = model.__dict__.get("_ramify")
    if lm is None:
        lm = model.__dict__["_ramify"] = wrap(model, None, model.config.name_or_path or type(model).__name__)
    found: CausalLM = lm
    return found


def _callers_streamer() -> Any:
    """The streamer given to ``generate``, which does not hand it to a callable (a consumer would wait forever)."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and "streamer" in frame.f_locals and "custom_generate" in frame.f_locals:
            return frame.f_locals["streamer"]
        frame = frame.f_back
    return None
