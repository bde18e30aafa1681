"""Paths that take a token at a time on a server: the texts that the same method writes here, and what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from families import byte_lm
from server import Server, status

import ramify
from ramify.engine.result import Result
from ramify.models.remote import RemoteLM

QUESTION = "one and one is"
TEXT = "{question}"
# Bytes that are no character by themselves, and special tokens, none of which can be sent back as text.
PIECES = [*range(128, 258)]
BEAMS: list[tuple[str, dict[str, Any]]] = [
    ("beam-search", {"num_beams": 4}),
    ("beam-search", {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never", "gamma": 0.2}),
    ("diverse-beam-search", {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.3}),
    ("diverse-beam-search", {"num_beams": 4, "diversity": "ngram", "schedule": "staggered"}),
    ("diverse-beam-search", {"num_beams": 4, "diversity": "cumulative", "distinct": True}),
]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(byte_lm(), **getattr(request, "param", {})) as running:
        yield running


@dataclass
class Table(Server):
    """Tells a table's laws: for the end of a prompt, the next tokens and their probabilities."""

    laws_of: dict[str, dict[str, float]] = field(default_factory=dict)
    ends: tuple[str, ...] = ("</s>",)
    silent: bool = False  # an end comes without log-probabilities

    def write(self, body: dict[str, Any], chat: bool, wanted: int) -> dict[str, Any]:
        law = next(law for end, law in self.laws_of.items() if body["prompt"].endswith(end))
        ranked = sorted(law.items(), key=lambda pair: -pair[1])[:wanted]
        first = ranked[0][0]
        text = "" if first in self.ends else first
        choice: dict[str, Any] = {"text": text, "finish_reason": "length" if text else "stop"}
        if text or not self.silent:
            tops = {name: math.log(share) for name, share in ranked}
            choice["logprobs"] = {"tokens": [first], "token_logprobs": [tops[first]], "top_logprobs": [tops]}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return {"choices": [choice], "usage": usage}


def remote(server: Server, **settings: Any) -> RemoteLM:
    return RemoteLM("tiny", server.url, **settings)


def solve(lm: Any, method: str, length: int = 6, **given: Any) -> Result:
    settings: dict[str, Any] = {"answer": str, "max_new_tokens": length, "template": TEXT, "seed": 3, **given}
    result = ramify.solve(lm, QUESTION, method, **settings)
    assert isinstance(result, Result)
    return result


@pytest.mark.parametrize("server", [{}, {"entries": True}, {"tempered": True}], indirect=True)
@pytest.mark.parametrize(("method", "options"), BEAMS)
def test_beams_are_the_same_here_and_there(server: Server, method: str, options: dict[str, Any]) -> None:
    here = solve(byte_lm(), method, options=options, suppress_tokens=PIECES)
    there = solve(remote(server), method, options=options)
    assert [path.text for path in there.paths] == [path.text for path in here.paths]
    assert [path.finish for path in there.paths] == [path.finish for path in here.paths]
    for mine, other in zip(there.paths, here.paths, strict=True):
        assert mine.score == pytest.approx(other.score, abs=1e-3)
        assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        if server.entries:  # in the other form, pieces of characters share a place
            assert mine.confidences == pytest.approx(other.confidences, abs=1e-4)
    assert there.cost.generated_tokens == here.cost.generated_tokens
    assert there.cost.prompt_tokens == here.cost.prompt_tokens
    assert "laws are those of the" in there.notes[0]


def test_a_text_that_several_paths_share_is_asked_for_once(server: Server) -> None:
    solve(remote(server, chat=False), "diverse-beam-search", options={"num_beams": 4, "diversity_penalty": 0.0})
    prompts = [request["prompt"] for request in server.requests if request["prompt"].startswith(QUESTION)]
    assert len(prompts) == len(set(prompts)) == 6  # four groups without a penalty write the same text


def test_sampled_paths_do_not_depend_on_what_else_is_asked(server: Server) -> None:
    options = {"chains": 1, "high": 4.0, "max_trials": 4}
    texts = []
    for concurrency in (1, 8):
        result = solve(remote(server, concurrency=concurrency), "cntp", 12, options=options, temperature=1.0)
        texts.append([path.text for path in result.paths])
        assert len(result.paths) > 1
    assert texts[0] == texts[1]
    three = solve(remote(server), "cntp", 5, options={"chains": 3, "max_trials": 1}, temperature=1.0)
    one = solve(remote(server), "cntp", 5, options={"chains": 1, "max_trials": 1}, temperature=1.0)
    assert {path.number: path.text for path in three.paths}[0] == one.text
    assert len({path.text for path in three.paths}) == 3


@pytest.mark.parametrize("server", [{"entries": True}], indirect=True)
def test_cautious_prediction_keeps_the_trial_of_the_lowest_perplexity(server: Server) -> None:
    result = solve(remote(server), "cntp", 8, options={"schedule": "fixed", "fixed_trials": 3}, temperature=0.7)
    trials = [path for path in result.paths if path.score]
    assert len(trials) >= 3
    first = [path for path in trials if path.start == 0]  # those of the first fork
    kept = [path for path in first if path.finish != "perplexity"]
    assert len(kept) == 1
    law = ramify.solve(
        byte_lm(), QUESTION, "cntp", options={"max_trials": 1}, max_new_tokens=1, temperature=0.7, template=TEXT,
        suppress_tokens=PIECES,
    ).paths[0]  # fmt: skip
    assert first[0].confidences[0] == pytest.approx(law.confidences[0], abs=1e-4)


