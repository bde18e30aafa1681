"""A server that answers prompts, and weighs replies by the alternatives of their first token where it gives them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ramify.constrain.constraint import Constraint
from ramify.engine.distant import UNKNOWN, interface
from ramify.engine.writer import CALLS, TEMPERATURE, Writer
from ramify.models.endpoint import RemoteError
from ramify.models.remote import RemoteLM
from ramify.models.reply import Reply

ALTERNATIVES = 20  # asked for of a first token


class ServerWriter(Writer):
    """A server. A text that is not drawn is greedy; call i of a writer takes seeds from ``seed`` + 100,003 i on.

    ``temperature``, ``top_p``: of texts that are drawn. ``stop``: texts that end one. ``most``: longest text of any
    call. When the server fails for good, the error's ``replies`` hold all that ever arrived.
    """

    def __init__(
        self,
        lm: RemoteLM,
        *,
        temperature: float = TEMPERATURE,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.lm, self.temperature, self.top_p, self.stop = lm, temperature, top_p, stop
        self.most, self.seed = most, seed
        self.replies: list[Reply] = []

    def write(
        self,
        prompt: str,
        most: int,
        *,
        samples: int = 1,
        drawn: bool = False,
        line: bool = False,
        constraint: Constraint | None = None,
    ) -> list[str]:
        longest, hot = most if self.most is None else min(most, self.most), self.temperature if drawn else 0.0
        return [reply.text for reply in self._complete(prompt, longest, samples, hot)]

    def weigh(self, prompt: str, choices: Sequence[Sequence[str]]) -> list[float] | None:
        """From the alternatives of the first token; one that is not among them counts as their least likely."""
        top = min(ALTERNATIVES, interface(self.lm, prompt).top_log_probs)
        if top < len(choices):
            return None
        [reply] = self._complete(prompt, 1, 1, 1.0, top)
        first = reply.top[0] if reply.top else []
        masses = [
            math.fsum(math.exp(value) for token, value in first if token.strip() in forms and token.strip())
            for forms in choices
        ]
        if not any(masses):
            return None
        return [math.log(mass) if mass else min(value for _, value in first) for mass in masses]

    def _complete(self, prompt: str, most: int, samples: int, temperature: float, top: int = 0) -> list[Reply]:
        number, began = next(self._numbers), time.perf_counter()
        try:
            replies = self.lm.complete(
                prompt, samples=samples, max_new_tokens=most, temperature=temperature, top_p=self.top_p, stop=self.stop,
                seed=self.seed + CALLS * number, top_log_probs=top,
            )  # fmt: skip
        except RemoteError as error:
            error.replies = [*self.replies, *error.replies]
            raise
        self.replies += replies
        lengths = [reply.completion_tokens for reply in replies]
        self._enter(number, began, replies[0].prompt_tokens, 0, lengths, [UNKNOWN] * sum(lengths))
        return replies
