"""A Contrastive Framework for Neural Text Generation, https://arxiv.org/abs/2202.06417

Of the k likeliest next tokens, the one that is likely and unlike everything before it:

    y_t = argmax_{v in top-k} (1 − α) p(v | y_<t) − α max_{j < t} cos(h_v, h_j)

h are the model's last hidden states, those of the prompt included; h_v is the state that v would have. The tokens are
those of the ``penalty_alpha`` and ``top_k`` that transformers had until it moved them out of its core. With α = 0 or
k = 1 it is greedy decoding. Deterministic; logits processors act before the k are taken.

Cost: k rows a step in one pass, for the token that is chosen was read when it was looked at. The prompt's states and
one state for each token are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.search import Decision, Policy
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM

LAST = -1


@register(
    name="contrastive-search",
    title="A Contrastive Framework for Neural Text Generation",
    paper="2202.06417",
    family="search",
    needs=("hidden states",),
    lossless=False,
)
@dataclass(frozen=True)
class ContrastiveSearch(SearchMethod):
    """Take likely tokens that are unlike the text so far, so that it does not repeat itself.

    ``penalty_alpha``: α, 0.6 in the paper. ``top_k``: candidates a step. ``budget``: rows after which the text is cut.
    """

    pinned = {"do_sample": False}  # noqa: RUF012 - a constant of the class, no option
    penalty_alpha: float = 0.6
    top_k: int = 4
    budget: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.penalty_alpha <= 1:
            raise RamifyError(f"penalty_alpha is {self.penalty_alpha:g}; it is a share between 0 and 1")
        if self.top_k < 1:
            raise RamifyError(f"top_k must be at least 1, got {self.top_k}")

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        return _Unlike(self)


class _Unlike(Policy):
    layers = (LAST,)

    def __init__(self, options: ContrastiveSearch) -> None:
        self.options = options

    def begin(self, pool: Pool) -> None:
        pool.start(1)
        self.context = normalize(pool.prompt_states(LAST).float(), dim=-1)

    def expand(self, pool: Pool) -> Sequence[Choice]:
        path, alpha = pool.live[0], self.options.penalty_alpha
        likely = pool.laws([path], soft=True)[0].topk(min(self.options.top_k, pool.lm.vocab_size))
        states = normalize(pool.look(path, likely.indices.tolist(), LAST).float(), dim=-1)
        alike = (states @ self.context.T).max(dim=1).values
        chosen = int(((1 - alpha) * likely.values - alpha * alike).argmax())
        self.context = torch.cat([self.context, states[chosen : chosen + 1]])
        return [Choice(path, int(likely.indices[chosen]), float(likely.values[chosen].log()))]

    def decide(self, pool: Pool) -> Decision:
        return Decision(pool.ended, pool.ended[0].answer)
