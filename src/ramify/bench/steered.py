"""HyPER behind a recorded warm-up: the same pool as if it had drawn those paths itself, for half of the work."""

from __future__ import annotations

from collections.abc import Sequence

from ramify.bench.kept import Pooled
from ramify.engine.path import Path
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.search import Decision, search
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_policy import Controlled
from ramify.models.causal import CausalLM


class Steered(Controlled):
    """The policy of one request, whose warm-up paths are the first of ``record``.

    A path's tokens depend on its number and on nothing else, so these are the ones that it would have drawn.
    ``pooled``: what became of the pool, once it is decided: all its paths, those that voted are the complete ones.
    """

    def __init__(self, method: HyPER, own: Controlled, record: Sequence[Path]) -> None:
        super().__init__(method, own.routes, own.note)
        self.record = record
        self.pooled: Pooled | None = None

    def begin(self, pool: Pool) -> None:
        super().begin(pool)
        for member, known in zip(self.members, self.record, strict=False):
            path = member.path
            path.tokens, path.log_probs = list(known.tokens), list(known.log_probs)
            path.sampled_log_probs = list(known.sampled_log_probs)
            path.confidences, path.entropies = list(known.confidences), list(known.entropies)
            pool.receive(path, known.finish or "length")
        self.reduce(pool)

    def decide(self, pool: Pool) -> Decision:
        for member in self.members:
            for path in member.trials:
                pool.prune(path, "undecided")
        counts: dict[str, float] = {f"{phase} {action}": count for (phase, action), count in self.taken.items()}
        if self.routes is not None:
            counts |= {"refined": self.routes.read, "changed": self.routes.read * self.routes.changed}
        self.pooled = Pooled(pool.paths, pool.spent, counts)
        return super().decide(pool)


def steer(lm: CausalLM, request: Request, method: HyPER, record: Sequence[Path]) -> Pooled:
    """The pool that ``method`` makes of ``request``, whose ``record`` holds its warm-up at least."""
    own = method.policy(lm, request)
    assert isinstance(own, Controlled)
    policy = Steered(method, own, record)
    for _ in search(lm, request, policy, budget=method.budget):
        pass
    assert policy.pooled is not None
    return policy.pooled
