"""Recorded pools tell what live ones would have done; the table of the search benchmark."""

from __future__ import annotations

from typing import Any

import pytest
from families import byte_lm

import ramify
from ramify.bench.recipes.search import LIVE, curve, row, rules
from ramify.bench.recorded import replay
from ramify.bench.study import Scored
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.methods.base import SearchMethod
from ramify.methods.options import build_specs
from ramify.methods.search.deepconf import DeepConf
from ramify.methods.search.self_consistency import SelfConsistency

PROMPT = "one and one is"
PATHS, WINDOW = 8, 4


def letter(text: str) -> str | None:
    """One of three answers, or none: random text agrees on it now and then."""
    return ("a", "b", "c", None)[sum(map(ord, text)) % 4]


def ask(method: Any, seed: int) -> Result:
    result = ramify.generate(byte_lm(), PROMPT, method, answer=letter, seed=seed, max_new_tokens=16, do_sample=True)
    assert isinstance(result, Result)
    return result


def record(seed: int) -> list[Path]:
    return sorted(ask(SelfConsistency(PATHS), seed).paths, key=lambda path: path.number)


@pytest.mark.parametrize(
    ("name", "method"), rules(PATHS, WINDOW), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_replay_is_what_the_method_does(name: str, method: SearchMethod) -> None:
    for seed in (0, 5):
        live = ask(method, seed)
        found = replay(record(seed), method.policy(byte_lm(), Request(byte_lm().encode(PROMPT), 99)))
        assert found.answer == live.answer
        assert found.tokens == live.cost.generated_tokens
        ended = {path.number: path.tokens for path in live.paths if path.complete}
        assert {path.number: path.tokens for path in found.ended} == ended


def test_a_budget_cuts_a_replay_too() -> None:
    found = replay(record(0), SelfConsistency(PATHS).policy(byte_lm(), Request([1], 9)), budget=20)
    assert found == (type(found))(None, 24, ())


def test_a_policy_that_wants_more_paths_than_there_are() -> None:
    with pytest.raises(ramify.RamifyError, match="8 paths were recorded, and the policy asks for more"):
        replay(record(0), DeepConf(9, online=False).policy(byte_lm(), Request([1], 9)))


def test_rows_and_curves() -> None:
    base, other = Scored([0.0, 1.0], [10, 30], [1, 1]), Scored([1.0, 1.0], [5, 15], [1, 1])
    line = row("m, 2 paths", other, base, [Scored([0.0, 0.0], [5, 5], [1, 1]), base])
    assert line["tokens"] == 10
    assert line["of SC's tokens"] == "0.50"
    assert line["difference"].startswith("+50.0 ±")
    assert line["at equal tokens"].startswith("+83.3 ±")  # a third of the way from none to half of them
    assert row("m, 2 paths", other, base, [base])["at equal tokens"] == ""
    found = curve([("m, 2 paths", other), ("m, 4 paths", base), ("greedy", base)])
    assert found == {"m": [(10, 1.0), (20, 0.5)], "greedy": [(20, 0.5)]}


def test_the_methods_that_run_by_themselves_can_be_built() -> None:
    assert len(build_specs(",".join(LIVE))) == len(LIVE) == 8
