"""Solve, here and on a server: the same votes by the same rules, and one sentence where that cannot be."""

from __future__ import annotations

import copy
import dataclasses
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from families import byte_lm
from server import Server, says, status

import ramify
from ramify.engine.aggregate import confidence_bar
from ramify.engine.events import Grown
from ramify.engine.path import mean
from ramify.engine.result import Result
from ramify.methods.registry import create
from ramify.models.remote import RemoteLM
from ramify.report.pool import render
from ramify.solving import framed

QUESTION = "one and one is"
TEXT = "{question}"


def letter(text: str) -> str | None:
    """One of three answers, or none: random text agrees on it now and then."""
    return ("a", "b", "c", None)[sum(map(ord, text)) % 4]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(byte_lm(), **getattr(request, "param", {})) as running:
        yield running


def wait_for(happened: Callable[[], bool]) -> bool:
    """Whether it happened within half a minute, in another thread."""
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return happened()


@pytest.fixture(autouse=True)
def _awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def solve(lm: Any, method: str = "self-consistency", seed: int = 3, **options: Any) -> Result:
    given = {"paths": 6, **options}
    result = ramify.solve(
        lm, QUESTION, method, options=given, answer=letter, seed=seed, max_new_tokens=8, temperature=1.0, template=TEXT
    )
    assert isinstance(result, Result)
    return result


def remote(server: Server, **settings: Any) -> RemoteLM:
    return RemoteLM("tiny", server.url, **settings)


def test_here_it_is_generate_with_a_parser() -> None:
    result = solve(byte_lm())
    same = ramify.generate(
        byte_lm(), QUESTION, "self-consistency", options={"paths": 6}, answer=letter, seed=3, max_new_tokens=8,
        do_sample=True, temperature=1.0,
    )  # fmt: skip
    assert result.tokens == same.tokens
    assert result.votes == same.votes
    assert result.answer in result.votes


def test_temperature_zero_is_greedy() -> None:
    result = ramify.solve(byte_lm(), QUESTION, options={"paths": 3}, temperature=0, max_new_tokens=6, template=TEXT)
    greedy = ramify.generate(byte_lm(), QUESTION, max_new_tokens=6)
    assert {tuple(path.tokens) for path in result.paths} == {tuple(greedy.tokens)}


def test_a_template_and_a_chat_template() -> None:
    lm = byte_lm()
    chat = [{"role": "user", "content": "why?"}]
    assert framed(lm, "why?", "Q: {question} A:") == "Q: why? A:"
    assert framed(lm, "why?") == framed(lm, chat) == chat
    bare = dataclasses.replace(lm, tokenizer=copy.deepcopy(lm.tokenizer))
    bare.tokenizer.chat_template = None
    assert framed(bare, "why?") == "why?\n"


def test_a_server_votes_by_the_same_rules(server: Server) -> None:
    result = solve(remote(server))
    texts = [
        ramify.generate(
            byte_lm(), QUESTION, "sample", seed=3 + i, max_new_tokens=8, do_sample=True, temperature=1.0, top_k=0
        ).text
        for i in range(6)
    ]
    assert {path.number: path.text for path in result.paths} == dict(enumerate(texts))
    assert result.votes == Counter(letter(text) for text in texts if letter(text))
    assert result.text == result.paths[0].text
    assert result.cost.generated_tokens == sum(len(e.tokens) for e in result.events if isinstance(e, Grown)) == 48
    assert result.cost.prompt_tokens == len(byte_lm().encode(QUESTION))


def test_a_server_gives_the_log_probs_that_rank() -> None:
    with Server(byte_lm(), entries=True) as server:
        result = solve(remote(server), "best-of-n")
        offline = solve(remote(server), "deepconf", online=False, eta=100)
    means = {path.number: path.mean_log_prob for path in result.paths}
    assert result.paths[0].number == max(means, key=means.__getitem__)
    [local] = ramify.solve(
        byte_lm(), QUESTION, "best-of-n", options={"paths": 1}, seed=3, max_new_tokens=8, temperature=1.0,
        template=TEXT, top_k=0,
    ).paths  # fmt: skip
    [mine] = [path for path in result.paths if path.number == 0]
    assert mine.log_probs == pytest.approx(local.log_probs, abs=1e-4)
    assert mine.confidences == pytest.approx(local.confidences, abs=1e-4)
    assert sum(offline.votes.values()) == pytest.approx(sum(path.confidence for path in offline.paths if path.answer))


def test_a_server_is_asked_no_further_than_needed(server: Server) -> None:
    stopped = solve(remote(server, concurrency=1), agree=0.01, batch=2)
    assert len(stopped.paths) == 2
    budget = solve(remote(server, concurrency=1), budget=20)
    assert [path.finish for path in sorted(budget.paths, key=lambda p: p.number)] == ["length"] * 3 + ["budget"] * 3


