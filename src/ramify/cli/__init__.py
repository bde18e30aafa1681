"""The command line. Every command is a thin view of the library: what it prints, the Python interface returns."""

from __future__ import annotations

import sys

import typer

from ramify import __version__
from ramify.cli import catalogue, compare, demo, generate, machine, recipes, solve, tune, unmask
from ramify.cli.shell import run

app = typer.Typer(
    name="ramify",
    help="Run a language model along many paths at once: faster, with exactly the same output.",
    epilog="Start with: ramify demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ramify {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    pass


app.command(epilog="Example: ramify demo --prompts 4 --html report.html")(demo.demo)
app.command(epilog="Example: ramify generate 'def parse_args(' --method token-recycling -o nodes=40")(generate.generate)
app.command(
    epilog="Example: ramify solve 'Bob has 90 shells and gives away 87. How many shells does Bob have now?' -o paths=16"
)(solve.solve)
app.command(epilog="Example: ramify unmask 'def parse_args(' --max-new-tokens 48 --html canvas.html")(unmask.unmask)
app.command(epilog="Example: ramify compare --methods greedy,prompt-lookup,token-recycling:nodes=40 --repeats 5")(
    compare.compare
)
app.command(epilog="Example: ramify methods token-recycling")(catalogue.methods)
app.command(epilog="Example: ramify calibrate --model demo --refresh")(machine.calibrate)
app.command(epilog="Example: ramify tune --model demo --temperature 0.7 --svg tune.svg")(tune.tune)
app.command(epilog="Example: ramify verify token-recycling --model demo --dtype float32")(machine.verify)
app.command(epilog="Example: ramify train demo-lm --out runs/demo --steps 200")(recipes.train)
app.command(epilog="Example: ramify bench token-recycling")(recipes.bench)


def main() -> None:
    """The ``ramify`` command."""
    sys.exit(run(app, sys.argv[1:]))
