"""The pool loop around a policy: streams, bills, and what happens when nothing comes out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from families import CONTEXT, VOCABULARY, lm

from ramify.engine.cost import Cost
from ramify.engine.events import Accepted, Decided, Finished, Noted
from ramify.engine.path import Path
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.search import Decision, Policy, search
from ramify.engine.speculate import speculate
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError

PROMPT = (3, 14, 15, 92, 65)


class Plain(Policy):
    """So many paths to their end; the first one counts."""

    def __init__(self, paths: int = 1) -> None:
        self.paths = paths

    def begin(self, pool: Pool) -> None:
        pool.start(self.paths)

    def decide(self, pool: Pool) -> Decision:
        return Decision(pool.ended, pool.ended[0].answer)


class Settling(Plain):
    def reduce(self, pool: Pool) -> None:
        if pool.step % 3 == 0:
            pool.settle(pool.paths[0])


class Ruthless(Plain):
    def reduce(self, pool: Pool) -> None:
        if pool.step == 2:
            for path in list(pool.live):
                pool.prune(path, "confidence")


class Idle(Plain):
    def expand(self, pool: Pool) -> Sequence[Choice]:
        return []


def request(new: int = 12, prompt: Sequence[int] = PROMPT) -> Request:
    return Request(prompt, len(prompt) + new, Sampler(greedy=False, noise=Noise(5)))


def accepted(events: list) -> list[int]:
    return [token for event in events if isinstance(event, Accepted) for token in event.tokens]


def test_one_path_is_plain_sampling() -> None:
    plain = list(speculate(lm("llama"), [request()]))
    assert accepted(list(search(lm("llama"), request(), Plain()))) == accepted(plain)
    assert accepted(list(search(lm("llama"), request(), Plain(5)))) == accepted(plain)


def test_settled_text_is_given_out_once() -> None:
    events = list(search(lm("llama"), request(), Settling()))
    assert [len(event.tokens) for event in events if isinstance(event, Accepted)] == [3, 3, 3, 3, 0]
    assert accepted(events) == accepted(list(search(lm("llama"), request(), Plain())))


def test_the_bill() -> None:
    events = list(search(lm("llama"), request(), Plain(4)))
    cost = Cost.of(events, 0, wall=2.0)
    # The last token of a path is not scored.
    assert cost == Cost(5, 48, 12, 13, 44, 0, 5 + 4 * (5 + 11), 2.0)
    assert Cost.of(events, 1) == Cost()
    plain = Cost.of(list(speculate(lm("llama"), [request()])), 0)
    assert (plain.prompt_tokens, plain.generated_tokens, plain.kept_tokens) == (5, 12, 12)
    assert plain.peak_cache_tokens == 17


def test_all_paths_pruned() -> None:
    events = list(search(lm("llama"), request(), Ruthless(3)))
    [note] = [event for event in events if isinstance(event, Noted)]
    assert note.text == "none of 3 paths came to its end (all of them were pruned); the longest one is given as it is"
    [decided] = [event for event in events if isinstance(event, Decided)]
    assert decided.answer is None
    assert [path.number for path in decided.paths] == [0, 1, 2]
    assert [event.reason for event in events if isinstance(event, Finished)] == ["confidence"]
    assert len(accepted(events)) == 2


def test_a_budget_smaller_than_a_path() -> None:
    events = list(search(lm("llama"), request(), Plain(3), budget=7))
    [note] = [event for event in events if isinstance(event, Noted)]
    assert "none of 3 paths came to its end (budget)" in note.text
    assert Cost.of(events, 0).generated_tokens == 9
    with pytest.raises(RamifyError, match="the budget is 0 tokens; give at least 1, or none"):
        list(search(lm("llama"), request(), Plain(), budget=0))


def test_no_answer_in_any_path() -> None:
    def nothing(text: str) -> str | None:
        return None

    asked = Request(PROMPT, 9, Sampler(greedy=False), answer=nothing)
    notes = [event.text for event in search(lm("llama"), asked, Plain(2)) if isinstance(event, Noted)]
    assert notes == ["no answer could be parsed from any of 2 finished paths; look at their texts"]


def test_bad_calls() -> None:
    with pytest.raises(RamifyError, match="Idle lets all of its 2 paths wait; one has to grow"):
        list(search(lm("llama"), request(), Idle(2)))
    with pytest.raises(RamifyError, match="the prompt is empty"):
        list(search(lm("llama"), request(prompt=()), Plain()))
    with pytest.raises(RamifyError, match="do not fit the context"):
        list(search(lm("llama"), request(CONTEXT), Plain()))
    with pytest.raises(RamifyError, match=f"token {VOCABULARY} is outside the vocabulary"):
        list(search(lm("llama"), request(prompt=(VOCABULARY,)), Plain()))
    with pytest.raises(RamifyError, match="several paths at once"):
        list(search(lm("mamba"), request(), Plain(2)))


def test_a_path_knows_its_means() -> None:
    path = Path(log_probs=[-1.0, -2.0], confidences=[3.0, 5.0], finish="length")
    assert (path.mean_log_prob, path.confidence, path.complete, len(path)) == (-1.5, 4.0, True, 0)
    assert (Path().mean_log_prob, Path(finish="confidence").complete) == (0.0, False)
