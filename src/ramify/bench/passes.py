"""What a hierarchy of models does for a token: calls of the target and passes of the small model, with their rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramify.api import generate
from ramify.engine.events import Scored
from ramify.methods.base import Method
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes


class Counted:
    """A forward pass that notes the rows of its passes, those that begin a text aside."""

    def __init__(self, forward: Any) -> None:
        self.forward, self.embed, self.dtype = forward, forward.embed, forward.dtype
        self.name, self.weights, self.current = forward.name, forward.weights, forward.current
        self.rows: list[int] = []

    def __call__(self, nodes: Nodes, cache: RowCache) -> Any:
        if cache.lengths[0] > 0:
            self.rows.append(nodes.tokens.shape[1])
        return self.forward(nodes, cache)


class Timed:
    """A forward pass that adds up its own CPU time."""

    def __init__(self, forward: Any) -> None:
        self.forward, self.embed, self.dtype = forward, forward.embed, forward.dtype
        self.name, self.weights, self.current = forward.name, forward.weights, forward.current
        self.seconds, self.calls = 0.0, 0

    def __call__(self, nodes: Nodes, cache: RowCache) -> Any:
        began = time.process_time()
        output = self.forward(nodes, cache)
        self.seconds += time.process_time() - began
        self.calls += 1
        return output


@dataclass
class Work:
    """``tokens`` written and ``calls`` of the target for them. ``verified``: rows of these; ``passes``: rows of the
    small model's passes. ``agreed`` of ``tried``: tokens of chains behind an accepted one, those that were accepted.
    ``texts``: what was written."""

    tokens: int = 0
    calls: int = 0
    verified: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    agreed: int = 0
    tried: int = 0
    texts: list[list[int]] = field(default_factory=list)

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.calls

    @property
    def agreement(self) -> float:
        """How often a chain's token was accepted after an accepted one."""
        return self.agreed / self.tried if self.tried else 0.0

    def speed(self, target: Callable[[int], float], small: Callable[[int], float]) -> float:
        """Tokens in the time of a plain step, with these costs of a pass over so many rows."""
        return self.tokens / (sum(map(target, self.verified)) + sum(map(small, self.passes)))

    def row(self) -> dict[str, Any]:
        """Its counts for a table."""
        return {
            "tokens per call": self.tokens_per_call,
            "rows of it": sum(self.verified) / self.calls,
            "passes": len(self.passes) / self.calls,
            "rows of them": sum(self.passes) / len(self.passes) if self.passes else 0.0,
        }


def work(target: CausalLM, small: CausalLM, method: str | Method, prompts: Sequence[Any], **settings: Any) -> Work:
    """What ``method`` does on ``target`` for these prompts, one by one; prompt i with seed + i."""
    done, plain = Work(), small.forward
    counted: Any = Counted(plain)
    small.forward = counted
    seed = settings.pop("seed", 0)
    try:
        for index, prompt in enumerate(prompts):
            result = generate(target, prompt, method, seed=seed + index, **settings)
            done.tokens += result.stats.generated_tokens
            done.calls += result.stats.target_calls
            done.texts.append(result.tokens)
            done.verified += [event.nodes for event in result.events if isinstance(event, Scored)]
            for draft, accepted in result.steps:
                drafted = len(draft.tree) if draft else 0
                done.agreed += len(accepted.path)
                done.tried += min(len(accepted.path) + 1, drafted)
    finally:
        small.forward = plain
    done.passes = counted.rows
    return done
