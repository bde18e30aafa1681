"""``RemoteLM`` against a real HTTP server with a model of ours: right answers, the dialects of real servers, faults."""

from __future__ import annotations

import json
import math
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import byte_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from server import Server, breaks_off, closes, hangs, says, status

import ramify
from ramify.errors import RamifyError
from ramify.models.endpoint import BudgetSpent, Refused, RemoteError
from ramify.models.offers import Interface
from ramify.models.remote import RemoteLM
from ramify.models.reply import Malformed, Reply, read_reply

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
MODEL_LAW = Interface(log_probs=True, top_log_probs=20, tempered=False, echo=True)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(byte_lm()) as running:
        yield running


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were asked to be slept through, and were not."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def remote(server: Server, **settings: Any) -> RemoteLM:
    return RemoteLM("tiny", server.url, **settings)


def laws(ids: list[int]) -> torch.Tensor:
    """The model's own log-probabilities [n - 1, V] of what comes behind each of ``ids`` but the last."""
    with torch.no_grad():
        return byte_lm().model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def name(token: int) -> str:
    return byte_lm().tokenizer.decode([token])


def refused(call: Any, *parts: str, kind: type[RamifyError] = RamifyError) -> RamifyError:
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return error.value


# ---- what comes back ----


def test_a_text_is_continued_as_generate_continues_it(server: Server):
    [reply] = remote(server).complete("def f(", max_new_tokens=20, temperature=0)
    result = ramify.generate(byte_lm(), "def f(", max_new_tokens=20)
    assert (reply.text, reply.finish) == (result.text, result.finish)
    assert (reply.prompt_tokens, reply.completion_tokens) == (6, 20)
    assert (reply.tokens, reply.log_probs, reply.top) == (None, None, None)
    assert server.requests[-1]["path"] == "/v1/completions"


def test_a_chat_is_answered_as_generate_answers_it(server: Server):
    [reply] = remote(server).complete(CHAT, max_new_tokens=20, temperature=0)
    result = ramify.generate(byte_lm(), CHAT, max_new_tokens=20)
    assert (reply.text, reply.prompt_tokens) == (result.text, len(result.prompt))
    assert server.requests[-1]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("how", [{"chat": True}, {"chat": None}])
def test_a_text_becomes_a_message_where_it_must(server: Server, how: dict[str, Any]):
    server.text = how["chat"] is True
    [reply] = remote(server, **how).complete("hi", max_new_tokens=9, temperature=0)
    assert reply.text == ramify.generate(byte_lm(), [{"role": "user", "content": "hi"}], max_new_tokens=9).text


