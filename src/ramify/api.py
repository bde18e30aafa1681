"""Generate and stream: prompts and settings in, results out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from ramify.engine.events import Accepted, Event
from ramify.engine.request import Parser, Request
from ramify.engine.result import Result
from ramify.errors import RamifyError, first_line
from ramify.methods.base import LM, MaskedMethod, Method, gather, request_of
from ramify.methods.modes import adopt, check
from ramify.models.causal import CausalLM, load
from ramify.models.masked import MaskedLM, load_masked

DEFAULT_NEW_TOKENS = 128

Chat = list[dict[str, str]]
Prompt = str | Chat | list[int]


@overload
def generate(lm: LM | str, prompt: str, method: str | Method = ..., **settings: Any) -> Result: ...


@overload
def generate(lm: LM | str, prompt: list[str], method: str | Method = ..., **settings: Any) -> list[Result]: ...


@overload
def generate(lm: LM | str, prompt: Any, method: str | Method = ..., **settings: Any) -> Any: ...


def generate(
    lm: LM | str,
    prompt: Any,
    method: str | Method = "greedy",
    *,
    options: dict[str, Any] | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    stop: str | Sequence[str] | None = None,
    answer: Parser | None = None,
    **settings: Any,
) -> Result | list[Result]:
    """Continue a prompt, or a list of prompts as one batch.

    ``lm``: from ``load`` (or ``load_masked``, for methods that fill in a canvas), or what it takes. ``prompt``: a text,
    token ids, a chat (list of role/content dictionaries), or a list of these. ``method``: a name from
    ``ramify.methods()`` with its ``options``, or a method object; an object carries what it learned from call to call.
    ``max_new_tokens``: by default the model's generation config, else 128. ``seed``: row i of a batch uses seed + i,
    and the same seed gives the same tokens under every method that verifies by matching. ``stop``: texts that end the
    sequence, kept at its end as transformers keeps them. ``answer``: finds the answer in a path's text, for methods
    that vote; by default the text is the answer. ``settings``: any field of transformers' ``GenerationConfig``
    (do_sample, temperature, top_p, repetition_penalty, …), and ``logits_processor``, ``stopping_criteria``; those that
    select a mode of transformers (num_beams, penalty_alpha, …) are options of the method of that mode.

    Returns one ``Result``, or a list of them for a list of prompts. Raises ``RamifyError`` for an unknown method or
    option, an empty prompt, and lengths beyond the context.
    """
    chosen, settings = adopt(method, options or {}, settings)
    lm = ready(lm, chosen)
    prompts, single = _prompts(prompt)
    requests = prepare(
        lm, prompts, chosen, max_new_tokens=max_new_tokens, seed=seed, stop=stop, answer=answer, **settings
    )
    results = chosen.complete(lm, requests)
    return results[0] if single else results


class Stream:
    """A generation under way: iterate over it for pieces of text; ``result`` is there when it is exhausted.

    ``events`` grows as things happen. Text arrives as it is accepted, a character once all of its bytes
    are there.
    """

    def __init__(self, lm: LM, method: Method, request: Request) -> None:
        self.lm, self.method, self.request = lm, method, request
        self.events: list[Event] = []
        self.result: Result | None = None

    def __iter__(self) -> Iterator[str]:
        tokenizer = self.lm.require_tokenizer()
        tokens: list[int] = []
        shown = 0
        for event in self.follow():
            if isinstance(event, Accepted):
                tokens.extend(event.tokens)
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                if len(text) > shown and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    yield text[shown:]
                    shown = len(text)
        if self.result is not None and len(self.result.text) > shown:
            yield self.result.text[shown:]

    def follow(self) -> Iterator[Event]:
        """The events as they happen, for those who show more than the text that is accepted."""
        wall, cpu = time.perf_counter(), time.process_time()
        for event in self.method.run(self.lm, [self.request]):
            self.events.append(event)
            yield event
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.result = gather(self.lm, self.request, self.events, 0, wall, cpu)


def stream(
    lm: LM | str,
    prompt: Prompt,
    method: str | Method = "greedy",
    *,
    options: dict[str, Any] | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    stop: str | Sequence[str] | None = None,
    **settings: Any,
) -> Stream:
    """Like ``generate`` for one prompt, giving its text piece by piece; see ``Stream``."""
    chosen, settings = adopt(method, options or {}, settings)
    lm = ready(lm, chosen)
    [request] = prepare(lm, [prompt], chosen, max_new_tokens=max_new_tokens, seed=seed, stop=stop, **settings)
    return Stream(lm, chosen, request)


def ready(lm: LM | str, method: Method) -> LM:
    """``lm``, loaded if it is not; raises ``RamifyError`` where it is of the other kind than ``method`` runs on."""
    fills = isinstance(method, MaskedMethod)
    if not isinstance(lm, CausalLM | MaskedLM):
        return load_masked(lm) if fills else load(lm)
    if fills and isinstance(lm, CausalLM):
        raise RamifyError(
            f"{method.card.name} fills in the canvas of a masked denoiser, and {lm.name} reads from left to right; "
            "load one with ramify.load_masked"
        )
    if not fills and isinstance(lm, MaskedLM):
        raise RamifyError(
            f"{method.card.name} reads from left to right, and {lm.name} is a masked denoiser; use method='unmask' or "
            "another of its family"
        )
    return lm


def prepare(
    lm: LM,
    prompts: Sequence[Prompt],
    method: Method,
    *,
    max_new_tokens: int | None = None,
    seed: int = 0,
    stop: str | Sequence[str] | None = None,
    answer: Parser | None = None,
    **settings: Any,
) -> list[Request]:
    """Requests as the engine takes them; transformers itself turns the settings into processors and criteria."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise RamifyError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
    ready(lm, method)
    requests = []
    for row, prompt in enumerate(prompts):
        ids = _ids(lm, prompt)
        if not ids:
            raise RamifyError("the prompt is empty; give at least one token")
        length = max_new_tokens if max_new_tokens is not None else _default_length(lm, len(ids), settings)
        given = settings | method.pinned | ({} if length is None else {"max_new_tokens": length})
        request = _prepare_one(lm, ids, method, seed + row, stop, given)
        requests.append(request if answer is None else replace(request, answer=answer))
    return requests


