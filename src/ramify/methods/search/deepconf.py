"""Deep Think with Confidence, https://arxiv.org/abs/2508.15260

    C_t = −(1/k) Σ_{j in top-k} log p_t(j)          confidence of a token, k = 20, of the model's own law
    C_G = mean of C over the last n tokens           confidence of a group (window), n = 2048

A path scores by its groups: all of them ("mean"), the last one ("tail"), the least confident tenth ("bottom"), or the
least confident one ("lowest"). The vote is weighted by that score, V(a) = Σ_i score_i 1[a_i = a].

Offline, ``paths`` are sampled to the end, and only the ``eta`` per cent of the greatest score vote (100: all).

Online, the first ``warmup`` paths run to the end and set a bar: the percentile 100 − eta of their lowest groups. Every
further path ends as soon as a full window is below the bar. Warm-up paths at or above the bar vote, and so do the
others that came to their end, all by their lowest group. Before each further batch the loop ends if the leading
answer has the share ``agree`` of the votes, as the paper's Algorithm 2 has it and the authors' package has not.

Where the package and the paper differ, we follow the paper: voters' weights are their lowest groups (the package's
main answer counts heads), and means are not rounded. A window longer than every path makes the lowest group the mean of
the path, and nothing is ever cut: set ``window`` to an eighth of the usual length on short tasks.

Cost: the tokens of all paths; online those of cut paths up to the cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramify.engine.aggregate import bottom, confidence_bar, keep_confident, lowest, tail, vote
from ramify.engine.path import Path, mean
from ramify.engine.request import Request
from ramify.engine.roster import Roster
from ramify.engine.search import Decision, Policy, WholePolicy
from ramify.errors import RamifyError, unknown
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM

SCORES = ("mean", "tail", "bottom", "lowest")


@register(
    name="deepconf",
    title="Deep Think with Confidence",
    paper="2508.15260",
    family="search",
    needs=("log-probs",),
    lossless=False,
)
@dataclass(frozen=True)
class DeepConf(SearchMethod):
    """Vote by confidence, and end paths that lose it.

    ``paths``: at most how many (512 in the paper). ``online``: cut unsure paths; False samples all of them to the end.
    ``eta``: per cent of the paths that are trusted, 10 ("low") or 90 ("high") in the paper. ``score``: what weighs the
    offline vote. ``window``: tokens of a group. ``warmup``: paths that set the bar. ``agree``: share of the votes at
    which the loop ends (None: never). ``batch``: paths between two looks at the votes. ``budget``: tokens after which
    live paths are cut.
    """

    paths: int = 64
    online: bool = True
    eta: float = 10.0
    score: str = "lowest"
    window: int = 2048
    warmup: int = 16
    agree: float | None = 0.95
    batch: int = 16
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("paths", "window", "warmup", "batch"):
            if getattr(self, name) < 1:
                raise RamifyError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.eta <= 100:
            raise RamifyError(f"eta is {self.eta:g}; it is the percentage of paths to trust, above 0 and at most 100")
        if self.score not in SCORES:
            raise unknown("score", self.score, SCORES)
        if self.online and self.score != "lowest":
            raise RamifyError(f"score={self.score!r} goes with online=False; online, paths count by their lowest group")
        if self.online and self.warmup > self.paths:
            raise RamifyError(f"{self.warmup} warm-up paths do not fit {self.paths} paths; lower warmup or raise paths")
        if self.agree is not None and not 0 < self.agree <= 1:
            raise RamifyError(f"agree is {self.agree:g}; it is a share above 0, and 1 at most")

    def policy(self, lm: CausalLM, request: Request) -> Policy:
        return _Online(self) if self.online else _Offline(self)

    def distant(self) -> WholePolicy:
        return _Online(self) if self.online else _Offline(self)

    def weight(self, path: Path) -> float:
        """The score of a finished path."""
        if self.score == "mean":
            return mean(path.confidences)
        return {"tail": tail, "bottom": bottom, "lowest": lowest}[self.score](path, self.window)


class _Offline(WholePolicy):
    def __init__(self, options: DeepConf) -> None:
        self.options = options

    def begin(self, pool: Roster) -> None:
        pool.start(self.options.paths)

    def decide(self, pool: Roster) -> Decision:
        weight = self.options.weight
        return vote(keep_confident(pool.ended, weight, self.options.eta), weight)


class _Online(WholePolicy):
    """``bar``: s of the paper, None during the warm-up."""

    def __init__(self, options: DeepConf) -> None:
        self.options = options
        self.bar: float | None = None

    def begin(self, pool: Roster) -> None:
        pool.start(self.options.warmup)

    def gives_up(self, path: Path) -> str | None:
        group = path.confidences[-self.options.window :]
        full = len(group) == self.options.window
        return "confidence" if self.bar is not None and full and mean(group) < self.bar else None

    def reduce(self, pool: Roster) -> None:
        if pool.live:
            return
        if self.bar is None:
            lows = [lowest(path, self.options.window) for path in pool.paths]
            self.bar = confidence_bar(lows, self.options.eta)
        left = self.options.paths - len(pool.paths)
        if left > 0 and not self._agreed(pool):
            pool.start(min(self.options.batch, left))

    def decide(self, pool: Roster) -> Decision:
        return vote(self._voters(pool) or pool.ended, lambda path: lowest(path, self.options.window))

    def _voters(self, pool: Roster) -> list[Path]:
        warm, window = self.options.warmup, self.options.window
        bar = self.bar if self.bar is not None else float("-inf")
        return [path for path in pool.ended if path.number >= warm or lowest(path, window) >= bar]

    def _agreed(self, pool: Roster) -> bool:
        votes = self.decide(pool).votes
        return (
            self.options.agree is not None
            and max(votes.values(), default=0.0) >= self.options.agree * sum(votes.values()) > 0
        )