@pytest.mark.parametrize("entries", [False, True])
@pytest.mark.parametrize("prompt", ["abc", CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("seed", [None, 3], ids=["greedy", "sampled"])
def test_log_probs_are_the_models_own(server: Server, prompt: Any, seed: int | None, entries: bool):
    server.entries = entries
    [reply] = remote(server).complete(
        prompt, max_new_tokens=8, temperature=0.0 if seed is None else 1.0, seed=seed, top_log_probs=3
    )
    how = {"method": "greedy"} if seed is None else {"method": "sample", "do_sample": True, "top_k": 0, "seed": seed}
    result = ramify.generate(byte_lm(), prompt, max_new_tokens=8, **how)
    own = laws(result.prompt + result.tokens)[len(result.prompt) - 1 :]
    assert reply.tokens == [name(token) for token in result.tokens]
    assert reply.log_probs == pytest.approx(
        own.gather(1, torch.tensor(result.tokens)[:, None])[:, 0].tolist(), abs=1e-4
    )
    for found, law in zip(reply.top, own, strict=True):
        values = [value for _, value in found]
        assert values == sorted(values, reverse=True)
        assert len(found) <= 3
        for token in law.topk(3).indices.tolist():
            if name(token) != "\N{REPLACEMENT CHARACTER}":  # in dictionaries, pieces of characters share one entry
                assert dict(found)[name(token)] == pytest.approx(float(law[token]), abs=1e-4)


def test_log_probs_without_alternatives(server: Server):
    server.entries = True  # where 0 alternatives would mean no log-probabilities
    [reply] = remote(server).complete("abc", max_new_tokens=4, log_probs=True)
    assert len(reply.log_probs) == len(reply.tokens) == 4
    assert reply.top is None


def test_samples_have_seeds_of_their_own(server: Server):
    given = {"samples": 5, "max_new_tokens": 9, "temperature": 0.8, "top_p": 0.9, "seed": 11}
    texts = [reply.text for reply in remote(server, concurrency=1).complete("abc", **given)]
    expected = [
        ramify.generate(byte_lm(), "abc", "sample", do_sample=True, temperature=0.8, top_p=0.9, top_k=0, seed=11 + i,
                        max_new_tokens=9).text
        for i in range(5)
    ]  # fmt: skip
    assert texts == expected
    assert len(set(texts)) > 1
    replies = remote(server, concurrency=4).complete("abc", **given)
    assert [reply.text for reply in replies] == texts
    assert [reply.sample for reply in replies] == list(range(5))


def test_what_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch):
    lm = remote(server, chat=False, api_key="secret", extra={"top_k": 7})
    lm.complete("abc", max_new_tokens=3, stop="x", temperature=None, top_p=None)
    assert server.requests == [{"model": "tiny", "prompt": "abc", "max_tokens": 3, "stop": ["x"], "top_k": 7,
                                "path": "/v1/completions", "key": "Bearer secret"}]  # fmt: skip
    assert "secret" not in repr(lm)
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    remote(server, chat=True).complete("abc", max_new_tokens=3, temperature=0.5, top_p=0.8, seed=5)
    sent = server.requests[1]
    assert sent["key"] == "Bearer from the environment"
    assert (sent["messages"], sent["seed"]) == ([{"role": "user", "content": "abc"}], 5)
    assert (sent["temperature"], sent["top_p"]) == (0.5, 0.8)
    assert "logprobs" not in sent


def test_stop(server: Server):
    whole = ramify.generate(byte_lm(), "abc", max_new_tokens=12).text
    [reply] = remote(server, chat=False).complete("abc", max_new_tokens=12, temperature=0, stop=[whole[6], "\0"])
    assert (reply.text, reply.finish) == (whole.partition(whole[6])[0], "stop")


def test_the_newer_name_of_the_length(server: Server):
    server.new_length = True
    [reply] = remote(server, chat=True).complete("hi", max_new_tokens=5, temperature=0)
    assert reply.completion_tokens == 5


def test_scoring_a_given_continuation(server: Server):
    reply = remote(server).score("def ", "f(x):")
    own = laws(list(b"def f(x):"))[3:]
    assert reply.text == "".join(reply.tokens) == "f(x):"
    assert reply.log_probs == pytest.approx([float(own[i, token]) for i, token in enumerate(b"f(x):")], abs=1e-4)
    assert (reply.prompt_tokens, reply.completion_tokens) == (4, 5)


# ---- what is offered ----


@pytest.mark.parametrize(
    ("dialect", "text", "chat"),
    [
        ({}, MODEL_LAW, Interface(log_probs=True, top_log_probs=20, tempered=False)),
        ({"most": 5, "echo": False}, Interface(log_probs=True, top_log_probs=5, tempered=False), None),
        ({"entries": True, "echo": False, "most": 10**6},
         Interface(log_probs=True, top_log_probs=100, tempered=False), None),
        ({"tempered": True}, Interface(log_probs=True, top_log_probs=20, tempered=True, echo=True), None),
        ({"most": 0, "echo": False}, Interface(log_probs=True, top_log_probs=0, tempered=None), None),
        ({"log_probs": False}, Interface(), Interface()),
    ],
    ids=["vllm", "openai", "llama.cpp", "sglang", "no alternatives", "no log-probs"],
)  # fmt: skip
def test_offers(server: Server, dialect: dict[str, Any], text: Interface, chat: Interface | None):
    for trait, value in dialect.items():
        setattr(server, trait, value)
    lm = remote(server)
    assert lm.offers.text == text
    assert chat in (None, lm.offers.chat)
    asked = len(server.requests)
    assert asked <= 16
    assert lm.offers.text == text
    assert len(server.requests) == asked
    assert lm.spent == server.tokens < 400


def test_only_what_matters_is_probed(server: Server):
    lm = remote(server, chat=True)
    assert server.requests == []
    lm.complete("abc", max_new_tokens=2)
    assert len(server.requests) == 1
    assert "leaves it aside" in lm.offers.text.refusal
    assert all(request["path"] == "/v1/chat/completions" for request in server.requests)


def test_an_interface_that_is_not_there_is_asked_once(server: Server):
    server.text = False
    lm = remote(server)
    assert "404" in lm.offers.text.refusal
    assert [request["path"] for request in server.requests].count("/v1/completions") == 1
    assert str(lm.offers) == ("text: not offered; chat: log-probs of the model's own law, 20 alternatives")


def test_what_is_not_offered_is_refused(server: Server):
    lm = remote(server)
    refused(lambda: lm.complete("abc", top_log_probs=21), "20 alternatives", "not 21", "top_log_probs")
    refused(lambda: remote(server, chat=False).complete(CHAT), "chat=False", "the prompt is a chat")
    refused(lambda: remote(server, chat=True).score("a", "b"), "echo")
    server.echo = False
    refused(lambda: remote(server).score("a", "b"), "echo", "nothing can be scored")
    server.log_probs = False
    refused(lambda: remote(server).complete("abc", log_probs=True), "no log-probs with texts", "text only")
    refused(lambda: remote(server).complete(CHAT, top_log_probs=2), "no log-probs with chats")
    assert remote(server).complete("abc", max_new_tokens=2)[0].completion_tokens == 2


# ---- concurrency ----


def test_the_limit_is_reached_and_kept(server: Server):
    """Requests are held until three are there at once; a fourth would show in the peak, a missing one as a timeout."""
    server.gate = threading.Barrier(3).wait
    lm = remote(server, chat=False, concurrency=3, retries=0, timeout=20)
    calls = [threading.Thread(target=lm.complete, args=("abc",), kwargs={"samples": 6, "max_new_tokens": 2})
             for _ in range(2)]  # fmt: skip
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert len(server.requests) == 12
    assert server.peak == 3


def test_replies_arrive_one_by_one(server: Server):
    """The first reply is there while the second is held back."""
    held, tickets = threading.Event(), iter([lambda: None, lambda: held.wait(20)])
    server.gate = lambda: next(tickets)()
    replies = remote(server, chat=False, concurrency=1).as_completed("abc", samples=2, max_new_tokens=2, seed=1)
    assert next(replies).sample == 0
    held.set()
    assert next(replies).sample == 1
    assert next(replies, None) is None


def test_who_stops_leaves_the_rest_unsent(server: Server):
    lm = remote(server, chat=False, concurrency=2)
    replies = lm.as_completed("abc", samples=50, max_new_tokens=2)
    next(replies)
    replies.close()
    [reply] = lm.complete("abc", max_new_tokens=2)  # waits for a place, so the others are done or under way
    assert reply.completion_tokens == 2
    assert len(server.requests) <= 6


# ---- faults ----

PASSING = {
    "408": status(408),
    "409": status(409),
    "429": status(429),
    "500": status(500, "out of memory"),
    "503": status(503),
    "closes": closes,
    "breaks off": breaks_off,
    "no json": says("<html>Bad gateway</html>", "text/html"),
    "broken json": says('{"choices": [{"text": "a'),
    "an error inside": says('{"error": {"message": "overloaded"}}'),
    "no choices": says('{"choices": []}'),
    "no text": says('{"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'),
    "no usage": says('{"choices": [{"text": "a", "finish_reason": "stop"}]}'),
    "a list": says("[1, 2]"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_passes(server: Server, fault: str, naps: list[float]):
    server.faults = deque([PASSING[fault]] * 3)
    [reply] = remote(server, chat=False, retries=3).complete("abc", max_new_tokens=6, temperature=0)
    assert reply.text == ramify.generate(byte_lm(), "abc", max_new_tokens=6).text
    assert len(server.requests) == 4
    # Exponential back-off with jitter.
    assert len(naps) == 3
    assert all(0.75 * 0.5 * 2**i <= nap <= 0.5 * 2**i for i, nap in enumerate(naps))


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("429", ("limiting the rate", "concurrency")),
        ("500", ("status 500", "out of memory")),
        ("closes", ("cannot be reached",)),
        ("no json", ("no usable answer", "Bad gateway")),
        ("an error inside", ("no usable answer", "overloaded")),
        ("no usage", ("no usable answer", "no usage")),
    ],
)
def test_a_lasting_fault_loses_nothing(server: Server, fault: str, parts: tuple[str, ...]):
    server.faults = deque([None, None, *[PASSING[fault]] * 9])
    lm = remote(server, chat=False, concurrency=1, retries=2)
    error = refused(
        lambda: lm.complete("abc", samples=6, max_new_tokens=4, seed=1), server.url, *parts, kind=RemoteError
    )
    assert [reply.sample for reply in error.replies] == [0, 1]
    assert all(reply.completion_tokens == 4 for reply in error.replies)
    assert len(server.requests) == 2 + 3  # no sample is begun after a failure


def test_what_is_under_way_at_a_failure_is_kept(server: Server):
    """Three requests at once, one of which fails at once: the other two come into the error's replies."""
    server.gate = threading.Barrier(3).wait
    server.faults = deque([status(400, "no"), None, None])
    lm = remote(server, chat=False, concurrency=3, retries=0)
    seen: list[Reply] = []

    def watch() -> None:
        for reply in lm.as_completed("abc", samples=9, max_new_tokens=2):
            seen.append(reply)

    error = refused(watch, "status 400", kind=RemoteError)
    assert len(error.replies) == 2
    assert sorted(seen, key=lambda reply: reply.sample) == error.replies
    assert len(server.requests) == 3


def test_mixed_faults_share_one_number_of_tries(server: Server):
    server.faults = deque([status(500), says("?"), closes, says("?"), status(503)])
    lm = remote(server, chat=False, retries=4)
    refused(lambda: lm.complete("abc", max_new_tokens=2), "status 503", kind=RemoteError)
    assert len(server.requests) == 5


def test_retry_after_is_heeded(server: Server, naps: list[float]):
    server.faults = deque([status(429, Retry_After="7"), status(503, Retry_After="1.5")])
    remote(server, chat=False).complete("abc", max_new_tokens=2)
    assert naps == [7.0, 1.5]


def test_a_server_that_hangs(server: Server):
    server.faults = deque([hangs, None, hangs, hangs])  # the first sample at its second try, the second never
    lm = remote(server, chat=False, timeout=1, retries=1, concurrency=1)
    error = refused(lambda: lm.complete("abc", samples=2, max_new_tokens=2), "within 1 s", "timeout", kind=RemoteError)
    assert [reply.sample for reply in error.replies] == [0]
    assert len(server.requests) == 4


def test_a_server_that_is_not_there():
    with socket.socket() as held:  # bound, but not listening
        held.bind(("127.0.0.1", 0))
        lm = RemoteLM("tiny", f"http://127.0.0.1:{held.getsockname()[1]}/v1", retries=1)
        error = refused(lambda: lm.complete("abc"), "cannot be reached", "refused", "base_url", kind=RemoteError)
    assert error.replies == []


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (status(401, "Incorrect key"), ("refuses the key", "Incorrect key", "OPENAI_API_KEY")),
        (status(403), ("refuses the key",)),
        (status(400, "too long\nby far"), ("status 400", "too long")),
    ],
)
def test_what_no_retry_mends(server: Server, fault: Any, parts: tuple[str, ...]):
    server.faults = deque([fault])
    lm = remote(server, chat=False, retries=4)
    refused(lambda: lm.complete("abc"), *parts, kind=RemoteError)
    assert len(server.requests) == 1


