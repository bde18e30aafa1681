"""The comparison: order of the calls, arithmetic, failures, views; then a small real model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import ramify.api
from ramify.bench.compare import compare, labels
from ramify.bench.measure import Trial
from ramify.bench.prompts import Prompt
from ramify.bench.rows import Spread, divergence, summarise
from ramify.engine.events import Accepted, Drafted, Finished, Scored
from ramify.engine.result import Result, Stats
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError


@dataclass(frozen=True)
class Fake:
    """Commits ``per_call`` tokens a call; ``wrong`` changes one token; ``fails`` names a prompt that it refuses."""

    per_call: int = 1
    wrong: int | None = None
    fails: str = ""
    card = SimpleNamespace(name="fake", lossless=True)
    prepares = False


def fake_result(method: Fake, new: int = 12) -> Result:
    tokens = [100 + i if i != method.wrong else 7 for i in range(new)]
    events: list[Any] = []
    for step, start in enumerate(range(0, new, method.per_call)):
        part = tokens[start : start + method.per_call]
        if method.per_call > 1:
            tree = TokenTree.from_paths([part[:-1], [part[0], 5], [9]])
            events.append(Drafted(0, step, tree, 0.001))
        events += [Scored(step, (0,), 1, 0.001), Accepted(0, step, tuple(range(len(part) - 1)), tuple(part), 0.0)]
    events.append(Finished(0, len(events), "length"))
    return Result("text", tokens, [1, 2], "length", Stats.of(events, 0), events)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every call of ``generate``, in order: (method object, prompt, seed)."""
    made: list[tuple[Any, ...]] = []

    def generate(lm: Any, prompt: str, method: Fake, *, seed: int, **settings: Any) -> Result:
        made.append((method, prompt, seed))
        if method.fails and method.fails in prompt:
            raise RamifyError("this prompt is refused")
        return fake_result(method)

    monkeypatch.setattr(ramify.api, "generate", generate)
    return made


@pytest.fixture
def lm() -> SimpleNamespace:
    return SimpleNamespace(
        name="mock", device=torch.device("cpu"), dtype=torch.float32, how="fused, plain weights", tokenizer=None
    )


def test_methods_take_turns_with_fresh_copies_and_shared_seeds(calls: list[Any], lm: Any) -> None:
    methods = [Fake(), Fake(per_call=3)]
    heard: list[tuple[int, int]] = []
    compare(lm, ["a", "b"], methods, repeats=2, seed=5, progress=lambda done, total, _: heard.append((done, total)))
    kinds = [(call[0].per_call, call[1], call[2]) for call in calls]
    turn = [(1, "a", 5), (3, "a", 5), (1, "b", 6), (3, "b", 6)]
    assert kinds == turn[:2] + turn + turn
    first, second = {id(call[0]) for call in calls[2:6]}, {id(call[0]) for call in calls[6:]}
    assert len(first) == len(second) == 2
    assert not first & second
    assert not {id(method) for method in methods} & (first | second)
    assert heard == [(i, 10) for i in range(11)]


def test_counters_divergence_and_histogram(calls: list[Any], lm: Any) -> None:
    plain, fast, other = compare(lm, ["a", "b"], [Fake(), Fake(per_call=3), Fake(per_call=4, wrong=6)]).rows
    assert (plain.mat, fast.mat, other.mat) == (1.0, 3.0, 4.0)
    assert (fast.tokens, fast.target_calls, fast.drafted, fast.accepted) == (24, 8, 32, 16)
    assert fast.accepted_lengths == {3: 8}
    assert (fast.identical, fast.compared, other.identical) == (2, 2, 0)
    assert [outcome.divergence for outcome in other.outcomes] == [6, 6]
    assert fast.memory > 1e6
    assert plain.ratio == Spread(1.0, 1.0, 1.0)


def trial(tokens: list[int], wall: float, cpu: float) -> Trial:
    return Trial(Result("", tokens, [], "length", Stats(), []), wall, cpu, 10)


def test_ratio_is_taken_within_each_repeat_on_prompts_that_both_answered() -> None:
    prompts = [Prompt("a", "", "x"), Prompt("b", "", "y")]
    slow = [[trial([1] * 10, 2.0, 4.0), trial([1] * 10, 3.0, 4.0)], [trial([1] * 10, 4.0, 4.0), None]]
    fast = [[trial([1] * 10, 1.0, 1.0), trial([1] * 20, 1.5, 3.0)], [trial([1] * 10, 1.0, 2.0), trial([1] * 10, 9, 9)]]
    row = summarise("fast", "fast", True, prompts, fast, slow, {})
    # repeat 1: (30 / 2.5) / (20 / 5) = 3; repeat 2, prompt a alone: (10 / 1) / (10 / 4) = 4
    assert row.ratio == Spread(3.5, 3.0, 4.0)
    assert row.cpu_ratio == Spread(2.5, 2.0, 3.0)  # (30 / 4) / (20 / 8) = 3 and 4 / 2 = 2
    assert row.group_ratios == {"x": Spread(3.0, 2.0, 4.0), "y": Spread(4.0, 4.0, 4.0)}
    assert row.tokens_per_second == pytest.approx(50 / 12.5)
    assert row.shares is None
    assert row.mat is None


