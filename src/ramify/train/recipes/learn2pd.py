"""Learn2PD's filter, trained on what an oracle could have fixed at once."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict

import torch

from ramify.bench.parallelbench import symbols
from ramify.errors import RamifyError
from ramify.methods.unmask.learn2pd_filter import Filter
from ramify.models.masked import MaskedLM, is_masked, load_masked
from ramify.train.heads import estimate, same_run
from ramify.train.job import Job
from ramify.train.learn2pd import Records, fit, is_list_model, prompts_for, record, settings
from ramify.train.trainer import Progress, TrainConfig

PROMPTS, PROMPT = 400, 64
BLOCK = 32  # where the model sees everything


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/head``.

    Options: ``block``, positions of a block (the model's own, else 32; the whole answer of a list task); ``depth``,
    layers (2); ``loss``, over the "open" positions or "all" (open); ``prompts``, how many are decoded (400);
    ``length``, positions behind each (four blocks); ``prompt``, tokens of each (64). List tasks have their own length.
    """
    options = job.take(block=None, depth=2, prompts=PROMPTS, length=None, prompt=PROMPT, loss="open")
    if not isinstance(job.model, MaskedLM) and not is_masked(job.model):
        raise RamifyError(
            f"{job.model} is no masked denoiser, which learn2pd decodes; give one as --model, say demo-dlm"
        )
    lm = job.model if isinstance(job.model, MaskedLM) else load_masked(job.model, dtype="float32")
    lists = is_list_model(lm)
    block = options["block"] or (symbols.ANSWER if lists else lm.facts.block or BLOCK)
    length = symbols.ANSWER if lists else options["length"] or 4 * block
    torch.manual_seed(job.seed)
    head = Filter.new(lm.base, block=block, depth=options["depth"])
    config = settings(job.seed, job.steps, job.learning_rate)
    asked = options["prompts"] if not job.dry else 10
    prompts = prompts_for(lm, asked, options["prompt"], job.data, job.seed)
    if job.dry:
        values = record(lm, prompts, length, block, options["loss"]).values
        yield from estimate(head, lambda step: head.loss(lm.base, values), config)
        return
    described = {
        "method": "learn2pd",
        "sizes": asdict(head.sizes),
        "fit": asdict(head.fit),
        "options": {name: str(value) for name, value in options.items()},
        "data": str(job.data),
        "seed": job.seed,
        "model": lm.name,
    }
    same_run(job.out, described)
    file = job.out / "records.safetensors"
    if not file.exists():
        record(lm, prompts, length, block, options["loss"]).save(file)
    records = Records.load(file)
    yield from fit(head, lm, records, config, job.out)
    _, validation, test = records.split(job.seed)
    head.save(job.out / "head")
    figures = {"validation": head.measure(lm.base, validation), "test": head.measure(lm.base, test)}
    (job.out / "head" / "README.md").write_text(_card(job, lm, head, config, records, asked, length, figures))


def _card(
    job: Job,
    lm: MaskedLM,
    head: Filter,
    config: TrainConfig,
    records: Records,
    prompts: int,
    length: int,
    figures: dict[str, dict[str, float]],
) -> str:
    sizes = head.sizes
    data = "list tasks" if is_list_model(lm) else "excerpts of the standard library's training files"
    data = data if job.data is None else f"excerpts of {job.data.name}"
    options = "".join(f" -o {option}={value}" for option, value in job.options.items())
    _, held, weight = records.values.unbind(1)
    right = 100 * float((held * weight).sum() / weight.sum())
    paragraphs = [
        f"A Learn2PD filter of {sum(p.numel() for p in head.parameters())} parameters for the denoiser `{lm.name}`: "
        f"blocks of {sizes.block} positions, {sizes.depth} layers.",
        f"Recipe: `ramify train learn2pd --model {lm.name}{options}`. {prompts} prompts ({data}), {length} positions "
        f"behind each, decoded one position a step; {len(records.values)} records of the oracle, of which "
        f"{right:.1f} % of the predictions that count are right; split by prompt. {config.steps} steps of the full "
        f"batch, AdamW, learning rate {config.learning_rate} (linear decay over the last half), weight decay "
        f"{config.weight_decay}, seed {config.seed}.",
    ]
    lines = ["| figure | validation | test |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.4f} | {figures['test'][name]:.4f} |" for name, value in figures["validation"].items()
    ]
    text = "\n\n".join(textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False) for part in paragraphs)
    return f"# Learn2PD filter for {lm.name}\n\n{text}\n\n" + "\n".join(lines) + "\n"