def test_what_arrived_before_a_server_failed_is_decided_upon(server: Server) -> None:
    lm = remote(server, concurrency=1, retries=0)
    assert lm.offers.text.log_probs
    server.faults.extend([None, None, None, status(500)])
    result = solve(lm)
    assert sum(path.complete for path in result.paths) == 3
    assert "the answer is that of the 3 paths that arrived before" in result.notes[0]
    server.faults.append(status(500))
    with pytest.raises(ramify.RamifyError, match="500"):
        solve(lm)


@pytest.mark.parametrize("server", [{}, {"entries": True}, {"text": False}], indirect=True)
def test_deepconf_hangs_up_on_a_path_that_loses_confidence(server: Server) -> None:
    options = {"paths": 8, "warmup": 3, "batch": 5, "window": 3, "eta": 10, "agree": None}
    lm = remote(server)
    whole = lm.complete(QUESTION, samples=8, seed=3, max_new_tokens=16, top_log_probs=20)
    groups = [
        [mean(confidences[end - 3 : end]) for end in range(3, 17)]
        for confidences in ([-mean([value for _, value in top]) for top in reply.top or ()] for reply in whole)
    ]
    bar = confidence_bar([min(group) for group in groups[:3]], 10)
    cuts = [next((place + 3 for place, mark in enumerate(group) if mark < bar), 16) for group in groups[3:]]
    assert min(cuts) < 16
    result = ramify.solve(
        lm, QUESTION, "deepconf", options=options, answer=letter, seed=3, max_new_tokens=16, temperature=1.0
    )
    paths = sorted(result.paths, key=lambda path: path.number)
    assert [len(path) for path in paths] == [16, 16, 16, *cuts]
    ends = ["length" if cut == 16 else "confidence" for cut in cuts]  # an end at the last token is one of its own
    assert [path.finish for path in paths] == ["length"] * 3 + ends
    assert result.cost.generated_tokens == 48 + sum(cuts)
    assert set(result.votes) <= {path.answer for path in paths if path.complete}


def test_a_stream_that_is_closed_early_is_closed_at_the_server_too(server: Server) -> None:
    lm = remote(server)
    [known] = lm.complete(QUESTION, seed=3, max_new_tokens=16, log_probs=True, watch=lambda reply: True)
    before, server.hold = lm.spent, 5
    [reply] = lm.complete(
        QUESTION, seed=3, max_new_tokens=16, log_probs=True, watch=lambda reply: len(reply.tokens) < 5
    )
    assert (reply.finish, reply.tokens) == ("cut", known.tokens[:5])
    assert known.text.startswith(reply.text)
    assert lm.spent - before == known.prompt_tokens + 5
    assert wait_for(lambda: server.hung_up == 1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("best-of-n", {"law": "warped"}),
        ("greedy", {}),
        ("constrained-beam-search", {"force_words_ids": [[1]]}),
        ("diverse-beam-search", {"diversity": "embedding"}),
        ("contrastive-search", {}),
        ("dola", {}),
        ("hyper", {"length_sign": 1}),
        ("routing-ensemble", {}),
    ],
)
def test_a_method_that_needs_more_is_refused(server: Server, method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ramify.RamifyError, match=f"{method}, as it is set, needs more of the model than texts and"):
        ramify.solve(remote(server), QUESTION, method, options=options)


PASSAGES = ["Ada won.", "Bob lost."]
SMALL: dict[str, dict[str, Any]] = {
    "stoc-tot": {"depth": 1, "proposals": 2, "question_tokens": 20, "answer_tokens": 8},
    "tree-of-thoughts": {"depth": 2, "keep": 2, "proposals": 2, "thought_tokens": 20, "answer_tokens": 8},
}


@pytest.mark.parametrize("method", SMALL)
def test_a_method_with_prompts_of_its_own_here_and_on_a_server(server: Server, method: str) -> None:
    here = ramify.solve(byte_lm(), "Who?", method, passages=PASSAGES, options=SMALL[method], seed=1)
    again = ramify.solve(byte_lm(), "Who?", method, passages=PASSAGES, options=SMALL[method], seed=1)
    there = ramify.solve(remote(server), "Who?", method, passages=PASSAGES, options=SMALL[method], seed=1)
    assert (here.answer, here.votes, here.text) == (again.answer, again.votes, again.text)
    asked = [request for request in server.requests if "Question: Who?" in str(request.get("prompt"))]
    assert any("Ada won." in request["prompt"] for request in asked)
    assert {request["temperature"] for request in asked} <= {0.0, 0.7, 1.0}
    for result in (here, there):
        assert result.paths[0].complete
        assert result.text == result.paths[0].text
        assert set(result.votes) <= {path.answer for path in result.paths}
        assert f"Answer: {result.paths[0].answer}" in result.text or result.answer is None
        assert render(result, "Who?", method=create(method), model="tiny")
    grown = sum(len(event.tokens) for event in there.events if isinstance(event, Grown))
    assert there.cost.generated_tokens == grown > 0
    assert there.cost.prompt_tokens + grown <= server.tokens
    assert here.cost.forward_calls > here.cost.generated_tokens / 3