def test_an_unknown_model(server: Server):
    for chat in (False, True, None):
        lm = RemoteLM("large", server.url, chat=chat)
        refused(lambda lm=lm: lm.complete("abc"), "404", "`large` does not exist", kind=Refused)
        refused(lambda lm=lm: lm.complete("abc", top_log_probs=2), "404", "`large` does not exist", kind=RemoteError)


def test_log_probs_that_go_missing_are_a_fault(server: Server):
    lm = remote(server, chat=False, retries=1)
    assert lm.offers.text.log_probs
    server.log_probs = False
    refused(lambda: lm.complete("abc", log_probs=True), "no usable answer", "no log-probs", kind=RemoteError)


def test_a_probe_that_fails_is_no_finding(server: Server):
    lm = remote(server, retries=0)
    server.faults = deque([status(500)])
    refused(lambda: lm.offers, "status 500", kind=RemoteError)
    assert lm.offers.text == MODEL_LAW


# ---- the budget ----


@given(
    budget=st.integers(1, 120), samples=st.integers(1, 6), length=st.integers(1, 12), concurrency=st.integers(1, 3)
)  # fmt: skip
@settings(max_examples=12)
def test_the_budget_is_never_exceeded(budget: int, samples: int, length: int, concurrency: int):
    with Server(byte_lm()) as server:
        lm = remote(server, chat=False, budget=budget, concurrency=concurrency)
        needed = samples * (3 + length)
        # The first prompt is taken as two tokens more than it has bytes.
        enough = needed + 2 * concurrency <= budget
        try:
            replies = lm.complete("abc", samples=samples, max_new_tokens=length)
            assert len(replies) == samples
        except BudgetSpent as error:
            assert not enough
            replies = error.replies
        assert lm.spent == server.tokens == sum(reply.prompt_tokens + reply.completion_tokens for reply in replies)
        assert lm.spent <= budget
        # It stops no earlier than it must.
        assert len(replies) == samples or lm.spent + 3 + length + 2 > budget


