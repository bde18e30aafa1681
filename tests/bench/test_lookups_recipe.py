"""The comparison of lookups measures what its labels say, by the drafter's own CPU time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from families import lm, text

import ramify.bench.recipes.lookups as lookups
from ramify.api import generate
from ramify.bench.recipes.lookups import Timed, Total, measure, variants
from ramify.errors import RamifyError
from ramify.methods.draft.lookahead import Lookahead
from ramify.methods.draft.sam import SAMDecoding
from ramify.methods.draft.static_automaton import StaticAutomaton
from ramify.methods.draft.suffix_decoding import SuffixDecoding
from ramify.methods.draft.token_recycling import TokenRecycling

CORPUS = StaticAutomaton.build([[1, 2, 3]], 9)


def test_labels_tell_the_options():
    for label, method in variants(CORPUS).items():
        size = getattr(method, "length", None)
        assert size is not None or isinstance(method, Lookahead | TokenRecycling), "no clock may decide a size"
        if isinstance(method, Lookahead):
            assert f"(N {method.ngram}, W {method.window}, G {method.guesses})" in label
            assert ("moved" in label) == (method.advance == "accepted")
            assert ("seeded" in label) == method.seed_from_prompt
            assert not method.sized
        elif isinstance(method, SAMDecoding):
            assert ("corpus" in label) == (method.corpus is CORPUS)
            assert ("alone" in label) == (method.auxiliary is None)
            assert ("bias 0" in label) == (method.bias == 0)
        elif isinstance(method, SuffixDecoding):
            assert method.mode in label
            assert ("factor 4" in label) == (method.factor == 4.0)
            assert ("this request only" in label) == (method.requests == 0)
        elif isinstance(method, TokenRecycling):
            assert f"({method.nodes} nodes)" in label
        else:
            assert f"{size} tokens" in label


def test_rows_are_sums_over_calls(monkeypatch: pytest.MonkeyPatch):
    def fake(lm: Any, method: Any, prompts: int, new: int, seed: int, **settings: Any) -> Total:
        return Total(tokens=10 * (seed + 1), calls=10, drafted=40, accepted=10, drafting=0.02 + seed, learning=0.01)

    monkeypatch.setattr(lookups, "load", lambda *_, **__: SimpleNamespace(name="mock", dtype="torch.float32"))
    monkeypatch.setattr(lookups, "corpus", lambda *_: CORPUS)
    monkeypatch.setattr(lookups, "measure", fake)
    [table] = lookups.run(seed=1, seeds=2, prompts=3, max_new_tokens=4, only="sam", timed=False).tables
    assert table.title == "Tokens per target call, mock, float32, 3 held-out prompts × 4 tokens"
    assert [row["method"] for row in table.rows] == [label for label in variants(CORPUS) if label.startswith("sam")]
    assert list(table.rows[0].values())[1:] == [2.0, 2.5, 2.0, 3.0, 4.0, "25%", pytest.approx(102.0), 1.0]
    with pytest.raises(RamifyError, match="no variant begins with 'sma'"):
        lookups.run(only="sma")


def test_what_is_measured_is_what_generate_does(monkeypatch: pytest.MonkeyPatch):
    prompts: Any = [SimpleNamespace(text=text(12, seed, period=5)) for seed in (1, 2)]
    monkeypatch.setattr(lookups, "held_out_prompts", lambda count: prompts[:count])
    method = SuffixDecoding(length=9)
    total = measure(lm("llama"), method, 2, 20, 3, do_sample=True, temperature=0.7)
    again = SuffixDecoding(length=9)
    results = [
        generate(lm("llama"), prompt.text, again, max_new_tokens=20, seed=3000 + i, do_sample=True, temperature=0.7)
        for i, prompt in enumerate(prompts)
    ]
    assert total.tokens == 40
    assert total.calls == sum(result.stats.target_calls for result in results)
    assert total.drafted == sum(result.stats.drafted for result in results) > 0
    assert total.accepted == sum(result.stats.accepted for result in results)
    assert measure(lm("llama"), method, 2, 20, 3, do_sample=True, temperature=0.7).calls == total.calls  # forgotten


def test_what_is_timed_takes_turns_with_plain_decoding(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(lookups, "compare", lambda *given, **settings: asked.append((*given, settings)))
    monkeypatch.setattr(lookups, "rows_of", lambda _: [{"method": "x"}])
    model: Any = SimpleNamespace(name="mock", dtype="torch.bfloat16", how="fused")
    greedy, sampled = lookups.speeds(model, 2, 9, 1, 0.5)
    assert "bfloat16, fused: greedy" in greedy.title
    assert "temperature 0.5" in sampled.title
    for (_, prompts, methods, settings), first in zip(asked, ("greedy", "sample"), strict=True):
        assert methods[0] == first
        assert [method.sized for method in methods[-4:]] == [False, True, False, True]
        assert len(prompts) == 2
        assert settings.get("do_sample", False) == (first == "sample")


def test_the_clock_is_that_of_the_own_thread(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([1.0, 1.5, 7.0, 7.25])
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    timed = Timed(lambda *numbers: sum(numbers))
    assert [timed(1, 2), timed(3)] == [3, 3]
    assert timed.seconds == 0.75
