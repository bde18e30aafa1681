"""DoLa: Decoding by Contrasting Layers, https://arxiv.org/abs/2309.03883

What the last layer says is set against what an earlier one would have said, where the last one finds it plausible:

    F(v) = log q_N(v) − log q_M(v)   where q_N(v) ≥ 0.1 max q_N, else −∞        M = argmax_j JSD(q_N, q_j)

q_j is the softmax of the head over the states of layer j (0: the embeddings), among the candidate layers. "low" and
"high" are every second layer of the lower or upper half, "low" without the embeddings where head and embeddings share
weights. Then logits processors act (the paper recommends ``repetition_penalty=1.2``) and the token is chosen, greedily
or sampled.

We follow the authors' code and the ``dola_layers`` that transformers had until it moved them out of its core, whose
tokens these are: the head reads early states without the final norm, and the divergence is ½ KL(m‖q_N) + ½ KL(m‖q_j),
m being their mean, where the paper writes that of Jensen and Shannon, ½ KL(q_N‖m) + ½ KL(q_j‖m). transformers chose
one layer for a batch, we choose for each text.

Cost: one row a step, and the head once more for every candidate layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.search import Decision, Policy
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM

PLAUSIBLE = 0.1  # share of the greatest probability: the adaptive plausibility constraint, section 2.3
DEEP = 40  # layers up to which halves are taken; of deeper models, the outer 20


@register(
    name="dola",
    title="DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
    paper="2309.03883",
    family="search",
    needs=("hidden states",),
    lossless=False,
)
@dataclass(frozen=True)
class DoLa(SearchMethod):
    """Prefer what the last layer has learned beyond an earlier one.

    ``dola_layers``: "low", "high" (the paper's choice for short answers), or the numbers of the candidate layers.
    ``budget``: tokens after which the text is cut.
    """

    dola_layers: str | Sequence[int] = "low"
    budget: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dola_layers", _numbers(self.dola_layers))

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        return _Contrast(candidates(lm, self.dola_layers), lm.model.get_output_embeddings())


class _Contrast(Policy):
    def __init__(self, layers: Sequence[int], head: Any) -> None:
        self.layers, self.head = layers, head

    def begin(self, pool: Pool) -> None:
        pool.start(1)

    def expand(self, pool: Pool) -> Sequence[Choice]:
        final = pool.log_probs(pool.live)[0]
        with torch.inference_mode():
            states = torch.cat([pool.states(pool.live, layer) for layer in self.layers])
            early = self.head(states).float().log_softmax(dim=-1)
        pool.set_logits(pool.live[0], contrast(final, early))
        return pool.sample(pool.live)

    def decide(self, pool: Pool) -> Decision:
        return Decision(pool.ended, pool.ended[0].answer)


def contrast(final: Tensor, early: Tensor) -> Tensor:
    """F [V] from the log-probabilities of the last layer [V] and of the candidate layers [n, V]."""
    mean = (final.exp() + early.exp()) / 2
    divergences = (mean * (2 * mean.log() - final - early)).nan_to_num(0.0).sum(dim=-1)
    base = early[divergences.argmax()]
    return (final - base).masked_fill(final < final.max() + math.log(PLAUSIBLE), -torch.inf)


def candidates(lm: CausalLM, layers: str | Sequence[int]) -> list[int]:
    """The layers that ``layers`` means for ``lm``; raises ``RamifyError`` where none is left below the last."""
    last = lm.layers
    if not isinstance(layers, str):
        found = [layer for layer in layers if layer < last]
        if not found or min(found) < 0:
            raise RamifyError(f"dola_layers={list(layers)} names no layer between 0 and {last - 1} of {lm.name}")
        return found
    if layers == "high":
        return list(range(last // 2 if last <= DEEP else last - 20, last, 2))
    tied = lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight
    first = min(2, last - 1) if tied else 0
    return list(range(first, last // 2 if last <= DEEP else 20, 2)) or [first]


def _numbers(layers: Any) -> str | tuple[int, ...]:
    """The names as they are, and numbers as a tuple, also when they are written as a text."""
    if layers in ("low", "high"):
        return str(layers)
    try:
        return tuple(map(int, layers.strip("()[]").replace(",", " ").split() if isinstance(layers, str) else layers))
    except (TypeError, ValueError):
        raise RamifyError(f"dola_layers is {layers!r}; it is 'low', 'high' or a list of layer numbers") from None
