"""``ramify bench parallel``: counts, the damage of caches, any model on the text families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import build, byte_lm, byte_tokenizer

from ramify.bench.parallelbench import symbols, text_sweeps
from ramify.bench.parallelbench.answering import clipped, scored
from ramify.bench.parallelbench.denoisers import Symbols
from ramify.bench.parallelbench.exact import exact_lm
from ramify.bench.parallelbench.filling import fill, prompts_of
from ramify.bench.parallelbench.sweeps import (
    GAMMAS,
    LEARNT,
    ideal,
    ideal_threshold,
    infill,
    infill_rows,
    level_rows,
    rule_rows,
    settings,
    sweep,
    task_rows,
)
from ramify.bench.parallelbench.tasks import problems
from ramify.bench.recipes.parallel import closed_chart, correlation_rows, rule_chart, run
from ramify.errors import RamifyError
from ramify.methods.options import build_spec
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.threshold import Threshold
from ramify.models.causal import BUNDLED, wrap
from ramify.models.masked import MaskedLM, load_masked, masked

bundled = pytest.mark.skipif(
    not (BUNDLED["list-model"] / "model.safetensors").exists(), reason="the list model is not in the package"
)


def exact() -> MaskedLM:
    return exact_lm(Symbols(1e-4), symbols.MASK, symbols.LENGTH)


def test_what_is_counted() -> None:
    prompts = prompts_of(LEARNT, 3, 0)
    found = fill(exact(), Unmask(steps=4), prompts)
    for task in LEARNT:
        read = found[task]
        assert (len(read.filled), read.passes, read.positions) == (3, 4, 4 * 22)
        assert {(sample.passes, sample.tokens) for sample in read.samples} == {(4, 12)}
        assert [sample.real for sample in read.samples] == [len(symbols.items_of(p)) for p in prompts[task]]
        assert all(sorted(each.first) == list(range(10, 22)) for each in read.filled)
    assert found["copy"].accuracy == 1
    left = fill(exact(), Unmask(order="left-to-right"), prompts)["copy"]
    assert left.order(padded=True).kendall == left.order(padded=False).spearman == pytest.approx(1)
    assert fill(exact(), Threshold(gamma=0.9), prompts, infill=True)["copy"].samples[0].tokens in symbols.LENGTHS


def test_a_sweep_on_an_exact_model() -> None:
    prompts = prompts_of([*LEARNT, "cumsum"], 2, 0)
    found = sweep(exact(), prompts, "remdm:steps=6", 0)
    rows = rule_rows(found)
    assert len(rows) == 5 * 6 + len(GAMMAS) + 5 + 1
    assert {row["setting"]: row["tokens per pass"] for row in rows if row["rule"] == "random"} == {
        f"{k} a pass": k for k in (1, 2, 3, 4, 6, 12)
    }
    assert all(row["copy"] == row["cumsum"] == "1.000" for row in rows)
    assert {row["mean"] for row in rows if row["setting"] == "1 a pass"} == {1}
    levels = {row["rule"]: row for row in level_rows(found)}
    assert set(levels) == {*found, "oracle over γ"}
    assert all(row["PB80"] <= row["PB75"] <= row["PB70"] for row in levels.values())
    assert levels["oracle over γ"]["best accuracy"] == levels["threshold"]["best accuracy"] == 1
    assert levels["oracle over γ"]["at tokens per pass"] >= levels["threshold"]["at tokens per pass"]
    tasks = {row["task"]: row for row in task_rows(exact(), found, prompts, 0)}
    assert tasks["copy"]["parallelizability"] == pytest.approx(28 / 6)
    assert tasks["copy"]["order preference"] == "+0.000"
    assert "mean accuracy" in rule_chart(found).svg().lower()


def test_closed_forms_stand_beside_what_is_measured() -> None:
    found = infill(exact(), ["copy", "shuffle", "replace-random"], 20, 0)
    rows = {row["task"]: row for row in infill_rows(found)}
    assert rows["shuffle"]["3 a pass"].endswith("(0.1235)")
    assert rows["copy"]["6 a pass"] == "1.000 (1.0000)"
    assert rows["shuffle"]["1 a pass"] == rows["replace-random"]["1 a pass"] == "1.000 (1.0000)"
    lines = closed_chart(found).lines
    assert lines["shuffle, closed form"] == [(k, ideal("shuffle", int(k))) for k, _ in lines["shuffle"]]
    assert [ideal_threshold("shuffle", g) for g in (0.5, 0.7)] == [0.5, 1]
    assert [ideal_threshold("replace-random", g) for g in (0.7, 0.9)] == [0, 1]
    assert correlation_rows()[0]["n = 4"] == pytest.approx(3.4150, abs=5e-5)


def test_what_cannot_be_run() -> None:
    with pytest.raises(RamifyError, match="greedy fills in no canvas"):
        settings("greedy")
    with pytest.raises(RamifyError, match=r"have 26 tokens and the mask token 19, .* has 96 and 95"):
        fill(masked(wrap(build("llama"), None, "other"), 95), Unmask(), prompts_of(["copy"], 1, 0))
    with pytest.raises(RamifyError, match="count is 0"):
        run(count=0)


@bundled
def test_the_damage_of_caches() -> None:
    """The list model tracks which items are used at its prompt's positions, which a cache freezes."""
    lm, prompts = load_masked("list-model"), prompts_of(["copy", "shuffle"], 20, 0)
    read = {
        cache: fill(lm, build_spec(f"threshold:block=4:cache={cache}"), prompts, batch=1)
        for cache in ("none", "prefix", "dual")
    }
    assert [each["copy"].accuracy for each in read.values()] == [1, 1, 1]
    assert read["none"]["shuffle"].accuracy >= 0.9
    assert read["prefix"]["shuffle"].accuracy <= 0.2
    assert read["dual"]["shuffle"].accuracy <= 0.2
    assert read["dual"]["shuffle"].positions < read["prefix"]["shuffle"].positions < read["none"]["shuffle"].positions
    renewed = fill(lm, build_spec("threshold:block=4:cache=dual:refresh=1"), prompts, batch=1)
    assert [each.tokens for each in renewed["shuffle"].filled] == [
        each.tokens for each in read["none"]["shuffle"].filled
    ]


