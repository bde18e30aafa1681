"""What tree-of-thoughts asks of a model for any question, in our own words, and how replies are read.

The paper writes prompts for each of its three tasks; these are the same questions without a task.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ramify.engine.writer import Call, Writer
from ramify.errors import RamifyError
from ramify.methods.search.stoc_tot_prompts import listed_passages, read_answer, read_questions

VERDICTS = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}  # the authors' own values, by their own word ad hoc
STEEPEST = 300.0  # most ln of the odds of yes, lest its power overflow
VERDICT_TOKENS = 24
_VERDICT = re.compile(rf"\b({'|'.join(VERDICTS)})\b", re.IGNORECASE)


class Thinker(ABC):
    """What the search asks a model. ``thoughts``: those of one state, in order."""

    @abstractmethod
    def propose(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        """Up to ``count`` thoughts that might come next; none where enough is known."""

    @abstractmethod
    def answer(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        """Up to ``count`` answers to the question at the end of ``thoughts``."""

    @abstractmethod
    def value(self, question: str, thoughts: Sequence[str], answer: str | None, samples: int) -> float:
        """How good the state is, at least 0; ``answer``: where it has come to one."""

    def vote(self, question: str, states: Sequence[tuple[Sequence[str], str | None]], samples: int) -> list[float]:
        """How many of ``samples`` votes each of ``states`` gets; only asked under ``evaluate="vote"``."""
        raise RamifyError(f"{type(self).__name__} cannot vote; use evaluate='value'")

    def drain(self) -> list[Call]:
        """The calls to the model since this was last asked; none for a thinker without one."""
        return []


@dataclass
class PromptedThinker(Thinker):
    """A model that is asked in words; the options are those of ``TreeOfThoughts``.

    Values are kept by their prompt, so that a state that comes up again is not judged again.
    """

    writer: Writer
    passages: Sequence[str] = ()
    generate: str = "propose"
    judge: str | None = None
    thought_tokens: int = 96
    answer_tokens: int = 48

    def __post_init__(self) -> None:
        self._known: dict[str, float] = {}

    def propose(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        if self.generate == "sample":
            prompt = (
                f"{self._so_far(question, thoughts)}Write the next step towards the answer, on one line.\nNext step:"
            )
            replies = self.writer.write(prompt, self.thought_tokens, samples=count, drawn=True, line=True)
            return [thought for reply in replies for thought in read_questions(reply, 1)]
        prompt = (
            f"{self._so_far(question, thoughts)}List up to {count} different next steps towards the answer, each on a "
            "line of its own. If the steps so far are enough to answer the question, write DONE.\nNext steps:\n"
        )
        [reply] = self.writer.write(prompt, self.thought_tokens, drawn=True)
        return read_questions(reply, count)

    def answer(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        prompt = f"{self._so_far(question, thoughts)}Answer the question in a few words or a number.\nAnswer:"
        drawn = self.generate == "sample"
        samples = count if drawn else 1
        replies = self.writer.write(prompt, self.answer_tokens, samples=samples, drawn=drawn, line=True)
        return [read_answer(reply) for reply in replies]

    def value(self, question: str, thoughts: Sequence[str], answer: str | None, samples: int) -> float:
        state = self._so_far(question, thoughts) + ("" if answer is None else f"Answer: {answer}\n")
        prompt = state + ("Can these steps lead to the right answer?" if answer is None else "Is this answer right?")
        if prompt not in self._known:
            self._known[prompt] = self._value(prompt, samples)
        return self._known[prompt]

    def vote(self, question: str, states: Sequence[tuple[Sequence[str], str | None]], samples: int) -> list[float]:
        listed = "".join(f"Choice {number}:\n{_steps(*state)}\n" for number, state in enumerate(states, 1))
        prompt = (
            f"{self._so_far(question, ())}{listed}Which choice is the best way to the answer? Say its number.\n"
            "The best choice is"
        )
        replies = self.writer.write(prompt, VERDICT_TOKENS, samples=samples, drawn=True, line=True)
        found = Counter(read_choice(reply, len(states)) for reply in replies)
        return [float(found[place]) for place in range(len(states))]

    def drain(self) -> list[Call]:
        return self.writer.drain()

    def _value(self, prompt: str, samples: int) -> float:
        """The odds of yes, or the sum of the values of so many verdicts."""
        if self.judge != "words":
            logs = self.writer.weigh(f"{prompt} Answer yes or no.\nAnswer:", (("yes", "Yes"), ("no", "No")))
            if logs is not None:
                return math.exp(max(-STEEPEST, min(STEEPEST, logs[0] - logs[1])))
            if self.judge == "logits":
                raise RamifyError("the model gives no probabilities of yes and no; use judge='words'")
        said = f"{prompt} Say sure, likely or impossible.\nVerdict:"
        replies = self.writer.write(said, VERDICT_TOKENS, samples=samples, drawn=True, line=True)
        return sum(read_verdict(reply) for reply in replies)

    def _so_far(self, question: str, thoughts: Sequence[str]) -> str:
        return f"{listed_passages(self.passages)}Question: {question}\n{_steps(thoughts)}"


def read_verdict(reply: str) -> float:
    """The value of the last verdict in a reply; 0 without one."""
    found = _VERDICT.findall(reply)
    return VERDICTS[found[-1].lower()] if found else 0.0


def read_choice(reply: str, most: int) -> int | None:
    """The place, from 0, of the first number of a reply that is a choice; None without one."""
    numbers = [int(number) for number in re.findall(r"\d+", reply)]
    return next((number - 1 for number in numbers if 1 <= number <= most), None)


def _steps(thoughts: Sequence[str], answer: str | None = None) -> str:
    steps = "".join(f"- {thought}\n" for thought in thoughts)
    return (f"Steps so far:\n{steps}" if steps else "") + ("" if answer is None else f"Answer: {answer}\n")
