"""transformers' own loops as comparison rows: its greedy ``generate`` and its prompt lookup.

They run the model as transformers has it, its weights unconverted, one prompt at a time, and are watched from outside:
forward passes by a hook, tokens by a streamer. The first forward pass reads the prompt and also yields the first token:
it counts as prefill and as a target call, its time as prefill only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ramify.engine.events import Accepted, Event, Finished, Prefilled, Scored
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.base import Method
from ramify.methods.registry import register
from ramify.models.causal import CausalLM


@register(
    name="hf-greedy",
    title="transformers' greedy generate",
    paper="github.com/huggingface/transformers",
    family="baseline",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class HFGreedy(Method):
    """``model.generate`` of transformers, one token at a time."""

    pinned = {"do_sample": False}  # noqa: RUF012 - a constant of the class, no option
    prepares = True

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        for row, request in enumerate(requests):
            yield from _watch(lm, request, row, {})


@register(
    name="hf-prompt-lookup",
    title="transformers' prompt lookup",
    paper="github.com/apoorvumang/prompt-lookup-decoding",
    family="baseline",
    needs=("logits",),
    lossless=True,
)
@dataclass(frozen=True)
class HFPromptLookup(Method):
    """Prompt lookup decoding as transformers ships it; defaults as there (10 tokens, n-grams of 2).

    ``length``: tokens to copy. ``ngram``: longest piece to look up.
    """

    prepares = True
    length: int = 10
    ngram: int = 2

    def __post_init__(self) -> None:
        if self.ngram < 1 or self.length < 1:
            raise RamifyError(f"ngram and length must be at least 1, got {self.ngram} and {self.length}")

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        settings = {"prompt_lookup_num_tokens": self.length, "max_matching_ngram_size": self.ngram}
        for row, request in enumerate(requests):
            yield from _watch(lm, request, row, settings)


class _Watcher:
    """Notes every forward pass and every batch of tokens while transformers generates."""

    def __init__(self, row: int) -> None:
        self.row, self.events, self.step = row, list[Event](), -1
        self.began = 0.0
        self.prompt_seen = False

    def before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.began = time.perf_counter()

    def after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.step += 1
        seconds = time.perf_counter() - self.began
        nodes = kwargs["input_ids"].shape[1] if self.step else 1
        self.events.append(Scored(self.step, (self.row,), nodes, seconds))

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        tokens = tuple(value.flatten().tolist())
        self.events.append(Accepted(self.row, self.step, tuple(range(len(tokens) - 1)), tokens, 0.0))

    def end(self) -> None:
        """transformers says that the sequence is complete."""


def _watch(lm: CausalLM, request: Request, row: int, settings: dict[str, Any]) -> Iterator[Event]:
    from transformers import GenerationConfig

    watcher = _Watcher(row)
    ids = torch.tensor([list(request.prompt)], device=lm.device)
    stop = sorted(request.stop_tokens)
    # The request's processors already hold every warper, so transformers is given none of its own.
    sampling = {} if request.sampler.greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=not request.sampler.greedy,
        max_length=request.max_length,
        eos_token_id=stop or None,
        pad_token_id=stop[0] if stop else 0,
        repetition_penalty=1.0,
        **sampling,
        **settings,
    )
    torch.manual_seed(request.sampler.noise.seed)
    model = lm.original
    hooks = [
        model.register_forward_pre_hook(watcher.before, with_kwargs=True),
        model.register_forward_hook(watcher.after, with_kwargs=True),
    ]
    try:
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=list(request.sampler.processors),
            stopping_criteria=list(request.criteria),
            streamer=watcher,
        )
    finally:
        for hook in hooks:
            hook.remove()
    first, *others = watcher.events
    assert isinstance(first, Scored)
    yield Prefilled(row, len(request.prompt), 1, first.seconds)
    yield replace(first, seconds=0.0)
    yield from others
    yield Finished(row, watcher.step, "length" if output.shape[1] >= request.max_length else "stop")
