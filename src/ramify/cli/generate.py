"""``ramify generate``: one prompt, its continuation as it is accepted, and a line of figures."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.errors import RamifyError
from ramify.methods.options import build

if TYPE_CHECKING:
    from ramify.api import Stream
    from ramify.engine.result import Result

DERIVED = (
    "tokens_per_call", "tokens_per_second", "acceptance_rate", "acceptance_by_depth", "off_share", "draft_share",
)  # fmt: skip


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")] = "-",
    model: shell.Model = "demo",
    method: Annotated[str, typer.Option(help="A method's name; see 'ramify methods'.")] = "token-recycling",
    option: shell.Options = None,
    max_new_tokens: shell.Tokens = 128,
    temperature: shell.Temperature = None,
    top_p: shell.TopP = None,
    top_k: shell.TopK = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be repeated.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")] = False,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    attention: shell.Attention = None,
    forward: shell.Forward = None,
    weights: shell.Weights = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Continue a prompt; text streams to standard output, figures go to standard error."""
    settings = sampling(temperature, top_p, top_k)
    if settings.get("do_sample") and method == "greedy":
        raise RamifyError("method 'greedy' never samples; with a temperature use --method sample, or any other method")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise RamifyError("the prompt is empty; give at least one character")
    with shell.waiting("loading torch …"):
        chosen = build(method, option or [])
    lm = shell.load(model, dtype, device, trust_remote_code, attention=attention, forward=forward, weights=weights)

    shell.size(lm, chosen)

    import ramify

    stream = ramify.stream(
        lm,
        [{"role": "user", "content": text}] if chat else text,
        chosen,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=stop or None,
        **settings,
    )
    result = show(stream, silent=json)
    if json:
        shell.emit({"model": model, "method": method, "seed": seed, "prompt": text, **report(result)})
        return
    for said in result.notes:
        shell.note(said)
    shell.note(footer(result))


def sampling(temperature: float | None, top_p: float | None, top_k: int | None) -> dict[str, Any]:
    """The sampling options as fields of transformers' ``GenerationConfig``; temperature 0 is greedy."""
    if temperature is not None and temperature < 0:
        raise RamifyError(f"the temperature is {temperature:g}; give 0 for greedy decoding, or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise RamifyError(f"top_p is {top_p:g}; it is a probability above 0, and 1 at most")
    if top_k is not None and top_k < 1:
        raise RamifyError(f"top_k is {top_k}; keep at least 1 token")
    if temperature == 0:
        if top_p is not None or top_k is not None:
            raise RamifyError("at temperature 0 nothing is sampled, so --top-p and --top-k have no meaning; drop them")
        return {"do_sample": False}
    settings = shell.given(temperature=temperature, top_p=top_p, top_k=top_k)
    return settings | {"do_sample": True} if settings else {}


def show(stream: Stream, silent: bool = False) -> Result:
    """Print the pieces of a stream as they arrive; returns the finished result."""
    for piece in stream:
        if not silent:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not silent:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if stream.result is None:
        raise RuntimeError("the stream ended without a result")
    return stream.result


def footer(result: Result) -> str:
    """The figures of one generation in one line."""
    stats = result.stats
    return (
        f"{stats.generated_tokens} tokens in {stats.wall_seconds:.2f} s: {stats.tokens_per_second:.0f} tokens/s, "
        f"{stats.tokens_per_call:.2f} tokens per call ({stats.target_calls} calls, "
        f"{stats.accepted} of {stats.drafted} drafted accepted), finished by {result.finish}"
    )


def report(result: Result) -> dict[str, Any]:
    """A result as JSON shows it, events left out."""
    stats = result.stats
    figures = {field.name: getattr(stats, field.name) for field in fields(stats)}
    figures |= {name: getattr(stats, name) for name in DERIVED}
    notes = result.notes
    return {"text": result.text, "tokens": result.tokens, "finish": result.finish, "stats": figures, "notes": notes}
