"""What a comparison finds out about each method: definitions, and the arithmetic from trials to figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ramify.bench.measure import Trial
from ramify.bench.prompts import Prompt

Trials = Sequence[Sequence[Trial | None]]  # [repeats][prompts]; None where the method failed
PARTS = ("prefill", "draft", "score", "verify", "other")


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of one figure over the repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        """The spread of ``values``; None when there are none."""
        found = list(values)
        return Spread(statistics.median(found), min(found), max(found)) if found else None


@dataclass(frozen=True)
class Outcome:
    """One method on one prompt.

    ``tokens``, ``target_calls``: of the first repeat. ``wall_seconds``: one entry per repeat. ``identical``: whether
    the tokens were those of the first method in every repeat; None where either has no answer. ``divergence``: number
    of equal tokens before the first difference. ``problem``: why there is no answer.
    """

    prompt: str
    tokens: int = 0
    target_calls: int = 0
    wall_seconds: tuple[float, ...] = ()
    identical: bool | None = None
    divergence: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """The figures of one method over all prompts that it answered.

    ``tokens_per_second``: generated tokens over the wall time of the whole calls, prefill included, all repeats
    together; ``tokens_per_cpu_second``: the same over CPU time. ``ratio``, ``cpu_ratio``: these two, repeat by
    repeat, over those of the first method on the same prompts; ``group_ratios``: ``ratio`` within each prompt group.
    ``tokens``, ``target_calls``, ``row_steps`` (rows that these calls evaluated), ``drafted``, ``accepted``: sums over
    the prompts, first repeat, as are the next four. ``mat``: tokens per target call (prefill is no such call); None
    where the method does not tell its calls. ``accepted_lengths``: how many calls committed 1, 2, … tokens.
    ``off_share``: share of the calls without a proposed node; None where the method does not tell its drafts.
    ``acceptance_by_depth``: for depth 1, 2, …, share of the calls with a draft that committed a proposed node there.
    ``shares``: share of the wall time in each of ``PARTS``, all repeats together, or None where the method does not
    tell. ``prefill_seconds``: wall time of all prefills of one repeat, on average. ``memory``: peak in bytes over all
    calls.
    """

    label: str
    method: str
    lossless: bool
    tokens_per_second: float | None
    tokens_per_cpu_second: float | None
    ratio: Spread | None
    cpu_ratio: Spread | None
    group_ratios: dict[str, Spread]
    tokens: int
    target_calls: int
    row_steps: int
    drafted: int
    accepted: int
    mat: float | None
    accepted_lengths: dict[int, int]
    off_share: float | None
    acceptance_by_depth: list[float]
    shares: dict[str, float] | None
    prefill_seconds: float
    memory: int
    outcomes: list[Outcome] = field(repr=False)

    @property
    def compared(self) -> int:
        """Number of prompts that both this and the first method answered."""
        return sum(outcome.identical is not None for outcome in self.outcomes)

    @property
    def identical(self) -> int:
        """Number of those on which both gave the same tokens."""
        return sum(outcome.identical is True for outcome in self.outcomes)

    @property
    def problems(self) -> list[str]:
        """One sentence per reason why prompts have no answer."""
        reasons: dict[str, list[str]] = {}
        for outcome in self.outcomes:
            if outcome.problem:
                reasons.setdefault(outcome.problem, []).append(outcome.prompt)
        everywhere = len(self.outcomes)
        return [
            f"{self.label}, {'every prompt' if len(ids) == everywhere else 'prompt ' + ', '.join(ids)}: {reason}"
            for reason, ids in reasons.items()
        ]


def summarise(
    label: str,
    method: str,
    lossless: bool,
    prompts: Sequence[Prompt],
    trials: Trials,
    reference: Trials,
    problems: dict[int, str],
) -> Row:
    """The row of one method from its trials, those of the first method, and its failures by prompt index."""
    answered = [trial for repeat in trials for trial in repeat if trial]
    first = [trial.result.stats for trial in trials[0] if trial]
    wall, cpu = sum(t.wall for t in answered), sum(t.cpu for t in answered)
    generated = sum(len(t.result.tokens) for t in answered)
    calls = sum(stats.target_calls for stats in first)
    tokens = sum(len(trial.result.tokens) for trial in trials[0] if trial)
    drafts = sum(stats.draft_calls for stats in first)
    depths = sorted(sum((stats.accepted_depths for stats in first), Counter[int]()).items())
    everything = range(len(prompts))
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.group, []).append(index)
    ratios = {g: Spread.of(_ratios(trials, reference, indices, "wall")) for g, indices in groups.items() if g}
    prefill = sum(t.result.stats.prefill_seconds for t in answered)
    return Row(
        label=label,
        method=method,
        lossless=lossless,
        tokens_per_second=generated / wall if wall else None,
        tokens_per_cpu_second=generated / cpu if cpu else None,
        ratio=Spread.of(_ratios(trials, reference, everything, "wall")),
        cpu_ratio=Spread.of(_ratios(trials, reference, everything, "cpu")),
        group_ratios={group: ratio for group, ratio in ratios.items() if ratio},
        tokens=tokens,
        target_calls=calls,
        row_steps=sum(stats.row_steps for stats in first),
        drafted=sum(stats.drafted for stats in first),
        accepted=sum(stats.accepted for stats in first),
        mat=tokens / calls if calls else None,
        accepted_lengths=dict(sorted(sum((stats.accepted_lengths for stats in first), Counter()).items())),
        off_share=1.0 - drafts / calls if calls and (drafts or not depths) else None,
        acceptance_by_depth=[count / drafts for _, count in depths] if drafts else [],
        shares=_shares(answered, wall),
        prefill_seconds=prefill / len(trials),
        memory=max((t.memory for t in answered), default=0),
        outcomes=[_outcome(p, i, trials, reference, problems.get(i, "")) for i, p in enumerate(prompts)],
    )


def _ratios(trials: Trials, reference: Trials, indices: Iterable[int], clock: str) -> list[float]:
    """Tokens per second of ``clock`` over the first method's, for every repeat, on the prompts that both answered."""
    ratios = []
    indices = list(indices)
    for mine, theirs in zip(trials, reference, strict=True):
        pairs = [(a, b) for i in indices if (a := mine[i]) and (b := theirs[i])]
        speeds = []
        for side in zip(*pairs, strict=True):
            seconds = sum(getattr(trial, clock) for trial in side)
            speeds.append(sum(len(trial.result.tokens) for trial in side) / seconds if seconds else 0.0)
        if speeds and speeds[1]:
            ratios.append(speeds[0] / speeds[1])
    return ratios


