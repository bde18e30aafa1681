"""Any history of forking, waiting, pruning and starting: every path is what a fresh forward pass says it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import VOCABULARY, fresh, lm
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.engine.events import Ended, Forked, Grown, Scored
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError

PROMPT = (3, 14, 15, 92, 65)


def request(new: int = 24, *, greedy: bool = False, seed: int = 7, processors: Any = (), **others: Any) -> Request:
    return Request(PROMPT, len(PROMPT) + new, Sampler(processors, greedy=greedy, noise=Noise(seed)), **others)


def law(family: str, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities behind every token of a text, from a fresh forward pass."""
    return torch.log_softmax(fresh(family, list(tokens)), dim=-1)


def check(family: str, pool: Pool) -> None:
    for path in pool.paths:
        if not path.tokens:
            continue
        logp = law(family, [*PROMPT, *path.tokens])[len(PROMPT) - 1 : -1]
        for place, token in enumerate(path.tokens):
            assert path.log_probs[place] == pytest.approx(float(logp[place, token]), abs=1e-4)
            top = -float(logp[place].topk(pool.top).values.mean())
            assert path.confidences[place] == pytest.approx(top, abs=1e-4)
            entropy = -float((logp[place].exp() * logp[place]).sum())
            assert path.entropies[place] == pytest.approx(entropy, abs=1e-4)
        if path.parent is not None:
            assert path.tokens[: path.start] == pool.paths[path.parent].tokens[: path.start]
    if pool.live:
        expected = torch.stack([law(family, [*PROMPT, *path.tokens])[-1] for path in pool.live])
        torch.testing.assert_close(pool.log_probs(pool.live), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "qwen3_moe"])
def test_any_history(family: str) -> None:
    @settings(deadline=None, max_examples=15, derandomize=True)
    @given(st.data())
    def history(data: st.DataObject) -> None:
        pool = Pool(lm(family), request(data.draw(st.integers(2, 12), "length")))
        pool.start(data.draw(st.integers(1, 4), "paths"))
        for _ in range(data.draw(st.integers(1, 8), "steps")):
            match data.draw(st.sampled_from(["fork", "prune", "start", "grow", "grow"]), "action"):
                case "fork" if pool.live:
                    pool.fork(data.draw(st.sampled_from(pool.live), "parent"))
                case "prune" if pool.live:
                    pool.prune(data.draw(st.sampled_from(pool.live), "pruned"), "unlucky")
                case "start":
                    pool.start(1)
                case _:
                    pass
            growing = [path for path in pool.live if data.draw(st.booleans(), "grows")]
            choices = pool.sample(growing) if growing else []
            if growing and data.draw(st.booleans(), "twice"):
                choices = [*choices, Choice(growing[0], data.draw(st.integers(0, VOCABULARY - 1), "token"))]
            if choices:
                pool.advance(choices)
            check(family, pool)
        assert pool.spent == sum(len(event.tokens) for event in pool.events if isinstance(event, Grown))
        assert {event.path for event in pool.events if isinstance(event, Forked)} == set(range(len(pool.paths)))
        ended = {event.path for event in pool.events if isinstance(event, Ended)}
        assert ended == {path.number for path in pool.paths if path.finish}

    history()


def test_a_path_does_not_depend_on_the_others() -> None:
    def run(count: int, prune: bool) -> list[list[int]]:
        pool = Pool(lm("llama"), request())
        pool.start(count)
        while pool.live:
            pool.advance(pool.sample(pool.live))
            if prune and pool.live and pool.step % 3 == 0:
                pool.prune(pool.live[-1], "unlucky")
        return [path.tokens for path in pool.paths]

    alone, many, fewer = run(1, False), run(8, False), run(8, True)
    assert many[0] == alone[0]
    assert len({tuple(tokens) for tokens in many}) == 8
    for whole, cut in zip(many, fewer, strict=True):
        assert cut == whole[: len(cut)]


def test_a_later_start_is_the_same_path() -> None:
    pool = Pool(lm("llama"), request(6))
    pool.start(2)
    while pool.live:
        pool.advance(pool.sample(pool.live))
    pool.start(1)
    while pool.live:
        pool.advance(pool.sample(pool.live))
    together = Pool(lm("llama"), request(6))
    together.start(3)
    while together.live:
        together.advance(together.sample(together.live))
    assert [path.tokens for path in pool.paths] == [path.tokens for path in together.paths]


