"""One sequence to continue: its prompt, its sampling settings, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ramify.engine.sampling import Sampler
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM

Parser = Callable[[str], str | None]  # from a path's text to its answer, None where there is none
Criterion = Callable[..., Tensor]  # a transformers StoppingCriteria: (ids [1, n], None) -> bool [1]


def whole(text: str) -> str | None:
    """The text itself, blanks around it aside; None where nothing is left."""
    return text.strip() or None


@dataclass
class Request:
    """``prompt``: token ids, at least one. ``max_length``: prompt and continuation together, in tokens.

    ``stop_tokens``: ids that end the sequence and are kept as its last token. ``criteria``: further transformers
    ``StoppingCriteria``, evaluated after every committed token. ``padding``: ids before the prompt that processors and
    criteria are to see, as in a left-padded transformers batch, but the model is not. ``answer``: finds the answer in
    the text of a path; without one, the whole text is the answer. ``canvas``: what stands behind the prompt where a
    denoiser is to fill it in, None at open positions; by default all of them are open, up to ``max_length``.
    """

    prompt: Sequence[int]
    max_length: int
    sampler: Sampler = field(default_factory=Sampler)
    stop_tokens: frozenset[int] = frozenset()
    criteria: Sequence[Criterion] = ()
    padding: Sequence[int] = ()
    answer: Parser = whole
    canvas: Sequence[int | None] = ()

    def check(self, lm: CausalLM) -> None:
        """Raise ``RamifyError`` for an empty prompt, for one that leaves nothing to generate, or too long."""
        if self.canvas:
            raise RamifyError(f"{lm.name} reads from left to right and cannot fill in a canvas; use ramify.load_masked")
        if not self.prompt:
            raise RamifyError("the prompt is empty; give at least one token")
        if self.max_length <= len(self.prompt):
            raise RamifyError(
                f"the prompt has {len(self.prompt)} tokens and max_length is {self.max_length}: nothing is left to "
                "generate; raise max_new_tokens to at least 1"
            )
        if self.max_length > lm.context:
            raise RamifyError(
                f"{len(self.prompt)} prompt tokens and {self.max_length - len(self.prompt)} new ones do not fit "
                f"the context of {lm.context} tokens of {lm.name}; shorten the prompt or lower max_new_tokens"
            )
