"""Worlds of facts: questions that can be answered from them, and the roles, played by one who knows."""

from __future__ import annotations

import random

import pytest

from ramify.bench.facts import FACTS, ROLES, WORDS, World, example, names, world
from ramify.bench.facts_study import TREE, FactRoles, FactThinker
from ramify.engine.writer import TextWriter
from ramify.methods.search.tree_of_thoughts import TreeOfThoughts


def looked_up(facts: list[str], question: str) -> str:
    """The answer to a question of one step."""
    relation, _, *name = question.split()
    [fact] = [fact.split() for fact in facts if fact.split()[:3] == [*name, relation]]
    return " ".join(fact[3:5])


def solved(here: World) -> str:
    facts = [str(fact) for fact in here.facts]
    if here.kind == "comparison":
        one, other = here.question.removeprefix("is ").split(" = ")
        return "yes" if looked_up(facts, one) == looked_up(facts, other) else "no"
    outer, _, inner = here.question.partition(" of ")
    return looked_up(facts, f"{outer} of {looked_up(facts, inner)}")


@pytest.mark.parametrize("held", [False, True])
def test_answers_follow_from_the_facts(held: bool) -> None:
    rng = random.Random(0)
    kinds = set()
    for _ in range(200):
        here = world(rng, held)
        assert solved(here) == here.answer
        assert len({(fact.name, fact.relation) for fact in here.facts}) == FACTS
        assert {fact.name for fact in here.facts} <= set(names(held))
        kinds.add((here.kind, here.answer in ("yes", "no")))
    assert kinds == {("bridge", False), ("comparison", True)}
    assert not set(names(True)) & set(names(False))


def test_what_is_worth_asking() -> None:
    here = next(each for each in iter(lambda: world(random.Random(3)), None) if each)
    one, two = (step.question for step in here.steps)
    assert here.valid([])
    assert here.valid([one])
    assert here.valid([one, two])
    assert not here.valid([one, one])
    assert not here.valid(["boss of no one", one])
    assert here.valid([two]) == (here.kind == "comparison")
    assert here.right([one, two]) == []


def test_examples_are_made_of_known_words_and_every_role_occurs() -> None:
    rng = random.Random(1)
    roles, verdicts = set(), set()
    for _ in range(400):
        prompt, said = example(rng)
        assert set(f"{prompt} {said}".split()) <= set(WORDS)
        assert said
        assert prompt.endswith(":")
        roles.add(prompt.split()[0])
        if prompt.startswith("<valid>"):
            verdicts.add(said)
    assert roles == set(ROLES)
    assert verdicts == {"yes", "no"}


def oracle(here: World, prompt: str) -> str:
    """What one who knows says in each role."""
    role, given = prompt.split()[0], prompt.rsplit("?", 1)[1].removesuffix(":")
    asked = [part.strip() for part in given.split(";")]
    known = [" ".join(part.split()[:4]) for part in asked[1:]]
    if role == "<expand>":
        return " ; ".join(fact.question for fact in here.right(known)) or "done"
    if role == "<evidence>":
        return str(1 + [fact.question for fact in here.facts].index(asked[0]))
    return looked_up([str(fact) for fact in here.facts], asked[0]) if role == "<answer>" else here.answer


def test_the_roles_fit_each_other() -> None:
    rng = random.Random(2)
    for _ in range(20):
        here = world(rng)
        roles = FactRoles(TextWriter(lambda prompt, here=here: oracle(here, prompt)), "none")
        facts = [str(fact) for fact in here.facts]
        solution = TREE.solve(roles, here.question, facts)
        assert solution.answer == here.answer
        assert all(here.valid([step.question for step in leaf.path]) for leaf in solution.leaves)
        assert all(step.answer == looked_up(facts, step.question) for leaf in solution.leaves for step in leaf.path)
        found = TreeOfThoughts(depth=3, proposals=3).search(FactThinker(roles, facts), here.question)
        assert found.answer == here.answer
