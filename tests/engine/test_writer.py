"""Writers: one interface over a model, a server and a function, with the bill of every call."""

from __future__ import annotations

import math
from typing import Any

import pytest
from families import byte_lm
from server import Server, status

import ramify
from ramify.constrain.trie import trie
from ramify.engine.distant import UNKNOWN
from ramify.engine.local_writer import LocalWriter
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.server_writer import ServerWriter
from ramify.engine.writer import TextWriter
from ramify.errors import RamifyError
from ramify.models.endpoint import RemoteError
from ramify.models.remote import RemoteLM

PROMPT = "Who won?"
YES_OR_NO = (("yes", "Yes"), ("no", "No"))


def remote(server: Server, **settings: Any) -> RemoteLM:
    return RemoteLM("tiny", server.url, chat=False, **settings)


def test_here_a_text_is_what_generate_writes() -> None:
    writer = LocalWriter(byte_lm(), chat=False)
    assert writer.write(PROMPT, 12) == [ramify.generate(byte_lm(), PROMPT, max_new_tokens=12).text]
    chat = [{"role": "user", "content": PROMPT}]
    assert LocalWriter(byte_lm()).write(PROMPT, 9) == [ramify.generate(byte_lm(), chat, max_new_tokens=9).text]


def test_drawn_texts_repeat_with_the_seed_and_differ_from_call_to_call() -> None:
    def written(seed: int, samples: int = 4) -> list[list[str]]:
        writer = LocalWriter(byte_lm(), Sampler(greedy=False, noise=Noise(seed)), chat=False)
        return [writer.write(PROMPT, 8, samples=samples, drawn=True) for _ in range(2)]

    first, second = written(3)
    assert len({*first, *second}) == 8
    assert written(3) == [first, second]
    assert written(4)[0] != first
    assert [texts[:2] for texts in (first, second)] == written(3, samples=2)
    greedy = LocalWriter(byte_lm(), Sampler(greedy=False), chat=False).write(PROMPT, 8, samples=2)
    assert greedy == LocalWriter(byte_lm(), chat=False).write(PROMPT, 8) * 2


def test_the_bill_of_a_call() -> None:
    writer = LocalWriter(byte_lm(), chat=False)
    writer.write(PROMPT, 6, samples=3, drawn=True)
    writer.weigh(PROMPT, YES_OR_NO)
    first, second = writer.drain()
    assert (first.number, first.read, len(first.tokens)) == (0, len(PROMPT), 18)
    assert first.passes == (3,) * 5  # the last token needs none
    assert (second.number, second.read, second.tokens) == (1, len(PROMPT), ())
    assert writer.drain() == []


def test_settings_of_a_request_hold_for_drawn_texts_and_its_ends_for_all() -> None:
    whole = LocalWriter(byte_lm(), chat=False).write(PROMPT, 12)[0]
    ids = byte_lm().encode(PROMPT)
    end = byte_lm().encode(whole[5])[0]
    request = Request(ids, len(ids) + 9, Sampler(greedy=False, noise=Noise(7)), frozenset([end]))
    writer = LocalWriter.of(byte_lm(), request)
    writer.chat = False
    assert writer.seed == 7
    assert writer.write(PROMPT, 12)[0] == whole[: whole.index(whole[5]) + 1]
    writer.drain()
    writer.write(PROMPT, 50, drawn=True)
    assert len(writer.drain()[0].tokens) <= 9


def test_a_constraint_holds_what_is_written() -> None:
    writer = LocalWriter(byte_lm(), traced=True)
    words = trie(writer.vocabulary, ["Ada", "Byron"])
    for text in writer.write(PROMPT, 16, samples=3, drawn=True, constraint=words):
        assert set(text.split()) <= {"Ada", "Byron"}
    assert len(writer.traces) == 3


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with pytest.raises(RamifyError, match="do not fit the context of 512 tokens"):
        LocalWriter(byte_lm()).write("x" * 600, 5)


class Worded(Server):
    """A server whose tokens are words: yes, no, or another."""

    def name(self, *tokens: int) -> str:
        return (" Yes", "no", "so")[tokens[0] % 3] if len(tokens) == 1 else super().name(*tokens)


def test_a_server_weighs_by_the_alternatives_of_the_first_token() -> None:
    ids = byte_lm().encode(PROMPT)
    with Worded(byte_lm(), entries=True) as server:
        found = ServerWriter(remote(server)).weigh(PROMPT, YES_OR_NO)
        law = server.laws([*ids, 0], 1.0)[len(ids)]
        server.most = 1
        one = ServerWriter(remote(server)).weigh(PROMPT, YES_OR_NO)
    assert law is not None
    best = law.topk(20)
    masses = [0.0, 0.0, 0.0]
    for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        masses[token % 3] += math.exp(value)
    assert found == pytest.approx([math.log(mass) for mass in masses[:2]], abs=1e-5)
    assert one is None  # one alternative cannot tell two choices apart


def test_a_server_that_gives_no_log_probs_weighs_nothing() -> None:
    with Server(byte_lm(), log_probs=False) as server:
        writer = ServerWriter(remote(server))
        assert writer.weigh(PROMPT, YES_OR_NO) is None
        assert writer.drain() == []


def test_a_server_keeps_what_arrived_when_it_fails() -> None:
    with Server(byte_lm()) as server:
        writer = ServerWriter(remote(server, retries=0), most=6, seed=5)
        first = writer.write(PROMPT, 12, samples=2, drawn=True)
        assert [request["max_tokens"] for request in server.requests[-2:]] == [6, 6]
        assert sorted(request["seed"] for request in server.requests[-2:]) == [5, 6]
        server.faults.append(status(500))
        with pytest.raises(RemoteError, match="500") as error:
            writer.write(PROMPT, 12)
    assert [reply.text for reply in error.value.replies] == first
    [call] = writer.drain()
    assert call.tokens == (UNKNOWN,) * 12
    assert writer.encode("a few words") == [UNKNOWN] * 3


def test_a_function_answers_and_words_are_counted() -> None:
    writer = TextWriter(lambda prompt: "it is " + prompt.lower(), lambda _: "drawn")
    assert writer.write("Ada Byron", 1) == ["it is ada byron"]
    assert writer.write("Ada", 1, samples=2, drawn=True) == ["drawn"] * 2
    assert [(call.read, len(call.tokens)) for call in writer.drain()] == [(2, 4), (1, 2)]
    assert writer.weigh("Ada", YES_OR_NO) is None
    assert writer.vocabulary is None
