"""DEER's recipe: texts that the target wrote, three stages, noise, and a run that resumes."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import heads
import pytest
import torch
from families import byte_lm, lm, text

from ramify.api import generate
from ramify.errors import RamifyError
from ramify.methods.draft.deer_head import DeerHead
from ramify.methods.head import load_head
from ramify.train.deer import STAGES, Course, block_chances, go_on, mask_spans, spans
from ramify.train.deer_text import Teacher, beginnings, write
from ramify.train.job import Job, trainer

SMALL: dict[str, Any] = {
    "texts": 52,
    "context": 40,
    "given": 8,
    "most": 6,
    "last": 4,
    "layers": 1,
    "blocks": 3,
    "batch": 2,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "code.py"
    file.write_text("\n".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(60)))
    return file


@functools.cache
def own_texts() -> Teacher:
    model = lm("llama")
    [*_, (count, teacher)] = write(model, [text(6, row) for row in range(70)], 16, 5)
    assert count == 70
    assert teacher is not None
    return teacher


def test_the_target_writes_what_it_would_generate():
    teacher = own_texts()
    assert teacher.given == 6
    assert teacher.texts.shape == (70, 16)
    for row in (0, 2, 68):  # the even ones are greedy
        plain = generate(lm("llama"), text(6, row), "greedy", max_new_tokens=10).tokens
        assert teacher.texts[row].tolist() == [*text(6, row), *plain]
    sampled = generate(
        lm("llama"), text(6, 3), "sample", max_new_tokens=10, seed=5 * 1_000_003 + 3, temperature=0.7, top_k=0
    )
    assert teacher.texts[3, 6:].tolist() == sampled.tokens


def test_texts_come_back_in_another_order_every_epoch(tmp_path: Path):
    own_texts().save(tmp_path / "teacher.safetensors")
    teacher = Teacher.load(tmp_path / "teacher.safetensors")
    assert torch.equal(teacher.texts, own_texts().texts)
    read = teacher.reader(7, seed=1)
    epochs = [torch.cat([read(10 * epoch + step) for step in range(10)]) for epoch in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(teacher.texts.tolist())
    assert not torch.equal(*epochs)
    assert torch.equal(read(3), teacher.reader(7, seed=1)(3))


def test_beginnings_are_pieces_of_the_texts():
    found = beginnings([[1, 2, 3], [4, 5, 6, 7]], 50, 3, 0)
    assert all(piece == list(range(piece[0], piece[0] + 3)) for piece in found)
    assert {piece[0] for piece in found} == {1, 2, 3, 4}
    with pytest.raises(RamifyError, match="give at least 16"):
        beginnings([[1, 2, 3]], 1, 8, 0)


def test_noise():
    generator = torch.Generator().manual_seed(0)
    chances = block_chances(4000, generator)
    assert float((chances == 1.0).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(chances[chances < 1].mean()) == pytest.approx(0.5, abs=0.03)
    rates = torch.tensor([[0.0], [0.3], [1.0]])
    masked = mask_spans(rates.repeat(400, 1), 32, generator).view(400, 3, 32).double()
    assert masked.mean(dim=(0, 2)).tolist() == pytest.approx([0.0, 0.3, 1.0], abs=0.03)
    together = (masked[:, 1, 1:] * masked[:, 1, :-1]).mean()  # neighbours share a piece more often than not
    assert float(together) > 0.2 > 0.3**2


@torch.no_grad()
@pytest.mark.parametrize("sight", ["causal", "full"])
def test_losses_of_a_head_that_knows_nothing(sight: str):
    """A uniform guess costs log V at every token, whatever is masked; weights sum to what they must."""
    model = lm("llama")
    head = heads.deer(model, sight=sight)
    head.as_lm(model)
    head.model.model.norm.weight.zero_()
    texts = own_texts().texts[:16].repeat(1, 4)
    even = torch.log(torch.tensor(float(model.vocab_size)))
    for loss in (spans, go_on):
        found = torch.stack([loss(head, model, texts, 6, torch.Generator().manual_seed(seed)) for seed in range(12)])
        assert float(found.mean() / even) == pytest.approx(1.0, abs=0.35)
    refined = head.refine(model, texts, 6, torch.Generator().manual_seed(1))
    assert 1.0 < float(refined / even) < 1.01**8


def test_every_stage_learns_and_leaves_a_head(data: Path, tmp_path: Path):
    model = byte_lm()
    options = SMALL | {"spans": 3, "continue": 8, "refine": 3}
    job = Job(tmp_path / "run", model, data, options=options)
    seen = list(trainer("deer")(job))
    assert [each.step for each in seen if each.loss is not None] == [*range(1, 4), *range(1, 9), *range(1, 4)]
    found = [load_head(DeerHead, tmp_path / "run" / stage / "head", model) for stage in STAGES]
    last = load_head(DeerHead, tmp_path / "run" / "head", model)
    for name, weight in last.state_dict().items():
        assert torch.equal(weight, found[-1].state_dict()[name])
    assert not torch.equal(found[0].marks.weight, found[1].marks.weight)
    assert 0.0 < float(last.accuracy.max()) <= 1.0
    card = (tmp_path / "run" / "head" / "README.md").read_text()
    for words in ("spans 3, continue 8, refine 3", "36 texts that the target wrote", "| after | agreement at 1 |"):
        assert words in card.replace("\n", " ")


def test_a_run_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ramify.train.deer.Course.config", _often)
    options = SMALL | {"spans": 0, "continue": 4, "refine": 2}

    def run(out: Path, stop: int | None = None) -> None:
        steps = 0
        for progress in trainer("deer")(Job(out, byte_lm(), data, options=options)):
            steps += progress.loss is not None
            if steps == stop:
                return

    run(tmp_path / "whole")
    run(tmp_path / "broken", stop=5)
    run(tmp_path / "broken")
    one, other = (load_head(DeerHead, tmp_path / name / "head", byte_lm()) for name in ("whole", "broken"))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def _often(course: Course, stage: str, real: Any = Course.config) -> Any:
    return replace(real(course, stage), save_every=1)


def test_a_dry_run_says_what_it_would_take(data: Path, tmp_path: Path):
    [progress] = trainer("deer")(Job(tmp_path / "run", byte_lm(), data, options=SMALL, dry=True))
    assert progress.evaluation is not None
    assert progress.evaluation["minutes"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sights": "full"}, "did you mean 'sight'"),
        ({"texts": 48}, "too few"),
        ({"given": 40}, "no room"),
        ({"spans": -1}, "at least 0"),
        ({"batch": 0}, "at least 1"),
        ({"spans": 0, "continue": 0, "refine": 0}, "no stage has any steps"),
        ({"layers": [0, 5]}, "2 layers"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str, data: Path, tmp_path: Path):
    with pytest.raises(RamifyError, match=words):
        list(trainer("deer")(Job(tmp_path / "run", byte_lm(), data, options=SMALL | options)))
