"""Cautious next token prediction on the shared sum task: accuracy against all tokens drawn, beside its peers.

The likelier first token leads to answers without steps, which the model gets wrong; a trial up to the next mark shows
it. Voting and best-of-N read the same sampled pools, so they differ by their rule alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ramify.bench.recipes import Outcome, Table
from ramify.bench.sums import LONGEST, accuracy, ask, error_of, sampled_pools, sum_model, sum_tasks
from ramify.bench.tasks import Task
from ramify.engine.aggregate import best, vote
from ramify.engine.path import Path
from ramify.engine.search import Decision
from ramify.methods.search.best_of_n import BestOfN
from ramify.methods.search.cntp import CNTP
from ramify.models.causal import CausalLM

SETTINGS = {"temperature": 1.2, "top_p": 0.9}
SIZES = (2, 4, 8, 16)
# What was measured before on another 97,536-parameter model of this task, with the same settings and 300 problems.
BEFORE = {
    "greedy": (0.137, 5.0),
    "one sample": (0.457, 11.5),
    "self-consistency, 4": (0.707, 47),
    "self-consistency, 8": (0.830, 93),
    "self-consistency, 16": (0.953, 184),
    "best of 4": (0.890, 47),
    "best of 8": (0.977, 93),
    "cntp": (0.927, 46),
    "cntp, the paper's schedule": (0.867, 39),
    "cntp, always 6 trials": (0.953, 104),
    "cntp, trials of one token": (0.133, 19),
    "cntp, trials to the end": (0.913, 56),
}
VARIANTS = {
    "cntp": CNTP(),
    "cntp, the paper's schedule": CNTP(schedule="paper"),
    "cntp, always 6 trials": CNTP(schedule="fixed"),
    "cntp, trials of one token": CNTP(stop="token"),
    "cntp, trials to the end": CNTP(stop="answer"),
    "cntp, many trials where sure": CNTP(schedule="negative"),
    "cntp, scored by the raw law": CNTP(score_law="raw"),
    "cntp, by 1 − greatest probability": CNTP(uncertainty="probability"),
    "cntp, by 1 − margin": CNTP(uncertainty="margin"),
    "cntp, 4 chains": CNTP(chains=4),
}


def run(*, seed: int = 0, problems: int = 300, model: str | None = None) -> Outcome:
    """``problems`` questions; ``model``: a folder of the sum model, by default one is trained first."""
    lm = sum_model(model, seed)
    questions = sum_tasks(problems, seed)
    rows = [_greedy(lm, questions, seed)]
    pools = sampled_pools(lm, questions, max(SIZES), seed, **SETTINGS)
    each = [
        accuracy([question] * len(pool), [path.answer for path in pool]) for question, pool in _of(questions, pools)
    ]
    rows.append(_row("one sample", sum(each) / problems, _tokens(pools, 1), problems))
    rows += [_decided(f"self-consistency, {size}", questions, [pool[:size] for pool in pools], vote) for size in SIZES]
    likeliest = BestOfN(law="warped").score
    rows += [
        _decided(f"best of {size}", questions, [pool[:size] for pool in pools], lambda paths: best(paths, likeliest))
        for size in SIZES
    ]
    trials = {}
    for name, method in VARIANTS.items():
        row, trials[name] = _cautious(lm, questions, name, method, seed)
        rows.append(row)
    curve = [_decided("", questions, [pool[:size] for pool in pools], vote) for size in range(1, max(SIZES) + 1)]
    tables = [
        Table(f"{problems} problems, T 1.2, top-p 0.9; tokens: all that were drawn, a problem", rows),
        Table("What the task has to show", claims(rows, curve)),
        Table("Trials", [{"decoding": name} | found for name, found in trials.items()]),
    ]
    size = sum(weight.numel() for weight in lm.model.parameters())
    notes = [
        f"The model has {size:,} parameters. “before”: another model of this task, with the same settings.",
        "One sample: mean over the 16 paths of every pool. ±: standard error over problems.",
    ]
    return Outcome(tables, notes)


def claims(rows: Sequence[dict[str, Any]], curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The differences that the task has to show; ``curve``: self-consistency with 1, 2, … paths."""
    found = {row["decoding"]: row for row in rows}
    cntp, greedy = found["cntp"], found["greedy"]["accuracy"]
    equal = next((row for row in curve if row["tokens"] >= cntp["tokens"]), curve[-1])
    differences = [
        ("cntp − one sample", cntp["accuracy"] - found["one sample"]["accuracy"], 0.30),
        ("cntp − greedy", cntp["accuracy"] - greedy, 0.50),
        (f"cntp − self-consistency of {equal['tokens']:.0f} tokens", cntp["accuracy"] - equal["accuracy"], 0.10),
    ]
    claimed = [
        {"claim": text, "found": value, "bar": f"≥ {bar:.2f}", "holds": "yes" if value >= bar else "no"}
        for text, value, bar in differences
    ]
    short = found["cntp, trials of one token"]["accuracy"] - greedy
    last = {"claim": "trials of one token − greedy", "found": short, "bar": "≤ 0.05"}
    return [*claimed, last | {"holds": "yes" if short <= 0.05 else "no"}]


def _greedy(lm: CausalLM, questions: Sequence[Task], seed: int) -> dict[str, Any]:
    results = [ask(lm, question, "greedy", seed) for question in questions]
    tokens = sum(len(result.tokens) for result in results) / len(results)
    return _row("greedy", accuracy(questions, [result.text for result in results]), tokens, len(questions))


def _decided(
    name: str, questions: Sequence[Task], pools: Sequence[Sequence[Path]], rule: Callable[[Sequence[Path]], Decision]
) -> dict[str, Any]:
    answers = [rule(pool).answer for pool in pools]
    return _row(name, accuracy(questions, answers), _tokens(pools), len(questions))


def _cautious(
    lm: CausalLM, questions: Sequence[Task], name: str, method: CNTP, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    results = [ask(lm, question, method, seed + 1000 * place, **SETTINGS) for place, question in enumerate(questions)]
    tokens = sum(result.cost.generated_tokens for result in results) / len(results)
    forks = [path for result in results for path in result.paths if path.parent is not None]
    lengths = [len(path) - path.start for path in forks if path.finish == "perplexity"]
    figures = {
        "trials beside the first, a problem": len(forks) / len(results),
        "tokens of a lost one": sum(lengths) / max(1, len(lengths)),
        "cut by the length": sum(len(path) >= LONGEST and path.finish == "perplexity" for path in forks),
    }
    return _row(name, accuracy(questions, [result.answer for result in results]), tokens, len(questions)), figures


def _row(name: str, share: float, tokens: float, count: int) -> dict[str, Any]:
    before = BEFORE.get(name)
    return {
        "decoding": name,
        "accuracy": share,
        "±": error_of(share, count),
        "tokens": tokens,
        "accuracy before": f"{before[0]:.3f}" if before else "",
        "tokens before": f"{before[1]:g}" if before else "",
    }


def _tokens(pools: Sequence[Sequence[Path]], size: int | None = None) -> float:
    """Tokens a problem; ``size`` 1: of one path of a pool."""
    total = sum(len(path) for pool in pools for path in pool)
    return total / (len(pools) if size is None else sum(map(len, pools)))


def _of(questions: Sequence[Task], pools: Sequence[Sequence[Path]]) -> Any:
    return zip(questions, pools, strict=True)
