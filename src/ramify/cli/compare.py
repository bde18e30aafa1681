"""``ramify compare``: methods × prompts on one model, timed in turn, as a table, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.cli.generate import sampling
from ramify.methods.options import build_specs

if TYPE_CHECKING:
    from ramify.bench.comparison import Comparison
    from ramify.bench.prompts import Prompt
    from ramify.methods.base import Method
    from ramify.models.causal import CausalLM

DEFAULT = "greedy,hf-greedy,hf-prompt-lookup,prompt-lookup,suffix,token-recycling"


def compare(
    prompts: Annotated[Path | None, typer.Option(help="A .txt or .jsonl file; by default held-out code.")] = None,
    methods: Annotated[
        str,
        typer.Option(help="Names separated by commas, with :option=value where wanted; the first is the base."),
    ] = DEFAULT,
    count: Annotated[int, typer.Option(help="How many of the held-out prompts, where no file is given.")] = 8,
    model: shell.Model = "demo",
    max_new_tokens: shell.Tokens = 128,
    repeats: Annotated[int, typer.Option(help="Timed rounds over all prompts.")] = 3,
    temperature: shell.Temperature = None,
    top_p: shell.TopP = None,
    top_k: shell.TopK = None,
    html: Annotated[Path | None, typer.Option(help="Write the report, one self-contained page, to this file.")] = None,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    attention: shell.Attention = None,
    forward: shell.Forward = None,
    weights: shell.Weights = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Compare methods on the same prompts: speed and its spread, tokens per pass, whether the output is the same."""
    from ramify.bench.prompts import held_out_prompts, load_prompts

    settings = sampling(temperature, top_p, top_k)
    shell.writable(html)
    found, problems = load_prompts(prompts) if prompts else (held_out_prompts(count, seed), [])
    with shell.waiting("loading torch …"):
        chosen = build_specs(methods)
    lm = shell.load(model, dtype, device, trust_remote_code, attention=attention, forward=forward, weights=weights)

    from ramify.models.weights import ROUNDED

    others = [method.card.name for method in chosen if method.prepares]
    if others and lm.forward.weights in ROUNDED:
        shell.note(f"{', '.join(others)}: the model itself decodes, not the one rounded to {lm.forward.weights}")
    outcome = timed(lm, found, chosen, max_new_tokens=max_new_tokens, repeats=repeats, seed=seed, **settings)
    if html:
        outcome.save_html(html)
    if json:
        shell.emit(outcome.to_dict() | {"left_out": problems})
    else:
        outcome.show(shell.out)
        if html:
            shell.note(f"the report is in {html}")
    shell.finish([*problems, *outcome.problems])


def timed(lm: CausalLM, prompts: Sequence[Prompt], methods: Sequence[str | Method], **settings: Any) -> Comparison:
    """``ramify.compare`` with a progress bar on standard error."""
    import ramify

    with shell.bar() as bar:
        task = bar.add_task("")

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        return ramify.compare(lm, prompts, methods, progress=progress, **settings)
