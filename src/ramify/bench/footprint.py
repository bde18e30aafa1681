"""What a fresh process needs to load a model and continue a prompt: seconds, and resident memory at its peak.

``python -m ramify.bench.footprint`` is that process: it takes its task as JSON and prints what it measured as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from ramify.errors import RamifyError


@dataclass(frozen=True)
class Task:
    """Load ``source`` and continue ``prompt`` greedily by ``new_tokens`` tokens.

    ``forward``, ``weights``: as ``ramify.load`` takes them; with neither, transformers alone loads the model and
    generates.
    """

    source: str
    dtype: str
    attention: str
    prompt: list[int]
    new_tokens: int
    threads: int
    forward: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Footprint:
    """``seconds``: loading. ``base``: resident bytes before it, with torch, ramify and transformers imported, the
    model's own code included. ``peak``: most resident bytes of loading and generating, beyond ``base``; ``mapped``:
    how many of those that are left at the end are pages of files (0 where the system does not say)."""

    seconds: float
    base: int
    peak: int
    mapped: int


def footprint(task: Task) -> Footprint:
    """Do ``task`` in a new process. Raises ``RamifyError`` with the last line of what it said when it fails."""
    command = [sys.executable, "-m", "ramify.bench.footprint", json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().split("\n")[-1] or f"exit code {done.returncode}"
        raise RamifyError(f"a fresh process could not load {task.source}: {said}")
    return Footprint(**json.loads(done.stdout.strip().split("\n")[-1]))


def _do(task: Task) -> Footprint:
    import psutil
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - imported before the clock
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from ramify.api import generate
    from ramify.bench.measure import Meter
    from ramify.models.causal import load

    torch.set_num_threads(task.threads)
    # transformers imports a family's code when it is first asked for it, whoever asks: no part of loading.
    MODEL_FOR_CAUSAL_LM_MAPPING.get(type(AutoConfig.from_pretrained(task.source)), None)
    meter = Meter(None)
    process = psutil.Process()
    before = process.memory_info()
    dtype, seconds, mapped = getattr(torch, task.dtype), 0.0, 0

    def still_mapped() -> int:  # asked while the model is there
        return getattr(process.memory_info(), "shared", 0) - getattr(before, "shared", 0)

    def alone() -> Any:
        nonlocal seconds, mapped
        began = time.perf_counter()
        model: Any = AutoModelForCausalLM.from_pretrained(task.source, dtype=dtype, attn_implementation=task.attention)
        seconds = time.perf_counter() - began
        ids = torch.tensor([task.prompt])
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, max_new_tokens=task.new_tokens, do_sample=False)
        mapped = still_mapped()
        return output

    def ours() -> Any:
        nonlocal seconds, mapped
        began = time.perf_counter()
        lm = load(
            task.source,
            dtype=dtype,
            device="cpu",
            attention=task.attention,
            forward=task.forward,
            weights=task.weights,
        )
        seconds = time.perf_counter() - began
        result = generate(lm, task.prompt, "greedy", max_new_tokens=task.new_tokens)
        mapped = still_mapped()
        return result

    trial = meter(alone if task.forward is None and task.weights is None else ours)
    return Footprint(seconds, before.rss, trial.memory - before.rss, mapped)


if __name__ == "__main__":
    print(json.dumps(asdict(_do(Task(**json.loads(sys.argv[1]))))))
