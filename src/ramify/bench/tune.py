"""Finds the fastest way to decode with a model, on this machine and these prompts, and keeps it for method="auto".

The cost curve is measured, then every drafter of the catalogue that can be built for the model runs on the prompts, at
the size that it gives itself; the best of them at other sizes too, and together in unions, another part being added as
long as that is expected to pay. From acceptance, curve and own work follows what each would give (``forecast``). The
best are then timed in turn with plain decoding, and the fastest of them is recommended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramify.api import prepare
from ramify.bench.compare import compare
from ramify.bench.forecast import CPU, Passes, Run, clock, run
from ramify.bench.measure import machine
from ramify.bench.prompts import Prompt
from ramify.bench.tuning import Candidate, Measured, Tuning, family
from ramify.engine.verify import match
from ramify.errors import RamifyError, first_line
from ramify.methods.auto import Auto
from ramify.methods.base import DraftMethod, Method
from ramify.methods.draft.switch import Switched
from ramify.methods.draft.union import Union
from ramify.methods.options import build_spec
from ramify.methods.profile import Profile
from ramify.methods.registry import catalogue
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

SIZES = (4, 8, 16, 32, 64)
SIZE_OPTIONS = ("nodes", "length", "budget")  # options that bound a draft; None where a method sizes itself
CLOSE = 0.8  # a drafter as good as this share of the best one is tried at other sizes and in unions,
MOST = 5  # so many of them at most
GAIN = 1.01  # a part more in a union has to give this
FINALISTS = 3
COMPOSITIONS = (Union, Switched, Auto)

Progress = Callable[[str], None]


def tune(
    lm: CausalLM,
    prompts: Sequence[str | Prompt],
    *,
    temperature: float | None = None,
    max_new_tokens: int = 64,
    repeats: int = 3,
    seed: int = 0,
    methods: Sequence[str] | None = None,
    keep: bool = True,
    progress: Progress | None = None,
    **settings: Any,
) -> Tuning:
    """Measure, recommend, and measure the recommendation.

    ``temperature``: None for greedy text. ``methods``: the drafters to try, as ``build_spec`` reads them; by default
    every one of the catalogue that is lossless and can be built for ``lm`` from its defaults. ``keep``: save the
    profile that ``method="auto"`` uses. ``settings``: as ``generate`` takes them, the same for all. Raises
    ``RamifyError`` for a model that cannot score trees, and without prompts.
    """
    lm.require_trees("drafts")
    asked = [p if isinstance(p, Prompt) else Prompt(str(i), p) for i, p in enumerate(prompts, 1)]
    if not asked or repeats < 1:
        raise RamifyError(f"tuning needs at least one prompt and one repeat, got {len(asked)} and {repeats}")
    say = progress or (lambda _: None)
    sampling = {"do_sample": temperature is not None} | ({} if temperature is None else {"temperature": temperature})
    search = Search(lm, asked, {"max_new_tokens": max_new_tokens, **sampling, **settings}, seed, say)
    search.try_all(methods)
    chosen = search.finalists()
    say("timing the best in turn")
    names = ["sample" if temperature is not None else "greedy", *(build_spec(spec) for spec in chosen)]
    timed = compare(lm, asked, names, repeats=repeats, seed=seed, **search.settings)
    measured = []
    for spec, row in zip(chosen, timed.rows[1:], strict=True):
        ratio = row.cpu_ratio if clock(lm) == CPU else row.ratio
        if ratio is not None:
            measured.append(Measured(spec, search.speed(spec) / search.base, ratio))
    best = max(measured, key=lambda each: each.ratio.median, default=None)
    if best is not None and best.ratio.median <= 1.0:
        best = None
    tuning = Tuning(
        model={"name": lm.name, "dtype": str(lm.dtype).removeprefix("torch."), "forward": lm.how},
        machine=machine(lm.device),
        clock=clock(lm),
        temperature=temperature,
        prompts=len(asked),
        passes=search.passes,
        plain=search.plain,
        candidates=[Candidate(spec, search.runs[spec], search.speed(spec)) for spec in search.ranked()],
        left_out=search.left_out,
        measured=measured,
        best=best,
        comparison=timed,
    )
    if keep:
        found = (best.spec, best.predicted, best.ratio.median) if best else ("", 1.0, 1.0)
        Profile(*found, len(asked), temperature, search.plain.step(search.passes)).save(lm)
    return tuning


@dataclass
class Search:
    """The methods tried so far, by their spec; all on the same prompts and settings."""

    lm: CausalLM
    prompts: Sequence[Prompt]
    settings: dict[str, Any]
    seed: int
    say: Progress
    runs: dict[str, Run] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.say("timing forward passes")
        curve = calibrate(self.lm, refresh=True)
        self.say("plain decoding")
        base = build_spec("sample" if self.settings["do_sample"] else "greedy")
        run(self.lm, base, self.prompts[:1], self.seed, **self.settings)  # not counted: everything is slower once
        self.plain = run(self.lm, base, self.prompts, self.seed, **self.settings)
        self.passes = Passes.of(curve, [self.plain])

    @property
    def base(self) -> float:
        """Tokens per second to expect of plain decoding."""
        return self.plain.speed(self.passes)

    def speed(self, spec: str) -> float:
        """Tokens per second to expect, by all that is known so far; 0 for what could not run."""
        return self.runs[spec].speed(self.passes) if spec in self.runs else 0.0

    def ranked(self) -> list[str]:
        """What was tried, the fastest first."""
        return sorted(self.runs, key=self.speed, reverse=True)

    def try_all(self, methods: Sequence[str] | None) -> None:
        """All singles, the best ones at other sizes, and unions of them; the default union too where all are asked."""
        for spec in methods or drafters():
            self.run(spec)
        singles = self.leaders()
        for single in singles:
            for size in SIZES:
                self.run(sized(single, size))
        self.unite(singles)
        if methods is None:
            self.run(Union.card.name)

    def run(self, spec: str) -> None:
        """Try ``spec``, once; a reason is ``left_out`` where it cannot be built or run here."""
        if spec in self.runs or spec in self.left_out:
            return
        try:
            method = build_spec(spec)
            self._check(method)
            self.say(spec)
            self.runs[spec] = run(self.lm, method, self.prompts, self.seed, **self.settings)
        except (RamifyError, TypeError) as error:  # TypeError: an option that has no default
            self.left_out[spec] = first_line(error)
            return
        self.passes = Passes.of(self.passes.curve, [self.plain, *self.runs.values()])

    def leaders(self) -> list[str]:
        """Those that are not far behind the best one, best first."""
        ranked = self.ranked()
        return [spec for spec in ranked if self.speed(spec) >= CLOSE * self.speed(ranked[0])][:MOST]

    def unite(self, singles: Sequence[str]) -> None:
        """Unions that begin with the best single, each time with the part that helps most, while one does."""
        united = [spec for spec in singles if _matches(spec)]
        parts, best = united[:1], "".join(united[:1])
        while len(parts) < len(united):
            tried = {union([*parts, spec]): spec for spec in united if spec not in parts}
            for spec in tried:
                self.run(spec)
            fastest = max(tried, key=self.speed)
            if self.speed(fastest) < GAIN * self.speed(best):
                return
            parts, best = [*parts, tried[fastest]], fastest

    def finalists(self) -> list[str]:
        """Those with the most expected tokens per second, of each method the best size; a single one among them."""
        ranked = self.ranked()
        sizes: dict[str, str] = {}
        for spec in ranked:
            sizes.setdefault(family(spec), spec)
        best = list(sizes.values())
        single = next((spec for spec in best if not isinstance(build_spec(spec), COMPOSITIONS)), None)
        chosen = best[:FINALISTS]
        return chosen if single is None or single in chosen else [*chosen[:-1], single]

    def _check(self, method: Method) -> None:
        """Build the drafter once, so that what is missing is known before anything runs."""
        if not isinstance(method, DraftMethod) or method.card.family != "draft" or not method.card.lossless:
            raise RamifyError(f"{method.card.name} is no lossless draft method")
        [request] = prepare(self.lm, [self.prompts[0].text], method, seed=self.seed, **self.settings)
        method.drafter(self.lm, request)


def drafters() -> Iterator[str]:
    """Every lossless draft method of the catalogue that is no composition of others."""
    names = {kind.card.name for kind in COMPOSITIONS}
    for card in catalogue():
        if card.family == "draft" and card.lossless and card.name not in names:
            yield card.name


def sized(spec: str, size: int) -> str:
    """``spec`` with this size, where the method has an option for it that was left open; else as it is."""
    known: Any = build_spec(spec)
    for option in dataclasses.fields(known):
        if option.name in SIZE_OPTIONS and getattr(known, option.name) is None:
            return f"{spec}:{option.name}={size}"
    return spec


def _matches(spec: str) -> bool:
    method = build_spec(spec)
    return isinstance(method, DraftMethod) and method.rule.function is match


def union(parts: Sequence[str]) -> str:
    """The union of ``parts``, sized by itself."""
    return f"union:methods=({'+'.join(parts)})"
