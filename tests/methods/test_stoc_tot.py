"""STOC-TOT: the worked numbers, the tree's properties on a table of replies, and its roles on text and on a model."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from families import byte_lm, lm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ramify.engine.local_writer import LocalWriter
from ramify.engine.server_writer import ServerWriter
from ramify.engine.writer import Call, TextWriter
from ramify.errors import RamifyError
from ramify.methods.search import stoc_tot_prompts as prompts
from ramify.methods.search.grounding import (
    bank,
    covers,
    exact_match,
    literals,
    nearest,
    normalise,
    sentences,
    similarity,
    token_f1,
)  # fmt: skip
from ramify.methods.search.stoc_tot import StocTot
from ramify.methods.search.stoc_tot_roles import PromptedRoles, Roles
from ramify.methods.search.stoc_tot_tree import Node, Solution, Step
from ramify.models.endpoint import RemoteError

PASSAGES = [
    "Ada Lovelace was born in London in 1815. Her father was Byron.",
    "Byron died in Greece. He left England in 1816.",
]
QUESTION = "Where did the father of Ada Lovelace die?"


@dataclass
class Table(Roles):
    """Replies out of tables: children by question ("" is the root), validity by question, final answer by question."""

    children: dict[str, list[str]]
    validity: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    asked: list[Call] = field(default_factory=list)

    def propose(self, question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> list[str]:
        self.asked.append(Call(0, 10, 1, (), (), 0.0))
        return self.children.get(path[-1].question if path else "", [])

    def evidence(self, question: str, passages: Sequence[str]) -> list[str]:
        return [f"about {question}"]

    def answer(self, question: str, evidence: Sequence[str]) -> str:
        self.asked.append(Call(0, 0, 0, (), (1, 1), 0.0))
        return self.answers.get(question, f"re {question}")

    def valid(self, question: str, path: Sequence[Step]) -> float:
        return self.validity.get(path[-1].question, 0.5)

    def final(self, question: str, path: Sequence[Step]) -> str:
        return self.answers[path[-1].question]

    def drain(self) -> list[Call]:
        asked, self.asked = self.asked, []
        return asked


def worked() -> Table:
    """The worked numbers of the notes: v = (.9, .6, .3), below the first (.8, .2)."""
    return Table(
        {"": ["one", "two", "three"], "one": ["four", "five"]},
        {"one": 0.9, "two": 0.6, "three": 0.3, "four": 0.8, "five": 0.2},
        {"four": "X", "five": "Y", "two": "the Y.", "three": "y"},
    )


def random_tree(seed: int, depth: int, width: int) -> Table:
    """A tree of distinct questions, with random numbers of children, validities and answers."""
    generator = random.Random(seed)
    table = Table({})
    level = [""]
    for _ in range(depth):
        below = []
        for question in level:
            names = [f"q{len(table.validity) + place}" for place in range(generator.randint(1, width))]
            table.children[question] = names
            table.validity.update({name: generator.random() for name in names})
            below += [name for name in names if generator.random() < 0.8]
        level = below
    table.answers = {name: generator.choice("WXYZ") for name in table.validity}
    return table


def solve(roles: Roles, options: StocTot | None = None, **changes: Any) -> Solution:
    return replace(options or StocTot(nodes=1000), **changes).solve(roles, "Who?", [])


# ---- the tree ----


def test_the_worked_numbers():
    solution = solve(worked())
    assert [child.edge for child in solution.root.children] == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert [leaf.probability for leaf in solution.leaves] == pytest.approx([0.4, 0.1, 1 / 3, 1 / 6])
    assert solution.scores == pytest.approx({"y": 0.6, "x": 0.4})
    assert solution.answer == "the Y."
    assert solution.scored("best") == pytest.approx({"x": 0.4, "y": 1 / 3})
    assert solution.decide("best") == "X"
    assert solution.scored("vote") == {"y": 3, "x": 1}
    assert solution.scored("first") == pytest.approx({"x": 1.0})
    assert solution.calls == {"propose": 5, "evidence": 5, "answer": 5, "valid": 5, "final": 4} | {"propose": 6}
    assert (solution.prompt_tokens, solution.tokens) == (60, 10)


def test_products_of_validities():
    solution = solve(worked(), normalise="none")
    assert [leaf.probability for leaf in solution.leaves] == pytest.approx([0.72, 0.18, 0.6, 0.3])
    assert solution.scores == pytest.approx({"y": 1.08, "x": 0.72})


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=60)
def test_leaves_sum_to_one(seed: int, depth: int, width: int):
    options = StocTot(proposals=4, depth=3, nodes=1000)
    whole = solve(random_tree(seed, depth, width), options)
    assert sum(leaf.probability for leaf in whole.leaves) == pytest.approx(1.0)
    assert sum(whole.scores.values()) == pytest.approx(1.0)
    assert all(leaf.depth <= 3 for leaf in whole.leaves)
    capped = solve(random_tree(seed, depth, width), options, nodes=9)
    assert len(capped.nodes) <= 9
    assert sum(leaf.probability for leaf in capped.leaves) == pytest.approx(1.0)


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_the_order_of_siblings_means_nothing(seed: int):
    table = random_tree(seed, 3, 4)
    solution = solve(table, proposals=4)
    shuffled = {question: random.Random(seed).sample(names, len(names)) for question, names in table.children.items()}
    other = solve(replace(table, children=shuffled), proposals=4)
    assert other.scores == pytest.approx(solution.scores)
    assert other.answer == solution.answer


def test_one_proposal_is_a_chain():
    table = Table({"": ["a1", "b1"], "a1": ["a2", "b2"], "a2": ["a3"]}, {}, {"a3": "Z"})
    solution = solve(table, proposals=1)
    assert [node.step.question for node in solution.nodes if node.step] == ["a1", "a2", "a3"]
    assert [leaf.probability for leaf in solution.leaves] == [1.0]
    assert solution.answer == "Z"
    assert {solution.decide(rule) for rule in ("sum", "best", "vote", "first")} == {"Z"}


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_equal_validities_on_a_balanced_tree_are_a_vote(seed: int):
    generator = random.Random(seed)
    names = [f"a{n}" for n in range(3)]
    children = {"": names} | {name: [f"{name}b{n}" for n in range(3)] for name in names}
    answers = {leaf: generator.choice("ABC") for name in names for leaf in children[name]}
    solution = solve(Table(children, {}, answers))
    assert solution.scores == pytest.approx({a: count / 9 for a, count in solution.scored("vote").items()})


def test_the_cap_makes_leaves_of_the_least_likely():
    """Room for one more expansion: the likeliest of three gets it."""
    table = worked()
    table.children |= {"two": ["six"], "three": ["seven"]}
    table.answers |= {"one": "A", "six": "B", "seven": "C"}
    table.validity |= {"one": 0.1}
    solution = solve(table, nodes=7)
    assert {leaf.step.question: leaf.end for leaf in solution.leaves if leaf.step} == {
        "one": "cap on nodes", "six": "cap on nodes", "three": "cap on nodes",
    }  # fmt: skip


def test_paraphrases():
    """A duplicate changes nothing when it is removed; kept, it has a vote of its own."""
    plain = worked()
    doubled = replace(plain, children=plain.children | {"": ["one", "two", "which two?", "three"]})
    doubled.validity["which two?"], doubled.answers["which two?"] = 0.6, "Y"
    expected = solve(plain, proposals=4)
    assert solve(doubled, proposals=4).scores == pytest.approx(expected.scores)
    assert solve(doubled, proposals=4, paraphrase="none").scores != pytest.approx(expected.scores)
    again = replace(plain, children=plain.children | {"one": ["four", "One?", "five"]})
    assert solve(again).scores == pytest.approx(expected.scores)  # an ancestor's question
    only = Table({"": ["one"], "one": ["what is the one"]}, {}, {"one": "A"})
    assert [leaf.end for leaf in solve(only).leaves] == ["nothing new to ask"]


def test_paraphrases_judged_by_the_model():
    class Judge(Table):
        def same(self, one: str, other: str) -> bool:
            return {one, other} == {"two", "three"}

    table = worked()
    solution = solve(Judge(table.children, table.validity, table.answers), paraphrase="model")
    assert [child.step.question for child in solution.root.children if child.step] == ["one", "two"]
    assert solution.calls["same"] > 0
    with pytest.raises(RamifyError, match="Table cannot judge paraphrases"):
        solve(table, paraphrase="model")


def test_walks_come_to_the_enumerated_law():
    walks = 4000
    table = random_tree(3, 3, 3)
    whole, drawn = solve(table), solve(table, mode="sample", walks=walks, seed=1)
    expected = {leaf.path: leaf.probability for leaf in whole.leaves}
    counts = Counter({leaf.path: leaf.walks for leaf in drawn.leaves})
    assert counts.total() == walks
    assert counts.keys() <= expected.keys()
    assert chisquare([counts[path] for path in expected], [walks * p for p in expected.values()]).pvalue > 0.01
    assert sum(drawn.scores.values()) == pytest.approx(1.0)
    for answer, score in whole.scores.items():
        assert drawn.scores[answer] == pytest.approx(score, abs=0.03)


def test_walks_expand_only_what_they_reach():
    drawn = solve(random_tree(5, 3, 3), mode="sample", walks=1)
    assert len(drawn.leaves) == 1
    assert drawn.leaves[0].walks == 1
    assert len(drawn.nodes) < len(solve(random_tree(5, 3, 3)).nodes)
    again = [solve(random_tree(5, 3, 3), mode="sample", seed=seed).scores for seed in (1, 1, 2, 3, 4)]
    assert again[0] == again[1]
    assert len({str(scores) for scores in again}) > 1


def test_validities_are_clipped():
    solution = solve(Table({"": ["a1", "b1"]}, {"a1": -3.0, "b1": 7.0}, {"a1": "A", "b1": "B"}), floor=0.01)
    assert [child.validity for child in solution.root.children] == [0.01, 1.0]
    assert solution.spread == pytest.approx(0.99)
    assert solve(worked()).spread == pytest.approx(0.6)


def test_a_question_that_cannot_be_broken_down_is_its_own_step():
    solution = solve(Table({}, {}, {"Who?": "Ada"}))
    assert solution.answer == "Ada"
    assert [(leaf.end, leaf.path[0].question) for leaf in solution.leaves] == [("done", "Who?")]
    assert solution.root.evidence() == ["about Who?"]
    assert "Ada  (done)" in str(solution)


def test_leaves_without_an_answer_do_not_vote():
    table = worked()
    table.answers |= {"two": "", "three": "The"}
    assert solve(table).scores == pytest.approx({"x": 0.4, "y": 0.1, "the": 1 / 6})
    silent = solve(replace(table, answers=dict.fromkeys(table.answers, "")))
    assert silent.answer is None
    assert silent.scores == {}
    assert "no leaf has an answer" in str(silent)


def test_recall_tells_whether_the_gold_answer_was_sayable():
    solution = solve(worked())
    assert solution.recall("about four") == pytest.approx(0.4)
    assert solution.recall("who") == pytest.approx(1.0)
    assert solution.recall("Rome") == 0.0
    assert solution.grounded == 0.0
    said = {"four": "About four", "five": "one", "two": "Rome", "three": "who"}
    assert solve(replace(worked(), answers=said)).grounded == pytest.approx(0.75)


def test_what_is_shown(capsys):
    solution = solve(worked())
    solution.show()
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "Who?"
    assert "├─ 0.500  one → re one  (v 0.90)" in shown
    assert "│  └─ 0.100  five → Y  (v 0.20)" in shown
    assert "⇒ the Y.  (done)" in shown
    assert "Answer: the Y. (by sum: y 0.6, x 0.4)" in shown
    assert "6 nodes, 4 leaves" in shown
    assert "walks" not in shown
    assert "8 walks" in str(solve(worked(), mode="sample"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "enumerat"}, "did you mean 'enumerate'"),
        ({"normalise": "softmax"}, "unknown normalise"),
        ({"aggregate": "mean"}, "unknown aggregate"),
        ({"paraphrase": "llm"}, "unknown paraphrase"),
        ({"proposals": 0}, "proposals must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"nodes": 0}, "nodes must be at least 1"),
        ({"answer_tokens": 0}, "answer_tokens must be at least 1"),
        ({"constraint": "tree"}, "unknown constraint 'tree'; did you mean 'trie'"),
        ({"judge": "words"}, "unknown judge"),
        ({"floor": 0.0}, "floor is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"mode": "sample", "normalise": "none"}, "use normalise='siblings'"),
    ],
)
def test_bad_options(changes: dict[str, Any], said: str):
    with pytest.raises(RamifyError, match=said):
        StocTot(**changes)


def test_bad_questions_and_rules():
    with pytest.raises(RamifyError, match="the question is empty"):
        StocTot().solve(worked(), " ", [])
    with pytest.raises(RamifyError, match="unknown rule 'votes'; did you mean 'vote'"):
        solve(worked()).scored("votes")


# ---- grounding ----


def test_answers_are_compared_as_hotpotqa_does():
    assert normalise("The  Eiffel-Tower, a sight.") == "eiffeltower sight"
    assert exact_match("an Answer!", "answer")
    assert token_f1("born in London", "London") == pytest.approx(0.5)
    assert token_f1("yes", "yes it is") == 0.0
    assert token_f1("Yes", "yes.") == 1.0
    assert token_f1("", "London") == 0.0


def test_similarity_of_questions():
    assert similarity("Who was the father of Ada?", "Who is Ada's father?") < 1
    assert similarity("Who was the father of Ada?", "What is the father of Ada") == 1.0
    assert similarity("Where was Ada born?", "Where did Byron die?") == 0.0
    assert similarity("who is it", "who is that") == pytest.approx(2 / 3)


def test_evidence_and_banks():
    texts = sentences(PASSAGES)
    assert texts[1] == "Her father was Byron."
    assert len(texts) == 4
    assert nearest("When did Byron die in Greece?", texts)[0] == "Byron died in Greece."
    assert nearest("xyz", texts) == []
    assert literals("Is London in Greece?") == ["yes", "no"]
    assert literals("Where is London?") == []
    found = bank("Is it 1815?", texts[:1])
    assert found == ["Is", "it", "1815", "Ada", "Lovelace", "was", "born", "in", "London", "yes", "no"]
    assert covers(found, "london, 1815")
    assert not covers(found, "Paris")
    assert not covers(found, "?")


def test_replies_are_read_with_patience():
    assert prompts.read_questions("1. Who?\n\n- Where?\n* When?\n4) Why?", 3) == ["Who?", "Where?", "When?"]
    assert prompts.read_questions("Done.", 3) == []
    assert prompts.read_questions("2003 was what year?\nDONE\nWho?", 3) == ["2003 was what year?"]
    assert prompts.read_numbers("Sentences 2, 1 and 2; 9", 4) == [2, 1]
    for reply, value in (("0.85", 0.85), ("about .3!", 0.3), ("90 %", 0.9), ("1", 1.0), ("7", 1.0), ("no idea", 0.5)):
        assert prompts.read_likelihood(reply) == pytest.approx(value)
    assert prompts.read_answer("\n Answer: Greece. \nBecause") == "Greece"
    assert prompts.read_answer(" \n") == ""
    assert prompts.read_yes("Yes, they do")
    assert not prompts.read_yes("They do")


# ---- over text ----


def scripted(prompt: str) -> str:
    """A model that knows how to find out where Ada's father died."""
    known = prompt.count("- Who was the father")
    if "Next questions:" in prompt:
        if "- Where did Byron die?" in prompt:
            return "DONE"
        return "1. Where did Byron die?" if known else "1. Who was the father of Ada?\n2. When did London burn?"
    if prompt.endswith("Numbers:"):
        return "2" if "Who was the father" in prompt else "3" if "Byron die" in prompt else "none"
    if prompt.endswith("Likelihood:"):
        return "likely: 0.9" if known else "0.2"
    if "same fact" in prompt:
        return "no"
    if "Known so far:" in prompt:
        return "Greece." if known else "London"
    return "Byron" if "Who was the father" in prompt else "Greece" if "Byron die" in prompt else "1666"


