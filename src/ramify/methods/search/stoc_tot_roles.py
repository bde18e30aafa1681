"""The five roles of the model in STOC-TOT, over anything that answers prompts (``ramify.engine.writer``).

Where it takes masks, answers are held to a constraint; where it has probabilities, a step is judged by
p(yes) / (p(yes) + p(no)). Elsewhere the bank is listed in the prompt, and the model asked for a number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ramify.constrain.bag import bag
from ramify.constrain.constraint import Constraint
from ramify.constrain.span import span
from ramify.constrain.trie import trie
from ramify.constrain.vocabulary import Vocabulary
from ramify.engine.writer import Call, Writer
from ramify.errors import RamifyError, unknown
from ramify.methods.search import stoc_tot_prompts as prompts
from ramify.methods.search.grounding import bank, literals, nearest, sentences
from ramify.methods.search.stoc_tot_tree import Step

MASKS = ("trie", "bag", "span")
CONSTRAINTS = (*MASKS, "prompt", "none")
JUDGES = ("logits", "number")
FALLBACK = 3  # sentences by BM25 where the model names none
NUMBER_TOKENS = 24  # of a reply that is to be a number or two


class Roles(ABC):
    """What STOC-TOT asks a model. ``path``: the answered sub-questions so far."""

    @abstractmethod
    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        """Up to ``count`` sub-questions that might be asked next; none where enough is known."""

    @abstractmethod
    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        """The sentences of ``passages`` that answer ``question``."""

    @abstractmethod
    def answer(self, question: str, evidence: Sequence[str]) -> str:
        """The answer to a sub-question; "" where there is none."""

    @abstractmethod
    def valid(self, question: str, path: Sequence[Step]) -> float:
        """How likely ``path``, of which the last step is new, leads to the answer of ``question``."""

    @abstractmethod
    def final(self, question: str, path: Sequence[Step]) -> str:
        """The answer to ``question`` at the end of ``path``; "" where there is none."""

    def same(self, one: str, other: str) -> bool:
        """Whether two sub-questions ask for the same; only asked under ``paraphrase="model"``."""
        raise RamifyError(f"{type(self).__name__} cannot judge paraphrases; use paraphrase='overlap'")

    def drain(self) -> list[Call]:
        """The calls to the model since this was last asked; none for roles without one."""
        return []


@dataclass
class PromptedRoles(Roles):
    """Roles of a model that is asked in words.

    ``constraint``, ``judge``, ``answer_tokens``, ``question_tokens``: as the options of ``StocTot``. Proposals are
    drawn at the writer's sampling settings, all else is as predictable as it can be.
    """

    writer: Writer
    constraint: str | None = None
    judge: str | None = None
    answer_tokens: int = 24
    question_tokens: int = 96

    def __post_init__(self) -> None:
        masked = self.writer.vocabulary is not None
        if self.constraint is None:
            self.constraint = "trie" if masked else "prompt"
        if self.constraint not in CONSTRAINTS:
            raise unknown("constraint", self.constraint, CONSTRAINTS)
        if self.constraint in MASKS and not masked:
            raise RamifyError(
                f"constraint={self.constraint!r} masks logits, and a server takes no masks; use constraint='prompt', "
                "which lists the words, or load the model here"
            )
        if self.judge not in (None, *JUDGES):
            raise unknown("judge", str(self.judge), JUDGES)

    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        prompt = prompts.propose(question, path, passages, count)
        [reply] = self.writer.write(prompt, self.question_tokens, drawn=True)
        return prompts.read_questions(reply, count)

    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        """The sentences that the model names, else those with most words in common."""
        texts = sentences(passages)
        if not texts:
            return []
        named = prompts.read_numbers(self._line(prompts.evidence(question, texts), NUMBER_TOKENS), len(texts))
        return [texts[number - 1] for number in named] or nearest(question, texts, FALLBACK)

    def answer(self, question: str, evidence: Sequence[str]) -> str:
        prompt = prompts.answer(question, evidence, self._listed(question, evidence))
        return self._answer(prompt, self.language(question, evidence))

    def valid(self, question: str, path: Sequence[Step]) -> float:
        if self.judge != "number":
            yes = self._yes(prompts.valid(question, path, number=False))
            if yes is not None:
                return yes
            if self.judge == "logits":
                raise RamifyError("the model gives no probabilities of yes and no; use judge='number'")
        return prompts.read_likelihood(self._line(prompts.valid(question, path, number=True), NUMBER_TOKENS))

    def final(self, question: str, path: Sequence[Step]) -> str:
        evidence = list(dict.fromkeys(sentence for step in path for sentence in step.evidence))
        prompt = prompts.final(question, path, evidence, self._listed(question, evidence))
        return self._answer(prompt, self.language(question, [*evidence, question]))

    def same(self, one: str, other: str) -> bool:
        prompt = prompts.same(one, other)
        yes = None if self.judge == "number" else self._yes(prompt)
        return prompts.read_yes(self._line(prompt, NUMBER_TOKENS)) if yes is None else yes > 0.5

    def drain(self) -> list[Call]:
        return self.writer.drain()

    def language(self, question: str, texts: Sequence[str]) -> Constraint | None:
        """What the answer to ``question`` from ``texts`` is held to; None for no mask."""
        vocabulary: Vocabulary | None = self.writer.vocabulary
        if vocabulary is None or self.constraint not in MASKS:
            return None
        if self.constraint == "span":
            return span(vocabulary, [text for text in texts if text.strip()] or [question], literals(question))
        make = trie if self.constraint == "trie" else bag
        return make(vocabulary, bank(question, texts), any_case=True)

    def _listed(self, question: str, evidence: Sequence[str]) -> list[str]:
        return bank(question, evidence) if self.constraint == "prompt" else []

    def _answer(self, prompt: str, constraint: Constraint | None) -> str:
        [reply] = self.writer.write(prompt, self.answer_tokens, line=True, constraint=constraint)
        return reply if constraint is not None else prompts.read_answer(reply)

    def _line(self, prompt: str, most: int) -> str:
        return self.writer.write(prompt, most, line=True)[0]

    def _yes(self, prompt: str) -> float | None:
        """p(yes) / (p(yes) + p(no)), None where the model does not tell."""
        logs = self.writer.weigh(prompt, (("yes", "Yes"), ("no", "No")))
        return None if logs is None else 1 / (1 + math.exp(min(700.0, logs[1] - logs[0])))
