"""The table of a comparison in a terminal. ``cells`` gives its texts to other views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ramify.bench.measure import MEMORY_KINDS
from ramify.bench.rows import PARTS, Row, Spread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ramify.bench.comparison import Comparison

COLUMNS = {
    "method": "Method",
    "speed": "Tokens/s",
    "ratio": "Speed-up",
    "cpu": "CPU time",
    "mat": "MAT",
    "calls": "Calls",
    "accepted": "Accepted / drafted",
    "shares": "Draft·score·verify",
    "memory": "Memory",
    "identical": "Identical",
}
DROPPED = ("memory", "cpu", "shares", "calls", "accepted")  # in this order, where the terminal is too narrow
DASH = "–"


def cells(row: Row) -> dict[str, str]:
    """The text of every column of ``row``."""
    drafted = f"{row.accepted:,} / {row.drafted:,}" if row.drafted else DASH
    split = [f"{100 * share:.0f}" for part, share in shares(row) if part in ("draft", "score", "verify")]
    return {
        "method": row.label,
        "speed": f"{row.tokens_per_second:,.1f}" if row.tokens_per_second is not None else DASH,
        "ratio": spread(row.ratio),
        "cpu": spread(row.cpu_ratio),
        "mat": f"{row.mat:.2f}" if row.mat is not None else DASH,
        "calls": f"{row.target_calls:,}" if row.target_calls else DASH,
        "accepted": drafted,
        "shares": " · ".join(split) + " %" if split else DASH,
        "memory": f"{row.memory / 1e6:,.0f} MB" if row.memory else DASH,
        "identical": f"{row.identical} of {row.compared}" if row.compared else DASH,
    }


def spread(ratio: Spread | None) -> str:
    """A ratio and its range over the repeats."""
    if ratio is None:
        return DASH
    return f"{ratio.median:.2f}×" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low < ratio.high else "")


def table(comparison: Comparison, console: Console) -> Table:
    """A rich table with as many columns as the console has room for."""
    from rich.measure import Measurement

    columns = list(COLUMNS)
    unbounded = console.options.update(width=10_000)
    for dropped in (*DROPPED, None):
        drawn = _table(comparison, columns)
        if dropped is None or Measurement.get(console, unbounded, drawn).maximum <= console.width:
            break
        columns.remove(dropped)
    return drawn


def _table(comparison: Comparison, columns: list[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title(comparison), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in columns:
        left = name == "method"
        drawn.add_column(
            COLUMNS[name],
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=not left,
            min_width=15 if left else None,
        )
    for place, row in enumerate(comparison.rows):
        texts = cells(row)
        styles = {"method": "bold" if place else "", "ratio": "bold green" if row.ratio and row.ratio.low > 1 else ""}
        styles["identical"] = "yellow" if row.lossless and row.identical < row.compared else ""
        drawn.add_row(*(Text(texts[name], style=styles.get(name, "")) for name in columns))
    return drawn


def title(comparison: Comparison) -> str:
    """What was compared, in one line."""
    model, count = comparison.model, len(comparison.prompts)
    return (
        f"{model['name']} ({model['dtype']}, {model['device']}, {comparison.machine['threads']} threads) · "
        f"{count} prompt{'s' if count != 1 else ''} · {comparison.settings['max_new_tokens']} new tokens · "
        f"{comparison.settings['repeats']}×"
    )


def notes(comparison: Comparison) -> Iterator[str]:
    """The definitions behind the columns, and where methods part from the first."""
    first = comparison.rows[0].label
    yield (
        f"Speed-up: tokens per second over those of {first}, median [lowest, highest] of the repeats. MAT: tokens per "
        f"forward pass. Identical: prompts with the same tokens as {first}. "
        f"Memory: {MEMORY_KINDS[comparison.memory_kind]}."
    )
    for row in comparison.rows:
        parted = [o for o in row.outcomes if o.divergence is not None]
        if parted:
            places = ", ".join(f"prompt {o.prompt} after {o.divergence} tokens" for o in parted[:4])
            more = f" and {len(parted) - 4} more" if len(parted) > 4 else ""
            yield f"{row.label} parts from {first} in {places}{more}."


def shares(row: Row) -> list[tuple[str, float]]:
    """(part, share of the wall time), in order; empty where the method does not tell."""
    return [(part, row.shares[part]) for part in PARTS] if row.shares else []
