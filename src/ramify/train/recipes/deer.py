"""DEER's drafter: some of the target's layers, taught to fill a block of masks behind a text that the target wrote."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from ramify.errors import RamifyError
from ramify.methods.draft.deer_head import DeerHead, DeerSizes
from ramify.models.causal import CausalLM
from ramify.train.data import Windows, documents, separator
from ramify.train.deer import STAGES, Course, study
from ramify.train.deer_text import Teacher, beginnings, write
from ramify.train.heads import estimate, same_run
from ramify.train.job import Job
from ramify.train.trainer import Progress

HELD = 16  # of the target's texts, which measure
SETTLING = 32  # of those that were trained on, by which the head measures itself


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/head``, and leave the head after every stage in ``job.out/STAGE/head``.

    Options: ``spans``, ``continue``, ``refine``, steps of each stage (200, 300, 100; with --steps these share it out);
    ``texts`` that the target writes (512) of ``context`` tokens (256), the first ``given`` of them from the data (64);
    ``batch`` texts a step (4); and the head's own sizes: ``layers`` (3), ``sight`` (causal, or full for the paper's
    form), ``shift``, ``most`` masks of a block (32), ``last`` masks of the second stage (24), ``blocks`` in a pass
    (16), ``alpha`` (1.01), ``normalise``.
    """
    course, options, sizes = _course(job)
    lm = job.lm()
    lm.require_trees("the training of deer")
    torch.manual_seed(job.seed)
    head = DeerHead.new(lm, **sizes).to(lm.device)
    length, given = min(options["context"], lm.context), options["given"]
    if not 1 <= given < length - head.sizes.most or options["texts"] <= HELD + SETTLING:
        raise RamifyError(
            f"texts of {length} tokens with {given} given leave no room for blocks of {head.sizes.most}, or "
            f"{options['texts']} texts are too few (more than {HELD + SETTLING}); change context, given, most or texts"
        )
    texts = documents(lm, job.data)
    if job.dry:
        sample = torch.tensor(beginnings(texts, course.batch, length, job.seed)).to(lm.device)
        yield from estimate(head, lambda step: head.loss(lm, sample), course.config("continue"))
        return
    # As JSON gives it back, in which there are no tuples.
    stages = asdict(course) | {"steps": list(course.steps)}
    described = {"method": "deer", "sizes": asdict(head.sizes), "course": stages, "data": str(job.data)}
    same_run(job.out, described | {"model": lm.name} | options)
    file = job.out / "teacher.safetensors"
    if not file.exists():
        began = time.monotonic()
        started = beginnings(texts, options["texts"], given, job.seed)
        for count, teacher in write(lm, started, length, job.seed):
            yield Progress(count, len(started), None, time.monotonic() - began)
            if teacher is not None:
                teacher.save(file)
    teacher = Teacher.load(file)
    held, known = teacher.texts[:HELD], Teacher(teacher.texts[HELD:], teacher.given)
    windows = Windows(texts, separator(lm), length - 1, course.batch, course.seed)
    figures: dict[str, dict[str, float]] = {}
    for number, stage in enumerate(STAGES):
        if course.steps[number] == 0:
            continue
        read = windows if stage == "spans" else known.reader(course.batch, len(STAGES) * course.seed + number)
        first = 1 if stage == "spans" else teacher.given
        yield from study(head, lm, read, first, course, stage, job.out / stage, held)
        with torch.no_grad():
            head.settle(lm, known.texts[:SETTLING].to(lm.device))
            figures[stage] = head.measure(lm, held.to(lm.device))
        head.save(job.out / stage / "head", compact=True)
    head.save(job.out / "head", compact=True)
    (job.out / "head" / "README.md").write_text(_card(job, head, lm, teacher, course, figures))


def _course(job: Job) -> tuple[Course, dict[str, int], dict[str, object]]:
    """Stages, what is read, and the head's sizes, from the options."""
    course = Course()
    steps = dict(zip(STAGES, course.steps, strict=True))
    numbers = steps | {"texts": 512, "context": 256, "given": 64, "batch": course.batch}
    own = {field.name: field.default for field in fields(DeerSizes) if field.name != "config"}
    chosen = job.take(**numbers, **own)
    for name in numbers:
        if not isinstance(chosen[name], int) or chosen[name] < (name not in steps):
            raise RamifyError(f"{name} is {chosen[name]!r}; give a number, at least {int(name not in steps)}")
    counts = [chosen[stage] for stage in STAGES]
    if not any(counts):
        raise RamifyError("no stage has any steps; give some to spans, continue or refine")
    if job.steps is not None:
        counts = [max(1, round(job.steps * count / sum(counts))) if count else 0 for count in counts]
    rate = course.learning_rate if job.learning_rate is None else job.learning_rate
    course = replace(
        course, steps=(counts[0], counts[1], counts[2]), learning_rate=rate, batch=chosen["batch"], seed=job.seed
    )
    return course, {name: chosen[name] for name in ("texts", "context", "given")}, {name: chosen[name] for name in own}


def _card(
    job: Job, head: DeerHead, lm: CausalLM, teacher: Teacher, course: Course, figures: dict[str, dict[str, float]]
) -> str:
    options = "".join(f" -o {option}={value}" for option, value in job.options.items())
    data = "the standard library's training files" if job.data is None else job.data.name
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(head.sizes).items() if name != "config")
    trained = sum(weight.numel() for weight in head.parameters() if weight.requires_grad)
    texts, length = teacher.texts.shape
    steps = ", ".join(f"{stage} {count}" for stage, count in zip(STAGES, course.steps, strict=True))
    paragraphs = [
        f"A `deer` head of {trained / 1e6:.3g} M parameters for the model `{lm.name}` (hidden size "
        f"{head.fit.hidden_size}, {head.fit.layers} layers, {head.fit.vocab_size} tokens); embedding and LM head are "
        "the target's.",
        f"Recipe: `ramify train deer --model {lm.name}{options}`; steps of each stage: {steps}; {course.batch} × "
        f"{length} tokens a step, {course.optimizer}, learning rate {course.learning_rate} (refine: half), seed "
        f"{course.seed}. Spans come from {data}; continuations from {texts - HELD} texts that the target wrote behind "
        f"{teacher.given} tokens of it, half greedily and half at temperature 0.7; {HELD} more measure.",
        f"Sizes: {sizes}.",
    ]
    names = list(next(iter(figures.values())))
    lines = ["| after | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for stage, found in figures.items():
        lines.append(f"| {stage} | " + " | ".join(f"{found[name]:.3f}" for name in names) + " |")
    lines += ["", "| stage | steps | training loss (mean) |", "|---|---|---|"]
    for stage in figures:
        lines += _curve(job.out / stage / "curve.jsonl", stage)
    text = "\n\n".join(textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False) for part in paragraphs)
    return f"# deer head for {lm.name}\n\n{text}\n\n" + "\n".join(lines) + "\n"


def _curve(file: Path, stage: str) -> list[str]:
    """Four points of the loss, each the mean of its quarter of the stage."""
    points = [json.loads(line) for line in file.read_text().splitlines()]
    count = min(4, len(points))
    parts = [points[part * len(points) // count : (part + 1) * len(points) // count] for part in range(count)]
    return [f"| {stage} | to {part[-1]['step']} | {sum(p['loss'] for p in part) / len(part):.4f} |" for part in parts]
