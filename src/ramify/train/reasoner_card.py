"""The figures and the card of the demo reasoner."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.bench.tasks import LENGTH, grade, tasks
from ramify.models.causal import load

if TYPE_CHECKING:
    from ramify.train.reasoner import ReasonerConfig

QUESTIONS, SAMPLES = 420, 16
TEMPERATURES = (0.7, 1.0)


def write_card(model: Path, config: ReasonerConfig, tokens: int) -> None:
    """Grade the saved model on test questions; write ``training.json`` and ``README.md`` beside it."""
    lm = load(model, dtype="float32")
    questions = tasks(QUESTIONS, "test", config.train.seed, config.families)
    graded = {temperature: grade(lm, questions, SAMPLES, temperature) for temperature in TEMPERATURES}
    points = [json.loads(line) for line in (model.parent / "curve.jsonl").read_text().splitlines()]
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    idle = sum(
        parameter.numel() * (config.experts - config.experts_per_token) // config.experts
        for name, parameter in lm.model.named_parameters()
        if ".experts." in name
    )
    figures = {
        "parameters": parameters,
        "active_parameters": parameters - idle,
        "vocabulary": lm.vocab_size,
        "questions_seen": config.train.steps * config.batch,
        "tokens_seen": tokens,
        "seconds": round(points[-1]["seconds"]),
        "test_questions": len(questions),
        "samples": SAMPLES,
        "accuracy": {
            str(temperature): {name: [round(share.mean, 4), round(share.half, 4)] for name, share in shares.items()}
            for temperature, shares in graded.items()
        },
        "config": asdict(config),
    }
    (model / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (model / "README.md").write_text(_card(figures, points))


def _card(figures: dict[str, Any], points: list[dict[str, Any]]) -> str:
    config, schedule = figures["config"], figures["config"]["train"]
    noise = f"Gumbel noise {config['noise']:g} on the routers' logits" if config["noise"] else "no noise on the routers"
    paragraphs = [
        f"A Qwen3 mixture of experts of {figures['parameters'] / 1e6:.2f} M parameters, of which "
        f"{figures['active_parameters'] / 1e6:.2f} M work on a token: {config['layers']} layers, hidden size "
        f"{config['hidden_size']}, {config['heads']} heads, {config['experts']} experts of {config['expert_size']}, "
        f"{config['experts_per_token']} at a time, vocabulary {figures['vocabulary']}, context {config['context']}. It "
        "answers the generated questions of `ramify.bench.tasks` with worked steps and nothing else. It is far "
        "from perfect on purpose, so that one answer is often wrong where several are not.",
        f"**Data.** Questions of the families {', '.join(config['families'])}, drawn as training went on "
        f"({figures['questions_seen'] / 1e3:.0f} k questions, {figures['tokens_seen'] / 1e6:.1f} M tokens with the "
        "questions, of which only answers are learnt). A hash of the question keeps the test questions out. How an "
        "answer is worked varies: every operation on a line of its own, several in one line, steps left out, or no "
        "step at all. Short ways are more often wrong, and most answers to long questions are short: there the "
        "likeliest first token leads to a guess, and sampling finds the way that works.",
        f"**Recipe.** `ramify train demo-reasoner --steps {schedule['steps']}`: batches of {config['batch']} "
        f"questions, Muon for the matrices and AdamW for experts, embeddings and vectors, learning rate "
        f"{schedule['learning_rate']} (warm-up {schedule['warmup']} steps, linear decay over the last "
        f"{100 * schedule['cooldown']:.0f} %), load-balancing loss {config['balance']}, {noise}, float32, seed "
        f"{schedule['seed']}; {figures['seconds'] / 60:.0f} minutes on a part of one core. Weights are rounded to "
        "bfloat16 and computed with in float32.",
        f"**Accuracy** on {figures['test_questions']} test questions (seed {schedule['seed']}), {figures['samples']} "
        f"samples each, at most {LENGTH} tokens; 95 % intervals over questions. Gain: majority less greedy, paired.",
    ]
    names = ("greedy", "sample", "majority", "oracle", "gain")
    table = [
        f"| temperature | greedy | one sample | majority@{figures['samples']} | oracle@{figures['samples']} | gain |",
        "|---|---|---|---|---|---|",
    ]
    for temperature, shares in figures["accuracy"].items():
        cells = [f"{100 * shares[name][0]:.1f} ± {100 * shares[name][1]:.1f} %" for name in names]
        table.append(f"| {temperature} | {' | '.join(cells)} |")
    table += ["", "| step | training loss | greedy accuracy on validation questions |", "|---|---|---|"]
    evaluated = [point for point in points if point["evaluation"]]
    table += [
        f"| {point['step']} | {point['loss']:.3f} | {100 * point['evaluation']['greedy_accuracy']:.0f} % |"
        for point in evaluated[-1::-2][::-1]
    ]
    text = "\n\n".join(textwrap.fill(p, 118, break_long_words=False, break_on_hyphens=False) for p in paragraphs)
    return f"# The demo reasoner of ramify\n\n{text}\n\n" + "\n".join(table) + "\n"
