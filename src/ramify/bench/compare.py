"""Methods compared on one model and the same prompts, timed in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.bench.comparison import Comparison
from ramify.bench.measure import Meter, Trial, machine
from ramify.bench.prompts import Prompt
from ramify.bench.rows import summarise
from ramify.bench.trace import Step, pieces, steps_of
from ramify.errors import RamifyError
from ramify.methods.registry import create

if TYPE_CHECKING:
    from ramify.methods.base import Method
    from ramify.models.causal import CausalLM

Progress = Callable[[int, int, str], None]


def compare(
    lm: CausalLM | str,
    prompts: Sequence[str | Prompt],
    methods: Sequence[str | Method],
    *,
    max_new_tokens: int = 128,
    repeats: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Comparison:
    """Run every method on every prompt, ``repeats`` times, and set the figures side by side.

    ``methods``: names or method objects; the first is the reference of all ratios. ``settings``: as ``generate`` takes
    them (do_sample, temperature, …), the same for all. ``progress`` is called before each timed call with the number of
    calls done, their total, and what comes next.

    After one untimed call of each method, the methods take turns on every prompt of every repeat, so that a machine
    that drifts does so for all. Prompt i has seed + i under every method and in every repeat: the spread over the
    repeats is that of the clock alone. In each repeat a method starts from a fresh copy of its object, so that one that
    carries what it learned from prompt to prompt does so within a repeat, as its options say, but never meets a
    prompt for the second time. What a drafter lays out once for all prompts, as the matrices of a trained head, is not
    timed. A call that ends in a ``RamifyError`` is recorded in its row; all others go on.
    """
    import ramify.api

    if isinstance(lm, str):
        from ramify.models.causal import load

        lm = load(lm)
    if repeats < 1:
        raise RamifyError(f"repeats is {repeats}; a comparison needs at least 1")
    asked = [p if isinstance(p, Prompt) else Prompt(str(i), p) for i, p in enumerate(prompts, 1)]
    if not asked or not methods:
        raise RamifyError("a comparison needs at least one prompt and one method")
    chosen = [create(method) for method in methods]
    names = labels(chosen)
    meter, begun, model = Meter(lm.device), time.perf_counter(), lm
    shared = {"max_new_tokens": max_new_tokens, **settings}

    def run(method: Method, index: int) -> Trial:
        trial = meter(lambda: ramify.api.generate(model, asked[index].text, method, seed=seed + index, **shared))
        if method.prepares:  # its own loop prepares the settings a second time: charge it for one
            stats = trial.result.stats
            trial = dataclasses.replace(trial, wall=stats.wall_seconds, cpu=stats.cpu_seconds)
        return trial

    total = len(chosen) * (repeats * len(asked) + 1)
    done = 0
    trials: list[list[list[Trial | None]]] = [[[None] * len(asked) for _ in range(repeats)] for _ in chosen]
    steps: list[list[list[Step]]] = [[[] for _ in asked] for _ in chosen]
    problems: list[dict[int, str]] = [{} for _ in chosen]
    for repeat in range(-1, repeats):
        fresh = [_copy(method) for method in chosen]
        for method in fresh:
            _lay_out(method, model, asked[0].text, shared)
        for index in range(len(asked) if repeat >= 0 else 1):
            for place, method in enumerate(fresh):
                stage = f"repeat {repeat + 1} of {repeats}" if repeat >= 0 else "warm-up"
                if progress:
                    progress(done, total, f"{names[place]}, prompt {asked[index].id}, {stage}")
                done += 1
                if index in problems[place]:
                    continue
                try:
                    trial = run(method, index)
                except RamifyError as error:
                    problems[place][index] = str(error)
                    continue
                if repeat == 0:
                    steps[place][index] = steps_of(trial.result)
                if repeat >= 0:  # the events hold whole trees and laws: too much to keep
                    light = dataclasses.replace(trial.result, events=[])
                    trials[place][repeat][index] = dataclasses.replace(trial, result=light)
    if progress:
        progress(total, total, "done")
    rows = [
        summarise(name, method.card.name, method.card.lossless, asked, trials[place], trials[0], problems[place])
        for place, (name, method) in enumerate(zip(names, chosen, strict=True))
    ]
    used = {token for row in steps for each in row for step in each for token in (*step.tokens, *step.committed)}
    return Comparison(
        model={
            "name": lm.name,
            "device": str(lm.device),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "forward": lm.how,
        },
        machine=machine(lm.device),
        settings={**shared, "repeats": repeats, "seed": seed},
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        memory_kind=meter.memory_kind,
        prompts=asked,
        rows=rows,
        steps=steps,
        pieces=pieces(lm.tokenizer, used),
        seconds=time.perf_counter() - begun,
    )


def labels(methods: Sequence[Method]) -> list[str]:
    """A name for each method, with the options that are not the default, numbered where two would be the same."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for method in methods:
        options: list[str] = []
        known: Any = method
        for option in dataclasses.fields(known):
            value = getattr(method, option.name)
            default = option.default
            if option.default_factory is not dataclasses.MISSING:
                default = option.default_factory()
            if value is not default and value != default:
                text = repr(value) if isinstance(value, str | int | float | tuple | None) else type(value).__name__
                options.append(f"{option.name}={text if len(text) < 40 else text[:37] + '…'}")
        name = method.card.name + (f"({', '.join(options)})" if options else "")
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names


def _lay_out(method: Method, lm: CausalLM, prompt: str, settings: dict[str, Any]) -> None:
    """Let a drafter make what all its requests share; a method that cannot run says so when it is called."""
    from ramify.api import prepare
    from ramify.methods.base import DraftMethod

    if isinstance(method, DraftMethod):
        with contextlib.suppress(RamifyError):
            method.drafter(lm, prepare(lm, [prompt], method, **settings)[0])


def _copy(method: Method) -> Method:
    """The same options without anything learned."""
    known: Any = method
    copy: Method = dataclasses.replace(known)
    return copy
