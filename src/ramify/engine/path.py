"""A path: one continuation of a prompt among many, and what is known of it, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

ENDED = ("stop", "length")


@dataclass(eq=False)
class Path:
    """One continuation of a request's prompt.

    ``number``: counts the paths of one request; path 0 draws the randomness that plain sampling would. ``parent``: the
    path that it was forked from, None when it began at the prompt; ``start``: how many tokens it took over from there.
    ``tokens``: ids behind the prompt, those taken over included. For each of them: ``log_probs``, its log-probability
    under the model's own law (temperature 1, nothing cut off); ``sampled_log_probs``, under the law that it was drawn
    from; ``confidences``, minus the mean log-probability of the k likeliest tokens at its place (Fu et al.,
    arXiv 2508.15260, section 3; higher is more peaked); ``entropies``, of the model's own law, in nats.

    ``score``: what the policy ranks by (a beam's running sum). ``finish``: "stop" or "length", or why it was pruned;
    None while it is alive. ``text``, ``answer``: set when it ends; the answer is None where none could be parsed, and
    for pruned paths.
    """

    number: int = 0
    parent: int | None = None
    start: int = 0
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sampled_log_probs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    score: float = 0.0
    finish: str | None = None
    text: str = ""
    answer: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def complete(self) -> bool:
        """Whether it came to its own end: a stop or the greatest length."""
        return self.finish in ENDED

    @property
    def confidence(self) -> float:
        """Mean confidence of its tokens; 0 without any."""
        return mean(self.confidences)

    @property
    def mean_log_prob(self) -> float:
        """Mean log-probability of its tokens under the model's own law; 0 without any."""
        return mean(self.log_probs)

    def fork(self, number: int) -> Path:
        """A new path with this one's tokens so far."""
        return replace(
            self,
            number=number,
            parent=self.number,
            start=len(self.tokens),
            tokens=list(self.tokens),
            log_probs=list(self.log_probs),
            sampled_log_probs=list(self.sampled_log_probs),
            confidences=list(self.confidences),
            entropies=list(self.entropies),
        )


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