def test_what_a_method_with_prompts_of_its_own_reads_as_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(self: Any, prompt: str, most: int, *, samples: int = 1, **others: Any) -> list[str]:
        return ["The answer is 6/12." if prompt.endswith("Answer:") else "DONE"] * samples

    monkeypatch.setattr("ramify.engine.local_writer.LocalWriter.write", reply)
    options = {"stoc-tot": {"constraint": "none"}, "tree-of-thoughts": {}}
    found = {name: ramify.solve(byte_lm(), "Who?", name, options=given).answer for name, given in options.items()}
    assert found == {"stoc-tot": "The answer is 6/12", "tree-of-thoughts": "1/2"}
    for name, given in options.items():
        result = ramify.solve(byte_lm(), "Who?", name, options=given, answer=lambda _: None)
        assert result.answer is None
        assert result.votes == {}
        assert "no answer could be parsed" in result.notes[0]


@pytest.mark.parametrize("method", SMALL)
def test_a_length_and_settings_hold_for_every_call(server: Server, method: str) -> None:
    lm = remote(server)
    ramify.solve(lm, "Who?", method, options=SMALL[method], max_new_tokens=5, temperature=0.4, top_p=0.9, stop="Q")
    asked = [request for request in server.requests if "Question" in str(request.get("prompt"))]
    assert max(request["max_tokens"] for request in asked) == 5
    assert {request["temperature"] for request in asked} <= {0.0, 0.4, 1.0}
    assert all(request["stop"] == ["Q"] and request["top_p"] == 0.9 for request in asked)
    with pytest.raises(ramify.RamifyError, match="setting of a server: 'top_k'"):
        ramify.solve(lm, "Who?", method, top_k=3)
    with pytest.raises(ramify.RamifyError, match="max_new_tokens is 0"):
        ramify.solve(byte_lm(), "Who?", method, max_new_tokens=0)


@pytest.mark.parametrize("method", SMALL)
def test_a_server_that_cannot_be_reached_or_talks_nonsense(server: Server, method: str) -> None:
    with pytest.raises(ramify.RemoteError) as gone:
        ramify.solve(RemoteLM("tiny", "http://127.0.0.1:9/v1", retries=0), "Who?", method, options=SMALL[method])
    assert gone.value.replies == []
    lm = remote(server, retries=0, chat=False)
    assert lm.offers.text.log_probs
    server.faults.extend([None, None, says("<html>")])
    with pytest.raises(ramify.RemoteError, match="no JSON") as error:
        ramify.solve(lm, "Who?", method, passages=PASSAGES, options=SMALL[method])
    assert len(error.value.replies) >= 2  # all that had arrived, and what was under way


def test_other_methods_read_the_passages_before_the_question() -> None:
    result = ramify.solve(byte_lm(), "Who?", options={"paths": 2}, passages=PASSAGES, max_new_tokens=4, template=TEXT)
    assert byte_lm().tokenizer.decode(result.prompt) == "Ada won.\n\nBob lost.\n\nWho?"


def test_contradictory_calls(server: Server) -> None:
    chat = [{"role": "user", "content": "Who?"}]
    for method in SMALL:
        with pytest.raises(ramify.RamifyError, match=f"{method} puts prompts of its own"):
            ramify.solve(byte_lm(), "Who?", method, template=TEXT)
        with pytest.raises(ramify.RamifyError, match="give the question as a text"):
            ramify.solve(byte_lm(), chat, method)
        with pytest.raises(ramify.RamifyError, match="the question is empty"):
            ramify.solve(byte_lm(), " ", method)
    with pytest.raises(ramify.RamifyError, match="passages go with a question that is a text"):
        ramify.solve(byte_lm(), chat, passages=PASSAGES)
    with pytest.raises(ramify.RamifyError, match="a server takes no masks; use constraint='prompt'"):
        ramify.solve(remote(server), "Who?", "stoc-tot", options={"constraint": "span"})


def test_bad_calls(server: Server) -> None:
    with pytest.raises(ramify.RamifyError, match="the question is empty"):
        ramify.solve(byte_lm(), "")
    with pytest.raises(ramify.RamifyError, match=re.escape("a template is a text with {question} in it")):
        ramify.solve(byte_lm(), QUESTION, template="Q:")
    with pytest.raises(ramify.RamifyError, match="setting of a server: 'top_k'"):
        ramify.solve(remote(server), QUESTION, top_k=3)
