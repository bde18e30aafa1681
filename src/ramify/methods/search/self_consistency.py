"""Self-Consistency Improves Chain of Thought Reasoning in Language Models, https://arxiv.org/abs/2203.11171

N paths are sampled independently, the answer of each is parsed, and the commonest one wins:

    a* = argmax_a Σ_i 1[a_i = a]

Paths without an answer do not vote. A tie goes to the answer that came first; the paper states no rule
(``ramify.engine.aggregate.expected_accuracy`` gives the accuracy under random tie-breaking).

Path 0 is what plain sampling with the same seed gives, and path i is the same in every pool of this request whatever
its size, so pools of different sizes and methods are paired.

``agree`` is the adaptive form: the pool grows by ``batch`` paths at a time, and ends as soon as the commonest answer
has that share of the finished ones. The paper has no such stop; DeepConf (https://arxiv.org/abs/2508.15260) uses 0.95.

Cost: N times the tokens of a sample; the prompt is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.aggregate import agreement, vote
from ramify.engine.request import Request
from ramify.engine.roster import Roster
from ramify.engine.search import Decision, Policy, WholePolicy
from ramify.errors import RamifyError
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM


@register(
    name="self-consistency",
    title="Self-Consistency Improves Chain of Thought Reasoning in Language Models",
    paper="2203.11171",
    family="search",
    needs=("text",),
    lossless=False,
)
@dataclass(frozen=True)
class SelfConsistency(SearchMethod):
    """Sample several answers, and give the commonest one.

    ``paths``: how many, 40 in the paper. ``agree``: end early when the commonest answer has this share of the finished
    paths (None: never); the pool then grows by ``batch`` paths at a time. ``budget``: tokens after which live paths are
    cut.
    """

    paths: int = 40
    agree: float | None = None
    batch: int = 8
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.paths < 1 or self.batch < 1:
            raise RamifyError(f"paths and batch must be at least 1, got {self.paths} and {self.batch}")
        if self.agree is not None and not 0 < self.agree <= 1:
            raise RamifyError(f"agree is {self.agree:g}; it is a share above 0, and 1 at most")

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        return _Sampled(self)

    def distant(self) -> WholePolicy | None:
        return _Sampled(self)


class _Sampled(WholePolicy):
    def __init__(self, options: SelfConsistency) -> None:
        self.options = options

    def begin(self, pool: Roster) -> None:
        pool.start(self.options.paths if self.options.agree is None else min(self.options.batch, self.options.paths))

    def reduce(self, pool: Roster) -> None:
        agree = self.options.agree
        if agree is None or pool.live:
            return
        left = self.options.paths - len(pool.paths)
        if agreement(pool.ended) < agree and left > 0:
            pool.start(min(self.options.batch, left))

    def decide(self, pool: Roster) -> Decision:
        return vote(pool.ended)
