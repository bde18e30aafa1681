"""Other routes against plain sampling: nothing where nothing changes, and counted where it does."""

from __future__ import annotations

import pytest
from families import build, byte_tokenizer

from ramify.bench.recipes import routing_ensemble
from ramify.bench.recipes.routing_ensemble import cases
from ramify.bench.rerouted import rerouted, singly, unsure
from ramify.bench.tasks import Task
from ramify.engine.path import Path
from ramify.methods.search.routing_ensemble import RoutingEnsemble
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import load

TASKS = [Task("1", "2+2?", "2+2?", "4"), Task("2", "1+1?", "1+1?", "2")]


def test_rows_and_counts() -> None:
    lm = load(build("qwen3_moe", vocab_size=258, pad_token_id=256), tokenizer=byte_tokenizer())
    pools, read, changed = singly(lm, TASKS, RoutingEnsemble(tau=5.0, paths=3), 0, max_new_tokens=5)
    assert [len(paths) for paths in pools] == [3, 3]
    assert read == 1.0
    assert 0.2 < changed <= 1
    assert singly(lm, TASKS, SelfConsistency(3), 0, max_new_tokens=5)[1:] == (0.0, 0.0)
    still = RoutingEnsemble(tau=0.0, paths=3)
    plain, routed = rerouted(lm, TASKS, {"still": still}, 3, 0, max_new_tokens=5)
    assert routed["points over plain sampling"] == "+0.0 ± 0.0"
    assert routed["accuracy of one path"] == plain["accuracy of one path"]
    assert (plain["tokens read along them"], routed["tokens read along them"]) == ("0%", "100%")


def test_where_a_token_is_unsure() -> None:
    path = Path(entropies=[float(value) for value in range(101)])
    assert unsure([[path]]) == pytest.approx(10 + 0.8 * 80)


def test_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_ensemble, "HELD_OUT", 3)
    outcome = routing_ensemble.run(questions=2, paths=2, max_new_tokens=6, single=0.4, every=(0.2,))
    [table] = outcome.tables
    assert [row["routes"] for row in table.rows] == ["plain sampling", *cases((0.4,), (0.2,), 0.1, 2)]
    assert table.rows[2]["tokens read along them"] == "100%"
    assert table.rows[1]["tokens read along them"] != "100%"
