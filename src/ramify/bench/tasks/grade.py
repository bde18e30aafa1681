"""How well a model answers: greedy, sampled, by majority vote, and whether any of its samples is right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ramify.api import generate
from ramify.bench.tasks.answers import canonical, parse_answer
from ramify.bench.tasks.task import Task
from ramify.models.causal import CausalLM

LENGTH = 160  # tokens of the longest answer: about twice the longest worked one
ROWS = 512  # questions or samples in one batch


@dataclass(frozen=True)
class Share:
    """A mean over questions with its 95 % interval (normal, from the spread between questions)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Share:
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        return cls(mean, 1.96 * math.sqrt(spread / len(values)))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f} %"


def grade(
    lm: CausalLM, questions: Sequence[Task], samples: int = 16, temperature: float = 1.0, seed: int = 0
) -> dict[str, Share]:
    """Shares of ``questions`` answered rightly by ``lm``.

    ``greedy``; ``sample``: the mean over the samples; ``majority``: their commonest answer, at a tie the one that came
    first; ``oracle``: any of them; ``gain``: majority less greedy, question by question.
    """
    greedy = [float(task.right(text)) for task, text in zip(questions, complete(lm, questions), strict=True)]
    many = [task for task in questions for _ in range(samples)]
    texts = complete(lm, many, do_sample=True, temperature=temperature, top_k=0, seed=seed)
    right: dict[str, list[float]] = {"greedy": greedy, "sample": [], "majority": [], "oracle": []}
    for place, task in enumerate(questions):
        answers = [parse_answer(text) for text in texts[place * samples : (place + 1) * samples]]
        votes = Counter(answer for answer in answers if answer is not None)
        correct = canonical(task.answer)
        right["sample"].append(answers.count(correct) / samples)
        right["majority"].append(float(bool(votes) and votes.most_common(1)[0][0] == correct))
        right["oracle"].append(float(correct in answers))
    right["gain"] = [voted - single for voted, single in zip(right["majority"], greedy, strict=True)]
    return {name: Share.of(values) for name, values in right.items()}


def complete(lm: CausalLM, questions: Sequence[Task], *, seed: int = 0, **settings: Any) -> list[str]:
    """One completion each, greedy or as the ``settings`` say; the same question may come several times."""
    length = min(LENGTH, lm.context // 2)
    method = "sample" if settings else "greedy"
    texts: list[str] = []
    for start in range(0, len(questions), ROWS):
        prompts = [task.prompt for task in questions[start : start + ROWS]]
        results = generate(lm, prompts, method, max_new_tokens=length, seed=seed + start, **settings)
        texts.extend(result.text for result in results)
    return texts
