"""Best-of-N by the model's own likelihood.

N paths are sampled independently, and the likeliest per token is given:

    y* = argmax_i (1 / |y_i|) Σ_t log p(y_it)

|y| includes the stop token. p is the model's own law (``law="raw"``) or the one that was sampled from (``"warped"``, as
the authors of CNTP, https://arxiv.org/abs/2507.03038, count). Without the division (``mean=False``) short texts win.

Path i is that of self-consistency with the same seed. Cost: N times the tokens of a sample; the prompt is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.aggregate import best
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.roster import Roster
from ramify.engine.search import Decision, Policy, WholePolicy
from ramify.errors import RamifyError, unknown
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM

LAWS = ("raw", "warped")


@register(
    name="best-of-n",
    title="Best-of-N by mean log-probability",
    paper="Best-of-N",
    family="search",
    needs=("log-probs",),
    lossless=False,
)
@dataclass(frozen=True)
class BestOfN(SearchMethod):
    """Sample several texts, and give the one that the model finds likeliest per token.

    ``paths``: how many. ``law``: "raw" or "warped". ``mean``: divide by the length. ``budget``: tokens after which live
    paths are cut.
    """

    paths: int = 16
    law: str = "raw"
    mean: bool = True
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.paths < 1:
            raise RamifyError(f"paths must be at least 1, got {self.paths}")
        if self.law not in LAWS:
            raise unknown("law", self.law, LAWS)

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        return _Likeliest(self)

    def distant(self) -> WholePolicy | None:
        # A server tells one law only, the model's own or the one it drew from.
        return _Likeliest(self) if self.law == "raw" else None

    def score(self, path: Path) -> float:
        """What paths are ranked by."""
        found = path.log_probs if self.law == "raw" else path.sampled_log_probs
        return sum(found) / (len(found) if self.mean else 1)


class _Likeliest(WholePolicy):
    def __init__(self, options: BestOfN) -> None:
        self.options = options

    def begin(self, pool: Roster) -> None:
        pool.start(self.options.paths)

    def decide(self, pool: Roster) -> Decision:
        return best(pool.ended, self.options.score)
