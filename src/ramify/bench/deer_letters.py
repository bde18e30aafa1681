"""DEER in small: drafters of a model of characters, by stage, sight, weight and block, beside an autoregressive one.

All begin with the same layers of the target, its first and its last, and read the same texts that it wrote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.bench.blocks import agreement, continued, decode, filled
from ramify.bench.letters import CONTEXT, TEXT, letters
from ramify.bench.recipes import Table
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.deer import Deer
from ramify.methods.draft.deer_head import DeerHead, outer
from ramify.methods.draft.s2d_head import sorted_loss
from ramify.models.causal import CausalLM
from ramify.train.data import library_files
from ramify.train.deer import STAGES, Course, study
from ramify.train.deer_text import Teacher, beginnings, write
from ramify.train.trainer import train

LAYERS = 2
GIVEN = 48
SETTLING = 16
PLAIN, ONE, TWO, MORE = "(a) spans", "(b) + stage I", "(c) + stage II", "(b), stage I as much longer"


@dataclass
class Class:
    """The target, the texts it wrote, and how long its drafters learn."""

    lm: CausalLM
    teacher: Teacher
    course: Course

    @classmethod
    def of(cls, lm: CausalLM, texts: int, course: Course) -> Class:
        corpus = [letters(library_files()[0], TEXT, course.seed + 1)]
        started = beginnings(corpus, texts, GIVEN, course.seed)
        [*_, (_, teacher)] = write(lm, started, CONTEXT, course.seed)
        assert teacher is not None
        return cls(lm, teacher, course)

    def new(self, **sizes: Any) -> DeerHead:
        torch.manual_seed(self.course.seed)
        return DeerHead.new(self.lm, **{"layers": LAYERS, "last": 24} | sizes)

    def taught(self, head: DeerHead, stage: str, steps: int | None = None) -> DeerHead:
        """A copy of ``head`` after one more stage, of ``steps`` or as many as the course has."""
        number, counts = STAGES.index(stage), list(self.course.steps)
        counts[number] = counts[number] if steps is None else steps
        # A causal pass has many blocks of a text, a full one has one: more texts make up for some of it.
        batch = self.course.batch * (4 if head.sizes.sight == "full" else 1)
        course = replace(self.course, steps=(counts[0], counts[1], counts[2]), batch=batch)
        pupil = DeerHead(head.fit, head.sizes)
        pupil.load_state_dict(head.state_dict())
        texts = self.teacher.reader(course.batch, len(STAGES) * course.seed + number)
        first = 1 if stage == "spans" else self.teacher.given
        with tempfile.TemporaryDirectory() as folder:
            for _ in study(pupil, self.lm, texts, first, course, stage, Path(folder)):
                pass
        return pupil.eval()

    def alone(self, steps: int) -> CausalLM:
        """An autoregressive drafter of the same layers, after as many steps on the same texts."""
        head = self.new()
        own = head.as_lm(self.lm)
        read = self.teacher.reader(self.course.batch, self.course.seed)
        config = replace(self.course, steps=(0, steps, 0)).config("continue")
        with tempfile.TemporaryDirectory() as folder:
            for _ in train(head, lambda step: sorted_loss(own, read(step), [own.layers]), config, Path(folder)):
                pass
        return head.eval().draft(self.lm)


def tables(pupils: Class, starts: Sequence[list[int]], new_tokens: int, alphas: Sequence[float]) -> list[Table]:
    """Stages by sight, alphas, sizes of the block, and agreement by place."""
    lm, (spans, first, second) = pupils.lm, pupils.course.steps
    truth = decode(lm, None, starts, new_tokens).texts
    stages: list[dict[str, Any]] = []
    heads: dict[tuple[str, str], DeerHead] = {}
    for sight in ("causal", "full"):
        plain = pupils.taught(pupils.new(sight=sight), "spans")
        one = pupils.taught(plain, "continue")
        row = {PLAIN: plain, ONE: one, TWO: pupils.taught(one, "refine")}
        if sight == "causal":
            row[MORE] = pupils.taught(one, "continue", second)
            row["stage I and II without (a)"] = pupils.taught(
                pupils.taught(pupils.new(sight=sight), "continue"), "refine"
            )
        for name, head in row.items():
            heads[sight, name] = head
            found = decode(lm, Deer(head=head, nodes=16), starts, new_tokens)
            sampled = decode(lm, Deer(head=head, nodes=16), starts, new_tokens, 0.7)
            stages.append(
                {
                    "sight": sight,
                    "drafter": name,
                    "T = 0": found.tokens_per_call,
                    "T = 0.7": sampled.tokens_per_call,
                    "calls with >= 8 accepted": f"{found.long_share:.1%}",
                    "as greedy": f"{sum(map(list.__eq__, found.texts, truth))} of {len(truth)}",
                }
            )
    best = heads["causal", TWO]
    weighed = [_alpha(pupils, heads["causal", ONE], alpha, normalise, starts, new_tokens)
               for alpha, normalise in [*((alpha, False) for alpha in alphas), (max(alphas), True)]]  # fmt: skip
    sized = []
    for nodes in (4, 8, 16, 32):
        found = decode(lm, Deer(head=best, nodes=nodes), starts, new_tokens)
        sampled = decode(lm, Deer(head=best, nodes=nodes), starts, new_tokens, 0.7)
        sized.append(
            {
                "k": nodes,
                "T = 0": found.tokens_per_call,
                "T = 0.7": sampled.tokens_per_call,
                "calls with >= 8 accepted": f"{found.long_share:.1%}",
                "most accepted": max(found.accepted),
            }
        )
    alone = pupils.alone(spans + first + second)
    drafters = {
        "denoiser, one pass": agreement(filled(best, lm), starts, truth, 16, 3),
        "autoregressive, 16 passes": agreement(continued(alone), starts, truth, 16, 3),
    }
    written = decode(lm, Assistant(model=alone, length=16, schedule="constant"), starts, new_tokens)
    by_place = places(drafters)
    size = sum(weight.numel() for weight in best.parameters())
    kept = outer(LAYERS, lm.layers)
    return [
        Table(
            f"Characters, drafters of layers {kept} of {lm.layers} ({size} parameters): tokens a call, k = 16", stages
        ),
        Table(f"Characters: stage II with other weights ({second} steps from (b))", weighed),
        Table("Characters: masks of a block, causal (c)", sized),
        Table("Characters: agreement with the target's greedy text by place, equal layers, texts and steps", by_place),
        Table(
            "Characters: chains of 16, greedy",
            [
                {"drafter": "denoiser, one pass", "tokens a call": sized[2]["T = 0"]},
                {"drafter": "autoregressive, 16 passes", "tokens a call": written.tokens_per_call},
            ],
        ),
    ]


def places(drafters: dict[str, dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Rows of agreement by place, for each drafter once the guesses before were right, and whatever they were."""
    rows = []
    for name, found in drafters.items():
        for kind, label in (("then", "once those before were right"), ("any", "whatever those before were")):
            row: dict[str, Any] = {"drafter": name, "agreement": label}
            row |= {str(place): float(found[kind][place - 1]) for place in (1, 2, 3, 4, 6, 8, 12, 16)}
            rows.append(row)
    return rows


def _alpha(
    pupils: Class, head: DeerHead, alpha: float, normalise: bool, starts: Sequence[list[int]], new_tokens: int
) -> dict[str, Any]:
    sized = DeerHead(head.fit, replace(head.sizes, alpha=alpha, normalise=normalise))
    sized.load_state_dict(head.state_dict())
    pupil = pupils.taught(sized, "refine")
    found = decode(pupils.lm, Deer(head=pupil, nodes=16), starts, new_tokens)
    sampled = decode(pupils.lm, Deer(head=pupil, nodes=16), starts, new_tokens, 0.7)
    name = f"{alpha}, normalised" if normalise else str(alpha)
    return {"alpha": name, "T = 0": found.tokens_per_call, "T = 0.7": sampled.tokens_per_call}
