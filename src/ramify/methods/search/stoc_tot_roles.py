"""The five roles of the model in STOC-TOT: over a loaded model with masks and logits, and over text alone.

``LocalRoles`` judges a step by p(yes) / (p(yes) + p(no)) and holds answers to a constraint. ``TextRoles`` asks for a
number and lists the bank in the prompt, so it runs on anything that answers a text with a text; ``remote_roles`` makes
one of a ``RemoteLM``.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ramify.constrain.answers import Trace, score_answers, trace
from ramify.constrain.bag import bag
from ramify.constrain.constraint import Constraint
from ramify.constrain.processor import Constrained
from ramify.constrain.span import span
from ramify.constrain.trie import trie
from ramify.constrain.vocabulary import Vocabulary
from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Processor, Sampler
from ramify.engine.speculate import speculate
from ramify.errors import RamifyError, unknown
from ramify.methods.search import stoc_tot_prompts as prompts
from ramify.methods.search.grounding import bank, literals, nearest, sentences
from ramify.methods.search.stoc_tot_tree import Step
from ramify.models.causal import CausalLM
from ramify.models.remote import RemoteLM

CONSTRAINTS = ("trie", "bag", "span", "prompt", "none")
FALLBACK = 3  # sentences by BM25 where the model names none
ANSWER_TOKENS = 24


@dataclass
class Spent:
    """``read``, ``written``: prompt and reply tokens so far, as the roles count them."""

    read: int = 0
    written: int = 0


class Roles(ABC):
    """What STOC-TOT asks a model. ``path``: the answered sub-questions so far; ``spent``: what it has cost."""

    spent: Spent

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


Ask = Callable[[str], str]


@dataclass
class TextRoles(Roles):
    """Roles over a function from a prompt to a reply.

    ``ask``: answers as predictably as it can (temperature 0). ``draw``: answers at a higher temperature, for proposals;
    None for ``ask``. ``banked``: list the words that answers are to keep to. ``count``: tokens of a text, by default
    its words.
    """

    ask: Ask
    draw: Ask | None = None
    banked: bool = True
    count: Callable[[str], int] = lambda text: len(text.split())
    spent: Spent = field(default_factory=Spent)

    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        reply = self._put(prompts.propose(question, path, passages, count), self.draw or self.ask)
        return prompts.read_questions(reply, count)

    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        return _evidence(question, passages, self._put)

    def answer(self, question: str, evidence: Sequence[str]) -> str:
        words = bank(question, evidence) if self.banked else []
        return prompts.read_answer(self._put(prompts.answer(question, evidence, words)))

    def valid(self, question: str, path: Sequence[Step]) -> float:
        return prompts.read_likelihood(self._put(prompts.valid(question, path, number=True)))

    def final(self, question: str, path: Sequence[Step]) -> str:
        evidence = _gathered(path)
        words = bank(question, evidence) if self.banked else []
        return prompts.read_answer(self._put(prompts.final(question, path, evidence, words)))

    def same(self, one: str, other: str) -> bool:
        return prompts.read_yes(self._put(prompts.same(one, other)))

    def _put(self, prompt: str, ask: Ask | None = None) -> str:
        reply = (ask or self.ask)(prompt)
        self.spent.read += self.count(prompt)
        self.spent.written += self.count(reply)
        return reply


def remote_roles(
    lm: RemoteLM, *, temperature: float = 0.7, max_new_tokens: int = 128, seed: int = 0, banked: bool = True
) -> TextRoles:
    """Roles over a server: proposals at ``temperature``, all else greedy; tokens as the server counts them."""

    def asks(at: float) -> Ask:
        def ask(prompt: str) -> str:
            [reply] = lm.complete(prompt, max_new_tokens=max_new_tokens, temperature=at, seed=next(seeds))
            roles.spent.read += reply.prompt_tokens
            roles.spent.written += reply.completion_tokens
            return reply.text

        return ask

    seeds = itertools.count(seed)
    roles = TextRoles(asks(0.0), asks(temperature), banked, count=lambda _: 0)
    return roles


@dataclass
class LocalRoles(Roles):
    """Roles over a loaded model.

    ``constraint``: what answers are held to: "trie" (words of the bank), "bag" (their tokens), "span" (runs of words of
    the evidence or the question), "prompt" (the bank is listed, nothing is enforced), or "none". ``temperature``: of
    proposals; all else is greedy. ``answer_tokens``, ``question_tokens``: longest answer and list of questions.
    ``traced``: keep what the constraint left of the model's law in ``traces``, for one more pass an answer. ``chat``:
    put prompts through the tokenizer's chat template; None where it has one. ``seed``: of the proposals.
    """

    lm: CausalLM
    constraint: str = "trie"
    temperature: float = 0.7
    answer_tokens: int = ANSWER_TOKENS
    question_tokens: int = 96
    traced: bool = False
    chat: bool | None = None
    seed: int = 0
    spent: Spent = field(default_factory=Spent)
    traces: list[Trace] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.constraint not in CONSTRAINTS:
            raise unknown("constraint", self.constraint, CONSTRAINTS)
        if self.temperature < 0 or min(self.answer_tokens, self.question_tokens) < 1:
            raise RamifyError("temperature must be at least 0, answer_tokens and question_tokens at least 1")
        tokenizer = self.lm.require_tokenizer()
        ends = set(Vocabulary.of(self.lm).ends)
        line = tokenizer("\n", add_special_tokens=False)["input_ids"]
        self.vocabulary = Vocabulary.of(self.lm, ends | set(line if len(line) == 1 else []))
        self._ends = frozenset(ends)
        self._asked = 0

    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        ids = self._ids(prompts.propose(question, path, passages, count))
        tokens = self._write(ids, self.question_tokens, self._ends, temperature=self.temperature)
        return prompts.read_questions(self.vocabulary.decode(tokens), count)

    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        return _evidence(question, passages, self._line)

    def answer(self, question: str, evidence: Sequence[str]) -> str:
        words = bank(question, evidence) if self.constraint == "prompt" else []
        return self._answer(prompts.answer(question, evidence, words), question, evidence)

    def valid(self, question: str, path: Sequence[Step]) -> float:
        return self._yes(prompts.valid(question, path, number=False))

    def final(self, question: str, path: Sequence[Step]) -> str:
        evidence = _gathered(path)
        words = bank(question, evidence) if self.constraint == "prompt" else []
        return self._answer(prompts.final(question, path, evidence, words), question, [*evidence, question])

    def same(self, one: str, other: str) -> bool:
        return self._yes(prompts.same(one, other)) > 0.5

    def language(self, question: str, texts: Sequence[str]) -> Constraint | None:
        """What the answer to ``question`` from ``texts`` is held to; None for no mask."""
        if self.constraint == "span":
            return span(self.vocabulary, [text for text in texts if text.strip()] or [question], literals(question))
        if self.constraint in ("trie", "bag"):
            make = trie if self.constraint == "trie" else bag
            return make(self.vocabulary, bank(question, texts), any_case=True)
        return None

    def _answer(self, prompt: str, question: str, texts: Sequence[str]) -> str:
        constraint = self.language(question, texts)
        if constraint is None:
            return prompts.read_answer(self._line(prompt))
        ids = self._ids(prompt)
        processor = Constrained(constraint, len(ids))
        tokens = constraint.cut(self._write(ids, self.answer_tokens, self.vocabulary.ends, [processor]))
        if self.traced and tokens:
            self.traces.append(trace(self.lm, ids, tokens, constraint))
        return self.vocabulary.decode(tokens).strip()

    def _yes(self, prompt: str) -> float:
        """p(yes) / (p(yes) + p(no)) of what the model says next, with a capital or without, behind a blank or not."""
        yes, no = ([form for word in pair for form in (word, " " + word)] for pair in (("yes", "Yes"), ("no", "No")))
        paths = {path: text for text in [*yes, *no] if (path := self.vocabulary.encode(text))}
        ids = self._ids(prompt)
        scores = score_answers(self.lm, ids, list(paths), ())
        self.spent.read += len(ids)
        owned = [text in yes for text in paths.values()]
        return float(scores.probabilities[owned].sum())

    def _line(self, prompt: str) -> str:
        """One line, greedily."""
        text = self.vocabulary.decode(self._write(self._ids(prompt), self.answer_tokens, self.vocabulary.ends))
        return text.strip().split("\n")[0]

    def _ids(self, prompt: str) -> list[int]:
        templated = bool(self.lm.require_tokenizer().chat_template) if self.chat is None else self.chat
        return self.lm.encode([{"role": "user", "content": prompt}] if templated else prompt)

    def _write(
        self,
        ids: list[int],
        most: int,
        ends: frozenset[int],
        processors: Sequence[Processor] = (),
        temperature: float = 0.0,
    ) -> list[int]:
        """What the model says behind ``ids``, at most ``most`` tokens."""
        if temperature > 0:
            processors = [*processors, lambda _, scores: scores / temperature]
        self._asked += 1
        sampler = Sampler(processors, greedy=temperature == 0, noise=Noise(self.seed, self._asked))
        request = Request(ids, len(ids) + most, sampler, ends)
        events = speculate(self.lm, [request])
        tokens = [token for event in events if isinstance(event, Accepted) for token in event.tokens]
        self.spent.read += len(ids)
        self.spent.written += len(tokens)
        return tokens


def _evidence(question: str, passages: Sequence[str], ask: Ask) -> list[str]:
    """The sentences that the model names, else those with most words in common."""
    texts = sentences(passages)
    if not texts:
        return []
    named = prompts.read_numbers(ask(prompts.evidence(question, texts)), len(texts))
    return [texts[number - 1] for number in named] or nearest(question, texts, FALLBACK)


def _gathered(path: Sequence[Step]) -> list[str]:
    return list(dict.fromkeys(sentence for step in path for sentence in step.evidence))
