"""Drafters in parallel: unions against their parts at equal numbers of nodes, then in turn on the clock.

Tokens per target call first: every drafter of the catalogue that can be built, cut to the same number of nodes, and
unions of the best of them under that same number, greedy and over several seeds at a temperature, where the noise is
indexed by position, so that all write the same text. Then the best of each kind, sized by themselves, take turns with
plain decoding.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.compare import compare
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.bench.recipes.speed import rows_of
from ramify.bench.tune import drafters, sized, union
from ramify.engine.verify import match
from ramify.errors import RamifyError, first_line
from ramify.methods.base import DraftMethod
from ramify.methods.options import build_spec, outside
from ramify.models.causal import CausalLM, load

ALWAYS = ("token-recycling", "suffix")  # the pair that needs no training
BEST = 3  # singles of which all pairs and the triple are tried
SHARES = ("useful", "turns", "order")


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    dtype: str | None = None,
    prompts: int = 12,
    max_new_tokens: int = 128,
    nodes: int = 12,
    seeds: int = 2,
    repeats: int = 3,
    temperature: float = 0.7,
    singles: str = "",
    beside: str = "union",
    timed: bool = True,
) -> Outcome:
    """Both measures; ``singles``: the drafters to try, separated by commas, instead of the whole catalogue; ``beside``:
    methods that take turns with the best in any case."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load(model, dtype=dtype)
        names = [name for name in outside(singles, ",+") if name] or list(drafters())
        found, notes = parts(lm, names)
        tables = []
        for kind, settings, repeated in (
            ("greedy", {"do_sample": False}, 1),
            (f"temperature {temperature}", {"do_sample": True, "temperature": temperature}, seeds),
        ):
            trial = Trial(lm, nodes, prompts, [1000 * (seed + k) for k in range(repeated)], max_new_tokens, settings)
            best = sorted(found, key=lambda spec: -trial.mean([spec]))
            unions = united(best[:BEST], [spec for spec in ALWAYS if spec in found])
            title = (
                f"Tokens per call with {nodes} nodes, {lm.name}, {kind}, {prompts} prompts × {max_new_tokens} tokens"
            )
            tables.append(
                Table(
                    title,
                    [
                        trial.row(specs)
                        for specs in sorted([*([s] for s in best), *unions], key=lambda specs: -trial.mean(specs))
                    ],
                )
            )
            largest = max(unions, key=len, default=None)
            if largest:
                title = f"Who gets the rows, {' + '.join(largest)}, {kind}"
                tables.append(Table(title, [trial.row(largest, share) for share in SHARES]))
            if timed:
                base = "sample" if settings["do_sample"] else "greedy"
                more = [spec for spec in outside(beside, ",+") if spec]
                methods = [build_spec(spec) for spec in [*best[: BEST + 1], *map(union, unions), *more]]
                comparison = compare(
                    lm, held_out_prompts(prompts), [base, *methods], seed=seed, repeats=repeats,
                    max_new_tokens=max_new_tokens, **settings,
                )  # fmt: skip
                tables.append(Table(f"Sized by themselves, timed in turn, {kind}", rows_of(comparison)))
                notes += comparison.problems
    finally:
        torch.set_num_threads(before)
    notes += [
        f"{seeds} seeds at the temperature, [lowest, highest]; methods carry what they learn from prompt to prompt.",
        "Speed-ups: median over the repeats [lowest, highest], to plain decoding, same prompts.",
    ]
    return Outcome(tables, notes)


class Trial:
    """Tokens per call with ``nodes`` nodes over all prompts, for each of ``seeds``; measured once for each method."""

    def __init__(
        self, lm: CausalLM, nodes: int, prompts: int, seeds: Sequence[int], new: int, settings: dict[str, Any]
    ) -> None:
        self.lm, self.nodes, self.seeds = lm, nodes, seeds
        self.prompts = held_out_prompts(prompts)
        self.settings = {"max_new_tokens": new, **settings}
        self.known: dict[str, list[float]] = {}

    def mean(self, specs: Sequence[str]) -> float:
        return statistics.mean(self.tokens_per_call(specs))

    def row(self, specs: Sequence[str], share: str = "useful") -> dict[str, Any]:
        found = self.tokens_per_call(specs, share)
        spread = f"[{min(found):.2f}, {max(found):.2f}]"
        return {"drafters": " + ".join(specs), "share": share, "tokens per call": statistics.mean(found), "": spread}

    def tokens_per_call(self, specs: Sequence[str], share: str = "useful") -> list[float]:
        """One number for each seed; a single drafter is cut to the nodes as a union of one."""
        spec = f"{union([sized(each, self.nodes) for each in specs])}:nodes={self.nodes}:share={share}"
        if spec not in self.known:
            self.known[spec] = [self._run(spec, seed) for seed in self.seeds]
        return self.known[spec]

    def _run(self, spec: str, seed: int) -> float:
        method = build_spec(spec)
        tokens = calls = 0
        for index, prompt in enumerate(self.prompts):
            stats = generate(self.lm, prompt.text, method, seed=seed + index, **self.settings).stats
            tokens, calls = tokens + stats.generated_tokens, calls + stats.target_calls
        return tokens / calls


def united(best: Sequence[str], always: Sequence[str]) -> list[tuple[str, ...]]:
    """All pairs and the triple of ``best``, and ``always`` together."""
    found = [specs for size in (2, 3) for specs in itertools.combinations(best, size)]
    return found if len(always) < 2 or any(set(specs) == set(always) for specs in found) else [*found, tuple(always)]


def parts(lm: CausalLM, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of ``names`` that can stand in a union on ``lm``, and why others cannot."""
    found, notes = [], []
    for name in names:
        try:
            method = build_spec(name)
            if not isinstance(method, DraftMethod) or method.rule.function is not match:
                raise RamifyError("it does not verify by matching")
            generate(lm, [1, 2], build_spec(union([name])), max_new_tokens=2)
            found.append(name)
        except (RamifyError, TypeError) as error:
            notes.append(f"{name} is left out: {first_line(error)}.")
    return found, notes
