"""Recipe of the bundled demo language model: a small Llama on the source of the Python standard library.

Data: every ``.py`` file of the running interpreter's standard library, without its tests, without generated tables
and without the modules in ``HELD_OUT``, which measure it. Tokenizer: byte-level BPE trained on the same files, where
a line break and the indentation after it are one piece. The figure of merit is bits per byte on the held-out modules
beside ``xz -9e`` on the same files, one by one.
"""

from __future__ import annotations

import json
import lzma
import math
import platform
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.train.bpe import train_bpe
from ramify.train.data import HELD_OUT, Windows, library_files
from ramify.train.trainer import Progress, TrainConfig, train

END_OF_TEXT = "<|endoftext|>"
# A line break with its indentation, words, numbers, punctuation runs: pieces that BPE may merge inside, never across.
PIECES = r"\n[ ]*| ?[A-Za-z_]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9_]+|[^\S\n]+"


@dataclass(frozen=True)
class DemoLMConfig:
    """Shape and training settings of the demo model (6.95 M parameters, 13.9 MB in bfloat16)."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    layers: int = 8
    heads: int = 4
    key_value_heads: int = 2
    context: int = 1024
    batch: int = 4
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2200, learning_rate=6e-3))


def train_tokenizer(texts: list[str], vocab_size: int, out: Path, context: int) -> None:
    """Train the byte-level BPE tokenizer and save it in transformers' layout."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_bpe(texts, vocab_size, PIECES, END_OF_TEXT)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def bits_per_byte(model: torch.nn.Module, documents: list[list[int]], separator: int, size: int, context: int) -> float:
    """Bits per byte of ``documents`` (``size`` bytes together), every token seen with at least half a context."""
    bits = 0.0
    stride = context // 2
    for document in documents:
        ids = torch.tensor([separator, *document])
        for start in range(0, len(ids) - 1, stride):
            window = ids[start : start + context + 1]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=window[None, :-1]).logits[0].float()
            losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            fresh = losses if start == 0 else losses[stride:]
            bits += fresh.sum().item() / math.log(2)
            if start + context + 1 >= len(ids):
                break
    return bits / size


def xz_bits_per_byte(files: list[Path]) -> float:
    """Bits per byte of ``xz -9e`` on each file by itself."""
    contents = [file.read_bytes() for file in files]
    packed = sum(len(lzma.compress(c, preset=9 | lzma.PRESET_EXTREME)) for c in contents)
    return 8 * packed / sum(map(len, contents))


def train_demo_lm(out: Path, config: DemoLMConfig | None = None) -> Iterator[Progress]:
    """Train the demo model into ``out/model`` (resuming from ``out`` if it holds a checkpoint)."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = config or DemoLMConfig()
    torch.manual_seed(config.train.seed)
    files, held_out = library_files()
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    target = out / "model"
    if not (target / "tokenizer.json").exists():
        train_tokenizer(texts, config.vocab_size, target, config.context)
    tokenizer = AutoTokenizer.from_pretrained(target)
    separator = tokenizer.eos_token_id
    documents = [tokenizer.backend_tokenizer.encode(text).ids for text in texts]
    held_documents = [tokenizer.backend_tokenizer.encode(file.read_text()).ids for file in held_out]
    held_bytes = sum(len(file.read_bytes()) for file in held_out)
    windows = Windows(documents, separator, config.context, config.batch, config.train.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=separator,
            eos_token_id=separator,
            pad_token_id=separator,
        )
    )
    vocabulary = config.vocab_size

    def loss_at(step: int) -> Tensor:
        window = windows(step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=window[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().reshape(-1, vocabulary), window[:, 1:].reshape(-1))

    def evaluate() -> dict[str, float]:
        return {"bits_per_byte": bits_per_byte(model, held_documents, separator, held_bytes, config.context)}

    yield from train(model, loss_at, config.train, out, evaluate)
    model.bfloat16().save_pretrained(target)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "tokens": windows.total,
        "tokens_seen": config.train.steps * config.batch * config.context,
        "held_out": list(HELD_OUT),
        "held_out_bytes": held_bytes,
        "xz_bits_per_byte": xz_bits_per_byte(held_out),
        **evaluate(),
        "config": asdict(config),
    }
    (target / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    (target / "README.md").write_text(_card(figures, out / "curve.jsonl"))


def _card(figures: dict[str, Any], curve: Path) -> str:
    """The model card."""
    points = [json.loads(line) for line in curve.read_text().splitlines()]
    evaluated = [point for point in points if point["evaluation"]]
    config, schedule = figures["config"], figures["config"]["train"]
    below = 1 - figures["bits_per_byte"] / figures["xz_bits_per_byte"]
    paragraphs = [
        f"A Llama of {figures['parameters'] / 1e6:.2f} M parameters ({config['layers']} layers, hidden size "
        f"{config['hidden_size']}, {config['heads']} heads over {config['key_value_heads']} key–value heads, context "
        f"{config['context']}) over a byte-level BPE vocabulary of {config['vocab_size']}. It continues Python source "
        "text. It is small, so that every method runs offline in seconds; it is no assistant, and knows nothing but "
        "how library code tends to go on.",
        f"**Data.** The source of the standard library of Python {figures['python']} ({figures['files']} files, "
        f"{figures['bytes'] / 1e6:.1f} MB, {figures['tokens'] / 1e6:.2f} M tokens), without its tests, without "
        f"generated tables, and without the held-out modules: {', '.join(figures['held_out'])}.",
        f"**Quality.** {figures['bits_per_byte']:.3f} bits per byte on the held-out modules "
        f"({figures['held_out_bytes']} bytes), each token predicted from at least half a context where its file has "
        f"it. `xz -9e` on the same files, one by one: {figures['xz_bits_per_byte']:.3f}. That is {100 * below:.0f} % "
        "less. `ramify bench demo-lm` prints it, file by file.",
        f"**Recipe.** `ramify train demo-lm --out runs/demo-lm`: {schedule['steps']} steps of {config['batch']} × "
        f"{config['context']} tokens ({figures['tokens_seen'] / 1e6:.1f} M tokens), Muon for the matrices and AdamW "
        f"for the rest, learning rate {schedule['learning_rate']} (warm-up {schedule['warmup']} steps, linear decay "
        f"over the last {100 * schedule['cooldown']:.0f} %), weight decay {schedule['weight_decay']}, bfloat16 "
        f"autocast, seed {schedule['seed']}. A stopped run resumes from its checkpoint. Another Python version gives "
        "another corpus.",
    ]
    table = ["| step | training loss (nats per token) | held-out bits per byte |", "|---|---|---|"]
    table += [
        f"| {p['step']} | {p['loss']:.3f} | {p['evaluation']['bits_per_byte']:.3f} |" for p in evaluated[-1::-2][::-1]
    ]
    text = "\n\n".join(textwrap.fill(p, 118, break_long_words=False, break_on_hyphens=False) for p in paragraphs)
    return f"# The demo language model of ramify\n\n{text}\n\n" + "\n".join(table) + "\n"
