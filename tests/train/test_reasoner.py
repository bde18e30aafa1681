"""The reasoners: tokenizer, batches, noise on the routers, a whole small run, the bundled model."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import ramify
import ramify.train.reasoner_card as card
from ramify.bench.tasks import complete, draws, tasks
from ramify.errors import RamifyError
from ramify.models.causal import BUNDLED, load
from ramify.train.job import Job, trainer
from ramify.train.reasoner import ReasonerConfig, build, disturb, train_reasoner
from ramify.train.reasoner_data import GROUPS, IGNORED, Batches, tokens_seen, train_tokenizer
from ramify.train.recipes.sum_model import CONFIG as SUM
from ramify.train.trainer import TrainConfig

CONFIG = ReasonerConfig(
    vocab_size=400,
    hidden_size=16,
    expert_size=8,
    layers=2,
    heads=2,
    experts=4,
    context=240,
    batch=10,
    validation=3,
    train=TrainConfig(steps=3),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> Any:
    return AutoTokenizer.from_pretrained(place)


# ---------------------------------------------------------------- tokenizer


def test_nothing_merges_over_the_border_of_question_and_answer(tokenizer: Any):
    for task in itertools.islice(draws("test", 0), 60):
        prompt, answer = (tokenizer(text)["input_ids"] for text in (task.prompt, task.worked))
        whole = tokenizer(task.prompt + task.worked)["input_ids"]
        assert whole == prompt + answer
        assert tokenizer.decode(whole) == task.prompt + task.worked


def test_digits_are_single_and_words_are_not(tokenizer: Any):
    pieces = tokenizer.tokenize("Tom has 145 apples.\n14+18=32; 3*6=18. #### 32")
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == list("145141832361832")
    assert pieces[0] == "Tom"
    assert "Ġhas" in pieces
    assert tokenizer.decode(tokenizer("Ünïcode 木")["input_ids"]) == "Ünïcode 木"  # anything can be said, byte by byte


def test_the_sum_task_has_a_token_per_character(tmp_path: Path):
    train_tokenizer(SUM, tmp_path)
    characters = AutoTokenizer.from_pretrained(tmp_path)
    assert len(characters) == 19
    ids = characters("Q12+34+56:")["input_ids"]
    assert len(ids) == 10
    assert characters.decode(ids) == "Q12+34+56:"
    assert characters.eos_token_id not in ids


# ---------------------------------------------------------------- batches


def test_batches_depend_on_the_step_alone(tokenizer: Any):
    first, again = Batches(tokenizer, CONFIG), Batches(tokenizer, CONFIG)
    other = Batches(tokenizer, replace(CONFIG, train=TrainConfig(steps=3, seed=1)))
    again(7)

    def lists(batch: Any) -> Any:
        return [(ids.tolist(), targets.tolist()) for ids, targets in batch]

    assert lists(first(3)) == lists(again(3))
    assert lists(first(3)) != lists(other(3))
    assert lists(first(3)) != lists(first(4))


def test_answers_alone_are_learnt_to_their_end(tokenizer: Any):
    batches = Batches(tokenizer, CONFIG)
    parts = batches(0)
    assert len(parts) == GROUPS
    assert [ids.shape[1] for ids, _ in parts] == sorted(ids.shape[1] for ids, _ in parts)
    drawn = {task.prompt: task.worked for task in itertools.islice(draws("train", "0/0"), CONFIG.batch)}
    seen = 0
    for ids, targets in parts:
        for row, target in zip(ids, targets, strict=True):
            learnt = target != IGNORED
            start = int(learnt.nonzero()[0])
            prompt, answer = tokenizer.decode(row[: start + 1]), tokenizer.decode(target[learnt])
            assert answer == drawn[prompt] + tokenizer.eos_token
            seen += 1
    assert seen == CONFIG.batch


# ---------------------------------------------------------------- noise


def test_noise_chooses_experts_in_training_only(tokenizer: Any):
    torch.manual_seed(0)
    model = build(CONFIG, tokenizer)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = model.eval()(input_ids=ids).logits
    disturb(model, 5.0, torch.Generator().manual_seed(0))
    assert torch.equal(model(input_ids=ids).logits, plain)
    model.train()
    first, second = model(input_ids=ids).logits, model(input_ids=ids).logits
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)


def test_the_weights_of_chosen_experts_are_those_without_noise(tokenizer: Any):
    torch.manual_seed(0)
    model = build(CONFIG, tokenizer)
    router = model.model.layers[0].mlp.gate
    states = torch.randn(50, CONFIG.hidden_size)
    disturb(model, 0.0, torch.Generator().manual_seed(0))
    without = router.eval()(states)
    for found, wanted in zip(router.train()(states), without, strict=True):
        torch.testing.assert_close(found, wanted)
    disturb(model, 3.0, torch.Generator().manual_seed(0))
    logits, weights, chosen = router(states)
    torch.testing.assert_close(weights, logits.gather(-1, chosen).softmax(-1))
    assert not torch.equal(chosen, without[2])


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, noise=0.5, balance=1.0, saved="float32")])
def test_a_small_run_gives_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ReasonerConfig):
    monkeypatch.setattr(card, "QUESTIONS", 4)
    monkeypatch.setattr(card, "SAMPLES", 2)
    seen = list(train_reasoner(tmp_path, config))
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert seen[-1].evaluation == {"greedy_accuracy": 0.0}
    lm = load(tmp_path / "model")
    assert str(lm.dtype) == f"torch.{config.saved}"
    assert lm.trees, lm.reason
    assert not list(train_reasoner(tmp_path, config))  # finished
    tokens = tokens_seen(tmp_path / "model", config)
    assert 3 * 10 * 40 < tokens < 3 * 10 * 200
    card.write_card(tmp_path / "model", config, tokens)
    figures = json.loads((tmp_path / "model" / "training.json").read_text())
    assert figures["tokens_seen"] == tokens
    assert figures["accuracy"].keys() == {"0.7", "1.0"}
    assert figures["active_parameters"] < figures["parameters"]
    text = (tmp_path / "model" / "README.md").read_text()
    assert ("Gumbel noise 0.5" in text) == (config.noise > 0)


@pytest.mark.parametrize("name", ["demo-reasoner", "sum-model"])
def test_recipes_refuse_what_they_do_not_take(tmp_path: Path, name: str):
    for job in (Job(tmp_path, data=tmp_path), Job(tmp_path, dry=True)):
        with pytest.raises(RamifyError, match="has its own data"):
            next(iter(trainer(name)(job)))
    with pytest.raises(RamifyError, match="unknown option of the recipe: 'nois'"):
        next(iter(trainer(name)(Job(tmp_path, options={"nois": 1}))))


def test_the_sum_model_takes_experts_and_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ramify.train.recipes.sum_model as sums

    seen: list[ReasonerConfig] = []
    monkeypatch.setattr(sums, "train_reasoner", lambda out, config: seen.append(config) or iter(()))
    for options in ({}, {"experts": 8, "noise": 0.5}):
        assert not list(trainer("sum-model")(Job(tmp_path, steps=7, options=options)))
    plain, noisy = seen
    assert (plain.experts, plain.noise, plain.train.steps) == (SUM.experts, 0.0, 7)
    assert (noisy.experts, noisy.noise, noisy.families) == (8, 0.5, ("sum",))


# ---------------------------------------------------------------- the bundled model


def test_the_bundled_reasoner_answers_some_questions():
    lm = ramify.load("demo-reasoner")
    assert lm.dtype == torch.float32
    assert lm.trees, lm.reason
    assert 1e6 <= sum(parameter.numel() for parameter in lm.model.parameters()) <= 4e6
    questions = tasks(30, seed=1)
    texts = complete(lm, questions)
    right = sum(task.right(text) for task, text in zip(questions, texts, strict=True))
    assert 8 <= right <= 25  # about half, as its card says
    assert lm.encode([{"role": "user", "content": questions[0].question}]) == lm.encode(questions[0].prompt)


def test_the_bundled_reasoner_meets_its_bars():
    figures = json.loads((BUNDLED["demo-reasoner"] / "training.json").read_text())
    assert figures["test_questions"] >= 400
    shares = figures["accuracy"]["0.7"]  # mean and half an interval each
    assert 0.35 <= shares["greedy"][0] <= 0.65
    assert shares["oracle"][0] >= 0.85
    assert shares["gain"][0] - shares["gain"][1] >= 0.05
    assert sum(file.stat().st_size for file in BUNDLED["demo-reasoner"].iterdir()) < 8e6
