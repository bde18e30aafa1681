"""HyPER: Hypothesis Path Expansion and Reduction, https://arxiv.org/abs/2602.06527

A pool of paths is widened early and narrowed late. ``warmup`` paths are sampled to their ends; they say what is usual.
Then new paths begin, and after every ``interval`` tokens each live one takes an action for the next interval:

    none          goes on by plain sampling
    single-token  unsure tokens are read along other expert routes too, and drawn from all opinions together
    branch        is forked; the child's first token is not the parent's
    multi-token   of several short continuations the most confident one is kept, over and over

or is pruned, where the mean confidence of its latest window is below what ``eta`` per cent of the warm-up's least
confident windows reach. In the end length and confidence vote (``hyper_vote``).

From the paper, as far as others report it: the four actions and their fixed weights, the interval of 64 tokens, 16
warm-up paths with a bar of 10 per cent, at most 80 paths, two routed copies with Gumbel noise 0.4 (our reading of a
bare value) and a penalty of 0.1 for experts that an earlier copy took, a merge by confidence, a clean cache, votes of
0.6 for length and 0.4 for confidence. RECONSTRUCTION, because the method's text could not be read: which statistics the
controller reads and all its formulas, thresholds and weights (``HyperRec``, ``hyper_controller``), when a token is
unsure, that the clean route takes part in the merge, what multi-token means, windows of pruning, how many paths vote,
and when to stop. The direction in which length votes is not known at all: give ``length_sign``, or find it by
``calibrate_length``. Nothing here may be quoted as the paper's result.

A token is refined so: with routers' logits r, copy j = 1 … J takes at each layer the experts TopK(r + η G_j − λ U_j)
(``ramify.models.routing``); with C_j the confidence of copy j's law, z = Σ_j C_j z_j / Σ_j C_j over j = 0 … J, 0 being
the routers' own route. Statistics and the cache stay those of the own route.

On a dense model the single-token action is dropped, and a note says so. Cost: the tokens of all paths, warm-up, trials
and pruned ones included; a refined token costs 2 + J rows (the paper counts 1 + J; the pool reads it once before).
The warm-up dominates small budgets: below twice as many paths compare with plain self-consistency first.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.request import Request
from ramify.engine.search import Policy
from ramify.errors import RamifyError, unknown
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.methods.search.hyper_controller import ACTIONS, SINGLE, HyperRec
from ramify.methods.search.hyper_policy import Controlled
from ramify.methods.search.hyper_vote import WEIGHTS
from ramify.methods.search.routes import Routes
from ramify.models.causal import CausalLM
from ramify.models.routing import Routers


@register(
    name="hyper",
    title="HyPER: Bridging Exploration and Exploitation for Scalable LLM Reasoning",
    paper="2602.06527",
    family="search",
    needs=("logits", "routing"),
    lossless=False,
    stable=False,
)
@dataclass(frozen=True)
class HyPER(SearchMethod):
    """Steer a pool of paths: widen it early, refine and prune it late, and vote by length and confidence.

    ``length_sign``: +1 if longer answers are likelier to be right, −1 if shorter ones; there is no default.
    ``interval``: tokens between decisions. ``warmup``: paths of the warm-up. ``limit``: the most paths at a time, ended
    ones included. ``eta``: per cent of the warm-up that sets the bar. ``routes``, ``noise``, ``reuse``: copies of a
    refined token, scale of their Gumbel noise, penalty for experts taken before. ``actions``: those that may be taken.
    ``random``: chances of the four actions, for a controller that draws instead of scoring (a single 1: only that one).
    ``prune``: cut unsure paths. ``weights``: of length and confidence in the vote. ``top_votes``: let the best paths
    vote only. ``budget``: tokens after which live paths are cut. ``rec``: all that is reconstruction.
    """

    length_sign: int | None = None
    interval: int = 64
    warmup: int = 16
    limit: int = 80
    eta: float = 10.0
    routes: int = 2
    noise: float = 0.4
    reuse: float = 0.1
    actions: tuple[str, ...] = ACTIONS
    random: tuple[float, ...] | None = None
    prune: bool = True
    weights: tuple[float, float] = WEIGHTS
    top_votes: bool = True
    budget: int | None = None
    rec: HyperRec = HyperRec()  # noqa: RUF009 - frozen

    pinned = {"do_sample": True}  # noqa: RUF012 - a constant of the class, no option

    def __post_init__(self) -> None:
        if self.length_sign not in (1, -1):
            raise RamifyError(
                f"length_sign is {self.length_sign}; give 1 if longer answers are likelier to be right and -1 if "
                "shorter ones, by calibrate_length on held-out questions of this model"
            )
        if self.interval < 1 or self.warmup < 1 or self.routes < 0:
            got = f"{self.interval}, {self.warmup} and {self.routes}"
            raise RamifyError(f"interval and warmup must be at least 1 and routes 0, got {got}")
        if self.limit <= self.warmup:
            raise RamifyError(
                f"limit is {self.limit}, which leaves no room beside {self.warmup} warm-up paths; raise it"
            )
        if not 0 < self.eta <= 100:
            raise RamifyError(f"eta is {self.eta:g}; it is the percentage of the warm-up to trust, above 0 up to 100")
        if self.noise < 0 or self.reuse < 0:
            raise RamifyError(f"noise and reuse must not be negative, got {self.noise:g} and {self.reuse:g}")
        for action in self.actions:
            if action not in ACTIONS:
                raise unknown("action", action, ACTIONS)
        if self.random is not None and (
            len(self.random) != len(ACTIONS) or min(self.random) < 0 or not sum(self.random)
        ):
            raise RamifyError(f"random takes a chance for each of {', '.join(ACTIONS)}; got {self.random}")

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        if SINGLE not in self.actions or self.routes == 0:
            return Controlled(self, None)
        try:
            routers = Routers(lm)
        except RamifyError as error:
            return Controlled(self, None, f"single-token refinement is left out: {error}")
        return Controlled(self, Routes(routers, self.routes, self.noise, self.reuse))
