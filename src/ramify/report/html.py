"""The page of a comparison: one file that opens anywhere, offline, without loading anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.bench.comparison import Comparison, plain
from ramify.bench.measure import MEMORY_KINDS
from ramify.bench.table import COLUMNS, cells, notes, spread
from ramify.errors import RamifyError
from ramify.report.plots import histograms, ratio_plot, splits

if TYPE_CHECKING:
    from ramify.bench.rows import Row

FOLDER = Path(__file__).parent
TAIL = 600  # characters of the prompt's end that the step browser shows


def write(comparison: Comparison, path: str | Path, *, prompts: int = 6, steps: int = 64) -> None:
    """Write the page; the step browser holds the first ``steps`` steps of the first ``prompts`` prompts."""
    try:
        Path(path).write_text(render(comparison, prompts=prompts, steps=steps), encoding="utf-8")
    except OSError as error:
        raise RamifyError(f"cannot write the page to {path}: {error.strerror or error}") from None


def render(comparison: Comparison, *, prompts: int = 6, steps: int = 64) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    rows = comparison.rows
    groups = sorted({group for row in rows for group in row.group_ratios})
    return environment.get_template("template.html.j2").render(
        comparison=comparison,
        headline=headline(comparison),
        facts=facts(comparison),
        columns={key: text for key, text in COLUMNS.items() if key != "shares"},  # drawn below
        table=[cells(row) for row in rows],
        suspect=[row.lossless and row.identical < row.compared for row in rows],
        groups=groups if len(groups) > 1 else [],
        group_table=[(row.label, [spread(row.group_ratios.get(group)) for group in groups]) for row in rows],
        notes=list(notes(comparison)),
        memory=MEMORY_KINDS[comparison.memory_kind],
        ratios=ratio_plot(rows),
        histograms=histograms(rows),
        splits=splits(rows),
        shown_prompts=min(prompts, len(comparison.prompts)),
        shown_steps=steps,
        data=embed(browser_data(comparison, prompts, steps)),
        css=(FOLDER / "style.css").read_text(encoding="utf-8"),
        js=(FOLDER / "steps.js").read_text(encoding="utf-8"),
    )


def headline(comparison: Comparison) -> str:
    """The main finding in one sentence, chosen by the figures alone."""
    first, others = comparison.rows[0], comparison.rows[1:]
    rated: list[tuple[float, Row]] = [(row.ratio.median, row) for row in others if row.ratio]
    if not rated:
        return f"{first.label} by itself: there is nothing to compare it with."
    median, best = max(rated, key=lambda pair: pair[0])
    same = f"with the same tokens on {best.identical} of {best.compared} prompts"
    if best.ratio and best.ratio.low > 1:
        return f"{best.label} gives {median:.2f} times as many tokens per second as {first.label}, {same}."
    near = f"the nearest is {best.label} at {spread(best.ratio)}"
    return f"No method was faster than {first.label} in every repeat; {near}."


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What the figures depend on, as (name, value)."""
    model, machine = comparison.model, comparison.machine
    hardware = [machine.get("gpu"), machine["processor"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
    software = [f"Python {machine['python']}", f"torch {machine['torch']}", f"transformers {machine['transformers']}"]
    return [
        ("Model", f"{model['name']}, {model['dtype']} on {model['device']}; {model['forward']}"),
        ("Machine", ", ".join(str(part) for part in (*hardware, machine["system"]) if part)),
        ("Settings", ", ".join(f"{key} = {plain(value)}" for key, value in comparison.settings.items())),
        ("Prompts", f"{len(comparison.prompts)}, each {comparison.settings['repeats']} times, methods in turn"),
        ("Software", ", ".join(software)),
        ("Command", comparison.command),
        ("Took", f"{comparison.seconds:,.0f} s"),
    ]


def browser_data(comparison: Comparison, prompts: int, steps: int) -> dict[str, Any]:
    """What the step browser reads: shapes stored once, a step as [shape, tokens, accepted nodes, committed tokens]."""
    shapes: dict[tuple[int, ...], int] = {}
    rows = []
    used: set[int] = set()
    for row, traces in zip(comparison.rows, comparison.steps, strict=True):
        browsed = []
        for trace in traces[:prompts]:
            listed = []
            for step in trace[:steps]:
                shape = shapes.setdefault(step.parents, len(shapes))
                listed.append([shape, step.tokens, step.path, step.committed])
                used.update(step.tokens, step.committed)
            browsed.append({"steps": listed, "of": len(trace)})
        rows.append({"label": row.label, "prompts": browsed})
    return {
        "rows": rows,
        "prompts": [{"id": p.id, "group": p.group, "text": p.text[-TAIL:]} for p in comparison.prompts[:prompts]],
        "shapes": list(shapes),
        "pieces": {str(token): comparison.pieces.get(token, f"#{token}") for token in sorted(used)},
    }


def embed(data: Any) -> str:
    """JSON that may stand inside a script element, whatever texts it holds."""
    from markupsafe import Markup

    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
