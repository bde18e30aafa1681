"""ParallelBench: accuracy against tokens per pass, for every rule on every family, beside the closed forms.

A model of the list tasks (the bundled one, or any that ``ramify train list-model`` made) is decoded by every rule of
the masked loop. Any other model, masked or autoregressive, answers the text families under every prompt template; and
a masked one (the bundled parallel-model, say) answers those that it knows by every rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ramify.bench.chart import Chart
from ramify.bench.parallelbench import analysis, sweeps, text_sweeps
from ramify.bench.parallelbench.answering import scored
from ramify.bench.parallelbench.filling import prompts_of
from ramify.bench.parallelbench.prompts import TEMPLATES
from ramify.bench.parallelbench.symbols import ANSWER, LENGTHS, MASK, MOST, VOCABULARY
from ramify.bench.parallelbench.tasks import GENERATED, Problems, problems
from ramify.bench.recipes import Outcome, Table
from ramify.errors import RamifyError
from ramify.methods.options import build_spec, outside
from ramify.models.causal import load
from ramify.models.masked import MaskedLM, is_masked, load_masked

CACHED = 60  # prompts of a task for the table of caches, one at a time, for a batch pads its passes
OTHERS = "remdm:steps={half},rcr:steps={half},ccd:steps={half},ccd:adaptive=true,maskgit:steps={half}"


def run(
    *,
    seed: int = 0,
    model: str = "list-model",
    control: str | None = None,
    count: int = 200,
    trials: int = 400,
    others: str = OTHERS,
    families: str = ",".join(GENERATED),
    methods: str | None = None,
    new: int = 32,
) -> Outcome:
    """All tables of ``model``.

    List tasks: ``count`` prompts of each for sweeps and caches, ``trials`` lists for the closed forms; ``others``:
    further methods of the masked loop, run once each, ``{half}`` being half the positions of an answer; ``control``: a
    second model, trained with prefix_causal=true, for the table of caches.

    Text families: ``count`` problems of each of ``families``, answers of ``new`` tokens, under every template;
    ``methods``: by default a threshold and one token a pass, or greedy decoding of an autoregressive model. Where they
    are not given, a masked model answers by every rule what it knows, under one template: the families of which at
    least a quarter are right one token a pass.
    """
    if count < 1 or trials < 1:
        raise RamifyError(f"count is {count} and trials {trials}; ask for at least 1 of each")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = load_masked(model) if is_masked(model) else load(model)
        if isinstance(lm, MaskedLM) and (lm.vocab_size, lm.mask_id) == (VOCABULARY, MASK):
            return lists(lm, load_masked(control) if control else None, count, trials, others, seed)
        drawn = {name: problems(name, count) for name in families.split(",")}
        outcome, known = texts(lm, drawn, methods, new)
        if isinstance(lm, MaskedLM) and methods is None and known:
            rules(outcome, lm, {name: drawn[name] for name in known}, others, new)
        return outcome
    finally:
        torch.set_num_threads(before)


def lists(lm: MaskedLM, control: MaskedLM | None, count: int, trials: int, others: str, seed: int) -> Outcome:
    """The tables of a model of the list tasks."""
    tasks = [*sweeps.LEARNT, "cumsum"]
    prompts = prompts_of(tasks, count, seed)
    filled = sweeps.infill(lm, tasks, trials, seed)
    found = sweeps.sweep(lm, prompts, others.format(half=ANSWER // 2), seed)
    tables = [
        Table("Dependence: total correlation in bits, by the number of items", correlation_rows()),
        Table(
            f"Infilling six items, {trials} lists, random order, temperature 1: accuracy (ideal model)",
            sweeps.infill_rows(filled),
        ),
        Table(
            "The same by argmax under a threshold: accuracy (ideal model) in so many passes",
            sweeps.threshold_rows(lm, tasks, trials, seed),
        ),
        Table(f"Every rule, whole answers of 12 tokens by argmax, {count} prompts a task", sweeps.rule_rows(found)),
        Table("Most tokens per pass at a mean accuracy of four tasks of at least x %", sweeps.level_rows(found)),
        Table(
            "Tasks by confidence; blocks: accuracy at 2 a pass; Kendall and Spearman at 1 a pass",
            sweeps.task_rows(lm, found, prompts, seed),
        ),
    ]
    known = {task: prompts[task][:CACHED] for task in sweeps.LEARNT}
    for name, each in [("full attention", lm), ("the prompt does not see the answer", control)]:
        if each is not None:
            title = (
                f"Caches, {name}: γ = 0.9, blocks of 4, {min(count, CACHED)} prompts; accuracy at positions evaluated"
            )
            tables.append(Table(title, sweeps.cache_rows(each, known, seed)))
    return Outcome(tables, notes(count, trials), [closed_chart(filled), rule_chart(found)])


def correlation_rows() -> list[dict[str, Any]]:
    """C(Y|X), and the least bound of two steps."""
    rows: list[dict[str, Any]] = []
    for task, law in [("shuffle", analysis.shuffle_law), ("replace-random", analysis.replace_law)]:
        rows.append(
            {"task": task}
            | {f"n = {n}": analysis.total_correlation(law(n)) for n in LENGTHS}
            | {f"n = {n}, best 2 steps": analysis.best_bound(law(n), 2)[0] for n in (3, 4)}
        )
    zero = {name: 0.0 for name in rows[0] if name != "task"}
    return [*rows, {"task": "copy, reverse, cumsum"} | zero]


def closed_chart(filled: Any) -> Chart:
    """Measured points and closed forms of the infill test."""
    lines = {}
    for task in ("copy", "replace-random", "shuffle"):
        lines[task] = [(float(k), read[task].accuracy) for k, read in filled.items()]
        if task != "copy":
            lines[f"{task}, closed form"] = [(float(k), sweeps.ideal(task, k)) for k in filled]
    title = f"Infilling {MOST} items at temperature 1: measured, and an ideal model"
    return Chart("closed-forms", title, "slots fixed in a pass", "accuracy", lines, even=True)


def rule_chart(
    found: sweeps.Sweep,
    tasks: Sequence[str] = sweeps.LEARNT,
    title: str = "Mean accuracy of copy, reverse, replace-random and shuffle",
    ticks: Sequence[int] = (1, 2, 3, 4, 6, 12),
) -> Chart:
    """Mean accuracy of ``tasks`` against measured tokens per pass, a line for each rule that has a sweep."""
    lines = {}
    for rule, listed in found.items():
        if len(listed) > 2:
            points = [sweeps.point(read, True, tasks) for read in listed.values()]
            lines[rule] = sorted((point.tps, point.score) for point in points)
    return Chart("rules", title, "tokens per pass", "accuracy", lines, ticks=ticks, even=True)


def notes(count: int, trials: int) -> list[str]:
    """What the figures are, and how far they can be trusted."""
    return [
        f"A share of {count} prompts has a standard error of at most {0.5 / count**0.5:.3f}, one of {trials} lists "
        f"{0.5 / trials**0.5:.3f}.",
        "Tokens per pass: the 12 positions of an answer ÷ passes, counted after decoding; without padding: items only, "
        "for the end tokens come cheaply. PBx is interpolated for rules that decide for themselves (threshold, factor) "
        "and is one of the measured settings for the others; 0: never.",
    ]


def texts(lm: Any, drawn: Mapping[str, Problems], methods: str | None, new: int) -> tuple[Outcome, list[str]]:
    """The tables of a language model, and the families that it knows by the first of the methods."""
    specs = methods or (f"unmask:steps={new},threshold" if isinstance(lm, MaskedLM) else "greedy")
    tables = []
    for spec in outside(specs, ",+"):
        rows = [scored(lm, build_spec(spec), each, tuple(TEMPLATES), new) for each in drawn.values()]
        count = len(next(iter(drawn.values())).problems)
        tables.append(Table(f"{lm.name}, {spec}: {count} problems a task, {new} tokens", rows))
    said = (
        "Lenient and strict: the two scorers, mean over the templates; the templates by the lenient one. An answer "
        "is cut to as many lines as a right one has. Words to sentence: grammar by a small context-free grammar, "
        "times inclusion; the published benchmark asks LanguageTool."
    )
    return Outcome(tables, [said]), text_sweeps.known(tables[0].rows)


def rules(outcome: Outcome, lm: MaskedLM, drawn: Mapping[str, Problems], others: str, new: int) -> None:
    """The tables of every rule on the families that a masked model knows."""
    found = text_sweeps.sweep(lm, drawn, others.format(half=new // 2), new)
    names, count = list(drawn), len(next(iter(drawn.values())).problems)
    outcome.tables += [
        Table(
            f"Every rule on the {len(names)} families that it knows, answers of {new} tokens by argmax, {count} "
            f"problems a family, template {text_sweeps.TEMPLATE}",
            sweeps.rule_rows(found, names),
        ),
        Table(
            "Most tokens per pass at a mean accuracy of these families of at least x %", sweeps.level_rows(found, names)
        ),
        Table(
            "Families; blocks: accuracy at 2 a pass by confidence",
            text_sweeps.family_rows(lm, found, drawn, new),
        ),
    ]
    outcome.charts.append(
        rule_chart(found, names, f"Mean accuracy of {len(names)} text families", text_sweeps.each_of(new))
    )
    outcome.notes.append(
        f"Tokens per pass: the {new} positions of an answer ÷ passes, counted after decoding; without padding: up to "
        f"the end token. A share of {count} problems has a standard error of at most {0.5 / count**0.5:.3f}, a mean of "
        f"{len(names)} families {0.5 / (count * len(names)) ** 0.5:.3f}."
    )
