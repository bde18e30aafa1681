"""``ramify train`` and ``ramify bench``: recipes by name."""

from __future__ import annotations

import json as literal
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.errors import unknown
from ramify.methods.options import guess, split

if TYPE_CHECKING:
    from ramify.train.trainer import Progress as Reached


def train(
    name: Annotated[str | None, typer.Argument(help="The recipe; without it, the recipes are listed.")] = None,
    model: shell.Model = "demo",
    data: Annotated[
        Path | None, typer.Option(help="A file or folder of texts; by default the standard library's source.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints, curve and result.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; by default the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="By default the recipe's.")] = None,
    option: shell.Options = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate time and memory.")] = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Train what a method needs beside your model, or a bundled model again; a stopped run resumes where it was."""
    from ramify.train.job import Job, recipes, trainer

    if name is None:
        _list(json, recipes())
        return
    folder = out or Path("runs") / name
    options = {key: guess(text) for key, text in split(option or []).items()}
    job = Job(folder, model, data, steps, learning_rate, seed, options, dry_run)
    with shell.waiting("loading torch …"):
        shell.quiet()
        run = trainer(name)
    last: Reached | None = None
    figures: dict[str, float] = {}
    with shell.bar() as bar:
        task = bar.add_task("preparing", total=None)
        for last in run(job):
            figures = last.evaluation or figures
            said = [] if last.loss is None else [f"loss {last.loss:.3f}"]
            said += [f"{key} {value:.3g}" for key, value in list(figures.items())[:3]]
            bar.update(task, completed=last.step, total=last.steps, description=" · ".join(said))
    curve = None if dry_run else _draw(folder, name)
    if json:
        shell.emit({"recipe": name, "out": str(folder), "seed": seed, **_progress(last)})
        return
    if last is None:
        shell.note(f"{folder} already holds a finished run")
    for key, value in figures.items():
        shell.out.print(f"{key}: {value:.4g}", highlight=False, markup=False)
    if not dry_run:
        shell.note(f"the result is in {folder}" + (f", the curve in {curve}" if curve else ""))


def _progress(last: Reached | None) -> dict[str, Any]:
    if last is None:
        return {}
    return {"steps": last.steps, "loss": last.loss, "seconds": last.seconds, "evaluation": last.evaluation}


def _draw(folder: Path, name: str) -> Path | None:
    """The loss curve as a picture beside its points, where there are enough of them."""
    from ramify.bench.chart import Chart

    points = folder / "curve.jsonl"
    if not points.exists():
        return None
    entries = [literal.loads(line) for line in points.read_text().splitlines()]
    losses = [(entry["step"], entry["loss"]) for entry in entries if entry["loss"] and entry["loss"] > 0]
    if len(losses) < 2:
        return None
    stride = max(1, len(losses) // 200)
    picture = folder / "curve.svg"
    chart = Chart("curve", f"Training of {name}", "step", "loss", {"loss": losses[::stride]})
    picture.write_text(chart.svg(), encoding="utf-8")
    return picture


def bench(
    name: Annotated[str | None, typer.Argument(help="The benchmark; without it, the benchmarks are listed.")] = None,
    option: shell.Options = None,
    save: Annotated[
        Path | None, typer.Option(help="Also write the tables to this markdown file, charts beside it.")
    ] = None,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Measure a published claim again, at equal budget and with its baselines."""
    from ramify.bench.recipes import RECIPES

    if name is None:
        _list(json, {key: recipe.summary for key, recipe in RECIPES.items()})
        return
    if name not in RECIPES:
        raise unknown("benchmark", name, RECIPES)
    shell.writable(save)
    options = {key: guess(text) for key, text in split(option or []).items()}
    with shell.waiting(f"running {name} …"):
        shell.quiet()
        outcome = RECIPES[name].run(seed=seed, **options)
    if save:
        command = shlex.join(["ramify", *sys.argv[1:]])
        outcome.save(save, f"# {name}: {RECIPES[name].summary}\n\n`{command}`")
    if json:
        shell.emit(outcome.to_dict())
    else:
        outcome.show(shell.out)


def _list(json: bool, summaries: dict[str, str]) -> None:
    if json:
        shell.emit([{"name": name, "summary": summary} for name, summary in summaries.items()])
        return
    for name, summary in summaries.items():
        shell.out.print(f"[bold]{name}[/bold]  {summary}", highlight=False)
