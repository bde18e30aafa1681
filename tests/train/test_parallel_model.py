"""The parallel model: its words, what it learns from, a small run, and what the bundled one can do."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify.bench.parallelbench import lists
from ramify.bench.parallelbench.answering import answered
from ramify.bench.parallelbench.apart import HELD, draw, families, held, parts
from ramify.bench.parallelbench.names import FIRST, LAST
from ramify.bench.parallelbench.prompts import TEMPLATES, prompt
from ramify.bench.parallelbench.tasks import GENERATED, SEED, problems
from ramify.errors import RamifyError
from ramify.methods.unmask.orders import Unmask
from ramify.models.causal import BUNDLED
from ramify.models.masked import load_masked
from ramify.train.denoise_texts import LEARNT, ParallelModelConfig, train_parallel_model
from ramify.train.denoise_texts_data import END, NEW, UNKNOWN, Batches, example, tokenizer
from ramify.train.denoisers import curve
from ramify.train.job import Job, trainer
from ramify.train.trainer import TrainConfig

SMALL = ParallelModelConfig(
    tasks=("copy", "words-to-sentence-easy"), hidden_size=32, layers=1, heads=2, batch=8, quick=2, trials=2,
    train=TrainConfig(steps=30, learning_rate=1e-2, warmup=2, eval_every=15, save_every=15),
)  # fmt: skip


@pytest.fixture(scope="module")
def words() -> Any:
    return tokenizer()


# ---------------------------------------------------------------- what it reads


@pytest.mark.parametrize("task", GENERATED)
def test_every_prompt_and_answer_is_made_of_its_words(words: Any, task: str):
    for seed in (SEED, 7):
        drawn = problems(task, 40, seed=seed)
        for place, problem in enumerate(drawn.problems):
            text = prompt(drawn, problem, list(TEMPLATES)[place % len(TEMPLATES)])
            for said in (text, problem.label):
                ids = words(said)["input_ids"]
                assert words.unk_token_id not in ids
                assert words.decode(ids) == said
            assert len(words(problem.label)["input_ids"]) < NEW  # with room for an end


def test_other_words_are_unknown(words: Any):
    assert words.convert_ids_to_tokens(words("# Translate the list")["input_ids"]) == [
        "#", UNKNOWN, " the", " list",
    ]  # fmt: skip
    pair = words('["Ada Noether", "Adam Abbott"]')["input_ids"]
    assert words.decode(pair) == f'["{UNKNOWN}{UNKNOWN}", "Adam Abbott"]'


def test_what_is_learnt_from_shares_nothing_with_the_benchmark():
    names, others = held()
    for task in lists.OPERATIONS:
        drawn = problems(task, HELD)
        assert {name for each in (drawn.example, *drawn.problems) for name in each.items} <= names
        rng = random.Random(3)
        for _ in range(60):
            problem = draw(rng, task)
            assert names.isdisjoint([*problem.items, problem.word, *problem.slots])
    for task in set(GENERATED) - set(lists.OPERATIONS):
        assert {parts(each) for each in problems(task, HELD).problems} <= others
        rng = random.Random(3)
        assert others.isdisjoint(parts(draw(rng, task)) for _ in range(60))


def test_every_name_by_itself_is_learnt():
    rng, seen = random.Random(0), set[str]()
    for _ in range(1500):
        seen.update(word for item in families()["copy"].draw(rng, 6).items for word in item.split(" "))
    assert seen >= {*FIRST, *LAST}


def test_batches(words: Any):
    batches = Batches(words, LEARNT, 12, seed=1, late=100)
    again = [part for pair in batches(5) for part in pair]
    assert all(map(torch.equal, again, [part for pair in batches(5) for part in pair]))
    assert not torch.equal(batches(5)[0][0], batches(6)[0][0])
    widths, also = [], 0
    for ids, answers in batches(5):
        widths.append(ids.shape[1])
        for row, asked in zip(ids, answers, strict=True):
            start = len(asked) - int(asked.flip(0).long().cumprod(0).sum())
            assert len(asked) - start >= NEW
            end = words.decode(row[start:])
            assert end.rstrip("\n").endswith(END)
            assert not asked[:start].all()
            also += bool(asked[:start].any())
            assert END not in words.decode(row[:start])
    assert widths == sorted(widths)
    assert 0 < also < 12


def test_later_batches_have_more_of_what_is_slow_to_learn(words: Any):
    def copies(step: int) -> int:
        pairs = Batches(words, ["copy", "reverse"], 40, seed=1, late=9)(step)
        return sum("Repeat the list" in words.decode(row) for ids, _ in pairs for row in ids)

    assert copies(8) < 28 < copies(9)


def test_an_example_is_a_prompt_of_the_benchmark():
    first, shown, second, answer = example(random.Random(2), "reverse")
    text = first + shown + second
    assert "Write the list in reverse order." in text
    items = lists.read_strictly(answer)
    assert items is not None
    assert lists.printed(items[::-1]) in second
    assert lists.printed((lists.read_strictly(shown) or [])[::-1]) in first


# ---------------------------------------------------------------- training


def test_a_small_run(tmp_path: Path):
    losses = [progress.loss or 0.0 for progress in train_parallel_model(tmp_path, SMALL)]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert [step for step, _, _ in curve(tmp_path / "curve.jsonl", "mean")] == [15, 30]
    lm = load_masked(tmp_path / "model")
    assert lm.mask_id == lm.tokenizer.mask_token_id
    assert lm.tokenizer.eos_token == END
    text = prompt(problems("copy", 1), problems("copy", 1).problems[0])
    assert lm.encode(text) == tokenizer()(text)["input_ids"]  # some layouts are given another tokenizer when loaded
    figures = json.loads((tmp_path / "model" / "training.json").read_text())
    assert set(figures["scores"]) == set(SMALL.tasks)
    assert "| words-to-sentence-easy | 0.00" in (tmp_path / "model" / "README.md").read_text()
    assert not list(train_parallel_model(tmp_path, SMALL))  # finished, and known again for the same run
    with pytest.raises(RamifyError, match="holds another run"):
        next(train_parallel_model(tmp_path, replace(SMALL, batch=5)))


def test_what_the_recipe_refuses(tmp_path: Path):
    with pytest.raises(RamifyError, match="has its own data"):
        next(iter(trainer("parallel-model")(Job(tmp_path, data=tmp_path))))
    with pytest.raises(RamifyError, match="unknown option of the recipe: 'block'"):
        next(iter(trainer("parallel-model")(Job(tmp_path, options={"block": 1}))))


# ---------------------------------------------------------------- the bundled model


@pytest.mark.skipif(
    not (BUNDLED["parallel-model"] / "model.safetensors").exists(), reason="the parallel model is not in the package"
)
@pytest.mark.parametrize(("task", "least"), [("copy", 0.8), ("words-to-sentence-easy", 0.8)])
def test_the_bundled_model_answers_what_it_has_never_seen(task: str, least: float):
    lm = load_masked("parallel-model")
    assert sum(file.stat().st_size for file in BUNDLED["parallel-model"].iterdir()) < 10e6
    found = answered(lm, Unmask(steps=NEW), problems(task, 8), "pairs", NEW)
    assert found.accuracy >= least
