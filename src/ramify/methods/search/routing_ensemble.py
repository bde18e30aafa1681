"""MoEs Are Stronger than You Think: Hyper-Parallel Inference Scaling with RoE, https://arxiv.org/abs/2509.17238

Every token is read K times more, each time along a route of its own, and the next one is drawn from what they say
together. At each layer with router logits r and k experts per token, copy j takes the experts

    TopK(r + τ · G_j, k),   G_j ~ Gumbel(0, 1), independent for every expert and layer

    z = (1 / K) Σ_j z_j

The cache is written along the router's own route only. What was readable of the paper gives neither the weights of the
experts nor how the outputs are put together: the softmax of the unperturbed r over the chosen ones, as the model
weighs its own, and the mean of the logits are our reading. The paper sets τ for every layer; here it is one number.

With τ = 0 this is plain decoding. Whether other routes are nearly as good, which is what the gain lives on, depends on
how the model was trained: ``ramify bench hyper`` shows it on a small one, with the share of choices that noise changes.

HyPER's single-token refinement (``hyper``) is the same with four differences, which are options here: only tokens of
much entropy are read again (``above``), an expert loses ``reuse`` for every earlier copy that took it, copies are
weighed by their confidence, and the own route takes part. By itself, with HyPER's values:
``routing-ensemble:routes=2:tau=0.4:reuse=0.1:clean=true:by_confidence=true:above=…``.

``paths`` > 1 samples several texts, whose answers vote. Cost: 2 + K rows for every token. The paper counts 1 + K; the
pool reads the token first as always, and once more among its copies, whose entry is the one that stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.aggregate import vote
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.search import Decision, Policy
from ramify.errors import RamifyError
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.methods.search.routes import Routes, merged
from ramify.models.causal import CausalLM
from ramify.models.routing import Routers


@register(
    name="routing-ensemble",
    title="MoEs Are Stronger than You Think: Hyper-Parallel Inference Scaling with RoE",
    paper="2509.17238",
    family="search",
    needs=("logits", "routing"),
    lossless=False,
    stable=False,
)
@dataclass(frozen=True)
class RoutingEnsemble(SearchMethod):
    """Read every token along several routes through the experts, and draw the next one from their mean.

    ``routes``: K, our choice. ``tau``: the scale of the noise. ``clean``: let the router's own route take part in the
    mean. ``by_confidence``: weigh each route by its confidence. ``reuse``: what an expert loses for every earlier copy
    that took it. ``above``: entropy in nats from which a token is read along them. ``paths``: texts whose answers vote.
    ``budget``: tokens, those of all routes, after which live paths are cut.
    """

    routes: int = 4
    tau: float = 0.2
    clean: bool = False
    by_confidence: bool = False
    reuse: float = 0.0
    above: float = 0.0
    paths: int = 1
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.routes < 1 or self.paths < 1:
            raise RamifyError(f"routes and paths must be at least 1, got {self.routes} and {self.paths}")
        for name, value in (("tau", self.tau), ("reuse", self.reuse), ("above", self.above)):
            if value < 0:
                raise RamifyError(f"{name} is {value:g}; give 0 at least")

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        return Ensemble(self, Routes(Routers(lm), self.routes, self.tau, self.reuse))


class Ensemble(Policy):
    """The policy; ``routes`` knows how many tokens it read, and how often their experts were others."""

    def __init__(self, options: RoutingEnsemble, routes: Routes) -> None:
        self.options, self.routes = options, routes

    def begin(self, pool: Pool) -> None:
        pool.start(self.options.paths)
        self._refine(pool)

    def reduce(self, pool: Pool) -> None:
        self._refine(pool)
        if self.options.paths == 1:
            pool.settle(pool.paths[0])

    def decide(self, pool: Pool) -> Decision:
        return vote(pool.ended)

    def _refine(self, pool: Pool) -> None:
        options = self.options
        paths = [path for path in pool.live if pool.entropy(path) >= options.above]
        if not paths:
            return
        read = self.routes(pool, paths)
        logits = merged(read, clean=options.clean, by_confidence=options.by_confidence, top=pool.top)
        for path, row in zip(paths, logits, strict=True):
            pool.set_logits(path, row)