def test_the_budget_holds_over_calls_and_probes(server: Server):
    lm = remote(server, budget=200)
    lm.complete("abc", max_new_tokens=10)
    probes = lm.spent - 13
    assert probes > 0
    for _ in range((200 - 15 - lm.spent) // 13 + 1):
        lm.complete("abc", max_new_tokens=10)
    spent = lm.spent
    refused(lambda: lm.complete("abc", max_new_tokens=10), "budget of 200 tokens", "raise budget", kind=BudgetSpent)
    assert 200 - 15 < spent == lm.spent == server.tokens <= 200


def test_requests_wait_for_what_others_turn_out_to_take(server: Server):
    """The bound of a first chat would fit into the budget once only; what chats really take, four times."""
    lm = remote(server, chat=True, budget=200, concurrency=4)
    assert len(lm.complete("hi", samples=4, max_new_tokens=4)) == 4
    assert lm.spent < 150


def test_failed_tries_are_not_counted(server: Server):
    server.faults = deque([status(500), says("?")])
    lm = remote(server, chat=False, budget=20)
    lm.complete("abc", max_new_tokens=10)
    assert lm.spent == 13


# ---- bad input ----


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"prompt": ""}, ("prompt is empty",)),
        ({"prompt": []}, ("prompt is empty",)),
        ({"prompt": [{"role": "user"}]}, ("role and a content",)),
        ({"prompt": [1, 2]}, ("role and a content", "1 is not one")),
        ({"prompt": "\ud800"}, ("surrogate",)),
        ({"samples": 0}, ("samples is 0", "at least 1")),
        ({"max_new_tokens": 0}, ("max_new_tokens is 0",)),
        ({"temperature": -0.1}, ("temperature is -0.1",)),
        ({"top_p": 0.0}, ("top_p is 0",)),
        ({"top_p": 1.1}, ("top_p is 1.1",)),
        ({"seed": -1}, ("seed is -1",)),
        ({"top_log_probs": -1}, ("top_log_probs is -1",)),
    ],
)
def test_bad_requests(server: Server, given: dict[str, Any], parts: tuple[str, ...]):
    refused(lambda: remote(server).as_completed(**{"prompt": "abc"} | given), *parts)
    assert server.requests == []


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"base_url": "localhost:8000"}, ("localhost:8000", "http://")),
        ({"concurrency": 0}, ("concurrency is 0",)),
        ({"timeout": 0}, ("timeout is 0",)),
        ({"retries": -1}, ("retries is -1",)),
        ({"budget": 0}, ("budget is 0",)),
        ({"extra": {"n": 2}}, ("extra", "'n'")),
    ],
)
def test_bad_settings(given: dict[str, Any], parts: tuple[str, ...]):
    refused(lambda: RemoteLM(**{"model": "tiny", "base_url": "http://localhost/v1"} | given), *parts)


