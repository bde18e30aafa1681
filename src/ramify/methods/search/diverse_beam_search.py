"""Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models, https://arxiv.org/abs/1610.02424

B beams in G groups, each a beam search of width B' = B / G; a later group pays for repeating the earlier ones:

    A(y, v) = A(y) + log p(v | y) − λ N(y, v)

N counts, among the tokens that the beams of earlier groups took at the same step (live beams only: neither ends of text
nor groups that are done), those like v:

    hamming      N = Σ 1[token = v]
    cumulative   N = Σ 1[token = v] · exp(−mismatches of the two histories / Γ)
    ngram        N = Σ times that (last n − 1 tokens of y, v) occurs in the other beam so far, its start padded
    embedding    N = Σ max(0, cos(E[v], E[token]))        input embeddings, mean taken away

The first group is plain beam search of width B', whatever λ; one group alone is beam search of width B. λ is worth what
log-probabilities differ by: where the model is sure, it changes nothing. Texts may still be equal across groups;
``distinct`` drops the repetitions and fills up with other texts that ended.

Where paper and code disagree we follow the authors' code: the penalty stays in the running sum, which ranks within a
group, and the final list is ranked by the sum without it (``rank_by="raw"``). The groups that transformers had until it
moved them out of its core ranked all by the penalised sum over the length: ``rank_by="augmented", length_penalty=1.0``;
of groups that were done it also counted the padding, which we do not. The cumulative weight is taken for each pair of
beams (the authors' demo has one for a group), the n-gram as the paper defines it (the demo's test of the context never
holds), and of the embedding the soft Hamming form.

A group ends with B' finished texts (``early_stopping=True``), or as beam search does otherwise. "staggered" lets group
g begin g − 1 steps later, as the authors' code does; the texts are the same, in T + G − 1 steps instead of T.

Cost: B rows a step, and the prompt is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.search import Decision, StepPolicy
from ramify.engine.step_pool import Choice, StepPool
from ramify.errors import RamifyError, unknown
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.methods.search.beams import Beams, check_beams
from ramify.methods.search.dissimilarity import DIVERSITIES, Penalty
from ramify.models.causal import CausalLM

SCHEDULES = ("sequential", "staggered")
RANKINGS = ("raw", "augmented")


@register(
    name="diverse-beam-search",
    title="Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models",
    paper="1610.02424",
    family="search",
    needs=("log-probs",),
    lossless=False,
)
@dataclass(frozen=True)
class DiverseBeamSearch(SearchMethod):
    """Beam search in groups, each of which avoids what the groups before it chose.

    ``num_beams``: in all groups together. ``num_beam_groups``: None for groups of one beam, as in the paper.
    ``diversity_penalty``: λ. ``diversity``: "hamming", "cumulative", "ngram" or "embedding"; ``temperature``: Γ of the
    second, ``n`` of the third. ``length_penalty``, ``early_stopping``: as for beam search. ``rank_by``: "raw" or
    "augmented". ``schedule``: "sequential" or "staggered". ``distinct``: give no text twice. ``budget``: tokens after
    which running beams are cut.
    """

    pinned = {"do_sample": False}  # noqa: RUF012 - a constant of the class, no option
    num_beams: int = 20
    num_beam_groups: int | None = None
    diversity_penalty: float = 0.5
    diversity: str = "hamming"
    temperature: float = 1.0
    n: int = 2
    length_penalty: float = 0.0
    early_stopping: bool | str = True
    rank_by: str = "raw"
    schedule: str = "sequential"
    distinct: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.groups < 1 or self.num_beams % self.groups:
            raise RamifyError(
                f"{self.num_beams} beams cannot be shared among {self.groups} groups; num_beams must be a multiple of "
                "num_beam_groups"
            )
        if not 0 <= self.diversity_penalty < float("inf"):
            raise RamifyError(f"diversity_penalty is {self.diversity_penalty:g}; it is a number, at least 0")
        if self.temperature <= 0 or self.n < 1:
            raise RamifyError(f"temperature must be above 0 and n at least 1, got {self.temperature:g} and {self.n}")
        for kind, name, known in (
            ("diversity", self.diversity, DIVERSITIES),
            ("ranking", self.rank_by, RANKINGS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        check_beams(self.length_penalty, self.early_stopping)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self.num_beams if self.num_beam_groups is None else self.num_beam_groups

    def policy(self, lm: CausalLM, request: Request) -> StepPolicy:
        return _Groups(self, DIVERSITIES[self.diversity](lm, self.temperature, self.n))

    def distant(self) -> StepPolicy | None:
        if self.diversity == "embedding":  # a server does not give its embeddings
            return None
        return _Groups(self, DIVERSITIES[self.diversity](None, self.temperature, self.n))


class _Groups(StepPolicy):
    """``taken[g][t]``: what the live beams of group g chose at its step t."""

    def __init__(self, options: DiverseBeamSearch, penalty: Penalty) -> None:
        self.options, self.penalty = options, penalty
        self.taken: list[list[list[Choice]]] = [[] for _ in range(options.groups)]

    def begin(self, pool: StepPool) -> None:
        options, width = self.options, self.options.num_beams // self.options.groups
        starts = pool.start(options.groups)
        self.groups = [Beams(width, options.length_penalty, options.early_stopping, [start]) for start in starts]

    def expand(self, pool: StepPool) -> Sequence[Choice]:
        choices: list[Choice] = []
        for group, beams in enumerate(self.groups):
            step = pool.step - group if self.options.schedule == "staggered" else pool.step
            if step < 0 or not beams.live:
                continue
            plain = scores = pool.processed(beams.live)
            earlier = [choice for taken in self.taken[:group] if step < len(taken) for choice in taken[step]]
            if earlier and self.options.diversity_penalty:
                scores = plain - self.options.diversity_penalty * self.penalty(beams.live, earlier, step, plain)
            grown = beams.grow(pool, scores, plain)
            self.taken[group].append(beams.taken)
            choices += grown
        return choices

    def decide(self, pool: StepPool) -> Decision:
        best = sorted((path for beams in self.groups for path in beams.finished), key=self._rank)
        if self.options.distinct:
            listed = set(best)
            others = sorted((path for path in pool.ended if path not in listed), key=self._rank)
            unlike = {tuple(path.tokens): path for path in reversed([*best, *others])}
            firsts = [path for path in [*best, *others] if unlike[tuple(path.tokens)] is path]
            best = sorted(firsts[: self.options.num_beams], key=self._rank)
        return Decision(best, best[0].answer)

    def _rank(self, path: Path) -> float:
        if self.options.rank_by == "augmented":
            return -path.score
        return -sum(path.sampled_log_probs) / float(len(path) ** self.options.length_penalty)
