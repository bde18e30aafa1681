"""``ramify demo``: a streamed completion, a short comparison, the report, and what was seen in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramify.cli import shell
from ramify.cli.compare import DEFAULT, timed
from ramify.cli.generate import footer, report, show
from ramify.methods.options import build

if TYPE_CHECKING:
    from ramify.bench.comparison import Comparison
    from ramify.bench.rows import Row

METHOD = "token-recycling"
TEMPERATURE = 0.7
SHOWN_LINES = 8


def demo(
    html: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("ramify-report.html"),
    prompts: Annotated[int | None, typer.Option(help="How many held-out code prompts; by default 4.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Half the prompts and tokens, timed once.")] = False,
    model: shell.Model = "demo",
    dtype: shell.Dtype = None,
    device: shell.Device = None,
    seed: shell.Seed = 0,
    json: shell.Json = False,
) -> None:
    """See a model answer faster with the same output: one completion, a short comparison, and a report to open."""
    from ramify.bench.prompts import held_out_prompts

    shell.writable(html)
    found = held_out_prompts(prompts if prompts is not None else 2 if quick else 4, seed)
    tokens = 64 if quick else 128
    lm = shell.load(model, dtype, device)

    import ramify

    method = build(METHOD, [])
    shell.size(lm, method)
    # Sampled, since greedy text of a small model soon repeats itself; the noise makes it exact all the same.
    stream = ramify.stream(
        lm, found[0].text, method, max_new_tokens=tokens, seed=seed, do_sample=True, temperature=TEMPERATURE
    )
    if not json:
        shell.out.rule(f"{lm.name} continues {found[0].id} with {METHOD}, temperature {TEMPERATURE}")
        tail = "\n".join(found[0].text.split("\n")[-SHOWN_LINES:])
        shell.out.print(tail, style="dim", markup=False, highlight=False, end="")
    result = show(stream, silent=json)
    if not json:
        shell.out.print(footer(result), style="dim", markup=False, highlight=False)
        shell.out.rule("compared with the others on the same prompts, timed in turn")
    outcome = timed(lm, found, DEFAULT.split(","), max_new_tokens=tokens, repeats=1 if quick else 3, seed=seed)
    outcome.save_html(html)
    said = list(conclusions(outcome))
    if json:
        completion = {"prompt": found[0].text, "method": METHOD, **report(result)}
        shell.emit({"completion": completion, "comparison": outcome.to_dict(), "seen": said, "report": str(html)})
        return
    outcome.show(shell.out)
    shell.out.print()
    for sentence in said:
        shell.out.print(sentence, markup=False)
    shell.out.print(f"Every draft of every step is drawn in {html}; open it in a browser.", markup=False)


def conclusions(outcome: Comparison) -> Iterator[str]:
    """What a comparison showed, in sentences made of its figures; the first row is the reference."""
    base, *others = outcome.rows
    timed_rows = [row for row in others if row.ratio is not None]
    if not timed_rows:
        return
    best = max(timed_rows, key=lambda row: row.ratio.median if row.ratio else 0.0)
    if best.ratio and best.ratio.median > 1:
        yield f"{best.label} was the fastest: {_speed(best)} the tokens per second of {base.label}, {_same(best)}."
    else:
        yield f"Nothing was faster than {base.label} here; the nearest was {best.label}, at {_speed(best)} its speed."
    own = next((row for row in timed_rows if row.method == METHOD), best)
    if own is not best:
        yield f"{own.label} reached {_speed(own)} the speed of {base.label}, {_same(own)}."
    if own.mat and own.drafted:
        share = own.accepted / own.drafted
        yield (
            f"Each forward pass of {own.label} committed {own.mat:.2f} tokens, where plain decoding commits 1; "
            f"{share:.0%} of its drafted tokens were accepted{_overhead(own)}."
        )
    parted = [row.label for row in others if row.lossless and row.identical < row.compared]
    if parted:
        yield (
            f"Some outputs of {', '.join(parted)} part from those of {base.label}: in {outcome.model['dtype']}, "
            f"near-ties may fall either way; equality is promised with --dtype float32."
        )


def _speed(row: Row) -> str:
    if row.ratio is None:
        return "an unknown multiple of"
    spread = f" (from {row.ratio.low:.2f} to {row.ratio.high:.2f})" if row.ratio.low < row.ratio.high else ""
    return f"{row.ratio.median:.2f} times{spread}"


def _same(row: Row) -> str:
    return f"with the same tokens on {row.identical} of {row.compared} prompts"


def _overhead(row: Row) -> str:
    if not row.shares:
        return ""
    return f", and drafting and verifying took {row.shares['draft'] + row.shares['verify']:.0%} of the time"