def _prepare_one(
    lm: LM,
    ids: list[int],
    method: Method,
    seed: int,
    stop: str | Sequence[str] | None,
    settings: dict[str, Any],
) -> Request:
    from transformers import StopStringCriteria

    if not 0 <= min(ids) <= max(ids) < lm.vocab_size:
        outside = min(ids) if min(ids) < 0 else max(ids)
        raise RamifyError(f"token {outside} is outside the vocabulary of {lm.name} ({lm.vocab_size} tokens)")
    captured: dict[str, Any] = {}

    def capture(
        model: Any,
        input_ids: Any,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **others: Any,
    ) -> Any:
        captured.update(processors=logits_processor, criteria=stopping_criteria, config=generation_config)
        return input_ids

    tensor = torch.tensor([ids], device=lm.device)
    try:
        lm.model.generate(tensor, attention_mask=torch.ones_like(tensor), custom_generate=capture, **settings)
    except (ValueError, TypeError) as error:
        raise RamifyError(first_line(error)) from error
    config = captured["config"]
    check(config.to_dict(), method)
    if (config.num_return_sequences or 1) > 1:
        raise RamifyError(
            f"num_return_sequences={config.num_return_sequences} is not offered; give the prompt as often as wanted, "
            "or read result.paths of a method that follows several"
        )
    criteria = list(captured["criteria"])
    if stop:
        criteria.append(StopStringCriteria(lm.require_tokenizer(), [stop] if isinstance(stop, str) else list(stop)))
    return request_of(ids, captured["processors"], criteria, greedy=not config.do_sample, seed=seed)


def _default_length(lm: LM, prompt: int, settings: dict[str, Any]) -> int | None:
    """128 new tokens (fewer where the context ends), unless the caller or the model's generation config says."""
    config = settings.get("generation_config") or lm.model.generation_config
    if "max_length" in settings or config.max_new_tokens is not None or config.max_length not in (None, 20):
        return None
    return max(1, min(DEFAULT_NEW_TOKENS, lm.context - prompt))


def _ids(lm: LM, prompt: Any) -> list[int]:
    return list(prompt) if _is_ids(prompt) else lm.encode(prompt)


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)


def _prompts(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether there is a single one."""
    if isinstance(prompt, str) or _is_ids(prompt) or (prompt and isinstance(prompt[0], dict)):
        return [prompt], True
    return list(prompt), False