LAWS = {
    QUESTION: {" two": 0.6, " three": 0.4},
    " two": {".": 0.5, "!": 0.3, "?": 0.2},
    " three": {"</s>": 0.95, ".": 0.05},
    ".": {"</s>": 1.0},
    "!": {"</s>": 1.0},
    "?": {"</s>": 1.0},
    "4": {" 5": 0.6, " 6": 0.3, " 7": 0.1},
}


@pytest.mark.parametrize("silent", [False, True])
def test_a_beam_finds_what_greedy_misses_and_ends_have_names(silent: bool) -> None:
    with Table(byte_lm(), laws_of=LAWS, silent=silent) as server:
        lm = remote(server, chat=False)
        options = {"length_penalty": 0.0, "early_stopping": "never"}
        one = solve(lm, "beam-search", options={"num_beams": 1, **options})
        two = solve(lm, "beam-search", options={"num_beams": 2, **options})
    assert (one.text, one.paths[0].finish) == (" two.", "stop")
    assert one.paths[0].score == pytest.approx(math.log(0.6 * 0.5))
    assert (two.text, two.paths[0].score) == (" three", pytest.approx(math.log(0.4 * (1.0 if silent else 0.95))))


def test_an_end_of_another_name_is_learnt_or_told() -> None:
    laws = {end: {name.replace("</s>", "<fin>"): share for name, share in law.items()} for end, law in LAWS.items()}
    with Table(byte_lm(), laws_of=laws, ends=("<fin>",)) as server:
        learnt = solve(remote(server, chat=False), "beam-search", options={"num_beams": 1})
        told = solve(remote(server, chat=False, ends=["<fin>"]), "beam-search", options={"num_beams": 1})
    assert learnt.text == told.text == " two."
    assert learnt.paths[0].finish == "stop"


def test_a_stop_text_is_cut_off() -> None:
    with Table(byte_lm(), laws_of=LAWS) as server:
        result = solve(remote(server, chat=False), "beam-search", options={"num_beams": 1}, stop="wo")
    assert (result.text, result.paths[0].finish) == (" t", "stop")


def test_the_budget_holds(server: Server) -> None:
    result = solve(remote(server), "beam-search", 20, options={"num_beams": 2, "budget": 9})
    assert 9 <= result.cost.generated_tokens <= 10
    assert "none of" in result.notes[-1]


def test_a_failure_keeps_what_had_ended() -> None:
    with Table(byte_lm(), laws_of=LAWS) as server:
        lm = remote(server, chat=False, retries=0, concurrency=1)
        assert lm.offers.text.log_probs
        server.faults.extend([None, None, None, status(500)])
        options = {"num_beams": 2, "length_penalty": 0.0, "early_stopping": "never"}
        result = solve(lm, "beam-search", options=options)
        assert result.text == " three"
        assert "the answer is that of the 1 paths that arrived before" in result.notes[-1]
        server.faults.append(status(500))
        with pytest.raises(ramify.RemoteError, match="500"):
            solve(lm, "beam-search", options=options)


@pytest.mark.parametrize(
    ("server", "message"),
    [({"text": False}, "is asked by chat; give a text"), ({"log_probs": False}, "gives no alternatives")],
    indirect=["server"],
)
def test_a_server_that_tells_no_next_tokens_is_refused(server: Server, message: str) -> None:
    with pytest.raises(ramify.RamifyError, match=message):
        solve(remote(server), "beam-search")


def test_a_chat_is_refused(server: Server) -> None:
    with pytest.raises(ramify.RamifyError, match="with the chat's template applied"):
        ramify.solve(remote(server), [{"role": "user", "content": "why?"}], "beam-search", max_new_tokens=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"temperature": -1.0}, "temperature is -1"), ({"top_p": 0.0}, "top_p is 0"), ({"length": -2}, "max_new_tokens")],
)
def test_settings_that_no_server_takes(server: Server, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ramify.RamifyError, match=message):
        solve(remote(server), "cntp", **given)


def test_names_that_are_not_what_is_written_are_refused() -> None:
    @dataclass
    class Stripped(Table):
        def write(self, body: dict[str, Any], chat: bool, wanted: int) -> dict[str, Any]:
            answer = super().write(body, chat, wanted)
            answer["choices"][0]["text"] = " " + answer["choices"][0]["text"]
            return answer

    with (
        Stripped(byte_lm(), laws_of=LAWS) as server,
        pytest.raises(ramify.RamifyError, match="calls a token ' two' and writes it '  two'"),
    ):
        solve(remote(server, chat=False), "beam-search")


def test_pieces_of_characters_are_passed_over() -> None:
    laws = {
        QUESTION: {"\N{REPLACEMENT CHARACTER}": 0.7, "a": 0.3},
        "a": {"\N{REPLACEMENT CHARACTER}": 1.0},
        "4": {"5": 0.6, "6": 0.4},
    }
    with Table(byte_lm(), laws_of=laws) as server:
        lm = remote(server, chat=False)
        assert solve(lm, "beam-search", 1, options={"num_beams": 1}).text == "a"
        with pytest.raises(ramify.RemoteError, match="pieces of a character"):
            solve(lm, "beam-search", 2, options={"num_beams": 1})
