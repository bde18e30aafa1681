"""The figures and the card of the demo diffusion model."""

from __future__ import annotations

import json
import platform
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.models.causal import CausalLM
from ramify.train.data import library_files, separator
from ramify.train.demo_lm import bits_per_byte, xz_bits_per_byte
from ramify.train.denoisers import curve

if TYPE_CHECKING:
    from ramify.train.demo_dlm import DemoDLMConfig, HeldOut

GUESSED = (1, 2, 4, 8, 16)  # places in a block whose first guesses the card shows


def write_card(
    lm: CausalLM, model: Any, mask_id: int, held: list[list[int]], measure: HeldOut, folder: Path, config: DemoDLMConfig
) -> None:
    """Measure the model and what it was made from; write ``training.json`` and ``README.md`` beside it."""
    size = sum(len(lm.require_tokenizer().decode(text).encode()) for text in held)
    bits, error = measure.bits_per_byte(model, mask_id, config.draws)
    points = curve(folder.parent / "curve.jsonl", "bits_per_byte")
    figures: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": model.config.vocab_size,
        "mask_token_id": mask_id,
        "python": platform.python_version(),
        "tokens_seen": config.train.steps * config.batch * config.context,
        "held_out_bytes": size,
        "bits_per_byte": bits,
        "standard_error": error,
        "adapted": {
            str(context): bits_per_byte(lm.original, held, separator(lm), size, context)
            for context in (config.context, lm.context)
        },
        "first_guesses": measure.first_guesses(model, mask_id) if config.block else [],
        "xz_bits_per_byte": xz_bits_per_byte(library_files()[1]) if measure.library else None,
        "seconds": json.loads((folder.parent / "curve.jsonl").read_text().splitlines()[-1])["seconds"],
        "model": lm.name,
        "config": asdict(config),
    }
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(_card(figures, points))


def _card(figures: dict[str, Any], points: list[tuple[int, float, float]]) -> str:
    config, schedule, name = figures["config"], figures["config"]["train"], figures["model"]
    block = config["block"]
    attention = f"attention in blocks of {block} (a position sees its own block and those before)" if block else ""
    own, whole = figures["adapted"].values()
    held = "the held-out modules" if figures["xz_bits_per_byte"] else "the end of the data"
    xz = f" `xz -9e`: {figures['xz_bits_per_byte']:.3f}." if figures["xz_bits_per_byte"] else ""
    began = (
        f"Of the {name} model it has the first {(config['layers'] + 1) // 2} and the last {config['layers'] // 2} "
        "layers and the embeddings, and was trained on from there."
        if config["init"] == "demo"
        else f"It has the shape of the {name} model, and was trained from random weights."
    )
    objective = "BD3-LM's loss with blocks masked at rates between 0.1 and 1" if block else "LLaDA's loss"
    paragraphs = [
        f"A masked diffusion language model of {figures['parameters'] / 1e6:.2f} M parameters over Python source: "
        f"{config['layers']} layers, context {config['context']}, {attention or 'full attention'}. {began} The "
        f"vocabulary is that model's with two more tokens, `<|mask|>` ({figures['mask_token_id']}) and `<|sep|>` "
        f"({figures['mask_token_id'] + 1}): {figures['vocabulary']}. What it says of a position is about that "
        "position, without a shift. `<|sep|>` is not trained; it is there for drafters that mark an end with it.",
        f"**Data.** That of the demo model: the standard library of Python {figures['python']} without {held}."
        if figures["xz_bits_per_byte"]
        else "**Data.** The user's own, its end held out.",
        f"**Recipe.** `ramify train demo-dlm`: {schedule['steps']} steps of {config['batch']} × {config['context']} "
        f"tokens ({figures['tokens_seen'] / 1e6:.1f} M tokens), {objective}, Muon for the matrices and AdamW for the "
        f"rest, learning rate {schedule['learning_rate']} (warm-up {schedule['warmup']} steps, linear decay over the "
        f"last {100 * schedule['cooldown']:.0f} %), bfloat16 autocast, seed {schedule['seed']}; "
        f"{figures['seconds'] / 60:.0f} minutes on a part of one core. Weights are rounded to bfloat16.",
        f"**Quality.** On {held} ({figures['held_out_bytes']} bytes), with between {config['context'] // 2} and "
        f"{config['context']} tokens before every token, the text costs at most {figures['bits_per_byte']:.3f} ± "
        f"{figures['standard_error']:.3f} bits per byte (low-variance bound, {config['draws']} draws of every block, "
        f"standard error over windows). The {name} model, which reads from the left and has twice the layers, needs "
        f"{own:.3f} with this context and {whole:.3f} with its own.{xz}",
    ]
    tables = ["| step | mean training loss since the line before | bound, bits per byte (part of the texts) |"]
    tables += ["|---|---|---|", *(f"| {step} | {loss:.3f} | {bits:.3f} |" for step, loss, bits in points)]
    if figures["first_guesses"]:
        shown = [place for place in GUESSED if place <= len(figures["first_guesses"])]
        shares = [f"{figures['first_guesses'][place - 1]:.3f}" for place in shown]
        tables += [
            "",
            "The likeliest tokens of a block of which nothing is visible, share of right ones by place in the block:",
            "",
            f"| {' | '.join(map(str, shown))} |",
            "|---" * len(shown) + "|",
            f"| {' | '.join(shares)} |",
        ]
    text = "\n\n".join(textwrap.fill(part, 118, break_on_hyphens=False) for part in paragraphs)
    return f"# The demo diffusion model of ramify\n\n{text}\n\n" + "\n".join(tables) + "\n"