def test_roles_over_text():
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return scripted(prompt)

    for paraphrase in ("overlap", "model"):
        solution = StocTot(paraphrase=paraphrase, depth=3).solve(PromptedRoles(TextWriter(ask)), QUESTION, PASSAGES)
        assert solution.answer == "Greece"
        first = solution.root.children[0]
        assert first.step == Step("Who was the father of Ada?", ("Her father was Byron.",), "Byron")
        assert [child.edge for child in solution.root.children] == pytest.approx([0.9 / 1.1, 0.2 / 1.1])
        assert solution.recall("Greece") > 0.8
        assert solution.tokens > 0
    answers = [prompt for prompt in asked if prompt.endswith("Answer:") and "Use only these words" in prompt]
    assert answers
    assert any("Who, was, the, father, of, Ada, Her, Byron" in prompt for prompt in answers)
    asked.clear()
    StocTot().solve(PromptedRoles(TextWriter(ask), "none"), QUESTION, PASSAGES)
    assert not any("Use only these words" in prompt for prompt in asked)


def test_proposals_are_drawn_and_all_else_is_not():
    drawn: list[str] = []

    def draw(prompt: str) -> str:
        drawn.append(prompt)
        return "DONE"

    roles = PromptedRoles(TextWriter(lambda _: "Ada Byron", draw))
    solution = StocTot().solve(roles, "Who?", PASSAGES)
    assert len(drawn) == 1
    assert solution.answer == "Ada Byron"
    assert solution.tokens == 1 + 2 * 2
    assert roles.evidence("Greece?", []) == []