def test_failure_is_recorded_and_the_rest_goes_on(calls: list[Any], lm: Any) -> None:
    found = compare(lm, ["bad", "good"], [Fake(), Fake(per_call=2, fails="bad")], repeats=1)
    assert found.problems == ["fake(per_call=2, fails='bad'), prompt 1: this prompt is refused"]
    row = found.rows[1]
    assert (row.identical, row.compared) == (1, 1)
    assert row.ratio is not None
    nothing = compare(lm, ["bad"], [Fake(), Fake(fails="bad")], repeats=1)
    assert nothing.rows[1].ratio is None
    assert "every prompt" in nothing.problems[0]
    nothing.show(Console(file=StringIO()))


def test_bad_requests(calls: list[Any], lm: Any) -> None:
    with pytest.raises(RamifyError, match="at least one prompt"):
        compare(lm, [], [Fake()])
    with pytest.raises(RamifyError, match="at least 1"):
        compare(lm, ["a"], [Fake()], repeats=0)
    with pytest.raises(RamifyError, match="did you mean 'greedy'"):
        compare(lm, ["a"], ["gredy"])
    assert not calls


def test_labels_show_other_than_default_options() -> None:
    assert labels([Fake(), Fake(), Fake(per_call=2)]) == ["fake", "fake #2", "fake(per_call=2)"]  # type: ignore[list-item]


def test_divergence_is_the_number_of_equal_tokens() -> None:
    assert divergence([1, 2], [1, 2]) is None
    assert divergence([1, 2], [1, 3]) == 1
    assert divergence([1, 2], [1, 2, 3]) == 2


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_table_fits_and_json_round_trips(calls: list[Any], lm: Any, width: int) -> None:
    found = compare(lm, ["a"], [Fake(), Fake(per_call=3, wrong=4)], repeats=1)
    out = StringIO()
    found.show(Console(file=out, width=width))
    assert all(len(line) <= width for line in out.getvalue().splitlines())
    assert "fake(per_call" in out.getvalue()
    assert "0 of 1" in out.getvalue()
    assert "after 4 tokens" in " ".join(out.getvalue().split())
    read = json.loads(found.to_json())
    assert read["rows"][1]["outcomes"][0]["divergence"] == 4
    assert read["settings"]["max_new_tokens"] == 128


def test_a_real_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from ramify.models.causal import load

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    lm = load(LlamaForCausalLM(config), tokenizer=_Letters())
    found = compare(lm, ["abcabcabc", "xyz"], ["greedy", "prompt-lookup"], max_new_tokens=24, repeats=2)
    assert not found.problems
    greedy, lookup = found.rows
    assert greedy.tokens == lookup.tokens == 48
    assert lookup.identical == lookup.compared == 2
    assert greedy.mat == 1.0
    assert sum(length * count for length, count in lookup.accepted_lengths.items()) == 48
    assert greedy.off_share == 1.0
    assert greedy.acceptance_by_depth == []
    assert lookup.off_share is not None
    calls = (1.0 - lookup.off_share) * lookup.target_calls
    assert sum(lookup.acceptance_by_depth) * calls == pytest.approx(lookup.accepted)
    assert greedy.shares is not None
    assert sum(greedy.shares.values()) == pytest.approx(1, abs=0.02)
    assert sum(len(step.committed) for step in found.steps[1][0]) == 24


class _Letters:
    """A tokenizer of single letters."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 64 for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(64 + int(i)) for i in ids)


def test_what_a_head_lays_out_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repeat has a fresh copy of the method, whose matrices are there before the first call."""
    import heads
    from families import byte_lm

    import ramify.methods.draft.eagle as place

    model, inside, made = byte_lm(), [False], [0]

    class Watched(place.Continuer):
        def __init__(self, *given: Any) -> None:
            assert not inside[0]
            made[0] += 1
            super().__init__(*given)

    generate = ramify.api.generate

    def timed(*given: Any, **settings: Any) -> Any:
        inside[0] = True
        try:
            return generate(*given, **settings)
        finally:
            inside[0] = False

    monkeypatch.setattr(place, "Continuer", Watched)
    monkeypatch.setattr(ramify.api, "generate", timed)
    method = place.Eagle(head=heads.eagle(model), nodes=4)
    found = compare(model, ["abcabc", "xyz"], ["greedy", method], max_new_tokens=6, repeats=2)
    assert not found.problems
    assert made[0] == 3  # the warm-up and two repeats
