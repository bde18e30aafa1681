"""``ramify calibrate`` and ``ramify verify``: what this machine's passes cost, and whether a method is exact here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ramify.cli import shell
from ramify.cli.generate import sampling
from ramify.methods.options import build


def calibrate(
    model: shell.Model = "demo",
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again even if a curve is kept.")] = False,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    attention: shell.Attention = None,
    forward: shell.Forward = None,
    weights: shell.Weights = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.NoSeed = 0,
    json: shell.Json = False,
) -> None:
    """Measure what a forward pass over k rows costs on this machine; drafters size themselves by it."""
    lm = shell.load(model, dtype, device, trust_remote_code, attention=attention, forward=forward, weights=weights)

    import ramify

    with shell.waiting("timing forward passes …"):
        curve = ramify.calibrate(lm, refresh=refresh)
    points = [
        {"rows": rows, "seconds": seconds, "ratio": curve.ratio(rows), "run": curve.run(rows)}
        for rows, seconds in zip(curve.rows, curve.seconds, strict=True)
    ]
    if json:
        how = {"forward": lm.forward.name, "weights": lm.forward.weights, "notes": lm.notes}
        shell.emit({"model": model, "key": curve.key, **how, "curve": points})
        return

    from rich import box
    from rich.table import Table

    shell.out.print(f"{model}: {'; '.join([lm.how, *lm.notes])}", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("rows", "milliseconds", "run as", "cost of one row"):
        table.add_column(column, justify="right")
    table.add_column("")
    for point in points:
        bar = "█" * round(4 * point["ratio"])
        padded = str(point["run"]) if point["run"] != point["rows"] else ""
        milliseconds = f"{1000 * point['seconds']:.2f}"
        table.add_row(str(point["rows"]), milliseconds, padded, f"{point['ratio']:.2f} ×", bar)
    shell.out.print(table)
    if any(point["run"] != point["rows"] for point in points):
        said = "run as: more rows where that takes less time; their cost counts, and the surplus is dropped"
        shell.out.print(said, style="dim", highlight=False)


def verify(
    method: Annotated[str, typer.Argument(help="A method's name; see 'ramify methods'.")],
    model: shell.Model = "demo",
    option: shell.Options = None,
    prompts: Annotated[Path | None, typer.Option(help="A .txt or .jsonl file; by default held-out code.")] = None,
    max_new_tokens: shell.Tokens = 64,
    temperature: shell.Temperature = None,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    attention: shell.Attention = None,
    forward: shell.Forward = None,
    weights: shell.Weights = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Check on your model and prompts that a method gives exactly the model's own output; exit code 1 if not."""
    from ramify.bench.prompts import held_out_prompts, load_prompts

    settings = sampling(temperature, None, None)
    found, problems = load_prompts(prompts) if prompts else (held_out_prompts(4, seed), [])
    with shell.waiting("loading torch …"):
        chosen = build(method, option or [])
    lm = shell.load(model, dtype, device, trust_remote_code, attention=attention, forward=forward, weights=weights)

    import ramify
    from ramify.models.weights import ROUNDED

    with shell.bar() as bar:
        task = bar.add_task(f"checking {method}", total=len(found))
        outcome = ramify.verify(
            lm,
            chosen,
            [prompt.text for prompt in found],
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **settings,
        )
    if json:
        shell.emit(outcome.to_dict() | {"left_out": problems})
    else:
        for check in outcome.checks:
            mark = {True: "[green]ok    [/green]", False: "[red]FAILED[/red]", None: "[yellow]open  [/yellow]"}[
                check.ok
            ]
            shell.out.print(f"{mark} [bold]{escape(check.name)}[/bold]  {escape(check.detail)}", highlight=False)
        if any(check.ok is None and check.name.startswith(("prompt", "same")) for check in outcome.checks):
            why = "equality is promised in float32; see --dtype float32"
            if not chosen.card.lossless:
                why = "a lossy method makes no promise"
            elif chosen.prepares and lm.forward.weights in ROUNDED:
                why = f"{method} decodes the model itself, not the one rounded to {lm.forward.weights}"
            shell.out.print(f"open: {why}", style="dim", highlight=False)
    shell.finish(problems, ok=outcome.ok)
