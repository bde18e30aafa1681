"""The page of a search: its paths over time, who forked from whom, who was cut, and what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.engine.events import Ended, Forked, Grown, Refined
from ramify.engine.path import Path as Continuation
from ramify.engine.result import Result
from ramify.errors import RamifyError

if TYPE_CHECKING:
    from ramify.methods.base import Method

FOLDER = Path(__file__).parent
LANE = 16  # pixels between two paths
CELLS = 160  # most cells of one path: several tokens share one where there are more
SHADES = (0.12, 1.0)  # opacity of the least and of the most confident cell


@dataclass(frozen=True)
class Cell:
    """Tokens ``first`` to ``last`` of a path: where they are on the axis, in %, how dark, and what they say."""

    left: float
    width: float
    shade: float
    text: str


@dataclass(frozen=True)
class Lane:
    """One path: ``top`` in pixels; ``fork``: (left in %, top of the parent's lane), None at the prompt."""

    path: Continuation
    top: float
    cells: list[Cell]
    fork: tuple[float, float] | None
    end: float
    kind: str


def write(result: Result, question: str, path: str | Path, *, method: Method, model: str) -> None:
    """Write the page of ``result``."""
    try:
        Path(path).write_text(render(result, question, method=method, model=model), encoding="utf-8")
    except OSError as error:
        raise RamifyError(f"cannot write the page to {path}: {error.strerror or error}") from None


def render(result: Result, question: str, *, method: Method, model: str) -> str:
    """The page as text: it loads nothing and needs no scripts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    lanes, steps = draw(result)
    heaviest = max(result.votes.values(), default=1.0)
    return environment.get_template("pool.html.j2").render(
        result=result,
        question=question,
        model=model,
        method=repr(method),
        lanes=lanes,
        steps=steps,
        height=LANE * len(lanes) + 4,
        lane=LANE,
        ticks=_ticks(steps),
        votes=[(answer, weight, 100 * weight / heaviest) for answer, weight in result.votes.items()],
        facts=facts(result),
        css=(FOLDER / "style.css").read_text(encoding="utf-8"),
    )


def facts(result: Result) -> list[tuple[str, str]]:
    """What it cost, as (name, value)."""
    cost = result.cost
    return [
        ("Paths", f"{len(result.paths)}, of which {sum(path.complete for path in result.paths)} came to their end"),
        (
            "Tokens",
            f"{cost.generated_tokens:,} drawn, {cost.kept_tokens:,} given out; the prompt has {cost.prompt_tokens:,}",
        ),
        ("Passes", f"{cost.forward_calls:,} over {cost.row_steps:,} rows"),
        ("Cache", f"{cost.peak_cache_tokens:,} entries at most"),
        ("Took", f"{cost.wall_seconds:.2f} s"),
    ]


def draw(result: Result) -> tuple[list[Lane], int]:
    """The lanes in the order in which the paths began, and the number of steps."""
    grown = [event for event in result.events if isinstance(event, Grown)]
    steps = 1 + max((event.step for event in grown), default=0)
    begun = {event.path: event for event in result.events if isinstance(event, Forked)}
    ended = {event.path: event for event in result.events if isinstance(event, Ended)}
    refined = {(number, event.step) for event in result.events if isinstance(event, Refined) for number in event.paths}
    tokens: dict[int, list[tuple[int, float]]] = {}
    for event in grown:
        for place, number in enumerate(event.paths):
            confidence = event.confidences[place] if place < len(event.confidences) else 0.0
            tokens.setdefault(number, []).append((event.step, confidence))
    shade = _scale([confidence for listed in tokens.values() for _, confidence in listed])
    tops = {number: LANE * place for place, number in enumerate(sorted(begun))}
    winners = _winners(result)
    lanes = []
    for path in sorted(result.paths, key=lambda path: path.number):
        origin = begun[path.number]
        known = tokens.get(path.number, [])
        fork = None if origin.parent is None else (100 * origin.step / steps, float(tops[origin.parent]))
        last = known[-1][0] + 1 if known else ended[path.number].step if path.number in ended else origin.step
        kind = "best" if path is result.paths[0] else "winner" if path in winners else "lost"
        if not path.complete:
            kind = "cut"
        cells = _cells(path, known, steps, shade, refined)
        lanes.append(Lane(path, float(tops[path.number]), cells, fork, 100 * last / steps, kind))
    return lanes, steps


def _cells(
    path: Continuation, known: Sequence[tuple[int, float]], steps: int, shade: Any, refined: set[tuple[int, int]]
) -> list[Cell]:
    share = -(-len(known) // CELLS) if known else 1
    cells = []
    for begin in range(0, len(known), share):
        part = known[begin : begin + share]
        first, last = part[0][0], part[-1][0]
        mean = sum(confidence for _, confidence in part) / len(part)
        again = ", read again in other ways" if any((path.number, step) in refined for step, _ in part) else ""
        text = f"path {path.number}, steps {first} to {last}: confidence {mean:.2f}{again}"
        # A path that a server sends whole has all its tokens in one step.
        width = 100 * (last + 1 - first) / steps if last > first or share == 1 else 100 / steps
        cells.append(Cell(100 * first / steps, width, shade(mean), text))
    return cells


def _winners(result: Result) -> set[Continuation]:
    if result.answer is None:
        return set()
    return {path for path in result.paths if path.complete and path.answer == result.answer}


def _scale(values: Sequence[float]) -> Any:
    """From a confidence to an opacity; the middle nine tenths of the values use the whole range."""
    ordered = sorted(values) or [0.0]
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    least, most = SHADES

    def shade(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 1.0
        return round(least + (most - least) * min(1.0, max(0.0, share)), 3)

    return shade


def _ticks(steps: int) -> list[tuple[float, int]]:
    """Places on the axis, in %, and their steps."""
    distance = next(n * 10**e for e in range(9) for n in (1, 2, 5) if steps / (n * 10**e) <= 8)
    return [(100 * step / steps, step) for step in range(0, steps + 1, distance)]