def _shares(answered: list[Trial], wall: float) -> dict[str, float] | None:
    known = [t.result.stats for t in answered]
    seconds = {part: sum(getattr(stats, f"{part}_seconds") for stats in known) for part in PARTS[:-1]}
    if not wall or not seconds["score"]:
        return None
    shares = {part: spent / wall for part, spent in seconds.items()}
    return shares | {"other": max(0.0, 1 - sum(shares.values()))}


def _outcome(prompt: Prompt, index: int, trials: Trials, reference: Trials, problem: str) -> Outcome:
    answers = [repeat[index] for repeat in trials]
    first = answers[0]
    if problem or first is None:
        return Outcome(prompt.id, problem=problem or "no answer")
    places = []
    for mine, theirs in zip(answers, (repeat[index] for repeat in reference), strict=True):
        if mine and theirs:
            places.append(divergence(mine.result.tokens, theirs.result.tokens))
    return Outcome(
        prompt.id,
        tokens=len(first.result.tokens),
        target_calls=first.result.stats.target_calls,
        wall_seconds=tuple(answer.wall for answer in answers if answer),
        identical=all(place is None for place in places) if places else None,
        divergence=min((place for place in places if place is not None), default=None),
    )


def divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Number of equal tokens before the first difference; None when there is no difference."""
    if list(one) == list(other):
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
