"""The model of characters: what it reads, and that heads learn on it."""

from __future__ import annotations

from pathlib import Path

import torch

import ramify.bench.letters as module
from ramify.bench.letters import CHARACTERS, letter_lm, letters, train_on_letters
from ramify.methods.draft.ppd_head import PromptTokens


def test_characters_are_ascii(tmp_path: Path):
    (tmp_path / "a.py").write_text("aé\tb\n", encoding="utf-8")
    assert letters([tmp_path / "a.py"], 99) == [97, ord("?"), 9, 98, 10, 10]
    (tmp_path / "b.py").write_text("x" * 50)
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    assert letters(files, 20, seed=1) == letters(files[::-1], 20, seed=1)
    assert {len(letters(files, 20, seed=seed)) for seed in range(4)} == {20}
    assert len({tuple(letters(files, 20, seed=seed)) for seed in range(8)}) == 2


def test_a_head_learns_on_characters(monkeypatch):
    monkeypatch.setattr(module, "TEXT", 20_000)
    lm = letter_lm(steps=3, width=24, layers=1)
    assert (lm.vocab_size, lm.layers, lm.trees) == (CHARACTERS, 1, True)
    given = {"learning_rate": 0.03, "batch": 2, "insertions": 8}
    first, again, longer = (train_on_letters(PromptTokens, lm, steps=steps, **given) for steps in (2, 2, 12))
    assert torch.equal(first.embeddings, again.embeddings)
    assert not longer.embeddings.requires_grad
    assert not torch.equal(first.accuracy, longer.accuracy)
    windows = torch.tensor(letters(module.library_files()[1], 2000)).unfold(0, 129, 129)
    assert longer.loss(lm, windows) < first.loss(lm, windows)
