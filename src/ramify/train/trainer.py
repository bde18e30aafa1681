"""The one training loop: deterministic batches, Muon + AdamW, exact resume, safetensors checkpoints.

It does not know what it trains. A recipe gives a model, a pure function ``step -> loss`` and optionally an
evaluation; everything else (schedule, clipping, checkpoints, the curve) is here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    ``learning_rate`` is shared: Muon's update is scaled to AdamW's root mean square (Moonlight, arXiv 2502.16982).
    ``optimizer``: "muon" takes AdamW for embeddings, heads and vectors; "adamw" for everything.
    The schedule is a trapezoid: ``warmup`` steps up, constant, then linear to zero over the last ``cooldown``
    fraction of ``steps``; a run may therefore be prolonged from any checkpoint taken before the cooldown.
    """

    steps: int
    learning_rate: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    warmup: int = 100
    cooldown: float = 0.3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0
    eval_every: int = 100
    save_every: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0.0 <= self.cooldown <= 1.0:
            raise ValueError(f"cooldown is a fraction of the steps, got {self.cooldown}")

    def scale(self, step: int) -> float:
        """The learning rate at ``step`` as a fraction of ``learning_rate``."""
        up = (step + 1) / max(1, self.warmup)
        down = (self.steps - step) / max(1.0, self.steps * self.cooldown)
        return min(1.0, up, down)


@dataclass(frozen=True)
class Progress:
    """One line of the curve: what the run has reached after ``step`` steps (``loss`` None where nothing descends)."""

    step: int
    steps: int
    loss: float | None
    seconds: float
    evaluation: dict[str, float] | None = None


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    config: TrainConfig,
    out: Path,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> Iterator[Progress]:
    """Train ``model`` in place, yielding a ``Progress`` after every step.

    ``loss_at(step)`` must depend on nothing but the step and the model, so that a run resumed from ``out`` equals
    one that was never interrupted. Checkpoints and ``curve.jsonl`` are written to ``out``.
    """
    torch.manual_seed(config.seed)
    optimizers = _optimizers(model, config)
    first, before = _resume(out, model, optimizers)
    started = time.monotonic() - before
    model.train()
    for step in range(first, config.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * config.scale(step)
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        evaluation = None
        if evaluate is not None and (done % config.eval_every == 0 or done == config.steps):
            model.eval()
            evaluation = evaluate()
            model.train()
        progress = Progress(done, config.steps, loss.item(), time.monotonic() - started, evaluation)
        if done % config.save_every == 0 or done == config.steps:
            _save(out, model, optimizers, progress)
        with (out / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps(asdict(progress)) + "\n")
        yield progress
    model.eval()


def _optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, heads and vectors."""
    lookup = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_matrix = [p.ndim == 2 and id(p) not in lookup and "head" not in name for name, p in trained]
    matrices = [p for (_, p), matrix in zip(trained, is_matrix, strict=True) if matrix]
    others = [p for (_, p), matrix in zip(trained, is_matrix, strict=True) if not matrix]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "adamw":
        parameters = [p for _, p in trained]
        return [torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=config.weight_decay)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        optimizers.append(torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0))
    return optimizers


def _save(out: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress) -> None:
    tensors = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for slot, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{index}.{slot}.{name}"] = torch.as_tensor(value).contiguous()
    temporary = out / "checkpoint.tmp"
    save_file(tensors, temporary, {"step": str(progress.step), "seconds": str(progress.seconds)})
    temporary.replace(out / "checkpoint.safetensors")


def _resume(out: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load the checkpoint in ``out``, if any: the first step to run, and the seconds spent before."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.safetensors"
    if not path.exists():
        (out / "curve.jsonl").write_text("")
        return 0, 0.0
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for index, optimizer in enumerate(optimizers):
        prefix = f"optimizer.{index}."
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(prefix):
                slot, name = key.removeprefix(prefix).split(".", 1)
                state.setdefault(int(slot), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    step = int(metadata["step"])
    lines = (out / "curve.jsonl").read_text().splitlines()
    (out / "curve.jsonl").write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
    return step, float(metadata["seconds"])
