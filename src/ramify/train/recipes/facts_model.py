"""The model of the worlds of facts: a tiny decoder with a role token for each thing that STOC-TOT asks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ramify.bench.facts import WORDS, example
from ramify.errors import RamifyError
from ramify.train.job import Job
from ramify.train.trainer import Progress, TrainConfig
from ramify.train.trainer import train as run

END, UNKNOWN = "<end>", "<unknown>"
CONTEXT = 160
BATCH = 32
HIDDEN, LAYERS = 64, 3
STEPS, LEARNING_RATE = 6000, 8e-3


def train(job: Job) -> Iterator[Progress]:
    """Train it into ``job.out/model``."""
    job.take()
    if job.data is not None or job.dry:
        raise RamifyError("the facts model has its own data and takes no --data or --dry-run")
    config = TrainConfig(
        steps=job.steps or STEPS,
        learning_rate=job.learning_rate or LEARNING_RATE,
        warmup=50,
        cooldown=0.5,
        seed=job.seed,
        eval_every=300,
    )
    torch.manual_seed(job.seed)
    target = job.out / "model"
    tokenizer = words(target)
    model = build(tokenizer)

    def loss_at(step: int) -> Tensor:
        ids, targets = batch(tokenizer, random.Random(f"{job.seed}/{step}"), BATCH)
        logits = model(input_ids=ids).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.inference_mode()
    def evaluate() -> dict[str, float]:
        ids, targets = batch(tokenizer, random.Random(f"{job.seed}/held"), 256)
        wrong = (model(input_ids=ids).logits.argmax(-1) != targets) & (targets >= 0)
        return {"right": 1 - float(wrong.any(dim=1).float().mean())}

    yield from run(model, loss_at, config, job.out, evaluate)
    model.save_pretrained(target)


def words(out: Path) -> Any:
    """The tokenizer, a token for each word, saved in ``out``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = {word: place for place, word in enumerate((*WORDS, END, UNKNOWN))}
    backend = Tokenizer(models.WordLevel(entries, unk_token=UNKNOWN))
    backend.add_special_tokens([END, UNKNOWN])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=END, pad_token=END, unk_token=UNKNOWN, model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def build(tokenizer: Any) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    end = int(tokenizer.eos_token_id)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT, initializer_range=0.05,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip


def batch(tokenizer: Any, rng: random.Random, size: int) -> tuple[Tensor, Tensor]:
    """Ids [size, longest] of examples, and the targets one place later, −100 where nothing is to learn."""
    encode = tokenizer.backend_tokenizer.encode
    end = int(tokenizer.eos_token_id)
    pairs = [example(rng) for _ in range(size)]
    rows = [(encode(prompt).ids, [*encode(said).ids, end]) for prompt, said in pairs]
    longest = max(len(prompt) + len(said) for prompt, said in rows)
    ids, targets = torch.full((size, longest), end), torch.full((size, longest), -100)
    for row, (prompt, said) in enumerate(rows):
        text = torch.tensor([*prompt, *said])
        ids[row, : len(text) - 1] = text[:-1]
        targets[row, len(prompt) - 1 : len(text) - 1] = text[len(prompt) :]
    return ids, targets
