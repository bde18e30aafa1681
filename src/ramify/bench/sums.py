"""The shared sum task of the search methods: questions, the model that is trained on them, and sampled pools.

The model's likeliest first token leads to the way it cannot do, an answer without steps. So greedy decoding is worst,
and whoever looks beyond one token gains.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ramify.api import generate
from ramify.bench.tasks import Task, parse_answer, tasks
from ramify.engine.path import Path as Route
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.methods.base import Method
from ramify.methods.head import teach
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import CausalLM, load
from ramify.train.job import Job
from ramify.train.recipes.sum_model import train

LONGEST = 24  # tokens of an answer, its end included


def sum_model(folder: str | None, seed: int) -> CausalLM:
    """The model in ``folder``, or one trained now, which takes one or two minutes."""
    if folder is not None:
        return load(folder)
    with tempfile.TemporaryDirectory() as out:
        for _ in train(Job(Path(out), seed=seed)):
            pass
        return load(Path(out) / "model")


def sum_tasks(count: int, seed: int, split: str = "test") -> list[Task]:
    """``count`` questions."""
    return tasks(count, split, seed, ("sum",))


def ask(lm: CausalLM, question: Task, method: Method | str, seed: int, **settings: Any) -> Result:
    """One answer to one question."""
    found: Result = generate(
        lm, question.prompt, method, max_new_tokens=LONGEST, seed=seed, answer=parse_answer, **settings
    )
    return found


def sampled_pools(lm: CausalLM, questions: Sequence[Task], paths: int, seed: int, **settings: Any) -> list[list[Route]]:
    """``paths`` finished paths for each question, in the order of their numbers: the first n are the pool of n."""
    pools = []
    for place, question in enumerate(questions):
        found = ask(lm, question, SelfConsistency(paths=paths), seed + 1000 * place, do_sample=True, **settings)
        pools.append(sorted(found.paths, key=lambda path: path.number))
    return pools


@torch.inference_mode()
def confident_in(lm: CausalLM, question: Task, paths: Sequence[Route], top: int) -> list[Route]:
    """``paths`` with confidences of the ``top`` likeliest tokens, where a pool took as many as it always does."""
    prompt = lm.encode(question.prompt)
    longest = max(map(len, paths))
    texts = torch.tensor([[*prompt, *path.tokens, *[0] * (longest - len(path))] for path in paths], device=lm.device)
    logp = teach(lm, texts).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
    confidences = (-logp.topk(top, dim=-1).values.mean(dim=-1)).tolist()
    return [replace(path, confidences=found[: len(path)]) for path, found in zip(paths, confidences, strict=True)]


def accuracy(questions: Sequence[Task], answers: Sequence[str | None]) -> float:
    """Share of right answers; none is a wrong one."""
    if not questions:
        raise RamifyError("no question is asked; raise the number of questions to at least 1")
    pairs = zip(questions, answers, strict=True)
    return sum(answer is not None and question.right(answer) for question, answer in pairs) / len(questions)


def error_of(share: float, count: int) -> float:
    """Standard error of a share of ``count``."""
    return math.sqrt(share * (1 - share) / count)