@bundled
def test_the_prompt_of_the_control_does_not_see_the_answer() -> None:
    lm = load_masked("list-model")
    lm = MaskedLM(lm.base, replace(lm.facts, prefix_causal=symbols.PROMPT))
    prompts = prompts_of(["copy"], 4, 0)
    found = fill(lm, build_spec("threshold:block=12:cache=prefix"), prompts, batch=1)["copy"]
    plain = fill(lm, build_spec("threshold:block=12"), prompts, batch=1)["copy"]
    assert [each.tokens for each in found.filled] == [each.tokens for each in plain.filled]
    assert found.positions <= plain.positions


def byte_denoiser() -> MaskedLM:
    model = build("llama", vocab_size=258, max_position_embeddings=1024)
    with torch.no_grad():
        model.lm_head.bias = torch.nn.Parameter(torch.full((258,), -4.0))
        model.lm_head.bias[32:127] = 4.0
    return masked(wrap(model, byte_tokenizer(), "bytes"), 257)


@pytest.mark.parametrize("lm", [byte_lm, byte_denoiser])
def test_any_model_answers_the_text_families(lm: Any) -> None:
    made = lm()
    method = build_spec("unmask:steps=4" if isinstance(made, MaskedLM) else "greedy")
    row = scored(made, method, problems("copy", 2, sizes=[2], items="letters"), ("pairs",), 8)
    assert row["task"] == "copy"
    assert row["lenient"] == row["strict"] == row["pairs"] == 0
    assert row["tokens per pass"] == pytest.approx(2 if isinstance(made, MaskedLM) else 1, rel=0.2)


def test_every_rule_on_text_families() -> None:
    drawn = {name: problems(name, 2, sizes=[2], items="letters") for name in ("copy", "reverse")}
    lm = byte_denoiser()
    found = text_sweeps.sweep(lm, drawn, "remdm:steps=4", 8)
    rows = rule_rows(found, list(drawn))
    assert len(rows) == 5 * 4 + len(GAMMAS) + 5 + 1
    assert {row["setting"]: row["tokens per pass"] for row in rows if row["rule"] == "random"} == {
        f"{k} a pass": k for k in (1, 2, 4, 8)
    }
    assert {row[name] for row in rows for name in drawn} == {"0.000"}
    assert all(row["no padding"] <= row["tokens per pass"] for row in rows)
    assert {row["PB70"] for row in level_rows(found, list(drawn))} == {0}
    tasks = text_sweeps.family_rows(lm, found, drawn, 8)
    assert [row["task"] for row in tasks] == ["copy", "reverse"]
    assert tasks[0]["blocks of 2"] == tasks[0]["parallelizability, random"] == 0
    assert "blocks of 16" not in tasks[0]


def test_what_a_model_knows() -> None:
    rows = [{"task": "copy", "lenient": 0.25}, {"task": "sort", "lenient": 0.24}]
    assert text_sweeps.known(rows) == ["copy"]


@pytest.mark.skipif(
    not (BUNDLED["parallel-model"] / "model.safetensors").exists(), reason="the parallel model is not in the package"
)
def test_the_recipe_on_the_parallel_model() -> None:
    outcome = run(model="parallel-model", count=2, families="words-to-sentence-easy,sudoku", others="rcr:steps={half}")
    assert [table.title.split(",")[0] for table in outcome.tables] == [
        "parallel-model",
        "parallel-model",
        "Every rule on the 1 families that it knows",
        "Most tokens per pass at a mean accuracy of these families of at least x %",
        "Families; blocks: accuracy at 2 a pass by confidence",
    ]
    one = outcome.tables[2].rows[0]
    assert (one["rule"], one["setting"], one["tokens per pass"]) == ("random", "1 a pass", 1)
    assert "sudoku" not in one
    assert outcome.charts[0].lines.keys() >= {"confidence", "threshold"}


def test_answers_are_cut_to_the_lines_of_a_right_one() -> None:
    [problem] = problems("copy", 1).problems
    assert clipped(problem, '\n["A"]\n\nInput:\n["B"]') == '["A"]'
    [problem] = problems("sudoku", 1).problems
    assert clipped(problem, "1\n2\n3\n4\n5") == "1\n2\n3\n4"