@pytest.fixture
def server() -> Iterator[Any]:
    """A real HTTP server over a model of random weights."""
    pytest.importorskip("openai")
    from server import Server

    with Server(byte_lm()) as running:
        yield running


def remote(server: Any, **settings: Any) -> Any:
    from ramify.models.remote import RemoteLM

    return RemoteLM("tiny", server.url, chat=False, **settings)


def test_roles_over_a_server(server: Any):
    """The bill is the server's own; proposals are drawn, all else is greedy."""
    lm = remote(server)
    roles = PromptedRoles(ServerWriter(lm, seed=3, most=12), judge="number")
    solution = StocTot(depth=1, proposals=2).solve(roles, "Who won?", ["Ada won."])
    sent = [request for request in server.requests if "Question" in str(request.get("prompt"))]
    assert sum(leaf.probability for leaf in solution.leaves) == pytest.approx(1.0)
    assert len(sent) == solution.calls.total()
    assert [request["temperature"] for request in sent][:2] == [0.7, 0.0]
    assert any("Use only these words: Who, won" in request["prompt"] for request in sent)
    assert solution.tokens <= 12 * len(sent)
    assert solution.prompt_tokens + solution.tokens <= lm.spent


def test_validity_on_a_server_is_a_number_where_it_tells_no_probabilities(server: Any):
    step = Step("Who?", (), "Ada")
    assert 0 <= PromptedRoles(ServerWriter(remote(server))).valid("Why?", [step]) <= 1
    ends = [request["prompt"][-12:] for request in server.requests[-2:]]
    assert ends == [" no.\nAnswer:", "\nLikelihood:"]  # a byte says neither yes nor no
    server.log_probs = False
    before = len(server.requests)
    PromptedRoles(ServerWriter(remote(server))).valid("Why?", [step])
    assert not any("yes or no" in str(request.get("prompt")) for request in server.requests[before:])
    with pytest.raises(RamifyError, match="no probabilities of yes and no; use judge='number'"):
        PromptedRoles(ServerWriter(remote(server)), judge="logits").valid("Why?", [step])


