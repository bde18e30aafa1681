"""What rules are compared by: positions as they are fed, noise as it is asked for, quality as it is defined."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser

from ramify.bench.filled import agreement, fill, likelihood, list_tasks, share_right
from ramify.bench.parallelbench import symbols
from ramify.bench.recipes.ccd import FIXED, on_lists
from ramify.bench.recipes.learn2pd import _equal, _oracle
from ramify.methods.unmask.learn2pd import Learn2PD
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.threshold import Threshold
from ramify.models.causal import load
from ramify.models.masked import load_masked

PROMPTS = [[3, 14, 15], [9, 2, 6, 5, 35], [8]]


def test_positions_are_those_of_each_row_alone() -> None:
    lm = denoiser()
    for method in (Unmask(block=4), Unmask(block=4, cache="prefix"), Learn2PD(filter=None, block=4, cache="dual")):
        ends = frozenset(fill(lm, Unmask(block=4), PROMPTS, 8).texts[0][1:3])
        together = fill(lm, method, PROMPTS, 8, ends=ends)
        for row, prompt in enumerate(PROMPTS):
            alone = fill(lm, method, [prompt], 8, ends=ends)
            assert alone.texts == [together.texts[row]]
            assert (alone.steps, alone.positions) == ([together.steps[row]], [together.positions[row]])
        assert fill(lm, method, PROMPTS, 8, ends=ends, batch=2).positions == together.positions
    assert fill(lm, Unmask(), PROMPTS, 8).positions == [11 * 8, 13 * 8, 9 * 8]


def test_noise_is_in_the_choice_of_rule_and_word() -> None:
    lm, method = denoiser(), Threshold(gamma=0.9)
    clean = fill(lm, method, PROMPTS, 8)
    assert fill(lm, method, PROMPTS, 8, sigma=1e-6).texts == clean.texts
    noisy = fill(lm, method, PROMPTS, 8, sigma=5.0)
    assert noisy.texts != clean.texts
    assert fill(lm, method, PROMPTS, 8, sigma=5.0).texts == noisy.texts
    assert fill(lm, method, PROMPTS, 8, sigma=5.0, seed=1).texts != noisy.texts


def test_agreement_counts_what_is_missing() -> None:
    assert agreement([[1, 2, 3], [4]], [[1, 9, 3], [4]]) == 3 / 4
    assert agreement([[1, 2]], [[1, 2, 3, 4]]) == 1 / 2


def test_likelihood_is_the_models_own() -> None:
    lm = load("demo", dtype="float32")
    prompt, text = [5, 6, 7], [8, 9]
    with torch.no_grad():
        laws = lm.model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    expected = (laws[2, 8] + laws[3, 9]).item() / 2
    assert likelihood(lm, [prompt], [text]) == pytest.approx(expected, abs=1e-4)


def test_the_tables() -> None:
    lm = load_masked("list-model", dtype="float32")
    tasks = list_tasks(["copy", "shuffle"], 6, 0)
    answer = [*symbols.items_of(tasks["copy"][0]), symbols.EOS]
    assert share_right(tasks["copy"][:1], [answer]) == 1.0
    assert share_right(tasks["copy"][:1], [answer[1:]]) == 0.0
    plans = {"one": FIXED["entropy, one a step"], "ccd": FIXED["ccd, d = 2"]}
    for row in on_lists(lm, plans, tasks, 0.0, 0):
        assert row["copy"] >= 0.5
        assert row["steps, copy and reverse"] == row["steps, the others"] == 12
    plain = fill(lm, Unmask(), tasks["copy"].tolist(), symbols.ANSWER)
    bound = _oracle(lm, tasks["copy"], plain)
    assert 1 <= bound["steps"] < 12
    assert bound["agreement"] == 1.0
    rows = [
        {"decoding": "one a step", "share right": 0.9, "steps": 12.0},
        {"decoding": "threshold 0.5", "share right": 0.5, "steps": 2.0},
        {"decoding": "threshold 0.9", "share right": 0.897, "steps": 3.0},
        {"decoding": "threshold 0.99", "share right": 0.9, "steps": 4.0},
    ]
    assert [row["kind"] for row in _equal(rows)] == ["one a step", "threshold 0.9"]
