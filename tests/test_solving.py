"""Solve, here and on a server: the same votes by the same rules, and one sentence where that cannot be."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from families import byte_lm
from server import Server, status

import ramify
from ramify.engine.events import Grown
from ramify.engine.result import Result
from ramify.models.remote import RemoteLM
from ramify.solving import framed

QUESTION = "one and one is"
TEXT = "{question}"


def letter(text: str) -> str | None:
    """One of three answers, or none: random text agrees on it now and then."""
    return ("a", "b", "c", None)[sum(map(ord, text)) % 4]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(byte_lm()) as running:
        yield running


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


@pytest.mark.parametrize(
    ("method", "options"), [("deepconf", {"warmup": 2}), ("best-of-n", {"law": "warped"}), ("greedy", {})]
)
def test_a_method_that_needs_more_is_refused(server: Server, method: str, options: dict[str, Any]) -> None:
    given = options if method == "greedy" else {"paths": 6, **options}
    with pytest.raises(ramify.RamifyError, match=f"{method}, as it is set, needs more of the model than the text"):
        ramify.solve(remote(server), QUESTION, method, options=given)


def test_bad_calls(server: Server) -> None:
    with pytest.raises(ramify.RamifyError, match="the question is empty"):
        ramify.solve(byte_lm(), "")
    with pytest.raises(ramify.RamifyError, match=re.escape("a template is a text with {question} in it")):
        ramify.solve(byte_lm(), QUESTION, template="Q:")
    with pytest.raises(ramify.RamifyError, match="setting of a server: 'top_k'"):
        ramify.solve(remote(server), QUESTION, top_k=3)