def test_a_server_takes_no_masks(server: Any):
    for constraint in ("trie", "bag", "span"):
        with pytest.raises(RamifyError, match="a server takes no masks; use constraint='prompt'"):
            PromptedRoles(ServerWriter(remote(server)), constraint)


def test_what_was_answered_before_a_server_failed_decides():
    def failing(after: int) -> TextWriter:
        asked = iter(range(after))

        def ask(prompt: str) -> str:
            if next(asked, None) is None:
                raise RemoteError("no server any more.")
            return scripted(prompt)

        return TextWriter(ask)

    whole = StocTot().solve(PromptedRoles(TextWriter(scripted)), QUESTION, PASSAGES)
    calls = whole.calls.total()
    seen = set()
    for after in range(calls):
        try:
            solution = StocTot().solve(PromptedRoles(failing(after)), QUESTION, PASSAGES)
        except RemoteError:
            seen.add("nothing")
            continue
        seen.add("something")
        assert solution.failure.startswith("no server any more; the answer is that of the ")
        assert sum(leaf.probability for leaf in solution.leaves) == pytest.approx(1.0)
        assert "server" in {leaf.end for leaf in solution.leaves}
        assert solution.answer in ("Greece", "London")
        assert len([call for node in solution.nodes for call in node.calls]) == after  # none is lost from the bill
    assert seen == {"nothing", "something"}
    assert StocTot().solve(PromptedRoles(failing(calls)), QUESTION, PASSAGES).failure == ""


