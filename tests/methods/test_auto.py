"""Auto runs what the profile says, falls back with a sentence, and never fails where plain decoding works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import lm, text

from ramify.api import generate, prepare, stream
from ramify.engine.events import Noted
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.auto import Auto
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.switch import Switch, Switched
from ramify.methods.profile import Profile
from ramify.models.causal import CausalLM

PROFILE = Profile("suffix:length=7", 2.5, 2.25, 6, None)
QUICK = "prompt-lookup:length=3"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    return tmp_path


def chosen(method: Auto, on: CausalLM, **settings: object) -> tuple[object, str]:
    return method.choice(on, prepare(on, [text(9)], method, max_new_tokens=4, **settings))


def test_profiles_are_kept_by_model_and_regime() -> None:
    llama, qwen = lm("llama"), lm("qwen3")
    assert Profile.of(llama, sampled=False) is None
    PROFILE.save(llama)
    sampled = replace(PROFILE, spec="aded", temperature=0.7)
    sampled.save(llama)
    assert Profile.of(llama, sampled=False) == PROFILE
    assert Profile.of(llama, sampled=True) == sampled
    assert Profile.of(qwen, sampled=False) is None
    replace(PROFILE, measured=9.0).save(llama)
    assert Profile.of(llama, sampled=False) == replace(PROFILE, measured=9.0)


def test_another_dtype_or_name_is_another_model() -> None:
    llama = lm("llama")
    PROFILE.save(llama)
    assert Profile.of(replace(llama, name="another"), sampled=False) is None
    eager = lm("llama", "transformers")
    assert Profile.of(eager, sampled=False) is None


@pytest.mark.parametrize("damage", ["", "[1]", "{not json", '{"x": 1}'])
def test_a_damaged_file_is_no_profile_and_is_replaced(cache: Path, damage: str) -> None:
    (cache / "profiles.json").write_text(damage)
    assert Profile.of(lm("llama"), sampled=False) is None
    PROFILE.save(lm("llama"))
    assert Profile.of(lm("llama"), sampled=False) == PROFILE


def test_a_damaged_entry_is_no_profile(cache: Path) -> None:
    PROFILE.save(lm("llama"))
    file = cache / "profiles.json"
    file.write_text(file.read_text().replace('"measured": 2.25', '"measured": "fast"'))
    assert Profile.of(lm("llama"), sampled=False) is None


def test_it_runs_what_the_profile_says_behind_a_switch() -> None:
    PROFILE.save(lm("llama"))
    method, why = chosen(Auto(), lm("llama"))
    assert isinstance(method, Switched)
    assert method.part() == Suffix(length=7)
    assert why == "auto runs suffix:length=7, measured at 2.25 × plain greedy decoding"
    bare, _ = chosen(Auto(switch=False), lm("llama"))
    assert bare == Suffix(length=7)


def test_what_tuning_measured_stands_for_the_first_steps() -> None:
    replace(PROFILE, plain=0.005).save(lm("llama"))
    method, _ = chosen(Auto(), lm("llama"))
    assert isinstance(method, Switched)
    assert (method.expected, method.plain) == (2.25, 0.005)
    switch = method.drafter(lm("llama"), Request([1, 2], 9))
    assert isinstance(switch, Switch)
    assert switch.plain.rate() == 200.0
    unknown, _ = chosen(Auto(), lm("qwen3"))
    assert isinstance(unknown, Switched)
    assert (unknown.expected, unknown.plain) == (None, None)


def test_the_regimes_are_told_apart() -> None:
    PROFILE.save(lm("llama"))
    auto = Auto(otherwise=QUICK)
    _, why = chosen(auto, lm("llama"), do_sample=True, temperature=0.7)
    assert why.startswith("auto runs prompt-lookup: LlamaForCausalLM has no profile for sampled text here; ramify tune")
    _, why = chosen(auto, lm("llama"))
    assert why.startswith("auto runs suffix:length=7")


def test_results_and_streams_say_what_ran() -> None:
    auto = Auto(otherwise=QUICK)
    results = generate(lm("llama"), [text(9), text(5)], auto, max_new_tokens=6)
    for result in results:
        assert len(result.notes) == 1
        assert "no profile for greedy text" in result.notes[0]
    flow = stream(lm("llama"), text(9), Suffix(length=2), max_new_tokens=6)
    assert not any(isinstance(event, Noted) for event in flow.events)
    assert results[0].tokens == generate(lm("llama"), text(9), "greedy", max_new_tokens=6).tokens


def test_where_nothing_paid_it_decodes_plainly() -> None:
    replace(PROFILE, spec="").save(lm("llama"))
    result = generate(lm("llama"), text(9), Auto(), max_new_tokens=6)
    assert result.stats.drafted == 0
    assert "no drafter paid for greedy text" in result.notes[0]


@pytest.mark.parametrize("spec", ["no-such-method", "suffix:size=3", "medusa", "hf-greedy"])
def test_an_outdated_profile_is_told_and_passed_over(spec: str) -> None:
    replace(PROFILE, spec=spec).save(lm("llama"))
    result = generate(lm("llama"), text(9), Auto(otherwise=QUICK), max_new_tokens=6)
    assert "auto runs prompt-lookup: its profile is out of date, since" in result.notes[0]
    assert "ramify tune --model LlamaForCausalLM renews it" in result.notes[0]


def test_models_without_trees_are_decoded_plainly() -> None:
    result = generate(lm("mamba"), text(9), Auto(), max_new_tokens=6)
    assert result.stats.target_calls == 6
    assert result.notes[0].startswith("auto decodes plainly: MambaForCausalLM cannot run drafts")


def test_stateful_processors_are_decoded_plainly() -> None:
    from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

    class Guided(Guidance):
        def __init__(self) -> None:
            pass

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores

    Guided.__name__ = Guidance.__name__
    result = generate(lm("llama"), text(9), Auto(), max_new_tokens=6, logits_processor=[Guided()])
    assert "auto decodes plainly: UnbatchedClassifierFreeGuidanceLogitsProcessor keeps a state" in result.notes[0]
    assert result.stats.drafted == 0


def test_what_it_learns_stays_from_call_to_call() -> None:
    auto = Auto(otherwise="union:methods=(token-recycling:nodes=6+suffix:length=3):nodes=8")
    generate(lm("llama"), text(9), auto, max_new_tokens=6)
    first, _ = chosen(auto, lm("llama"))
    assert isinstance(first, Switched)
    assert first.part().memory
    assert chosen(auto, lm("llama"))[0] is first


def test_bad_input() -> None:
    with pytest.raises(RamifyError, match="otherwise takes one method; put several into a union"):
        Auto(otherwise="suffix,aded")
    with pytest.raises(RamifyError, match="greedy makes no drafts, so it cannot be part of auto"):
        Auto(otherwise="greedy")
