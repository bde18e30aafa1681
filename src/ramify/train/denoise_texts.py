"""The parallel model: a masked denoiser that answers ParallelBench's text families, so that every rule can be compared.

It reads the benchmark's own prompts, by words, and learns to answer with LLaDA's loss on answers. What it learns from
shares no item with the benchmark's problems (``bench/parallelbench/apart.py``). The figure of merit is the benchmark's
own score, by the benchmark's own path.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ramify.bench.parallelbench.answering import scored
from ramify.bench.parallelbench.prompts import TEMPLATES
from ramify.bench.parallelbench.tasks import SEED, problems
from ramify.methods.base import MaskedMethod
from ramify.methods.unmask.threshold import Threshold
from ramify.models.causal import wrap
from ramify.models.masked import MaskedLM, masked
from ramify.train.denoise_texts_data import CLIPS, NEW, Batches, tokenizer
from ramify.train.denoisers import at, mark
from ramify.train.denoising import full_pass, sft_loss, sight
from ramify.train.heads import estimate, same_run
from ramify.train.trainer import Progress, TrainConfig, train

NAME = "parallel-model"
LEARNT = (
    "copy", "reverse", "shuffle", "replace-index", "replace-random", "insert-random", "remove-random", "latin-square",
    "words-to-sentence-easy", "words-to-sentence-medium",
)  # fmt: skip
CONTEXT = 256
COPYING = 0.5  # how much of what is looked at is copied before any training


@dataclass(frozen=True)
class ParallelModelConfig:
    """Shape, data and training settings.

    ``tasks``: what it learns; ``late``: from which step on those that are slow to learn come more often, ``wide``: from
    which step on hardly masked answers come too. ``quick``: problems of a task that measure on the way, drawn from
    another seed than the benchmark's; ``trials``: the benchmark's own that measure at the end.
    """

    tasks: Sequence[str] = LEARNT
    late: int = 4200
    wide: int = 6500
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    batch: int = 16
    quick: int = 12
    trials: int = 40
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=10_000,
            learning_rate=5e-3,
            warmup=100,
            cooldown=0.5,
            weight_decay=0.01,
            eval_every=1000,
            save_every=100,
        )
    )


def small_llama(words: Any, config: ParallelModelConfig) -> Any:
    """The untrained model: a Llama, with the biases and rotary positions of a Qwen2 to look a fixed way back in a list.

    Its attention begins as something that copies: values and outputs near the identity ("Mimetic Initialization of
    Self-Attention Layers", arXiv 2305.09828). From plain random weights the same steps do not learn to read the prompt.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    end = int(words.eos_token_id)
    shape = LlamaConfig(
        vocab_size=len(words),
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},  # offsets of some 100 positions, no more
        attention_bias=True,  # a Qwen2 itself would be given another tokenizer by transformers' AutoTokenizer
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        for layer in model.model.layers:
            for matrix in (layer.self_attn.v_proj, layer.self_attn.o_proj):
                matrix.weight.add_(COPYING**0.5 * torch.eye(config.hidden_size))
            layer.self_attn.o_proj.bias.requires_grad_(False)  # 0, as in a Qwen2
    return mark(model, words.mask_token_id)


def train_parallel_model(out: Path, config: ParallelModelConfig, dry: bool = False) -> Iterator[Progress]:
    """Train into ``out/model``, resuming from ``out`` if it holds a checkpoint."""
    torch.manual_seed(config.train.seed)
    words = tokenizer()
    model = small_llama(words, config)
    batches = Batches(words, config.tasks, config.batch, config.train.seed, config.late)

    def loss_at(step: int) -> Tensor:
        generator = at(config.train.seed, step)
        losses = []
        for ids, answer in batches(step):
            denoise = full_pass(model, words.mask_token_id, sight(ids.shape[1]))
            found = sft_loss(denoise, ids, answer, words.mask_token_id, generator, CLIPS[step >= config.wide])
            losses.append(found * len(ids) / config.batch)
        return torch.stack(losses).sum()

    if dry:
        yield from estimate(model, loss_at, config.train)
        return
    same_run(out, {"recipe": NAME, **asdict(config), "tasks": list(config.tasks)})

    def evaluate() -> dict[str, float]:
        lm = masked(wrap(model, words, NAME, "transformers"))
        found = shares(lm, Threshold(gamma=0.9), config.tasks, config.quick, SEED + 1)
        return {"mean": statistics.mean(found.values()), **found}

    yield from train(model, loss_at, config.train, out, evaluate)
    words.save_pretrained(out / "model")
    model.save_pretrained(out / "model")
    from ramify.train.denoise_texts_card import write_card

    write_card(out / "model", model, words, config)


def shares(lm: MaskedLM, method: MaskedMethod, tasks: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """Score of ``count`` problems of each task under a template in turn, by task."""
    templates = tuple(TEMPLATES)
    return {
        task: scored(lm, method, problems(task, count, seed=seed), [templates[place % len(templates)]], NEW)["lenient"]
        for place, task in enumerate(tasks)
    }