# ---- over a model ----


@pytest.mark.parametrize("constraint", ["trie", "bag", "span", "prompt", "none"])
def test_roles_over_a_model_of_random_weights(constraint: str):
    roles = PromptedRoles(LocalWriter(byte_lm()), constraint, answer_tokens=12, question_tokens=12)
    step = Step("Who was it?", ("Byron died in Greece.",), "Byron")
    said = [roles.answer("Where did he die?", step.evidence), roles.final("Is it so?", [step])]
    offered = bank("Where did he die?", step.evidence), bank("Is it so?", step.evidence)
    if constraint == "trie":
        assert all(covers(words, answer) for words, answer in zip(offered, said, strict=True) if answer)
    if constraint == "span":
        assert said[0] in "Byron died in Greece."
        assert said[1] in ("yes", "no", "") or said[1] in "Byron died in Greece." or said[1] in "Is it so?"
    if constraint in ("trie", "bag", "span"):
        assert any(said)
    assert 0 < roles.valid(QUESTION, [step]) < 1
    assert roles.same("Who?", "Where?") in (True, False)
    assert len(roles.propose("Who?", [], PASSAGES[:1], 2)) <= 2
    assert set(roles.evidence("When did Byron die?", PASSAGES[1:])) <= set(sentences(PASSAGES))
    assert sum(call.read for call in roles.drain()) > 100


