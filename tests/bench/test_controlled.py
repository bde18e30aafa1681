"""HyPER behind a recorded warm-up is HyPER, and its table at equal tokens is what its pools say."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
from families import build, byte_tokenizer

from ramify.api import prepare
from ramify.bench.controlled import Controllers
from ramify.bench.kept import Pooled
from ramify.bench.recipes import hyper_reasoner
from ramify.bench.recipes.hyper_reasoner import BY_HAND, scaled, variants
from ramify.bench.recorded import replay
from ramify.bench.steered import steer
from ramify.bench.study import Study
from ramify.bench.tasks import Task
from ramify.engine.events import Grown, Refined
from ramify.engine.search import search
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import ACTIONS, BRANCH, NONE, SINGLE, HyperRec, Standing, State, choose
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import CausalLM, load

SMALL = HyPER(length_sign=1, interval=4, warmup=4, limit=14, rec=HyperRec(agree=2.0, start=4))
ENDS = list(range(40, 52))
TASKS = [Task("1", "2+2?", "2+2?", "4"), Task("2", "1+1?", "1+1?", "2")]


@functools.cache
def mixture() -> CausalLM:
    return load(build("qwen3_moe", vocab_size=258, pad_token_id=256), tokenizer=byte_tokenizer())


def asked(method: Any, seed: int) -> Any:
    [request] = prepare(
        mixture(), ["once upon"], method, max_new_tokens=24, seed=seed, eos_token_id=ENDS, do_sample=True,
        answer=lambda text: text[-1:] or None,
    )  # fmt: skip
    return request


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("options", [{}, {"random": (0.1, 0.3, 0.4, 0.2), "noise": 2.0}, {"prune": False}])
def test_a_recorded_warm_up_changes_nothing(seed: int, options: dict[str, Any]) -> None:
    method = replace(SMALL, **options)
    request = asked(SelfConsistency(8), seed)
    plain = SelfConsistency(8).policy(mixture(), request)
    events = list(search(mixture(), request, plain))
    record = sorted(events[-3].paths, key=lambda path: path.number)
    request = asked(method, seed)
    events = list(search(mixture(), request, method.policy(mixture(), request)))
    found = steer(mixture(), asked(method, seed), method, record)
    decided = sorted(events[-3].paths, key=lambda path: path.number)
    assert [path.tokens for path in found.paths] == [path.tokens for path in decided]
    spent = sum(len(event.tokens) for event in events if isinstance(event, Grown))
    spent += sum(len(event.paths) * (1 + event.routes) for event in events if isinstance(event, Refined))
    assert found.spent == spent
    assert [p.finish for p in found.paths] == [p.finish for p in decided]


@pytest.mark.parametrize("prune", [True, False])
def test_without_actions_a_record_tells_all(prune: bool) -> None:
    method = replace(SMALL, actions=(NONE,), prune=prune)
    for seed in range(3):
        request = asked(SelfConsistency(8), seed)
        events = list(search(mixture(), request, SelfConsistency(8).policy(mixture(), request)))
        record = sorted(events[-3].paths, key=lambda path: path.number)
        live = steer(mixture(), asked(method, seed), method, record)
        found = replay(record, method.policy(mixture(), asked(method, seed)))
        assert [path.tokens for path in found.ended] == [path.tokens for path in live.paths if path.complete]
        assert found.tokens == live.spent


def test_sizes_for_short_texts() -> None:
    method = scaled(37, -1)
    assert (method.length_sign, method.interval, method.warmup, method.limit) == (-1, 5, 8, 40)
    assert (method.rec.start, method.rec.stretch, method.rec.window) == (8, 5, 2)
    assert scaled(3, 1).interval == 2


def test_the_schedule_by_hand() -> None:
    rec = replace(HyperRec(), **BY_HAND)
    for progress, action in ((0.1, BRANCH), (0.3, BRANCH), (0.5, NONE), (0.7, SINGLE), (1.0, SINGLE)):
        for confidence in (0.0, 1.0):
            assert choose(State(progress, 0.5, 8, 40), [Standing(confidence, 0.5)], ACTIONS, rec) == [action]


def test_variants_leave_out_one_part_each() -> None:
    found = variants(SMALL, (0.7, 0.1, 0.1, 0.1))
    assert found["hyper"] == SMALL
    assert [name for name, method in found.items() if not method.prune] == [
        "without pruning",
        "without action and pruning",
    ]
    for part in ACTIONS[1:]:
        assert part not in found[f"without {part}"].actions
        assert len(found[f"without {part}"].actions) == 3
    assert variants(SMALL, (0.5, 0.5, 0.0, 0.0))["without branch"] == SMALL


def test_the_table(tmp_path: File) -> None:
    study = Study(mixture(), TASKS, 1.0, 10)
    records = study.record(8, 2, 0, tmp_path)
    controllers = Controllers(study, records, 8, 0, tmp_path)
    pools = controllers.pools("hyper", SMALL)
    none = replace(SMALL, actions=(NONE,), prune=False, weights=(0.0, 0.0), top_votes=False)
    rows = {row["decoding"]: row for row in controllers.rows({"hyper": SMALL, "again": SMALL, "none": none})}
    assert not (tmp_path / "again-seed-0.npz").exists()
    assert rows["again"] == rows["hyper"] | {"decoding": "again"}
    assert rows["self-consistency, 8"]["tokens"] == rows["none"]["tokens"] == 80
    assert rows["none"]["of SC's"] == "1.00"
    assert rows["none"]["− SC at equal tokens"] == "+0.0 ± 0.0"
    assert sum(controllers.shares(pools)) == pytest.approx(1)
    assert controllers.shares([[Pooled([], 0)]]) == (1.0, 0.0, 0.0, 0.0)
    taken = controllers.taken(pools)
    assert [row["phase"] for row in taken] == ["explore", "balance", "exploit"]
    assert sum(row["decisions a question"] for row in taken) > 0
    votes = controllers.revoted(pools, hyper_reasoner.rules(1))
    assert votes[0]["over the majority"] == "+0.0 ± 0.0"
    assert (tmp_path / "hyper-seed-1.npz").exists()


def test_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyper_reasoner, "calibrate_length", lambda pools: 1)
    outcome = hyper_reasoner.run(questions=1, seeds=1, ablated=1, held_out=1, max_new_tokens=9)
    assert [len(table.rows) for table in outcome.tables][:3] == [13, 6 + 3, 6 + 9]
    assert outcome.tables[0].rows[0]["N = 32"].endswith("(+0.0 ± 0.0)")
    assert "length_sign +1" in outcome.notes[0]