def test_empty_scores(server: Server):
    refused(lambda: remote(server).score("", "a"), "one of them is empty")
    refused(lambda: remote(server).score("a", ""), "one of them is empty")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    refused(lambda: RemoteLM("tiny", "http://localhost/v1"), "openai", "pip install 'ramify[remote]'")


def test_it_is_in_the_public_interface():
    assert ramify.RemoteLM is RemoteLM
    assert ramify.RemoteError is RemoteError


# ---- reading ----


def body(**changes: Any) -> str:
    choice = {"text": "ab", "finish_reason": "stop"} | changes.pop("choice", {})
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}} | changes)


def test_alternatives_are_the_best_whatever_their_order():
    given = {"tokens": ["a", "b"], "token_logprobs": [-3.0, -1.0],
             "top_logprobs": [{"a": -3.0, "x": -1.0, "y": -2.0}, {"b": -1.0}]}  # fmt: skip
    reply = read_reply(body(choice={"logprobs": given}), top=2)
    assert reply.top == [[("x", -1.0), ("y", -2.0)], [("b", -1.0)]]
    assert reply.log_probs == [-3.0, -1.0]
    assert read_reply(body(choice={"logprobs": given | {"top_logprobs": None}})).top is None


def test_a_chat_without_text():
    """Nothing was said beside hidden reasoning, or nothing at all."""
    choice = {"message": {"content": None}, "finish_reason": "length"}
    assert (
        read_reply(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})).text == ""
    )


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"choice": {"text": 3}}, "3 where str"),
        ({"choice": {"finish_reason": None}}, "None where str"),
        ({"usage": {"prompt_tokens": 1}}, "no completion_tokens"),
        ({"usage": {"prompt_tokens": -5, "completion_tokens": 1}}, "-5 tokens"),
        ({"choice": {"logprobs": {"tokens": ["a"], "token_logprobs": []}}}, "1 tokens, but 0 log-probs"),
        ({"choice": {"logprobs": {"tokens": ["a"], "token_logprobs": [None]}}}, "without log-probability"),
        ({"choice": {"logprobs": {"tokens": ["a"], "token_logprobs": [7.5]}}}, "logits"),
        ({"choice": {"logprobs": {"content": [{"token": "a"}]}}}, "no logprob"),
    ],
)
def test_malformed_answers(changes: dict[str, Any], part: str):
    with pytest.raises(Malformed, match=part):
        read_reply(body(**changes))


def test_an_echo_may_lack_log_probs():
    given = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0]}
    values = read_reply(body(choice={"logprobs": given}), echo=True).log_probs
    assert math.isnan(values[0])
    assert values[1] == -1.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["choices", "text", "message", "content", "usage", "prompt_tokens", "logprobs",
                                       "completion_tokens", "finish_reason", "tokens", "token_logprobs",
                                       "top_logprobs", "token", "logprob"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(anything=JSON, log_probs=JSON)
def test_whatever_comes_is_read_or_refused(anything: Any, log_probs: Any):
    for text in (json.dumps(anything), body(choice={"logprobs": log_probs}), body(choices=anything)):
        try:
            read: Reply | Malformed = read_reply(text, top=2)
        except Malformed as error:
            read = error
        assert isinstance(read, Reply) or "\n" not in str(read)
