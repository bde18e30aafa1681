"""``ramify train`` and ``ramify bench``: recipes by name."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.cli.options import guess, split
from ramify.errors import RamifyError, unknown

if TYPE_CHECKING:
    from ramify.train.trainer import Progress as Reached


def train(
    name: Annotated[str | None, typer.Argument(help="The recipe; without it, the recipes are listed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints, curve and model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; by default the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="By default the recipe's.")] = None,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Train a bundled model again, or your own by the same recipe; a stopped run resumes where it was."""
    if name is None:
        _list(json, {key: (recipe.__doc__ or "").split("\n")[0] for key, recipe in TRAINERS.items()})
        return
    if name not in TRAINERS:
        raise unknown("recipe", name, TRAINERS)
    if steps is not None and steps < 1:
        raise RamifyError(f"steps is {steps}; train at least 1")
    folder = out or Path("runs") / name
    if folder.exists() and not folder.is_dir():
        raise RamifyError(f"cannot train into {folder}: it is a file")
    TRAINERS[name](folder, shell.given(steps=steps, learning_rate=learning_rate), seed, json)


def _demo_lm(folder: Path, given: dict[str, Any], seed: int, json: bool) -> None:
    """The demo model: a small Llama on the source of the Python standard library."""
    from dataclasses import replace

    with shell.waiting("loading torch …"):
        shell.quiet()
        from ramify.train.demo_lm import DemoLMConfig, train_demo_lm

        config = DemoLMConfig()
        config = replace(config, train=replace(config.train, seed=seed, **given))
    last: Reached | None = None
    figure = "…"
    with shell.bar() as bar:
        task = bar.add_task("reading the corpus", total=config.train.steps)
        for last in train_demo_lm(folder, config):
            if last.evaluation:
                figure = f"{last.evaluation['bits_per_byte']:.3f}"
            bar.update(task, completed=last.step, description=f"loss {last.loss:.3f} · held-out bits/byte {figure}")
    if last is None:
        shell.note(f"{folder} already holds a finished run of {config.train.steps} steps")
    if json:
        shell.emit({"recipe": "demo-lm", "model": str(folder / "model"), "seed": seed, **_progress(last)})
    else:
        shell.note(f"the model is in {folder / 'model'}; try: ramify generate --model {folder / 'model'} 'def '")


def _progress(last: Reached | None) -> dict[str, Any]:
    if last is None:
        return {}
    return {"steps": last.steps, "loss": last.loss, "seconds": last.seconds, "evaluation": last.evaluation}


def _token_recycling(folder: Path, given: dict[str, Any], seed: int, json: bool) -> None:
    """Token Recycling's calibrated templates, counted on the demo model's own training files."""
    if given:
        raise RamifyError(f"the token-recycling recipe counts and does not descend: it takes no {' or '.join(given)}")
    found = {}
    with shell.waiting("decoding the calibration texts …"):
        shell.quiet()
        from ramify.models.causal import load
        from ramify.train.token_recycling import train_template

        folder.mkdir(parents=True, exist_ok=True)
        lm = load("demo", dtype="float32")
        for kind in ("greedy", "sampled"):
            template = train_template(lm, greedy=kind == "greedy", seed=seed)
            template.save(folder / f"{kind}.json")
            sizes = [size for size in (20, 40, 80, 160) if size <= len(template.ranks)]
            found[kind] = {size: round(template.expected(size), 3) for size in sizes}
    if json:
        shell.emit({"recipe": "token-recycling", "templates": str(folder), "seed": seed, "expected": found})
        return
    for kind, expected in found.items():
        sizes_said = ", ".join(f"{tokens:.2f} with {size} nodes" for size, tokens in expected.items())
        shell.note(f"{folder / kind}.json: expected tokens a pass {sizes_said}")


TRAINERS: dict[str, Callable[[Path, dict[str, Any], int, bool], None]] = {
    "demo-lm": _demo_lm,
    "token-recycling": _token_recycling,
}


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
