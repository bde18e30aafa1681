"""``ramify unmask``: a canvas that fills while you watch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.cli.generate import sampling
from ramify.errors import RamifyError
from ramify.methods.options import build

if TYPE_CHECKING:
    from ramify.engine.events import Event
    from ramify.engine.request import Request
    from ramify.engine.result import Result
    from ramify.models.image_tokens import ImageTokens
    from ramify.models.masked import MaskedLM

OPEN = "\N{LIGHT SHADE}"


def unmask(
    canvas: Annotated[
        str,
        typer.Argument(
            help="The text to continue, or to fill in at its blanks; - reads it from standard input. For an image "
            "model the class of the picture."
        ),
    ] = "-",
    model: Annotated[
        str, typer.Option("--model", "-m", help="'demo-dlm', a local folder or a hub id.", metavar="MODEL")
    ] = "demo-dlm",
    method: Annotated[str, typer.Option(help="A method that fills in a canvas; see 'ramify methods'.")] = "threshold",
    option: shell.Options = None,
    max_new_tokens: Annotated[int, typer.Option(help="Open positions behind a text without blanks.")] = 64,
    blank: Annotated[
        str | None, typer.Option(help="What marks a blank in the text, each with --blank-tokens open positions.")
    ] = None,
    blank_tokens: Annotated[int, typer.Option(help="Open positions of a blank.")] = 8,
    mask_token: Annotated[
        str | None, typer.Option(help="The model's mask token, where its config does not say it.")
    ] = None,
    temperature: shell.Temperature = None,
    top_p: shell.TopP = None,
    top_k: shell.TopK = None,
    frames: Annotated[
        Path | None, typer.Option(help="Of an image model: the picture as it fills, side by side, in this PNG file.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Draw the canvas over time, on one page, in this file.")] = None,
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    trust_remote_code: shell.Trust = False,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """Fill in a canvas; on a terminal it is shown while it fills, the text goes to standard output."""
    text = sys.stdin.read() if canvas == "-" else canvas
    if not text:
        raise RamifyError("the canvas is empty; give at least one character")
    shell.writable(html)
    shell.writable(frames)
    settings = sampling(temperature, top_p, top_k)
    parts: str | list[str | int] | list[int] = split(text, blank, blank_tokens)
    open_behind = None if blank else max_new_tokens
    with shell.waiting("loading torch …"):
        chosen = build(method, option or [])
    lm = load(model, mask_token, dtype, device, trust_remote_code)
    tokens = image_tokens(model)
    if tokens is not None:
        parts, open_behind = [tokens.class_id(text.strip())], tokens.length
        settings = {"do_sample": True, "logits_processor": [tokens.only_codes], **settings}
    elif frames:
        raise RamifyError(f"{model} is no image model, so there are no frames; use --html")

    from ramify.unmasking import stream

    watched = stream(lm, parts, chosen, max_new_tokens=open_behind, seed=seed, **settings)
    show = Screen(lm, watched.request)
    with show:
        for event in watched.follow():
            show.see(event)
    result = watched.result
    assert result is not None
    if html:
        from ramify.report.canvas import write

        write(result, html, method=chosen, model=model, tokenizer=lm.tokenizer)
    if frames and tokens is not None:
        from ramify.report import frames as pictures

        pictures.write([result], tokens, frames)
    if json:
        shell.emit({"model": model, "method": method, "seed": seed, "canvas": text, **report(result)})
        return
    sys.stdout.write(f"{result.text if lm.tokenizer is not None else ' '.join(map(str, result.tokens))}\n")
    sys.stdout.flush()
    shell.note(footer(result))
    for file in filter(None, (html, frames)):
        shell.note(f"the canvas is drawn in {file}")


def load(
    model: str, mask_token: str | None, dtype: str | None, device: str | None, trust_remote_code: bool
) -> MaskedLM:
    """``ramify.load_masked`` with a spinner."""
    with shell.waiting(f"loading {model} …"):
        shell.quiet()
        import ramify

        return ramify.load_masked(
            model, mask_token=mask_token, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )


def image_tokens(model: str) -> ImageTokens | None:
    """The tokens of an image model, None for a model of text."""
    from ramify.models.causal import BUNDLED
    from ramify.models.image_tokens import FILE, ImageTokens

    folder = Path(BUNDLED.get(model, model))
    return ImageTokens.load(folder) if (folder / FILE).exists() else None


def split(text: str, blank: str | None, count: int) -> str | list[str | int]:
    """``text`` as ``ramify.unmask`` takes it: texts and numbers of open positions, cut at every ``blank``."""
    if not blank:
        return text
    if blank not in text:
        raise RamifyError(f"the text has no {blank!r} to fill in; write one, or leave out --blank")
    parts: list[str | int] = []
    for place, part in enumerate(text.split(blank)):
        parts += [count] if place else []
        parts += [part] if part else []
    return parts


class Screen:
    """The canvas on a terminal, redrawn after every step; nothing where there is none."""

    def __init__(self, lm: MaskedLM, request: Request) -> None:
        from rich.live import Live

        self.lm = lm
        template = [*request.prompt, *(request.canvas or [None] * (request.max_length - len(request.prompt)))]
        self.canvas: list[int | None] = list(template)
        self.live = Live(console=shell.err, transient=True, auto_refresh=False) if shell.err.is_terminal else None

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def see(self, event: Event) -> None:
        """Follow one event."""
        from ramify.engine.events import Cut, Remasked, Unmasked

        new: set[int] = set()
        match event:
            case Unmasked():
                new = set(event.positions)
                for position, token in zip(event.positions, event.tokens, strict=True):
                    self.canvas[position] = token
            case Remasked():
                for position in event.positions:
                    self.canvas[position] = None
            case Cut():
                del self.canvas[event.length :]
            case _:
                return
        if self.live:
            self.live.update(self.draw(new), refresh=True)

    def draw(self, new: set[int]) -> Any:
        """The canvas as it is: what is ``new`` stands out, what is open is shaded."""
        from rich.text import Text

        drawn = Text()
        for position, token in enumerate(self.canvas):
            if token is None:
                drawn.append(OPEN, style="dim")
            else:
                said = self.lm.tokenizer.decode([token]) if self.lm.tokenizer is not None else f"{token} "
                drawn.append(said, style="bold cyan" if position in new else "")
        return drawn


def footer(result: Result) -> str:
    """The figures of one canvas in one line."""
    stats = result.stats
    return (
        f"{stats.generated_tokens} tokens in {stats.target_calls} passes over {stats.row_steps} positions: "
        f"{stats.tokens_per_call:.2f} tokens per pass, {stats.wall_seconds:.2f} s"
    )


def report(result: Result) -> dict[str, Any]:
    """A result as JSON shows it."""
    from ramify.engine.events import Unmasked

    steps = [
        {"step": event.step, "positions": event.positions, "tokens": event.tokens, "confidences": event.confidences}
        for event in result.events
        if isinstance(event, Unmasked)
    ]
    stats = result.stats
    figures = {
        "tokens": stats.generated_tokens, "passes": stats.target_calls, "positions": stats.row_steps,
        "tokens_per_pass": stats.tokens_per_call, "wall_seconds": stats.wall_seconds,
    }  # fmt: skip
    return {"text": result.text, "tokens": result.tokens, "finish": result.finish, "stats": figures, "steps": steps}
