"""``ramify bench``: measurements that back the claims in the docs, one file each.

A recipe's ``run(seed=…, **options)`` returns an ``Outcome``; ``docs/evidence`` keeps their markdown.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.bench.chart import Chart
from ramify.errors import unknown

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Table:
    """Rows of one measurement; every row has the same columns."""

    title: str
    rows: Sequence[dict[str, Any]]


@dataclass
class Outcome:
    """What a recipe found: tables, sentences about them, and charts, which stand beside the markdown."""

    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        tables = [{"title": table.title, "rows": list(table.rows)} for table in self.tables]
        charts = [chart.to_dict() for chart in self.charts]
        return {"machine": machine_line(), "tables": tables, "notes": self.notes, "charts": charts}

    def save(self, file: Path, heading: str) -> list[Path]:
        """Write the markdown below ``heading``, and every chart as an SVG beside it; returns all files written."""
        pictures = [file.with_name(f"{file.stem}-{chart.name}.svg") for chart in self.charts]
        for chart, picture in zip(self.charts, pictures, strict=True):
            picture.write_text(chart.svg(), encoding="utf-8")
        file.write_text(f"{heading}\n\n{self.to_markdown(pictures)}", encoding="utf-8")
        return [file, *pictures]

    def to_markdown(self, pictures: Sequence[Path] = ()) -> str:
        """Tables and notes as kept in ``docs/evidence``; ``pictures``: the charts' files, in the same folder."""
        parts = [machine_line()]
        for table in self.tables:
            columns = list(table.rows[0])
            lines = [f"### {table.title}", "", _line(columns), _line(["---"] * len(columns))]
            lines += [_line([_cell(row[column]) for column in columns]) for row in table.rows]
            parts.append("\n".join(lines))
        parts += [f"![{chart.title}]({file.name})" for chart, file in zip(self.charts, pictures, strict=False)]
        parts += self.notes
        return "\n\n".join(parts) + "\n"

    def show(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table as RichTable

        for table in self.tables:
            shown = RichTable(title=escape(table.title), title_justify="left")
            for index, column in enumerate(table.rows[0]):
                shown.add_column(escape(column), justify="left" if index == 0 else "right")
            for row in table.rows:
                shown.add_row(*(escape(_cell(value)) for value in row.values()))
            console.print(shown)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)


@dataclass(frozen=True)
class Recipe:
    """A measurement: ``summary`` for the list, ``module`` with its ``run``."""

    summary: str
    module: str

    def run(self, **options: Any) -> Outcome:
        """Run it; an unknown option is an error that quotes the nearest."""
        function = importlib.import_module(self.module).run
        known = list(inspect.signature(function).parameters)
        for option in options:
            if option not in known:
                raise unknown("option", option, known)
        outcome: Outcome = function(**options)
        return outcome


def _recipes() -> dict[str, Recipe]:
    """Every file of this folder that has a ``run``, named after it; its docstring's first line is the summary."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            summary = (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")
            found[file.stem.replace("_", "-")] = Recipe(summary, f"{__name__}.{file.stem}")
    return found


RECIPES = _recipes()


def machine_line() -> str:
    """One sentence about the machine and the versions that a figure was measured with."""
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return (
        f"{name}, {torch.get_num_threads()} thread(s), Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
