"""Every rule on the text families that a masked model can answer, by the families' own scorers.

A family that the model hardly answers one token a pass says nothing of the rules, so it is left out of the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ramify.bench.parallelbench.answering import Answered, answered
from ramify.bench.parallelbench.metrics import order_preference, parallelizability
from ramify.bench.parallelbench.sweeps import settings
from ramify.bench.parallelbench.tasks import Problems
from ramify.methods.unmask.orders import Unmask
from ramify.models.masked import MaskedLM

TextSweep = dict[str, dict[str, dict[str, Answered]]]  # by rule, setting and family
FLOOR = 0.25  # share of right answers, one token a pass
TEMPLATE = "instruction"
EACH = (1, 2, 4, 8, 16, 32)  # tokens a pass, as in the published configurations
BLOCKS = (2, 4, 8, 16, 32)


def known(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The families of a table of one token a pass of which at least ``FLOOR`` are right."""
    return [str(row["task"]) for row in rows if row["lenient"] >= FLOOR]


def each_of(new: int) -> list[int]:
    """The numbers of tokens a pass that an answer of ``new`` tokens can have."""
    return [k for k in EACH if k <= new]


def sweep(lm: MaskedLM, drawn: Mapping[str, Problems], others: str, new: int) -> TextSweep:
    """All rules with all settings, greedy, answers of ``new`` tokens under ``TEMPLATE``."""
    return {
        rule: {
            said: {name: answered(lm, method, each, TEMPLATE, new) for name, each in drawn.items()}
            for said, method in listed
        }
        for rule, listed in settings(others, new, each_of(new)).items()
    }


def family_rows(lm: MaskedLM, found: TextSweep, drawn: Mapping[str, Problems], new: int) -> list[dict[str, Any]]:
    """What tells the families apart: parallelizability by two orders, and accuracy at 2 a pass in shorter blocks."""
    rows = []
    for name, each in drawn.items():
        shares = {
            order: {k: found[order][f"{k} a pass"][name].accuracy for k in each_of(new)}
            for order in ("confidence", "random")
        }
        blocks = {
            block: answered(lm, Unmask(block=block, steps=new // 2), each, TEMPLATE, new).accuracy
            for block in BLOCKS
            if block <= new and new % block == 0
        }
        rows.append(
            {
                "task": name,
                **{f"parallelizability, {order}": parallelizability(share) for order, share in shares.items()},
                **{f"blocks of {block}": share for block, share in blocks.items()},
                "order preference": f"{order_preference(blocks):+.3f}",
            }
        )
    return rows
