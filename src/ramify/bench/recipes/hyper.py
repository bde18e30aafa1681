"""HyPER's parts on the shared sum task: the vote on fixed pools, and the controller beside its peers.

Here short answers are the wrong ones, so the direction in which length votes matters and is calibrated on questions of
another split. The controller runs with all sizes scaled down to answers of some twenty tokens. Nothing was tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ramify.api import prepare
from ramify.bench.recipes import Outcome, Table
from ramify.bench.sums import LONGEST, accuracy, confident_in, error_of, sampled_pools, sum_model, sum_tasks
from ramify.bench.tasks import Task, parse_answer
from ramify.engine.aggregate import expected_accuracy, vote
from ramify.engine.cost import Cost
from ramify.engine.events import Decided
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.search import Decision, search
from ramify.methods.base import SearchMethod
from ramify.methods.search.deepconf import DeepConf
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import ACTIONS, BRANCH, MULTI, NONE, SINGLE, HyperRec
from ramify.methods.search.hyper_policy import Controlled
from ramify.methods.search.hyper_vote import calibrate_length, how_many, vote_by_length
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import CausalLM

SETTINGS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95}
SIZES = (4, 8, 16)
FEW = 6  # tokens that make a confidence: most of 19 would be the unlikely ones
SCALED = HyperRec(start=4, stretch=4, agreeing=4)
# What was measured before on another 97,536-parameter model of this task, with the same settings and 300 problems.
BEFORE = {
    "one path": (0.469, 0.443, 0.441),
    "majority": (0.650, 0.880, 0.940),
    "weighted by confidence": (0.813, 0.917, 0.973),
    "length and confidence, +1": (0.863, 0.947, 0.983),
    "length and confidence, −1": (0.587, 0.830, 0.920),
    "the two most confident": (0.847, 0.960, 0.973),
    "any path is right": (0.917, 0.997, 0.997),
}


def run(*, seed: int = 0, problems: int = 300, steered: int = 40, model: str | None = None) -> Outcome:
    """``problems`` for the votes, ``steered`` of them for the rest; ``model``: a folder, by default one is trained."""
    lm = sum_model(model, seed)
    held_out = sum_tasks(60, seed, "validation")
    found = _pools(lm, held_out, 8, seed)
    sign = calibrate_length([(pool, task.right) for pool, task in zip(found, held_out, strict=True)])
    questions = sum_tasks(problems, seed)
    pools = sampled_pools(lm, questions, max(SIZES), seed, **SETTINGS)
    few = [confident_in(lm, task, pool, FEW) for task, pool in zip(questions, pools, strict=True)]
    own = max(1, lm.vocab_size // 2)
    title = f"Votes on fixed pools of N paths: {problems} problems, T 1, top-p 0.95, confidence of the"
    tables = [
        Table(f"{title} {FEW} likeliest tokens", votes(questions, few)),
        Table(f"{title} {own} likeliest, half of the vocabulary", votes(questions, pools)),
        Table("What the votes have to show", claims(questions, few, sign)),
        Table(
            f"The controller, scaled down, beside its peers: {steered} problems; rows: all that passes evaluated",
            controlled(lm, questions[:steered], sign, seed),
        ),
    ]
    notes = [
        f"Calibrated on {len(held_out)} questions of the validation split: length_sign {sign:+d}.",
        _by_rightness(questions, few, FEW),
        _by_rightness(questions, pools, own),
        "Standard errors are at most 0.03 for the votes. “before”: another model of this task, the same settings.",
    ]
    return Outcome(tables, notes)


def _pools(lm: CausalLM, questions: Sequence[Task], paths: int, seed: int) -> list[list[Path]]:
    found = sampled_pools(lm, questions, paths, seed, **SETTINGS)
    return [confident_in(lm, task, pool, FEW) for task, pool in zip(questions, found, strict=True)]


def _by_rightness(questions: Sequence[Task], pools: Sequence[Sequence[Path]], top: int) -> str:
    parts: dict[bool, list[Path]] = {True: [], False: []}
    for task, pool in zip(questions, pools, strict=True):
        for path in pool:
            parts[task.right(path.answer or "")].append(path)
    right, wrong = parts[True], parts[False]
    return (
        f"Right paths have {_mean(right, len):.1f} tokens and confidence {_mean(right, _confidence):.1f} (of {top} "
        f"tokens), wrong ones {_mean(wrong, len):.1f} and {_mean(wrong, _confidence):.1f}."
    )


# ---- votes on fixed pools ----


def votes(questions: Sequence[Task], pools: Sequence[Sequence[Path]]) -> list[dict[str, Any]]:
    """Accuracy of every rule on the first N paths of every pool."""
    rows = []
    for name, rule in _rules().items():
        row: dict[str, Any] = {"rule": name}
        for size in SIZES:
            row[f"N = {size}"] = sum(
                rule(task, pool[:size]) for task, pool in zip(questions, pools, strict=True)
            ) / len(questions)
        before = BEFORE.get(name)
        rows.append(row | {"before": " ".join(f"{each:.3f}" for each in before) if before else ""})
    return rows


def claims(questions: Sequence[Task], pools: Sequence[Sequence[Path]], sign: int) -> list[dict[str, Any]]:
    """What has to hold of the vote with the calibrated sign, and of the other sign."""
    found = {row["rule"]: row for row in votes(questions, pools)}
    mine = found[f"length and confidence, {'+' if sign > 0 else '−'}1"]
    other = found[f"length and confidence, {'−' if sign > 0 else '+'}1"]
    majority = found["majority"]
    cases = [("calibrated − majority, N = 4", mine["N = 4"] - majority["N = 4"], 0.10)]
    cases += [
        (f"calibrated − majority, N = {size}", mine[f"N = {size}"] - majority[f"N = {size}"], 0.0) for size in SIZES[1:]
    ]
    cases += [
        (f"calibrated − other sign, N = {size}", mine[f"N = {size}"] - other[f"N = {size}"], 0.0) for size in SIZES
    ]
    return [
        {"claim": text, "found": value, "bar": f"≥ {bar:.2f}", "holds": "yes" if value >= bar - 1e-9 else "no"}
        for text, value, bar in cases
    ]


def _rules() -> dict[str, Callable[[Task, Sequence[Path]], float]]:
    def decided(rule: Callable[[Sequence[Path]], Decision]) -> Callable[[Task, Sequence[Path]], float]:
        return lambda task, pool: float(task.right(rule(pool).answer or ""))

    def few(sign: int) -> Callable[[Sequence[Path]], Decision]:
        return lambda pool: vote_by_length(pool, sign, top=how_many(len(pool), 4, 3))

    return {
        "one path": lambda task, pool: sum(task.right(path.answer or "") for path in pool) / len(pool),
        "majority": decided(vote),
        "majority, ties at random": lambda task, pool: expected_accuracy(pool, task.right),
        "weighted by confidence": decided(lambda pool: vote(pool, _confidence)),
        "length and confidence, +1": decided(lambda pool: vote_by_length(pool, 1)),
        "length and confidence, −1": decided(lambda pool: vote_by_length(pool, -1)),
        "length and confidence of the whole path, +1": decided(lambda pool: vote_by_length(pool, 1, tail=1.0)),
        "length only, +1": decided(lambda pool: vote_by_length(pool, 1, weights=(1.0, 0.0))),
        "confidence ranks only": decided(lambda pool: vote_by_length(pool, 1, weights=(0.0, 1.0))),
        "the top quarter of them, +1": decided(few(1)),
        "the top quarter of them, −1": decided(few(-1)),
        "the two most confident": decided(lambda pool: vote(sorted(pool, key=_confidence)[-2:], _confidence)),
        "any path is right": lambda task, pool: float(any(task.right(path.answer or "") for path in pool)),
    }


# ---- the controller ----


def controlled(lm: CausalLM, questions: Sequence[Task], sign: int, seed: int) -> list[dict[str, Any]]:
    """HyPER whole and without its parts, a random controller of the same habits, and the peers."""
    hyper = HyPER(length_sign=sign, interval=4, warmup=4, limit=16, rec=SCALED)
    whole, taken = _steered(lm, questions, "hyper", hyper, seed)
    taken = taken or {NONE: 1}  # no path lived to a decision
    chances = tuple(taken.get(action, 0) / sum(taken.values()) for action in ACTIONS)
    variants: dict[str, SearchMethod] = {
        "hyper, majority vote": replace(hyper, weights=(0.0, 0.0), top_votes=False),
        "hyper, all paths vote": replace(hyper, top_votes=False),
        "hyper without pruning": replace(hyper, prune=False),
        "hyper without single-token": replace(hyper, actions=(NONE, BRANCH, MULTI)),
        "hyper without branch": replace(hyper, actions=(NONE, SINGLE, MULTI)),
        "hyper without multi-token": replace(hyper, actions=(NONE, SINGLE, BRANCH)),
        "hyper, random actions of the same shares": replace(hyper, random=chances),
        **{
            f"deepconf online, 16 paths, eta {eta}": DeepConf(paths=16, warmup=4, window=8, agree=None, eta=eta)
            for eta in (10, 90)
        },
        **{f"self-consistency, {size}": SelfConsistency(paths=size) for size in (4, 8, 16)},
    }
    rows = [whole]
    for name, method in variants.items():
        row, _ = _steered(lm, questions, name, method, seed)
        rows.append(row)
    shares = ", ".join(f"{action} {chance:.0%}" for action, chance in zip(ACTIONS, chances, strict=True))
    rows[0]["decoding"] = f"hyper ({shares})"
    return rows


def _steered(
    lm: CausalLM, questions: Sequence[Task], name: str, method: SearchMethod, seed: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """One row, and how often each action was taken."""
    answers, rows, tokens, exists, taken = [], 0, 0, 0, dict[str, int]()
    for place, question in enumerate(questions):
        request = _request(lm, question, method, seed + 1000 * place)
        policy = method.policy(lm, request)
        events = list(search(lm, request, policy))
        [decided] = [event for event in events if isinstance(event, Decided)]
        cost = Cost.of(events, 0)
        answers.append(decided.answer)
        rows, tokens = rows + cost.row_steps, tokens + cost.generated_tokens
        exists += any(path.complete and question.right(path.answer or "") for path in decided.paths)
        if isinstance(policy, Controlled):
            for (_, action), count in policy.taken.items():
                taken[action] = taken.get(action, 0) + count
    count = len(questions)
    share = accuracy(questions, answers)
    return {
        "decoding": name,
        "accuracy": share,
        "±": error_of(share, count),
        "any finished path is right": exists / count,
        "rows": rows / count,
        "tokens": tokens / count,
    }, taken


def _request(lm: CausalLM, question: Task, method: SearchMethod, seed: int) -> Request:
    settings = {"max_new_tokens": LONGEST, "do_sample": True, **SETTINGS}
    [request] = prepare(lm, [question.prompt], method, seed=seed, answer=parse_answer, **settings)
    return request


def _confidence(path: Path) -> float:
    return path.confidence


def _mean(paths: Sequence[Path], what: Callable[[Path], float]) -> float:
    return sum(map(what, paths)) / max(1, len(paths))
