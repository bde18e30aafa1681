"""``ramify solve``: a question in, an answer out, with the vote, the paths and what they cost."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.errors import RamifyError
from ramify.methods.options import build

if TYPE_CHECKING:
    from ramify.engine.path import Path as Continuation
    from ramify.engine.result import Result
    from ramify.models.causal import CausalLM
    from ramify.models.remote import RemoteLM

SHOWN = 12  # paths in the table


def solve(
    question: Annotated[
        str | None,
        typer.Argument(help="The question; - reads it from standard input. By default that of --passages, else -."),
    ] = None,
    model: shell.Model = "demo-reasoner",
    method: Annotated[str, typer.Option(help="A method that searches; see 'ramify methods'.")] = "self-consistency",
    option: shell.Options = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="New tokens at most; by default 512, or what the context leaves.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.7,
    top_p: shell.TopP = None,
    top_k: shell.TopK = None,
    template: Annotated[
        str | None,
        typer.Option(help="The text to continue, with {question} in it; by default the model's chat template."),
    ] = None,
    passages: Annotated[
        Path | None,
        typer.Option(
            help="What to answer from: texts with empty lines between them, or JSON with passages and question."
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server, as http://localhost:8000/v1, that has the model.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Draw the paths over time, on one page, in this file.")] = None,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Answer a question along several paths; the answer goes to standard output, the vote to standard error."""
    text, texts = asked(question, passages)
    shell.writable(html)
    with shell.waiting("loading torch …"):
        chosen = build(method, option or [])

    import ramify

    lm: CausalLM | RemoteLM
    lm = ramify.RemoteLM(model, server) if server else shell.load(model, dtype, device, trust_remote_code)

    settings = shell.given(top_p=top_p, top_k=top_k)
    with shell.waiting("thinking …"):
        result = ramify.solve(
            lm, text, chosen, passages=texts, max_new_tokens=max_new_tokens, temperature=temperature,
            template=template, seed=seed, **settings,
        )  # fmt: skip
    if html:
        from ramify.report.pool import write

        write(result, text, html, method=chosen, model=model)
    if json:
        shell.emit({"model": model, "method": method, "seed": seed, "question": text, **report(result)})
        return
    sys.stdout.write(f"{result.answer if result.answer is not None else result.text}\n")
    sys.stdout.flush()
    show(result)
    if html:
        shell.note(f"the paths are drawn in {html}")


def asked(question: str | None, passages: Path | None) -> tuple[str, list[str]]:
    """The question and the passages that were given, wherever they are."""
    written: str | None = None
    texts: list[str] = []
    if passages is not None:
        from ramify.bench.tasks.passages import read_passages

        written, texts = read_passages(passages)
    if written is not None and question is not None:
        raise RamifyError(f"the question is given twice, here and in {passages}; leave out one of them")
    question = written or question or "-"
    text = (sys.stdin.read() if question == "-" else question).strip()
    if not text:
        raise RamifyError("the question is empty; give at least one character")
    return text, texts


def show(result: Result) -> None:
    """The vote, the best paths and the bill, on standard error."""
    from rich.table import Table

    for said in result.notes:
        shell.note(said)
    total = sum(result.votes.values())
    if total > 0:  # a best path by log-probability has no share of anything
        votes = ", ".join(
            f"{answer}: {100 * weight / total:.0f} %" for answer, weight in list(result.votes.items())[:6]
        )
        shell.note(f"votes: {votes}")
    scored = any(path.score for path in result.paths)
    columns = ("path", "from", "tokens", "end", "score" if scored else "confidence", "answer")
    table = Table(*columns, box=None, header_style="dim")
    for path in result.paths[:SHOWN]:
        table.add_row(*_row(path, scored))
    shell.err.print(table)
    if len(result.paths) > SHOWN:
        shell.note(f"and {len(result.paths) - SHOWN} more paths")
    cost = result.cost
    shell.note(
        f"{cost.generated_tokens} tokens drawn in {cost.forward_calls} passes over {cost.row_steps} rows, "
        f"{cost.prompt_tokens} of prompts read, {cost.wall_seconds:.2f} s"
    )


def _row(path: Continuation, scored: bool) -> list[str]:
    origin = "prompt" if path.parent is None else f"{path.parent} at {path.start}"
    figure = f"{path.score:.3g}" if scored else f"{path.confidence:.2f}" if path.confidences else ""
    return [str(path.number), origin, str(len(path)), path.finish or "", figure, path.answer or ""]


def report(result: Result) -> dict[str, Any]:
    """A result as JSON shows it."""
    paths = [
        {
            "number": path.number, "parent": path.parent, "start": path.start, "tokens": len(path),
            "finish": path.finish, "answer": path.answer, "confidence": path.confidence if path.confidences else None,
            "mean_log_prob": path.mean_log_prob if path.log_probs else None, "score": path.score, "text": path.text,
        }
        for path in result.paths
    ]  # fmt: skip
    return {
        "answer": result.answer,
        "text": result.text,
        "votes": result.votes,
        "paths": paths,
        "cost": asdict(result.cost),
        "notes": result.notes,
    }
