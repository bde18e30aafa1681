"""The page of a canvas that was filled in: what stood where after every step, and how sure the model was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.engine.events import Cut, Remasked, Scored, Unmasked
from ramify.engine.result import Result
from ramify.errors import RamifyError

if TYPE_CHECKING:
    from ramify.methods.base import Method

FOLDER = Path(__file__).parent
STEP = 12  # pixels between two steps
SHADES = (0.15, 1.0)  # opacity at confidence 0 and 1
TALLEST = 600  # pixels of the drawing, beyond which steps share a line


@dataclass(frozen=True)
class Stay:
    """A token that stood at ``position`` from step ``begin`` until step ``end``, written with that ``confidence``."""

    position: int
    token: int
    begin: int
    end: int
    confidence: float


def write(result: Result, path: str | Path, *, method: Method, model: str, tokenizer: Any = None) -> None:
    """Write the page of ``result``."""
    try:
        Path(path).write_text(render(result, method=method, model=model, tokenizer=tokenizer), encoding="utf-8")
    except OSError as error:
        raise RamifyError(f"cannot write the page to {path}: {error.strerror or error}") from None


def render(result: Result, *, method: Method, model: str, tokenizer: Any = None) -> str:
    """The page as text: it loads nothing and needs no scripts. ``tokenizer``: None shows token ids."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    drawn, steps = stays(result)
    positions = sorted({stay.position for stay in drawn}) or [len(result.prompt)]
    column = {position: place for place, position in enumerate(positions)}
    line = min(STEP, TALLEST / steps)
    last = {stay.position: stay for stay in drawn if stay.end == steps}
    return environment.get_template("canvas.html.j2").render(
        result=result,
        model=model,
        method=repr(method),
        prompt=_say(result.prompt, tokenizer),
        cells=[
            {
                "x": 100 * column[stay.position] / len(positions),
                "y": line * stay.begin,
                "height": line * (stay.end - stay.begin),
                "shade": _shade(stay.confidence),
                "gone": stay.end < steps,
                "text": f"position {stay.position}, step {stay.begin}: {_say([stay.token], tokenizer)!r}, "
                f"confidence {stay.confidence:.3f}" + ("" if stay.end == steps else f", taken back at step {stay.end}"),
            }
            for stay in drawn
        ],
        width=100 / len(positions),
        line=line,
        height=line * steps,
        steps=steps,
        text=[
            {
                "text": _say([last[position].token], tokenizer) if tokenizer else f"{last[position].token} ",
                "shade": round(1 - last[position].begin / steps, 3),
                "title": f"step {last[position].begin}, confidence {last[position].confidence:.3f}",
            }
            for position in positions
            if position in last
        ],
        facts=facts(result, drawn),
        css=(FOLDER / "style.css").read_text(encoding="utf-8"),
    )


def stays(result: Result) -> tuple[list[Stay], int]:
    """Every token that ever stood at an open position, in the order of writing, and the number of steps."""
    steps = 1 + max((event.step for event in result.events if isinstance(event, Scored)), default=0)
    standing: dict[int, tuple[int, int, float]] = {}
    found = []

    def end(position: int, step: int) -> None:
        token, begin, confidence = standing.pop(position)
        found.append(Stay(position, token, begin, step, confidence))

    for event in result.events:
        match event:
            case Unmasked():
                for position, token, confidence in zip(event.positions, event.tokens, event.confidences, strict=True):
                    standing[position] = (token, event.step, confidence)
            case Remasked():
                for position in event.positions:
                    end(position, event.step)
            case Cut():
                for position in [each for each in standing if each >= event.length]:
                    end(position, event.step)
            case _:
                pass
    for position in list(standing):
        end(position, steps)
    return sorted(found, key=lambda stay: (stay.begin, stay.position)), steps


def facts(result: Result, drawn: list[Stay]) -> list[tuple[str, str]]:
    """What it took, as (name, value)."""
    stats = result.stats
    written = len(drawn)
    return [
        ("Positions", f"{len({stay.position for stay in drawn}):,}, written {written:,} times in all"),
        ("Passes", f"{stats.target_calls:,} over {stats.row_steps:,} positions"),
        ("Per pass", f"{written / max(stats.target_calls, 1):.2f} tokens"),
        ("Took", f"{stats.wall_seconds:.2f} s, {stats.score_seconds:.2f} s of it in passes"),
    ]


def _say(tokens: list[int], tokenizer: Any) -> str:
    if tokenizer is None:
        return " ".join(map(str, tokens))
    text: str = tokenizer.decode(tokens)
    return text


def _shade(confidence: float) -> float:
    least, most = SHADES
    return round(least + (most - least) * min(1.0, max(0.0, confidence)), 3)
