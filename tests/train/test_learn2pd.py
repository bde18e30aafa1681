"""The recipe of Learn2PD's filter: what it records, how it splits, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import denoiser

from ramify.bench.parallelbench import symbols
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.unmask.learn2pd import Learn2PD
from ramify.methods.unmask.learn2pd_filter import Filter, find_filter
from ramify.methods.unmask.orders import Unmask
from ramify.models.causal import load
from ramify.models.masked import Denoiser, MaskedLM, load_masked
from ramify.train.job import Job, trainer
from ramify.train.learn2pd import Records, answers, prompts_for, record


def test_every_block_begins_behind_the_answer_itself() -> None:
    prompts = [[3, 14, 15], [9, 2, 6]]
    records = record(denoiser(), prompts, 8, 4)
    assert records.values.shape[1:] == (3, 4)
    assert set(records.prompt.tolist()) == {0, 1}
    assert len(records.values) >= 4  # two prompts of two blocks
    confidences, right, weight = records.values.unbind(1)
    assert (weight[0] == 1).all()  # at first everything is open
    assert (weight == 0).any()
    assert (record(denoiser(), prompts, 8, 4, "all").values[:, 2] == 1).all()
    assert ((confidences > 0) & (confidences <= 1)).all()
    assert set(right.unique().tolist()) <= {0.0, 1.0}
    [first, _] = answers(denoiser(), prompts, 8, Unmask(block=4))
    assert first == Unmask(block=4).complete(denoiser(), [Request(prompts[0], 11)])[0].tokens
    with pytest.raises(RamifyError, match="no block has 16 positions"):
        record(denoiser(), prompts, 8, 16)


def test_no_prompt_trains_and_tests(tmp_path: Path) -> None:
    prompt = torch.arange(60).repeat_interleave(3)
    values = prompt[:, None, None].expand(-1, 3, 4).float().contiguous()
    parts = Records(values, prompt).split(0)
    owners = [set(part[:, 0, 0].tolist()) for part in parts]
    assert [len(own) for own in owners] == [48, 6, 6]
    assert not owners[0] & owners[1]
    assert not (owners[0] | owners[1]) & owners[2]
    Records(values, prompt).save(tmp_path / "records.safetensors")
    again = Records.load(tmp_path / "records.safetensors")
    assert torch.equal(again.values, values)
    assert torch.equal(again.prompt, prompt)


def test_prompts_are_tasks_or_excerpts(tmp_path: Path) -> None:
    lm = MaskedLM(load("demo"), Denoiser(0))
    (tmp_path / "a.txt").write_text("word " * 500)
    found = prompts_for(lm, 5, 16, tmp_path, 0)
    assert [len(prompt) for prompt in found] == [16] * 5
    with pytest.raises(RamifyError, match="no text has 4000 tokens"):
        prompts_for(lm, 5, 2000, tmp_path, 0)


def test_a_filter_for_the_list_model(tmp_path: Path) -> None:
    options = {"prompts": 40, "depth": 1}
    job = Job(tmp_path, "list-model", steps=30, options=options)
    lines = list(trainer("learn2pd")(job))
    assert [line.step for line in lines] == list(range(1, 31))
    assert lines[-1].loss is not None
    assert lines[0].loss is not None
    assert lines[-1].loss < lines[0].loss
    assert json.loads((tmp_path / "head" / "head.json").read_text())["sizes"] == {"block": symbols.ANSWER, "depth": 1}
    assert "40 prompts (list tasks)" in " ".join((tmp_path / "head" / "README.md").read_text().split())
    made = (tmp_path / "records.safetensors").stat().st_mtime_ns
    assert list(trainer("learn2pd")(job)) == []  # finished: nothing is done again
    assert (tmp_path / "records.safetensors").stat().st_mtime_ns == made
    with pytest.raises(RamifyError, match="holds another run"):
        list(trainer("learn2pd")(Job(tmp_path, "list-model", options=options | {"depth": 2})))


def test_the_bundled_filter_runs_without_a_word(tmp_path: Path) -> None:
    lm = load_masked("list-model")
    assert isinstance(find_filter("bundled", lm), Filter)
    prompts = symbols.samples(40, torch.Generator().manual_seed(1), ["copy", "reverse"])[0]
    requests = [Request(prompt, symbols.LENGTH) for prompt in prompts.tolist()]
    results = Learn2PD().complete(lm, requests)
    right = [symbols.right(p, torch.tensor(r.tokens)) for p, r in zip(prompts, results, strict=True)]
    assert sum(right) >= 38
    assert sum(result.stats.target_calls for result in results) < 0.6 * 12 * len(results)


def test_an_estimate_leaves_nothing(tmp_path: Path) -> None:
    [line] = trainer("learn2pd")(Job(tmp_path / "run", "list-model", options={"depth": 2}, dry=True))
    assert line.evaluation is not None
    assert line.evaluation["parameters"] == 312
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "options", "what"),
    [
        ("demo", {}, "demo is no masked denoiser"),
        ("list-model", {"blok": 3}, "did you mean 'block'"),
        ("list-model", {"prompts": 3}, "too few"),
        ("list-model", {"loss": "opn"}, "did you mean 'open'"),
        ("list-model", {"block": 13}, "no block has 13 positions"),
        ("list-model", {"depth": 0}, "depth is 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, model: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(RamifyError, match=what):
        list(trainer("learn2pd")(Job(tmp_path, model, steps=2, options=options)))
