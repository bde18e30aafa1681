"""The outcome of tuning, and its views: a table, a chart, sentences, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ramify.bench.chart import Chart
from ramify.bench.comparison import Comparison
from ramify.bench.forecast import Passes, Run
from ramify.bench.rows import Spread

if TYPE_CHECKING:
    from rich.console import Console

LINES, WIDTH = 4, 26  # methods in the chart, letters of their names
SHOWN = 12  # candidates in the table


@dataclass(frozen=True)
class Candidate:
    """A method as ``build_spec`` reads it, its run on the prompts, and the tokens per second to expect of it."""

    spec: str
    run: Run
    speed: float


@dataclass(frozen=True)
class Measured:
    """A finalist: the expected speed-up over plain decoding, and the measured one over the repeats."""

    spec: str
    predicted: float
    ratio: Spread

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what was measured."""
        return self.predicted / self.ratio.median - 1.0


@dataclass(frozen=True)
class Tuning:
    """What tuning found.

    ``clock``: what all seconds but the curve's are. ``temperature``: None for greedy text. ``passes``: what a pass is
    expected to take. ``candidates``: all that were tried, best first. ``left_out``: why others were not. ``measured``:
    the finalists, timed in turn with plain decoding in ``comparison``. ``best``: the fastest of them, None where plain
    decoding is.
    """

    model: dict[str, str]
    machine: dict[str, Any]
    clock: str
    temperature: float | None
    prompts: int
    passes: Passes
    plain: Run
    candidates: Sequence[Candidate]
    left_out: dict[str, str]
    measured: Sequence[Measured]
    best: Measured | None
    comparison: Comparison

    @property
    def base(self) -> float:
        """Tokens per second of plain decoding, as everything is predicted."""
        return self.plain.speed(self.passes)

    def cost(self, run: Run) -> float:
        """Mean seconds of a pass of ``run`` over those of a plain one."""
        return run.passing(self.passes) / run.calls * self.plain.calls / self.plain.passing(self.passes)

    def why(self) -> list[str]:
        """Sentences that give the recommendation and its reasons."""
        kind = "greedy text" if self.temperature is None else f"text at temperature {self.temperature:g}"
        if self.best is None:
            return [f"For {kind} plain decoding is fastest here: no drafter was faster when they were timed in turn."]
        found = next(each.run for each in self.candidates if each.spec == self.best.spec)
        own, ratio = 100 * found.share(self.passes), self.best.ratio
        return [
            f"For {kind} use {self.best.spec}.",
            f"It commits {found.tokens_per_call:.2f} tokens a pass; a pass has {found.rows_per_call:.1f} rows and "
            f"costs {self.cost(found):.2f} plain ones; drafting and verifying take {own:.0f} % of a step.",
            f"That predicts {self.best.predicted:.2f} × plain decoding. Timed in turn with it, {ratio.median:.2f} × "
            f"[{ratio.low:.2f}, {ratio.high:.2f}] ({self.clock}): the forecast is {100 * self.best.error:+.0f} % off.",
        ]

    def rows(self) -> list[dict[str, Any]]:
        """What a table of the candidates shows."""
        measured = {each.spec: each.ratio for each in self.measured}
        return [
            {
                "method": each.spec,
                "tokens": each.run.tokens_per_call,
                "rows": each.run.rows_per_call,
                "cost": self.cost(each.run),
                "own": f"{100 * each.run.share(self.passes):.0f} %",
                "predicted": f"{each.speed / self.base:.2f} ×",
                "measured": f"{measured[each.spec].median:.2f} ×" if each.spec in measured else "",
            }
            for each in self.candidates
        ]

    def chart(self) -> Chart:
        """What a pass over n rows costs, and what the best methods commit with so many: the gap is the speed-up."""
        curve = self.passes.curve
        plain = self.plain.passing(self.passes) / self.plain.calls
        lines: dict[str, list[tuple[float, float]]] = {
            "cost of a pass": [(float(rows), self.passes.seconds(rows) / plain) for rows in curve.rows],
        }
        for name in list(dict.fromkeys(family(each.spec) for each in self.candidates))[:LINES]:
            same = [each.run for each in self.candidates if family(each.spec) == name]
            points = sorted((run.rows_per_call, run.tokens_per_call) for run in same)
            lines[name if len(name) <= WIDTH else f"{name[: WIDTH - 1]}…"] = points
        return Chart(
            "tune", f"{self.model['name']}: tokens a pass against its cost", "rows of a pass", "× a plain one", lines
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types."""
        return {
            "model": self.model,
            "machine": self.machine,
            "clock": self.clock,
            "temperature": self.temperature,
            "prompts": self.prompts,
            "curve": asdict(self.passes.curve),
            "passes": {"level": self.passes.level, "slope": self.passes.slope},
            "plain": {"tokens_per_second": self.base},
            "candidates": [
                {
                    "method": each.spec,
                    "tokens_per_call": each.run.tokens_per_call,
                    "rows_per_call": each.run.rows_per_call,
                    "own_share": each.run.share(self.passes),
                    "tokens_per_second": each.speed,
                    "predicted": each.speed / self.base,
                }
                for each in self.candidates
            ],
            "left_out": self.left_out,
            "measured": [asdict(each) | {"error": each.error} for each in self.measured],
            "recommended": self.best.spec if self.best else None,
            "why": self.why(),
        }

    def show(self, console: Console) -> None:
        """Print the table, who was left out, and the recommendation with its reasons."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        rows = self.rows()
        table.add_column("method", overflow="fold", min_width=20)
        for column in list(rows[0] if rows else [])[1:]:
            table.add_column(column, justify="right")
        for row in rows[:SHOWN]:
            table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
        console.print(table)
        said = "tokens, rows and cost of a call; own: drafting and verifying in a step; speed-ups over plain decoding"
        console.print(said, style="dim", highlight=False)
        if len(rows) > SHOWN:
            console.print(f"and {len(rows) - SHOWN} slower ones, see --json", style="dim", highlight=False)
        for spec, reason in self.left_out.items():
            console.print(f"left out: {spec}: {reason}", style="dim", markup=False, highlight=False)
        for sentence in self.why():
            console.print(sentence, markup=False, highlight=False)


def family(spec: str) -> str:
    """What ``spec`` is, its size aside: a method, or the parts of a union."""
    base, _, last = spec.rpartition(":")
    sized = last.partition("=")[2].isdigit() and not last.endswith(")")
    return (base if sized else spec).removeprefix("union:methods=")
