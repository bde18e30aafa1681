"""The outcome of a comparison, and its views: table, JSON, page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.bench.prompts import Prompt
from ramify.bench.rows import Row
from ramify.bench.trace import Step

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Comparison:
    """Methods × prompts on one model at equal settings; the first row is the reference of all ratios.

    ``model``: name, device and dtype. ``machine``: see ``measure.machine``. ``settings``: what every call was given,
    with ``repeats`` and ``seed`` (prompt i used seed + i under every method and in every repeat). ``command``: the
    command line that ran it. ``memory_kind``: a key of ``measure.MEMORY_KINDS``. ``steps``: [row][prompt], from the
    first repeat. ``pieces``: the text of every token that occurs in them. ``seconds``: wall time of it all.
    """

    model: dict[str, str]
    machine: dict[str, Any]
    settings: dict[str, Any]
    command: str
    memory_kind: str
    prompts: list[Prompt]
    rows: list[Row]
    steps: list[list[list[Step]]]
    pieces: dict[int, str]
    seconds: float

    @property
    def problems(self) -> list[str]:
        """One sentence per method and reason why it left prompts unanswered."""
        return [problem for row in self.rows for problem in row.problems]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the steps, in plain types; the fields of a row are defined in ``bench.rows.Row``."""
        rows = []
        for row in self.rows:
            rows.append(asdict(row) | {"identical": row.identical, "compared": row.compared})
        return {
            "model": self.model,
            "machine": self.machine,
            "settings": {key: plain(value) for key, value in self.settings.items()},
            "command": self.command,
            "memory_kind": self.memory_kind,
            "seconds": self.seconds,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "rows": rows,
            "problems": self.problems,
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def show(self, console: Console | None = None) -> None:
        """Print the table, then what went wrong, if anything did."""
        from rich.console import Console

        from ramify.bench.table import notes, table

        console = console or Console()
        console.print(table(self, console))
        for note in notes(self):
            console.print(note, style="dim", markup=False, highlight=False)
        for problem in self.problems:
            console.print(problem, style="yellow", markup=False, highlight=False)

    def save_html(self, path: str | Path, *, prompts: int = 6, steps: int = 64) -> None:
        """Write the page: table, plots, and the token trees of the first ``steps`` steps of the first ``prompts``
        prompts of every method."""
        from ramify.report.html import write

        write(self, path, prompts=prompts, steps=steps)


def plain(value: Any) -> Any:
    """``value`` if JSON has its type, else its representation."""
    return value if isinstance(value, str | int | float | bool | list | dict | None) else repr(value)
