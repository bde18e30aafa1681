"""The recipes of CNTP and HyPER: what they call a claim that holds, and a run of each on an untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.bench.recipes import cntp, hyper
from ramify.bench.sums import accuracy, confident_in, error_of, sampled_pools, sum_model, sum_tasks
from ramify.engine.path import Path as Route
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    from transformers import AutoTokenizer

    from ramify.train.reasoner import build, train_tokenizer
    from ramify.train.recipes.sum_model import CONFIG

    folder: Path = tmp_path_factory.mktemp("sums")
    train_tokenizer(CONFIG, folder)
    torch.manual_seed(0)
    build(CONFIG, AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return sum_model(str(folder), 0)


def row(name: str, share: float, tokens: float) -> dict[str, Any]:
    return {"decoding": name, "accuracy": share, "tokens": tokens}


def test_the_measurement_before_holds() -> None:
    rows = [row(name, *before) for name, before in cntp.BEFORE.items()]
    curve = [row("", 0.457, 11.5), row("", 0.707, 47), row("", 0.83, 93)]
    found = cntp.claims(rows, curve)
    assert [each["holds"] for each in found] == ["yes"] * 4
    assert found[2]["found"] == pytest.approx(0.927 - 0.707)
    weak = [each | {"accuracy": 0.6} if each["decoding"] == "cntp" else each for each in rows]
    assert [each["holds"] for each in cntp.claims(weak, curve)] == ["no", "no", "no", "yes"]


def path(number: int, length: int, confidence: float, answer: str | None) -> Route:
    return Route(number, tokens=[1] * length, confidences=[confidence] * length, answer=answer, finish="stop")


def test_votes_and_their_claims() -> None:
    questions = sum_tasks(6, 0)
    pools = [[path(k, 19 if k % 2 else 5, 5.0, q.answer if k % 2 else f"{k}") for k in range(16)] for q in questions]
    rows = {each["rule"]: each for each in hyper.votes(questions, pools)}
    assert rows["one path"]["N = 4"] == 0.5
    assert rows["majority"]["N = 16"] == 1.0
    assert rows["any path is right"]["N = 4"] == 1.0
    assert rows["length and confidence, +1"]["N = 4"] == 1.0
    assert rows["the top quarter of them, −1"]["N = 16"] == 0.0
    found = hyper.claims(questions, pools, -1)
    assert found[0]["holds"] == "no"
    assert len(found) == 6


def test_accuracy_and_its_error() -> None:
    questions = sum_tasks(4, 0)
    assert accuracy(questions, [questions[0].answer, None, "1", f"D{questions[3].answer}."]) == 0.5
    assert error_of(0.5, 100) == 0.05
    with pytest.raises(RamifyError, match="no question"):
        accuracy([], [])


def test_confidence_of_fewer_tokens(untrained: CausalLM) -> None:
    [question] = sum_tasks(1, 0)
    [pool] = sampled_pools(untrained, [question], 3, 0, temperature=1.0)
    assert [each.number for each in pool] == [0, 1, 2]
    same = confident_in(untrained, question, pool, untrained.vocab_size // 2)
    for before, after in zip(pool, same, strict=True):
        assert after.confidences == pytest.approx(before.confidences, abs=1e-4)
        assert after.tokens == before.tokens
    few = confident_in(untrained, question, pool, 3)
    assert few[0].confidences[0] < pool[0].confidences[0]


def test_a_run_of_cntp(untrained: CausalLM) -> None:
    outcome = cntp.run(problems=1, model=untrained.name)
    table, claimed, trials = outcome.tables
    assert {each["decoding"] for each in table.rows} >= {*cntp.BEFORE, *cntp.VARIANTS}
    assert len(claimed.rows) == 4
    assert {each["decoding"] for each in trials.rows} == set(cntp.VARIANTS)


def test_a_run_of_the_controller(untrained: CausalLM) -> None:
    [question] = sum_tasks(1, 0)
    rows = hyper.controlled(untrained, [question], 1, 0)
    assert rows[0]["decoding"].startswith("hyper (none ")
    assert all(each["rows"] > 0 and 0 <= each["accuracy"] <= each["any finished path is right"] for each in rows)
