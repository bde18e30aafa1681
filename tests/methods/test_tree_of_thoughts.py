"""Tree of thoughts: the search on a table of replies, its prompts over a text and a model, and what it comes to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from families import byte_lm
from hypothesis import given
from hypothesis import strategies as st

import ramify
from ramify.engine.events import Decided, Forked
from ramify.engine.local_writer import LocalWriter
from ramify.engine.writer import TextWriter
from ramify.errors import RamifyError
from ramify.methods.search.tree_of_thoughts import TreeOfThoughts
from ramify.methods.search.tree_of_thoughts_prompts import (
    VERDICTS,
    PromptedThinker,
    Thinker,
    read_choice,
    read_verdict,
)
from ramify.methods.search.tree_of_thoughts_states import Thoughts
from ramify.models.endpoint import RemoteError

QUESTION = "What is 4 + 5 + 6?"


@dataclass
class Table(Thinker):
    """Two thoughts for each state, "<" and ">" more than it; worth what a function of the thoughts says."""

    worth: Callable[[str], float] = len
    choices: Sequence[str] = "<>"
    answers: Callable[[str], list[str]] = lambda line: [f"{line}!"]
    asked: list[str] = field(default_factory=list)
    votes: list[int] = field(default_factory=list)

    def propose(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        return list(self.choices)[:count]

    def answer(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
        return self.answers("".join(thoughts))

    def value(self, question: str, thoughts: Sequence[str], answer: str | None, samples: int) -> float:
        self.asked.append("".join(thoughts) if answer is None else answer)
        return self.worth(self.asked[-1])

    def vote(self, question: str, states: Sequence[tuple[Sequence[str], str | None]], samples: int) -> list[float]:
        found = Counter(min(place, len(states) - 1) for place in self.votes)
        return [float(found[place]) for place in range(len(states))]


def search(thinker: Thinker, **options: Any) -> Thoughts:
    return TreeOfThoughts(**{"depth": 3, "keep": 2, **options}).search(thinker, QUESTION)


def ups(line: str) -> float:
    return line.count(">") + 0.5 * line.startswith("<")


def test_the_best_are_kept_and_the_best_of_all_is_the_answer() -> None:
    table = Table(ups)
    found = search(table)
    assert table.asked == ["<", ">", ">" + "<", ">>", "<<", "<>", ">>!", "<>!"]
    assert [state.answer for state in found.states] == [">>!", "<>!"]
    assert found.answer == ">>!"
    assert found.mean(">>!".__eq__) == 0.5
    assert found.any("<>!".__eq__)
    assert not found.any("<<!".__eq__)


def test_ties_go_to_the_first() -> None:
    found = search(Table(lambda line: 1.0), keep=1)
    assert found.answer == "<<!"


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_broad_search_finds_the_best_line_and_a_narrow_one_is_greedy(depth: int, keep: int) -> None:
    def worth(line: str) -> float:
        """A trap: what is best in the end does not look so at first."""
        return 9.0 if line.startswith("<" * (depth - 1) + "!") else line.count(">") + 0.1

    best = search(Table(worth), depth=depth, keep=2**depth)
    assert best.answer == "<" * (depth - 1) + "!"
    assert best.states[0].score == 9.0
    assert len(search(Table(worth), depth=depth, keep=keep).states) <= keep
    assert search(Table(worth), depth=depth, keep=1).answer == ">" * (depth - 1) + "!"


def test_a_candidate_that_repeats_another_scores_nothing() -> None:
    table = Table(lambda line: 5.0, choices=["<", "<", ">"])
    found = search(table, depth=2, keep=3)
    assert table.asked == ["<", ">", "<!", ">!"]
    assert [state.score for state in found.root.children] == [5.0, 0.0, 5.0]
    assert Counter(state.answer for state in found.states) == {"<!": 2, ">!": 1}
    assert sorted(state.score for state in found.states) == [0.0, 5.0, 5.0]  # the same answer to the same thoughts


def test_a_last_state_without_an_answer_scores_nothing_and_is_not_judged() -> None:
    table = Table(ups, answers=lambda line: [] if line == ">>" else [f"{line}!"])
    found = search(table)
    assert [state.answer for state in found.states] == ["<>!", None]
    assert found.states[1].score == 0.0
    assert ">>!" not in table.asked
    assert found.mean(lambda _: True) == 0.5
    silent = search(Table(answers=lambda line: []))
    assert silent.answer is None
    assert not silent.any(lambda _: True)


def test_a_state_that_is_done_stays_a_candidate() -> None:
    class Done(Table):
        def propose(self, question: str, thoughts: Sequence[str], count: int) -> list[str]:
            return [] if thoughts == (">",) else super().propose(question, thoughts, count)

    found = search(Done(lambda line: 10.0 * line.startswith(">") + len(line)), depth=4)
    assert found.answer == ">!"


def test_votes() -> None:
    table = Table(votes=[1, 1, 0])
    found = search(table, depth=1, evaluate="vote", keep=2)
    assert found.answer == "!"
    assert found.states[0].score == 3.0
    found = search(table, depth=2, evaluate="vote", keep=1)
    assert found.answer == ">!"
    assert table.asked == []


def test_drawn_states_come_in_proportion_to_their_scores() -> None:
    counts: Counter[str | None] = Counter()
    options = TreeOfThoughts(depth=2, keep=1, select="sample")
    for seed in range(400):
        counts[
            options.search(Table(lambda line: 3.0 if line.startswith(">") else 1.0), QUESTION, seed=seed).answer
        ] += 1
    assert 0.68 < counts[">!"] / 400 < 0.82
    kept = TreeOfThoughts(depth=2, keep=9, select="sample").search(Table(lambda _: 0.0), QUESTION)
    assert {state.answer for state in kept.states} == {"<!", ">!"}  # all zero: any of them, each once


# ---- over text ----


def scripted(prompt: str) -> str:
    """A model that adds from left to right, and now and then wrongly."""
    if prompt.endswith("Next steps:\n"):
        if "- 9 + 6 = 15" in prompt:
            return "DONE"
        return "1. 9 + 6 = 15\n2. 9 + 6 = 16" if "- 4 + 5 = 9" in prompt else "4 + 5 = 9\n4 + 5 = 8"
    if prompt.endswith("Next step:"):
        return "4 + 5 = 9\nand more"
    if prompt.endswith("Verdict:"):
        return "impossible" if " = 8" in prompt or "16" in prompt else "Surely not unlikely:\nsure"
    if prompt.endswith("The best choice is"):
        return " 2, I think."
    return "15." if " = 15" in prompt else "Answer: 16"


def thinker(ask: Callable[[str], str] = scripted, **options: Any) -> PromptedThinker:
    return PromptedThinker(TextWriter(ask), **options)


def test_over_text() -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return scripted(prompt)

    found = TreeOfThoughts(depth=4).search(thinker(ask, passages=["Numbers add up."]), QUESTION)
    assert found.answer == "15"
    best = found.states[0]
    assert best.thoughts == ("4 + 5 = 9", "9 + 6 = 15")
    assert best.score == 3 * VERDICTS["sure"]
    assert all(prompt.startswith("Numbers add up.\n\nQuestion: ") for prompt in asked)
    verdicts = Counter(prompt for prompt in asked if prompt.endswith("Verdict:"))
    assert set(verdicts.values()) == {3}  # a state that stays is not judged again
    tokens = sum(len(call.tokens) for node in nodes(found) for call in node.calls)
    assert tokens == sum(len(scripted(prompt).split()) for prompt in asked)


def nodes(found: Thoughts) -> list[Any]:
    listed = [found.root]
    for node in listed:
        listed += node.children
    return listed


def test_thoughts_may_be_sampled_and_voted_on() -> None:
    options = TreeOfThoughts(depth=2, generate="sample", proposals=3, evaluate="vote", evaluations=5, keep=1)
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return scripted(prompt)

    found = options.search(thinker(ask, generate="sample"), QUESTION)
    assert found.states[0].thoughts == ("4 + 5 = 9",)
    assert len([prompt for prompt in asked if prompt.endswith("Next step:")]) == 3
    assert len([prompt for prompt in asked if "Choice 1:\nSteps so far:\n- 4 + 5 = 9" in prompt]) == 10
    assert not any("Choice 2" in prompt for prompt in asked)  # three equal thoughts are one choice


def test_replies_are_read_with_patience() -> None:
    assert read_verdict("impossible or likely? Sure.") == 20.0
    assert read_verdict("unlikely") == 0.0
    assert read_verdict("") == 0.0
    assert read_choice("Choice 12, or 3", 5) == 2
    assert read_choice("none", 5) is None


def test_no_reply_says_anything() -> None:
    found = TreeOfThoughts(depth=2).search(thinker(lambda _: "  "), QUESTION)
    assert found.answer is None
    assert found.states == [found.root]


def test_what_was_answered_before_a_server_failed_decides() -> None:
    def failing(after: int) -> Callable[[str], str]:
        left = iter(range(after))

        def ask(prompt: str) -> str:
            if next(left, None) is None:
                raise RemoteError("no server any more.")
            return scripted(prompt)

        return ask

    options = TreeOfThoughts(depth=3, keep=2)
    outcomes: Counter[str] = Counter()
    for after in range(30):
        try:
            found = options.search(thinker(failing(after)), QUESTION)
        except RemoteError:
            outcomes["nothing"] += 1
            continue
        outcomes["whole" if not found.failure else "part"] += 1
        assert found.answer in ("15", "16")
        if found.failure:
            assert found.failure.startswith("no server any more; the answer is that of the ")
            assert "server" in {node.finish for node in nodes(found)} or len(found.states) == 2
    assert min(outcomes[kind] for kind in ("nothing", "part", "whole")) > 0


# ---- over a model ----


def test_a_state_is_worth_its_odds_of_yes() -> None:
    writer = LocalWriter(byte_lm())
    mine = PromptedThinker(writer)
    prompt = "Question: Why?\nSteps so far:\n- so\nCan these steps lead to the right answer? Answer yes or no.\nAnswer:"
    logs = writer.weigh(prompt, (("yes", "Yes"), ("no", "No")))
    assert logs is not None
    writer.drain()
    assert math.log(mine.value("Why?", ["so"], None, 3)) == pytest.approx(logs[0] - logs[1])
    assert len(mine.drain()) == 1
    mine.value("Why?", ["so"], None, 3)
    assert mine.drain() == []  # known by its prompt
    assert mine.value("Why?", ["so"], "yes", 3) != mine.value("Why?", ["so"], None, 3)
    with pytest.raises(RamifyError, match="no probabilities of yes and no; use judge='words'"):
        thinker(judge="logits").value("Why?", ["so"], None, 3)


def test_results_have_paths_votes_and_a_bill() -> None:
    options = {"depth": 3, "keep": 2, "proposals": 2, "thought_tokens": 24, "answer_tokens": 8}
    method = ramify.TreeOfThoughts(**options)
    result = ramify.generate(byte_lm(), "Who?", method, seed=1, max_new_tokens=30)
    again = ramify.generate(byte_lm(), "Who?", method, seed=1, max_new_tokens=30)
    assert (again.text, again.votes) == (result.text, result.votes)
    [decided] = [event for event in result.events if isinstance(event, Decided)]
    assert result.answer == result.paths[0].answer
    assert result.text == result.paths[0].text
    assert {event.path for event in result.events if isinstance(event, Forked)} == {p.number for p in decided.paths}
    assert all(path.finish in ("stop", "not kept") for path in result.paths)
    assert 0 < result.cost.kept_tokens == len(result.tokens)
    assert result.cost.generated_tokens <= 30 * result.cost.forward_calls
    assert result.cost.prompt_tokens > 5 * len("Who?")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"generate": "proposal"}, "unknown generate 'proposal'; did you mean 'propose'"),
        ({"evaluate": "values"}, "did you mean 'value'"),
        ({"select": "best"}, "unknown select"),
        ({"judge": "number"}, "unknown judge"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"evaluate": "vote", "judge": "logits"}, "votes are given in words"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RamifyError, match=said):
        TreeOfThoughts(**options)


def test_bad_questions() -> None:
    with pytest.raises(RamifyError, match="the question is empty"):
        TreeOfThoughts().search(Table(), " ")
    with pytest.raises(RamifyError, match="Unable cannot vote; use evaluate='value'"):
        TreeOfThoughts(evaluate="vote").search(Unable(), QUESTION)


class Unable(Table):
    vote = Thinker.vote
