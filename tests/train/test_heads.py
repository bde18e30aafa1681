"""The recipe that trains every head: it learns, resumes as if nothing had happened, estimates, and refuses clearly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ramify.train.heads as heads
from ramify.errors import RamifyError
from ramify.methods.head import Fit, Head, Regime, load_head, teach
from ramify.models.causal import CausalLM, load
from ramify.train.data import documents, split_off, texts
from ramify.train.job import Job, recipes, trainer


class Next(Head):
    """Predicts the token after the next from the last state: a Medusa head in one matrix."""

    @dataclass(frozen=True)
    class Sizes:
        scale: float = 1.0

    method = "next"
    regime = Regime(steps=6, learning_rate=1e-2, batch=2, context=32, warmup=1)

    def __init__(self, fit: Fit, sizes: Any) -> None:
        super().__init__(fit, sizes)
        self.matrix = nn.Linear(fit.hidden_size, 64)
        self.head = nn.Linear(64, fit.vocab_size)
        self.register_buffer("settled", torch.zeros(1))

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        state = teach(lm, tokens[:, :-2], [-1]).hidden[-1].float()
        logits = self.sizes.scale * self.head(self.matrix(state))
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 2:].flatten())

    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        return {"loss": float(self.loss(lm, tokens))}

    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        self.settled.fill_(float(tokens.numel()))


@pytest.fixture(scope="module")
def demo() -> CausalLM:
    return load("demo", dtype="float32")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(heads, "head_class", lambda name: Next)
    file = tmp_path / "code.py"
    file.write_text("\n".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(300)))
    return file


def run(demo: CausalLM, data: Path, out: Path, stop: int | None = None, **given: Any) -> list[Any]:
    seen = []
    for progress in heads.train_head("next", Job(out, demo, data, **given)):
        seen.append(progress)
        if progress.step == stop:
            break
    return seen


def test_it_learns_and_leaves_a_head_with_a_card(demo: CausalLM, small: Path, tmp_path: Path):
    seen = run(demo, small, tmp_path / "run", steps=25)
    assert seen[-1].loss < 0.8 * seen[0].loss
    head = load_head(Next, tmp_path / "run" / "head", demo)
    assert float(head.settled) == heads.SETTLING * 2 * 33
    card = (tmp_path / "run" / "head" / "README.md").read_text()
    assert "25 steps of 2 × 32 tokens of code.py" in card
    assert f"| loss | {seen[-1].evaluation['loss']:.3f} |" in card
    assert "| to 25 |" in card


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    demo: CausalLM, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "SAVE_EVERY", 2)
    whole = run(demo, small, tmp_path / "whole")
    run(demo, small, tmp_path / "parts", stop=3)
    again = run(demo, small, tmp_path / "parts")
    assert [p.step for p in again] == [3, 4, 5, 6]
    assert [p.loss for p in again] == [p.loss for p in whole[2:]]
    one, other = (load_head(Next, tmp_path / name / "head", demo) for name in ("whole", "parts"))
    assert torch.equal(one.matrix.weight, other.matrix.weight)
    curve = [json.loads(line)["step"] for line in (tmp_path / "parts" / "curve.jsonl").read_text().splitlines()]
    assert curve == [1, 2, 3, 4, 5, 6]


class Through(Next):
    """Trains through the target: its own guess at a soft token in place of the last one."""

    def __init__(self, fit: Fit, sizes: Any) -> None:
        super().__init__(fit, sizes)
        self.soft = nn.Parameter(torch.zeros(fit.hidden_size))

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        embedded = lm.model.get_input_embeddings()(tokens[:, :-2])
        logits = lm.model(inputs_embeds=embedded + self.soft).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 2:].flatten()) + super().loss(lm, tokens)


@pytest.mark.parametrize("stop", [None, 2])
def test_the_target_is_frozen_while_a_head_trains_through_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None
):
    monkeypatch.setattr(heads, "head_class", lambda name: Through)
    target = load("demo", dtype="float32", weights="plain")
    target.model.requires_grad_(True)
    kept = target.model.get_input_embeddings().weight.requires_grad_(False)
    run(target, small, tmp_path / "run", stop=stop)
    weights = list(target.model.parameters())
    assert all(weight.grad is None for weight in weights)
    assert all(weight.requires_grad is (weight is not kept) for weight in weights)


def test_a_dry_run_writes_nothing(demo: CausalLM, small: Path, tmp_path: Path):
    [estimate] = run(demo, small, tmp_path / "dry", dry=True)
    assert not (tmp_path / "dry").exists()
    assert estimate.evaluation["parameters"] == 256 * 64 + 64 + 64 * 4096 + 4096
    assert estimate.evaluation["minutes"] > 0
    assert estimate.evaluation["memory (GB)"] > 0


def test_what_is_refused(demo: CausalLM, small: Path, tmp_path: Path):
    run(demo, small, tmp_path / "run", steps=2)
    with pytest.raises(RamifyError, match="holds another run"):
        run(demo, small, tmp_path / "run", steps=2, options={"scale": 2.0})
    with pytest.raises(RamifyError, match="unknown size of a next head: 'scael'"):
        run(demo, small, tmp_path / "other", options={"scael": 2.0})
    short = tmp_path / "short.txt"
    short.write_text("def f(): pass")
    with pytest.raises(RamifyError, match=r"the training data has .* tokens"):
        run(demo, short, tmp_path / "other")
    with pytest.raises(RamifyError, match="steps is 0"):
        Job(tmp_path / "x", steps=0)
    with pytest.raises(RamifyError, match=r"cannot train into .*: it is a file"):
        Job(small)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "  \n", "there is no text in"),
        ("a.csv", "x", "training data comes from .txt"),
        ("a.jsonl", '{"text": "x"}\n{', "line 2 is no JSON"),
        ("a.jsonl", '{"texts": "x"}', "line 1 has no 'text'"),
        ("a.txt", None, "there is no training data at"),
    ],
)
def test_bad_data(tmp_path: Path, name: str, content: str | None, sentence: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RamifyError, match=sentence):
        texts(tmp_path / name)


def test_data_comes_from_files_and_folders(tmp_path: Path, demo: CausalLM):
    tmp_path = tmp_path / "texts"
    tmp_path.mkdir()
    (tmp_path / "one.txt").write_text("import os\n")
    (tmp_path / "two.jsonl").write_text('{"text": "def f"}\n\n{"text": "class A"}\n')
    (tmp_path / "three.bin").write_bytes(b"\xff")
    assert texts(tmp_path) == ["import os\n", "def f", "class A"]
    assert documents(demo, tmp_path / "one.txt") == [demo.encode("import os\n")]
    (tmp_path / "four.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RamifyError, match="is not UTF-8 text"):
        texts(tmp_path)


def test_the_end_is_held_out():
    kept, held = split_off([[1] * 30, [2] * 3, [3] * 4], 5)
    assert (kept, held) == ([[1] * 30, [2, 2]], [[2], [3] * 4])


def test_recipes_are_found_by_name():
    assert {"demo-lm", "token-recycling"} <= recipes().keys()
    assert all(summary and not summary.endswith(".") for summary in recipes().values())
    with pytest.raises(RamifyError, match=r"unknown recipe 'demo-ml'; did you mean 'demo-lm'?"):
        trainer("demo-ml")
    for name in recipes():
        assert callable(trainer(name))
