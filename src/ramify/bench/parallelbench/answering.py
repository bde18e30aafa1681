"""The text families on a language model, masked or autoregressive: prompts in, scores out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ramify.api import generate
from ramify.bench.parallelbench.family import Problem, Score
from ramify.bench.parallelbench.metrics import Point, Sample
from ramify.bench.parallelbench.prompts import prompt
from ramify.bench.parallelbench.tasks import Problems
from ramify.engine.result import Result
from ramify.methods.base import MaskedMethod, Method
from ramify.models.causal import CausalLM
from ramify.models.masked import MaskedLM
from ramify.unmasking import request


def answers(lm: CausalLM | MaskedLM, method: Method, problems: Problems, template: str, new: int) -> list[Result]:
    """One greedy answer of at most ``new`` tokens to each problem."""
    texts = [prompt(problems, problem, template) for problem in problems.problems]
    if isinstance(lm, CausalLM):
        return list(generate(lm, texts, method, max_new_tokens=new))
    assert isinstance(method, MaskedMethod)
    return method.complete(lm, [request(lm, method, text, new, seed) for seed, text in enumerate(texts)])


@dataclass(frozen=True)
class Answered:
    """What came of one family under one template: the scores of its problems, and what they cost."""

    scores: Sequence[Score]
    samples: Sequence[Sample]

    @property
    def accuracy(self) -> float:
        """Mean of the lenient scores, times inclusion."""
        return statistics.mean(sample.score for sample in self.samples)


def answered(lm: CausalLM | MaskedLM, method: Method, problems: Problems, template: str, new: int) -> Answered:
    """``problems`` answered and scored."""
    results = answers(lm, method, problems, template, new)
    pairs = zip(problems.problems, results, strict=True)
    scores = problems.score([clipped(problem, result.text) for problem, result in pairs])
    samples = []
    for score, result in zip(scores, results, strict=True):
        real = len(result.tokens)
        fixed = real if isinstance(lm, CausalLM) else new
        samples.append(Sample(score.whole, max(1, result.stats.target_calls), fixed, real))
    return Answered(scores, samples)


def scored(
    lm: CausalLM | MaskedLM, method: Method, problems: Problems, templates: Sequence[str], new: int
) -> dict[str, Any]:
    """A line of a table: scores by both scorers, that of every template, tokens per pass."""
    found = {template: answered(lm, method, problems, template, new) for template in templates}
    samples = [sample for each in found.values() for sample in each.samples]
    strict = [score.strict * score.inclusion for each in found.values() for score in each.scores]
    return {
        "task": problems.family.name,
        "lenient": statistics.mean(sample.score for sample in samples),
        "strict": statistics.mean(strict),
        **{template: each.accuracy for template, each in found.items()},
        "tokens per pass": Point.of(samples).tps,
        "without padding": Point.of(samples, padded=False).tps,
    }


def clipped(problem: Problem, text: str) -> str:
    """As many lines of an answer as a right one has: a model that was not tuned to stop goes on with the next one."""
    if not problem.label:
        return text
    return "\n".join(text.lstrip("\n").split("\n")[: problem.label.count("\n") + 1])
