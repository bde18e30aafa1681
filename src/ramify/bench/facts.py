"""Worlds of facts: a handful of names in relations, questions of two steps over them, and what each role is to say.

A fact is "bo ka boss mi lu ." for "the boss of bo ka is mi lu". A bridge question asks for "town of boss of bo ka"; a
comparison, "is boss of bo ka = boss of mi lu". A name has two words, so that a name can be new though its words are
not: names of the held-out part never occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

FIRST = ("bo", "ca", "du", "fi", "go", "ha", "ji", "ko", "la", "mu", "ne", "pi")
SECOND = ("ra", "sel", "tim", "ux", "vor", "wen", "yak", "zul", "bram", "dov", "kep", "lorn")
RELATIONS = ("boss", "town", "pet", "rival", "friend", "aunt")
ROLES = ("<expand>", "<evidence>", "<answer>", "<valid>", "<final>", "<chain>")
FACTS = 6
NUMBERS = tuple(str(number) for number in range(1, FACTS + 1))
OTHERS = (".", "?", ":", ";", "=", "of", "is", "yes", "no", "done")
WORDS = (*FIRST, *SECOND, *RELATIONS, *ROLES, *NUMBERS, *OTHERS)
PROPOSED = 3  # questions in a list that training shows
OFFERED = 0.75  # chance that a right one is among them


@dataclass(frozen=True)
class Fact:
    name: str
    relation: str
    other: str

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {self.other} ."

    @property
    def question(self) -> str:
        return f"{self.relation} of {self.name}"


@dataclass(frozen=True)
class World:
    """``facts``; a ``question`` of ``kind`` "bridge" or "comparison", its ``answer``, and the ``steps`` to it: facts,
    to be asked for in this order in a bridge, in any in a comparison."""

    facts: tuple[Fact, ...]
    question: str
    kind: str
    answer: str
    steps: tuple[Fact, Fact]

    def right(self, asked: Sequence[str]) -> list[Fact]:
        """The facts that are worth asking for next, when ``asked`` were."""
        missing = [step for step in self.steps if step.question not in asked]
        return missing[:1] if self.kind == "bridge" else missing

    def valid(self, asked: Sequence[str]) -> bool:
        """Whether each question of a line was worth asking when it was."""
        return all(
            any(asked[place] == fact.question for fact in self.right(asked[:place])) for place in range(len(asked))
        )


def names(held: bool) -> list[str]:
    """A quarter of all names if ``held``, the others if not."""
    pairs = [(one, other) for one in range(len(FIRST)) for other in range(len(SECOND))]
    return [f"{FIRST[one]} {SECOND[other]}" for one, other in pairs if ((one + other) % 4 == 0) == held]


def world(rng: random.Random, held: bool = False) -> World:
    """A world with one question."""
    people = rng.sample(names(held), 6)
    one, two = rng.sample(RELATIONS, 2)
    a, b, c = people[:3]
    if rng.random() < 0.5:
        steps = (Fact(a, one, b), Fact(b, two, c))
        question, kind, answer = f"{two} of {one} of {a}", "bridge", c
    else:
        same = rng.random() < 0.5
        steps = Fact(a, one, c), Fact(b, one, c if same else people[3])
        question, kind = f"is {one} of {a} = {one} of {b}", "comparison"
        answer = "yes" if same else "no"
    facts = {(fact.name, fact.relation): fact for fact in steps}
    while len(facts) < FACTS:
        fact = Fact(rng.choice(people), rng.choice(RELATIONS), rng.choice(people))
        if fact.name != fact.other:
            facts.setdefault((fact.name, fact.relation), fact)
    return World(tuple(rng.sample(list(facts.values()), FACTS)), question, kind, answer, steps)


# ---- what each role reads ----


def expand_prompt(facts: Sequence[str], question: str, known: Sequence[tuple[str, str]]) -> str:
    return f"<expand> {' '.join(facts)} ? {question} {_known(known)}:"


def evidence_prompt(facts: Sequence[str], question: str) -> str:
    numbered = " ".join(f"{number} {fact}" for number, fact in enumerate(facts, 1))
    return f"<evidence> {numbered} ? {question} :"


def answer_prompt(facts: Sequence[str], question: str) -> str:
    return f"<answer> {' '.join(facts)} ? {question} :"


def valid_prompt(question: str, known: Sequence[tuple[str, str]]) -> str:
    return f"<valid> ? {question} {_known(known)}:"


def final_prompt(facts: Sequence[str], question: str, known: Sequence[tuple[str, str]]) -> str:
    return f"<final> {' '.join(facts)} ? {question} {_known(known)}:"


def chain_prompt(facts: Sequence[str], question: str) -> str:
    return f"<chain> {' '.join(facts)} ? {question} :"


def _known(known: Sequence[tuple[str, str]]) -> str:
    return "".join(f"; {question} {answer} " for question, answer in known)


# ---- what each role is to say ----


def example(rng: random.Random, role: str | None = None, held: bool = False) -> tuple[str, str]:
    """A prompt of ``role``, by default any, and what it should be followed by."""
    here = world(rng, held)
    facts, role = [str(fact) for fact in here.facts], role or rng.choice(ROLES)
    if role == "<evidence>":
        number = rng.randrange(FACTS)
        return evidence_prompt(facts, here.facts[number].question), NUMBERS[number]
    if role == "<answer>":
        fact, others = here.facts[0], here.facts[1 : rng.randint(1, 3)]
        given = [str(each) for each in rng.sample([fact, *others], 1 + len(others))]
        return answer_prompt(given, fact.question), fact.other
    steps = _ordered(rng, here)
    if role == "<chain>":
        chain = " ; ".join(f"{step.question} {step.other}" for step in steps)
        return chain_prompt(facts, here.question), f"{chain} ; {here.answer}"
    if role == "<final>":
        if rng.random() < 0.5:
            return final_prompt(facts, here.question, ()), here.answer
        return final_prompt([str(step) for step in steps], here.question, _pairs(steps)), here.answer
    path = steps[: rng.randrange(3)]
    aside = [fact for fact in here.facts if fact not in here.steps]
    if (path and rng.random() < 0.4) or (role == "<valid>" and not path):
        path.insert(rng.choice((0, len(path))), rng.choice(aside))
    asked = [fact.question for fact in path]
    if role == "<valid>":
        return valid_prompt(here.question, _pairs(path)), "yes" if here.valid(asked) else "no"
    return expand_prompt(facts, here.question, _pairs(path)), _proposals(rng, here, asked)


def _proposals(rng: random.Random, here: World, asked: Sequence[str]) -> str:
    right = here.right(asked)
    if not right:
        return "done"
    wrong = [fact.question for fact in here.facts if fact not in here.steps and fact.question not in asked]
    listed = rng.sample(wrong, min(PROPOSED, len(wrong)))
    if rng.random() < OFFERED:
        listed[rng.randrange(len(listed))] = rng.choice(right).question
    return " ; ".join(listed)


def _ordered(rng: random.Random, here: World) -> list[Fact]:
    return list(here.steps) if here.kind == "bridge" else rng.sample(list(here.steps), 2)


def _pairs(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    return [(fact.question, fact.other) for fact in facts]
