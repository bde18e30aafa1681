"""Beam search, as transformers has it; and with a penalty for siblings, https://arxiv.org/abs/1611.08562

Every step extends all B beams by all tokens and keeps the B likeliest of the results:

    S(y_1 … y_t) = Σ_τ log p(y_τ | y_<τ)         running sum; processors act on log-probabilities
    score(y) = S(y) / |y|^length_penalty         of a finished text, its end token counted

Of the 2B best candidates (more with several end tokens) those that end count only among the best B, and the B best of
the others run on. ``early_stopping`` as in transformers: True ends with B finished texts; False when the best running
sum, at its length now, is below the worst of B finished scores; "never" when it could not rise above it at any length.
The textbook's beam search is "never" with ``length_penalty=0``; with at least V^T beams it finds the likeliest text.

Results and scores equal those of ``model.generate(num_beams=B)`` for one prompt. Two things differ on purpose: ties go
to the earlier beam and the lower token, and a text that a stopping criterion ended never runs on for want of others.
One beam is greedy decoding (unless "never" waits for a longer text that the length penalty would favour).

``gamma`` is the sibling penalty of Li, Monroe & Jurafsky: the k-th best child of a beam loses gamma · k in the choice
of the next beams. The running sum does not remember it; the paper leaves that open.

``result.paths`` begins with the finished beams, best first: what transformers gives as ``num_return_sequences``.

Cost: B rows a step, and the prompt is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ramify.engine.request import Request
from ramify.engine.search import Decision, StepPolicy
from ramify.engine.step_pool import Choice, StepPool
from ramify.errors import RamifyError
from ramify.methods.base import SearchMethod
from ramify.methods.registry import register
from ramify.methods.search.beams import Beams, check_beams
from ramify.models.causal import CausalLM


@register(
    name="beam-search",
    title="Beam search",
    paper="github.com/huggingface/transformers",
    family="search",
    needs=("log-probs",),
    lossless=False,
)
@dataclass(frozen=True)
class BeamSearch(SearchMethod):
    """Follow the likeliest beginnings side by side, and give the likeliest text.

    ``num_beams``: how many. ``length_penalty``: power of the length that sums are divided by, 0 for none.
    ``early_stopping``: True, False or "never". ``gamma``: penalty for each rank among siblings. ``budget``: tokens
    after which running beams are cut.
    """

    pinned = {"do_sample": False}  # noqa: RUF012 - a constant of the class, no option
    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    gamma: float = 0.0
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise RamifyError(f"num_beams must be at least 1, got {self.num_beams}")
        if self.gamma < 0:
            raise RamifyError(f"gamma is {self.gamma:g}; it is a penalty, at least 0")
        check_beams(self.length_penalty, self.early_stopping)

    def policy(self, lm: CausalLM, request: Request) -> StepPolicy:
        return _Beam(self)

    def distant(self) -> StepPolicy:
        return _Beam(self)


class _Beam(StepPolicy):
    def __init__(self, options: BeamSearch) -> None:
        self.options = options

    def begin(self, pool: StepPool) -> None:
        options = self.options
        self.beams = Beams(options.num_beams, options.length_penalty, options.early_stopping, pool.start(1))

    def expand(self, pool: StepPool) -> Sequence[Choice]:
        scores = pool.processed(self.beams.live)
        return self.beams.grow(pool, scores, scores, self._handicap(scores))

    def decide(self, pool: StepPool) -> Decision:
        return Decision(self.beams.finished, self.beams.finished[0].answer)

    def _handicap(self, scores: Tensor) -> Tensor | None:
        if not self.options.gamma:
            return None
        ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return self.options.gamma * (ranks + 1)
