"""``ramify tune``: the fastest method for a model on this machine and these prompts, kept for ``--method auto``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ramify.cli import shell
from ramify.cli.generate import sampling
from ramify.methods.options import outside


def tune(
    prompts: Annotated[Path | None, typer.Option(help="A .txt or .jsonl file; by default held-out code.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Only these, separated by commas, with :option=value where wanted; by default all."),
    ] = None,
    count: Annotated[int, typer.Option(help="How many of the held-out prompts, where no file is given.")] = 6,
    model: shell.Model = "demo",
    max_new_tokens: shell.Tokens = 64,
    repeats: Annotated[int, typer.Option(help="Timed rounds of the finalists over all prompts.")] = 3,
    temperature: Annotated[
        float | None, typer.Option(help="Tune for text sampled at this temperature; by default for greedy text.")
    ] = None,
    top_p: shell.TopP = None,
    top_k: shell.TopK = None,
    svg: Annotated[Path | None, typer.Option(help="Write the chart of cost and acceptance to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report of the finalists to this file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do not keep the profile.")] = False,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    attention: shell.Attention = None,
    forward: shell.Forward = None,
    weights: shell.Weights = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Measure your machine and every drafter on your prompts; predict, measure and keep the fastest way to decode."""
    from ramify.bench.prompts import held_out_prompts, load_prompts

    settings = sampling(temperature, top_p, top_k)
    sampled = settings.pop("do_sample", False)
    temperature = settings.pop("temperature", 1.0) if sampled else None
    shell.writable(svg)
    shell.writable(html)
    found, problems = load_prompts(prompts) if prompts else (held_out_prompts(count, seed), [])
    lm = shell.load(model, dtype, device, trust_remote_code, attention=attention, forward=forward, weights=weights)

    from ramify.bench.tune import tune as search

    with shell.bar() as bar:
        task = bar.add_task("", total=None)
        tuning = search(
            lm,
            found,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            seed=seed,
            methods=[spec.strip() for spec in outside(methods, ",+") if spec.strip()] if methods else None,
            keep=not dry_run,
            progress=lambda what: bar.update(task, description=what),
            **settings,
        )
    if svg:
        svg.write_text(tuning.chart().svg(), encoding="utf-8")
    if html:
        tuning.comparison.save_html(html)
    if json:
        shell.emit(tuning.to_dict() | {"left_out_prompts": problems})
    else:
        tuning.show(shell.out)
        for file, what in ((svg, "chart"), (html, "report")):
            if file:
                shell.note(f"the {what} is in {file}")
        if not dry_run:
            shell.note("--method auto now uses this; tune again for other prompts, another dtype or number of threads")
    shell.finish(problems)
