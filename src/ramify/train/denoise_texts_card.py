"""The figures and the card of the parallel model."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.bench.parallelbench.answering import scored
from ramify.bench.parallelbench.apart import HELD, held
from ramify.bench.parallelbench.names import NAMES
from ramify.bench.parallelbench.prompts import TEMPLATES
from ramify.bench.parallelbench.tasks import GENERATED, problems
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.threshold import Threshold
from ramify.models.causal import wrap
from ramify.models.masked import masked
from ramify.train.denoise_texts_data import CLIPS, LATE, NEW
from ramify.train.denoisers import curve

if TYPE_CHECKING:
    from ramify.train.denoise_texts import ParallelModelConfig

RULES = {"one a pass": Unmask(steps=NEW), "γ = 0.9": Threshold(gamma=0.9)}
FIGURES = ("lenient", "strict", *TEMPLATES, "tokens per pass")


def write_card(folder: Path, model: Any, words: Any, config: ParallelModelConfig) -> None:
    """Measure the model on the benchmark's own problems; write ``training.json`` and ``README.md`` beside it."""
    lm = masked(wrap(model, words, folder.name))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task in config.tasks:
        drawn = problems(task, config.trials)
        rows = {name: scored(lm, rule, drawn, tuple(TEMPLATES), NEW) for name, rule in RULES.items()}
        found[task] = {name: {figure: row[figure] for figure in FIGURES} for name, row in rows.items()}
    points = curve(folder.parent / "curve.jsonl", "mean")
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(words),
        "names_held_out": len(held()[0]),
        "scores": found,
        "loss": points[-1][1],
        "seconds": json.loads((folder.parent / "curve.jsonl").read_text().splitlines()[-1])["seconds"],
        "config": asdict(config),
    }
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(_card(figures, points))


def _card(figures: dict[str, Any], points: list[tuple[int, float, float]]) -> str:
    config, schedule = figures["config"], figures["config"]["train"]
    left_out = ", ".join(task for task in GENERATED if task not in config["tasks"]) or "none"
    paragraphs = [
        f"A masked denoiser of {figures['parameters'] / 1e6:.2f} M parameters that answers the text families of "
        f"ParallelBench: a Llama of width {config['hidden_size']}, {config['layers']} layers, {config['heads']} heads, "
        f"with biases and full attention, and {figures['vocabulary']} tokens: the words of the benchmark's generators, "
        f"digits, letters and punctuation. It knows no other word, and answers of {NEW} tokens.",
        f"**Data.** Generated prompts under all {len(TEMPLATES)} templates, with an example of their own. Of the "
        f"benchmark's first {HELD} problems of every task nothing is in them: none of the {figures['names_held_out']} "
        f"full names (of {len(NAMES)}) that stand in the lists, no set of symbols of the squares, no set of words of "
        f"the sentences. Given names, family names and words by themselves are in both. From step {config['late']} on "
        f"three in four texts are of {', '.join(LATE)}. Not trained on: {left_out}.",
        f"**Recipe.** `ramify train parallel-model`: {schedule['steps']} steps of {config['batch']} texts, LLaDA's "
        "loss on answers (in half of the texts on that of the example too), divided by their length, stratified t "
        f"between {CLIPS[0][0]} and 1, from step {config['wide']} on between 1/{NEW} and 1; Muon for the matrices and "
        f"AdamW for the rest, learning rate {schedule['learning_rate']} (warm-up {schedule['warmup']} steps, linear "
        f"decay over the last {100 * schedule['cooldown']:.0f} %), weight decay {schedule['weight_decay']}, clipping "
        f"at {schedule['clip_norm']}, float32, seed {schedule['seed']}; {figures['seconds'] / 60:.0f} minutes on a "
        "part of one core.",
        f"**Quality**, the benchmark's own {config['trials']} problems of each task, by its scorers: lenient, strict, "
        "then the lenient one by template.",
    ]
    tables = []
    for rule in RULES:
        tables += [f"| task, {rule} | " + " | ".join(FIGURES) + " |", "|---|" + "---|" * len(FIGURES)]
        for task, rows in figures["scores"].items():
            cells = [f"{rows[rule][figure]:.2f}" for figure in FIGURES]
            tables.append(f"| {task} | {' | '.join(cells)} |")
        tables.append("")
    tables += [
        f"| step | mean training loss since the line before | mean score, {config['quick']} other problems a task |",
        "|---|---|---|",
        *(f"| {step} | {loss:.3f} | {share:.2f} |" for step, loss, share in points),
    ]
    text = "\n\n".join(textwrap.fill(part, 118, break_on_hyphens=False) for part in paragraphs)
    return f"# The parallel model of ramify\n\n{text}\n\n" + "\n".join(tables) + "\n"
