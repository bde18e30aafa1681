"""Mixtures of experts that answer generated questions: the demo reasoner and the model of the shared sum task.

A Qwen3-MoE reads a question and writes a worked answer, the answer and the end token. Questions are drawn as training
goes on (``bench/tasks``), so none is seen twice but by chance; those of the splits "validation" and "test" are never
seen. The loss is taken on answers only, plus the load-balancing loss of the routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ramify.bench.tasks import REASONING, complete, tasks
from ramify.models.causal import load
from ramify.train.reasoner_data import IGNORED, Batches, train_tokenizer
from ramify.train.trainer import Progress, TrainConfig, train


@dataclass(frozen=True)
class ReasonerConfig:
    """Shape, data and training settings.

    ``vocab_size``: None for one token per character. ``validation``: how many questions of that split are answered on
    the way. ``initial``: spread of the first weights. ``balance``: weight of the load-balancing loss. ``noise``: scale
    of the Gumbel noise on the routers' logits in training. ``saved``: the dtype of the weights in the file.
    """

    families: tuple[str, ...] = REASONING
    vocab_size: int | None = 512
    hidden_size: int = 128
    expert_size: int = 96
    layers: int = 4
    heads: int = 4
    experts: int = 8
    experts_per_token: int = 2
    context: int = 512
    batch: int = 64
    validation: int = 180
    initial: float = 0.1
    balance: float = 0.01
    noise: float = 0.0
    saved: str = "bfloat16"
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2300, learning_rate=5e-3))


def build(config: ReasonerConfig, tokenizer: Any) -> Any:
    """The untrained model."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    end = int(tokenizer.eos_token_id)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.expert_size,
            moe_intermediate_size=config.expert_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            num_experts=config.experts,
            num_experts_per_tok=config.experts_per_token,
            norm_topk_prob=True,
            initializer_range=config.initial,
            router_aux_loss_coef=config.balance,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def disturb(model: Any, scale: float, generator: torch.Generator) -> None:
    """While training, choose experts by router logits with Gumbel noise; their weights stay those without noise."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    def choose(router: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
        if not router.training:
            return None
        logits = output[0]
        uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-9)
        chosen = (logits - scale * torch.log(-torch.log(uniform))).topk(router.top_k, dim=-1).indices
        return logits, logits.gather(-1, chosen).softmax(-1), chosen

    for module in model.modules():
        if isinstance(module, Qwen3MoeTopKRouter):
            module.register_forward_hook(choose)


def train_reasoner(out: Path, config: ReasonerConfig) -> Iterator[Progress]:
    """Train into ``out/model``, resuming from ``out`` if it holds a checkpoint."""
    from transformers import AutoTokenizer

    torch.manual_seed(config.train.seed)
    target = out / "model"
    if not (target / "tokenizer.json").exists():
        train_tokenizer(config, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    batches, model = Batches(tokenizer, config), build(config, tokenizer)
    generator = torch.Generator()
    if config.noise:
        disturb(model, config.noise, generator)

    def loss_at(step: int) -> Tensor:
        generator.manual_seed(step)
        parts = batches(step)
        learnt = sum(int((targets != IGNORED).sum()) for _, targets in parts)
        total = torch.zeros(())
        for ids, targets in parts:
            result = model(input_ids=ids, output_router_logits=True)
            loss = nn.functional.cross_entropy(result.logits.flatten(0, 1), targets.flatten(), reduction="sum")
            total = total + loss / learnt + config.balance * result.aux_loss / len(parts)
        return total

    validation = tasks(config.validation, "validation", config.train.seed, config.families)

    def evaluate() -> dict[str, float]:
        texts = complete(load(model, tokenizer=tokenizer), validation)
        right = sum(task.right(text) for task, text in zip(validation, texts, strict=True))
        return {"greedy_accuracy": right / len(validation)}

    yield from train(model, loss_at, config.train, out, evaluate)
    model.to(getattr(torch, config.saved)).save_pretrained(target)