def test_processors_see_every_path_by_itself() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

    processors = [RepetitionPenaltyLogitsProcessor(1.5), TemperatureLogitsWarper(0.7)]
    pool = Pool(lm("llama"), request(processors=processors))
    first, second, third = pool.start(3)
    pool.advance(pool.sample([first, second]))
    pool.advance(pool.sample([first, third]))
    pool.advance(pool.sample([first]))
    laws = pool.laws(pool.live)
    for path, found in zip(pool.live, laws, strict=True):
        ids = torch.tensor([[*PROMPT, *path.tokens]])
        scores = fresh("llama", ids[0].tolist())[-1][None].clone()
        for processor in processors:
            scores = processor(ids, scores)
        torch.testing.assert_close(found, scores.softmax(-1)[0], atol=1e-5, rtol=1e-4)
    drawn = pool.sample(pool.live)
    for choice, found in zip(drawn, laws, strict=True):
        assert choice.sampled_log_prob == pytest.approx(math.log(float(found[choice.token])), abs=1e-4)


def test_waiting_costs_nothing() -> None:
    pool = Pool(lm("llama"), request())
    first, *_ = pool.start(5)
    pool.drain()
    for _ in range(3):
        pool.advance(pool.sample([first]))
    assert [event.nodes for event in pool.drain() if isinstance(event, Scored)] == [1, 1, 1]


def test_a_fork_copies_no_other_row_and_memory_follows_the_live_paths() -> None:
    pool = Pool(lm("llama"), request(60))
    pool.start(9)
    pool.advance(pool.sample(pool.live))
    [layer, *_] = pool.session._cache.row_layers
    assert layer.keys is not None
    place, rows = layer.keys.data_ptr(), len(layer.keys)
    assert rows >= 10
    while len(pool.live) + 1 < rows:
        pool.fork(pool.live[0])
    pool.advance(pool.sample(pool.live))
    assert layer.keys.data_ptr() == place
    pool.fork(pool.live[3])
    pool.advance(pool.sample(pool.live))
    assert len(layer.keys) == 2 * rows
    for path in list(pool.live)[2:]:
        pool.prune(path, "unlucky")
    pool.advance(pool.sample(pool.live))
    assert len(layer.keys) == 3  # two paths and the prompt
    check("llama", pool)


def test_a_forbidden_token_is_not_drawn_and_the_law_is_normalised_again() -> None:
    pool = Pool(lm("llama"), request(greedy=True))
    [path] = pool.start(1)
    [best] = pool.sample([path])
    twin = pool.fork(path)
    [second] = pool.sample([twin], without={twin: best.token})
    assert second.token != best.token

    sampled = Pool(lm("llama"), request())
    [path] = sampled.start(1)
    found = sampled.laws([path])[0]
    likeliest = int(found.argmax())
    [choice] = sampled.sample([path], without={path: likeliest})
    rest = float(found[choice.token]) / (1 - float(found[likeliest]))
    assert choice.token != likeliest
    assert choice.sampled_log_prob == pytest.approx(math.log(rest), abs=1e-4)


def test_other_logits_change_the_draw_and_not_the_statistics() -> None:
    pool = Pool(lm("llama"), request(greedy=True))
    [path] = pool.start(1)
    entropy = pool.entropy(path)
    other = torch.zeros(VOCABULARY)
    other[17] = 9.0
    pool.set_logits(path, other)
    pool.advance(pool.sample([path]))
    assert path.tokens == [17]
    assert path.entropies == [entropy]
    assert path.log_probs[0] == pytest.approx(float(law("llama", PROMPT)[-1, 17]), abs=1e-4)


def test_a_budget_stops_the_pool() -> None:
    pool = Pool(lm("llama"), request(), budget=10)
    pool.start(4)
    while pool.live and not pool.stopped:
        pool.advance(pool.sample(pool.live))
    assert pool.stopped == "budget"
    assert pool.spent == 12


def test_the_end_of_a_path() -> None:
    likeliest = int(law("llama", PROMPT)[-1].argmax())
    pool = Pool(lm("llama"), request(5, greedy=True, stop_tokens=frozenset([likeliest])))
    stopped, other = pool.start(2)
    pool.advance([*pool.sample([stopped]), Choice(other, (likeliest + 1) % VOCABULARY)])
    assert (stopped.finish, other.finish) == ("stop", None)
    with pytest.raises(RamifyError, match=r"path 0 has ended \(stop\) and cannot grow"):
        pool.advance([Choice(stopped, 1)])
    while pool.live:
        pool.advance(Choice(path, (likeliest + 1) % VOCABULARY) for path in list(pool.live))
    assert other.finish == "length"
    assert len(other) == 5
    assert pool.ended == [stopped, other]


def test_one_path_on_a_model_whose_state_cannot_be_forked() -> None:
    pool = Pool(lm("mamba"), request(4))
    [path] = pool.start(1)
    while pool.live:
        pool.advance(pool.sample(pool.live))
    assert len(path) == 4
    pool = Pool(lm("mamba"), request(4))
    with pytest.raises(RamifyError, match="several paths at once"):
        pool.start(2)