def test_validity_is_the_share_of_yes():
    """p(yes) / (p(yes) + p(no)), by scoring the words one by one."""
    from ramify.constrain import score_answers

    roles = PromptedRoles(LocalWriter(byte_lm()))
    step = Step("Who?", (), "Ada")
    ids = byte_lm().encode([{"role": "user", "content": prompts.valid("Why?", [step], number=False)}])
    masses = [
        sum(math.exp(float(score_answers(byte_lm(), ids, [list(form)], ()).log_probs)) for form in forms)
        for forms in ((b"yes", b" yes", b"Yes", b" Yes"), (b"no", b" no", b"No", b" No"))
    ]
    assert roles.valid("Why?", [step]) == pytest.approx(masses[0] / sum(masses), rel=1e-4)


def test_what_the_mask_left_is_traced():
    writer = LocalWriter(byte_lm(), traced=True)
    assert PromptedRoles(writer, answer_tokens=16).answer("Who?", ["Byron died."])
    [trace] = writer.traces
    assert all(0 < mass <= 1 + 1e-6 for mass in trace.masses)
    assert trace.log_prob < sum(map(math.log, trace.masses)) + 1e-6


def test_a_whole_tree_over_a_model():
    def solved() -> Solution:
        roles = PromptedRoles(LocalWriter(byte_lm()), answer_tokens=8, question_tokens=24)
        return StocTot(depth=1, proposals=2).solve(roles, "Who?", ["Ada won."])

    solution = solved()
    assert sum(leaf.probability for leaf in solution.leaves) == pytest.approx(1.0)
    assert str(solved()) == str(solution)


def test_bad_roles():
    with pytest.raises(RamifyError, match="unknown constraint 'tree'; did you mean 'trie'"):
        PromptedRoles(LocalWriter(byte_lm()), "tree")
    with pytest.raises(RamifyError, match="unknown judge"):
        PromptedRoles(LocalWriter(byte_lm()), judge="words")
    with pytest.raises(RamifyError, match="without a tokenizer"):
        LocalWriter(lm("llama"))
    with pytest.raises(RamifyError, match="vocabulary bank is empty"):
        PromptedRoles(LocalWriter(byte_lm())).answer("…?", [])


def test_nodes_are_told_apart_by_identity():
    assert Node() != Node()
