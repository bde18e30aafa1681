"""Methods that put prompts of their own to the model, about one question and perhaps some passages.

They read and write texts, so they run on whatever answers a text with texts: see ``ramify.engine.writer``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from ramify.engine.events import Event
from ramify.engine.local_writer import LocalWriter
from ramify.engine.request import Parser, Request
from ramify.engine.writer import Writer
from ramify.methods.base import Method
from ramify.models.causal import CausalLM


class AskingMethod(Method):
    """Base of these methods. The text of a prompt of ``generate`` is the question; ``solve`` takes passages as well.

    ``verbatim``: an answer is meant as it is worded; else it is read by the caller's parser, or the usual one.
    """

    verbatim: ClassVar[bool] = False

    @abstractmethod
    def consult(
        self, writer: Writer, question: str, passages: Sequence[str], answer: Parser, row: int = 0
    ) -> Iterator[Event]:
        """Find the answer, yielding what happened; ``answer`` reads it from the model's last reply of each line."""

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        for row, request in enumerate(requests):
            request.check(lm)
            question = lm.require_tokenizer().decode(request.prompt, skip_special_tokens=True)
            yield from self.consult(LocalWriter.of(lm, request), question, (), request.answer, row)
