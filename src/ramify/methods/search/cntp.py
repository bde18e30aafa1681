"""Cautious Next Token Prediction, https://arxiv.org/abs/2507.03038

One token is drawn where the model is sure. Where it is not, N trials are drawn up to the next punctuation mark, and the
one of the lowest perplexity is taken over whole. With q the law that is sampled (temperature, top-p, …):

    H = −Σ_w q(w) log q(w)
    N = ⌊N_min + (N_max − N_min) · clamp((H − H_min) / (H_max − H_min), 0, 1)⌋
    PPL_i = exp(−1/|s_i| Σ_t log q(s_it)),   i* = argmin_i PPL_i, the first of equals

Trials draw their first token too, each from the law that was asked for H. They do not branch again, and end with a
mark, a stop token or the greatest length. ``chains`` > 1 is the composition with self-consistency: so many texts are
decoded like this side by side, and their answers vote.

Where paper and code disagree we follow the code: its N (the paper prints ⌊N_max (H − H_min) / (H_max − H_min)⌋, which
contradicts a figure of its own: ``schedule="paper"``), its law (the paper writes the model's own p:
``score_law="raw"``) and its marks, of which the paper's list lacks the comma and the right brace. The code lets a trial
end only with tokens that are a mark and nothing else (``exact_ids=True``); here the token ".\\n" or ")," ends it too. A
decimal point is a full stop, as in the code.

The text is no sample of the model: a clause that came of N trials is likelier than a sampled one. Without a decision
that branches it is exactly plain sampling with the same seed. Mean log-probability likes long trials of easy tokens,
and a single probable comma: ``min_trial_tokens`` keeps trials from ending at once.

Cost: the tokens of all trials, which grow together in one pass and share the cache up to the fork; the pass at the
fork is not repeated for every trial, as the authors' code does. Trials, their lengths and their ends are in the events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.aggregate import vote
from ramify.engine.path import Path, mean
from ramify.engine.request import Request
from ramify.engine.search import Decision, StepPolicy
from ramify.engine.step_pool import Choice, StepPool
from ramify.errors import RamifyError, unknown
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.models.causal import CausalLM

SCHEDULES = ("code", "paper", "fixed", "negative")
LAWS = ("warped", "raw")
THRESHOLDS = {"entropy": (0.01, 1.5), "probability": (0.01, 0.9), "margin": (0.01, 1.0)}
CLAUSE = ".,\n?!:;)]}"
SENTENCE = ".?!\n"
MARKS = {"token": "", "clause": CLAUSE, "sentence": SENTENCE, "answer": ""}


@register(
    name="cntp",
    title="Cautious Next Token Prediction",
    paper="2507.03038",
    family="search",
    needs=("logits",),
    lossless=False,
)
@dataclass(frozen=True)
class CNTP(SearchMethod):
    """Where the model is unsure, try several continuations of a clause, and keep the likeliest.

    ``max_trials``, ``min_trials``: N_max and N_min. ``low``, ``high``: the thresholds H_min and H_max of
    ``uncertainty``, which is the "entropy", or 1 − the greatest "probability", or 1 − the "margin" of the greatest two;
    None for 0.01 and 1.5 nats, and our choice for the others. ``schedule``: N by the "code" or the "paper"; "fixed",
    always ``fixed_trials``; or "negative", many trials where the model is sure and few where not. ``score_law``: the
    law of uncertainty and perplexity, "warped" or "raw". ``stop``: trials end with a "token", "clause", "sentence", or
    only with the "answer"; ``exact_ids``: a mark has to be a token of its own. ``min_trial_tokens``: a mark ends no
    shorter trial. ``chains``: texts whose answers vote. ``budget``: tokens after which live paths are cut.
    """

    max_trials: int = 10
    min_trials: int = 1
    low: float | None = None
    high: float | None = None
    uncertainty: str = "entropy"
    schedule: str = "code"
    fixed_trials: int = 6
    score_law: str = "warped"
    stop: str = "clause"
    exact_ids: bool = False
    min_trial_tokens: int = 1
    chains: int = 1
    budget: int | None = None

    pinned = {"do_sample": True}  # noqa: RUF012 - a constant of the class, no option

    def __post_init__(self) -> None:
        for name in ("max_trials", "min_trials", "fixed_trials", "min_trial_tokens", "chains"):
            if getattr(self, name) < 1:
                raise RamifyError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.min_trials > self.max_trials:
            raise RamifyError(f"min_trials is {self.min_trials}, above max_trials, {self.max_trials}; swap them")
        for name, known in (("schedule", SCHEDULES), ("score_law", LAWS), ("stop", MARKS), ("uncertainty", THRESHOLDS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        low, high = self.thresholds
        if not 0 <= low < high:
            raise RamifyError(f"low and high are {low:g} and {high:g}; give 0 ≤ low < high")

    @property
    def thresholds(self) -> tuple[float, float]:
        low, high = THRESHOLDS[self.uncertainty]
        return low if self.low is None else self.low, high if self.high is None else self.high

    def trials(self, unsure: float) -> int:
        """N for an uncertainty."""
        if self.schedule == "fixed":
            return self.fixed_trials
        low, high = self.thresholds
        share = (unsure - low) / (high - low)
        if self.schedule == "paper":
            return max(self.min_trials, min(self.max_trials, math.floor(share * self.max_trials)))
        count = self.min_trials + (self.max_trials - self.min_trials) * min(max(share, 0.0), 1.0)
        return math.floor(self.max_trials - count + 1 if self.schedule == "negative" else count)

    def unsure(self, laws: Tensor) -> Tensor:
        """The uncertainty of each of ``laws`` [n, V]: [n]."""
        if self.uncertainty == "entropy":
            entropies: Tensor = torch.special.entr(laws).sum(dim=-1)
            return entropies
        first, second = laws.topk(2, dim=-1).values.unbind(dim=-1)
        return 1 - first if self.uncertainty == "probability" else 1 - (first - second)

    def policy(self, lm: CausalLM, request: Request) -> StepPolicy:
        if MARKS[self.stop]:
            lm.require_tokenizer()
        return _Cautious(self)

    def distant(self) -> StepPolicy:
        return _Cautious(self)

    def ends(self, text: str) -> bool:
        """Whether a token that reads ``text`` ends a trial."""
        marks = MARKS[self.stop]
        if not marks:
            return self.stop == "token"
        return text in tuple(marks) if self.exact_ids else text.strip(" ").endswith(tuple(marks))


@dataclass(eq=False)
class _Chain:
    """One text: ``path`` as far as it is decided, or the ``trials`` that go on from its first ``start`` tokens."""

    path: Path
    trials: list[Path]
    start: int = 0


class _Cautious(StepPolicy):
    def __init__(self, options: CNTP) -> None:
        self.options = options
        self.chains: list[_Chain] = []

    def begin(self, pool: StepPool) -> None:
        self.chains = [_Chain(path, []) for path in pool.start(self.options.chains)]
        self._branch(pool)

    def expand(self, pool: StepPool) -> list[Choice]:
        return pool.sample([path for chain in self.chains for path in self._growing(pool, chain)])

    def reduce(self, pool: StepPool) -> None:
        for chain in self.chains:
            if chain.trials and not self._growing(pool, chain):
                self._adopt(pool, chain)
        [chain, *others] = self.chains
        if not others and not chain.trials:
            pool.settle(chain.path)
        self._branch(pool)

    def decide(self, pool: StepPool) -> Decision:
        finished = [chain.path for chain in self.chains if chain.path.complete]
        return vote(finished or pool.ended)  # trials that ended, where the budget cut every chain

    def _branch(self, pool: StepPool) -> None:
        """Fork the texts that are not within trials into as many as their uncertainty asks for."""
        asked = [chain for chain in self.chains if chain.path.finish is None and not chain.trials]
        if not asked or pool.request.sampler.greedy:
            return
        paths = [chain.path for chain in asked]
        laws = pool.laws(paths) if self.options.score_law == "warped" else pool.log_probs(paths).exp()
        for chain, unsure in zip(asked, self.options.unsure(laws).tolist(), strict=True):
            count = self.options.trials(unsure)
            if count > 1:
                chain.start = len(chain.path)
                chain.trials = [chain.path, *(pool.fork(chain.path) for _ in range(count - 1))]

    def _growing(self, pool: StepPool, chain: _Chain) -> list[Path]:
        live = [path for path in chain.trials or [chain.path] if path.finish is None]
        return [path for path in live if not chain.trials or not self._stopped(pool, path, chain.start)]

    def _stopped(self, pool: StepPool, trial: Path, start: int) -> bool:
        if len(trial) - start < self.options.min_trial_tokens:
            return False
        return self.options.ends("" if self.options.stop == "token" else pool.text_of(trial.tokens[-1]))

    def _adopt(self, pool: StepPool, chain: _Chain) -> None:
        """Go on with the trial of the lowest perplexity; the others leave the pool."""
        for trial in chain.trials:
            found = trial.sampled_log_probs if self.options.score_law == "warped" else trial.log_probs
            trial.score = math.exp(-mean(found[chain.start :]))
        chain.path = min(chain.trials, key=lambda trial: trial.score)
        for trial in chain.trials:
            if trial is not chain.path:
                pool.prune(trial, "perplexity")
        chain.trials = []
