"""transformers' own loops as rows to compare with: the same tokens as ours, counted by the same definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from families import VOCABULARY, build, lm, text

from ramify.api import generate
from ramify.engine.events import Accepted, Finished, Prefilled, Scored
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.methods.baseline.transformers_generate import HFPromptLookup
from ramify.models.causal import CausalLM, load

NAMES = ["hf-greedy", "hf-prompt-lookup"]
PROMPT = text(18, 7, period=6)
NEW = 30


def run(method: Any, model: CausalLM | None = None, prompt: Any = PROMPT, new: int = NEW, **settings: Any) -> Any:
    return generate(model or lm("llama"), prompt, method, max_new_tokens=new, **settings)


def loops() -> CausalLM:
    """A model that has learned one sequence by heart: every token has one successor, so that text comes round."""
    import torch

    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        successor = [(token // 8) * 8 + (token + 1) % 8 for token in range(VOCABULARY)]  # rings of eight
        head[successor] = embedding / embedding.norm(dim=1, keepdim=True)
    return load(model)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_they_give_what_greedy_gives(name: str, family: str):
    prompts = [text(5, 1), text(17, 2, period=6), text(9, 3, period=3)]
    ours = run("greedy", lm(family), prompts)
    theirs = run(name, lm(family), prompts)
    assert [result.tokens for result in theirs] == [result.tokens for result in ours]
    assert [result.prompt for result in theirs] == prompts
    assert {result.finish for result in theirs} == {"length"}


@pytest.mark.parametrize("name", NAMES)
def test_settings_reach_them(name: str):
    settings = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
    assert run(name, **settings).tokens == run("greedy", **settings).tokens != run("greedy").tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_settings_count_once(name: str):
    model = build("llama")
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.no_repeat_ngram_size = 4
    own = load(model)
    assert run(name, own).tokens == run("greedy", own).tokens != run("greedy").tokens


def test_greedy_counts_one_call_a_token():
    result: Result = run("hf-greedy")
    stats = result.stats
    assert stats.generated_tokens == stats.target_calls == stats.row_steps == NEW
    assert stats.tokens_per_call == 1.0
    assert (stats.drafted, stats.accepted) == (0, 0)
    assert stats.accepted_lengths == {1: NEW}
    assert (stats.prompt_tokens, stats.prefill_calls) == (len(PROMPT), 1)


def test_greedy_never_samples():
    assert run("hf-greedy", do_sample=True, temperature=3.0).tokens == run("greedy").tokens


def test_lookup_gains_on_text_that_comes_round():
    model = loops()
    prompt = [*range(8, 16), *range(8, 16), 8, 9]
    result: Result = run("hf-prompt-lookup", model, prompt, new=44)
    assert result.tokens == [8 + (2 + place) % 8 for place in range(44)]
    stats = result.stats
    assert stats.generated_tokens == sum(length * count for length, count in stats.accepted_lengths.items()) == 44
    assert stats.target_calls == sum(stats.accepted_lengths.values()) == 4  # eleven tokens a call
    assert stats.tokens_per_call == 11.0
    assert stats.accepted == 44 - stats.target_calls
    short = run(HFPromptLookup(length=3), model, prompt, new=44)
    assert short.tokens == result.tokens
    assert short.stats.accepted_lengths == {4: 11}


@pytest.mark.parametrize("name", NAMES)
def test_events_tell_the_story_in_order(name: str):
    events = run(name).events
    assert isinstance(events[0], Prefilled)
    assert isinstance(events[-1], Finished)
    calls = [event.step for event in events if isinstance(event, Scored)]
    assert calls == list(range(len(calls)))
    commits = [event.step for event in events if isinstance(event, Accepted)]
    assert commits == sorted(commits)
    assert events[-1].step == calls[-1]


@pytest.mark.parametrize("name", NAMES)
def test_stop_tokens_end_them(name: str):
    free = run("greedy").tokens
    stop = free[9]
    ours, theirs = run("greedy", eos_token_id=stop), run(name, eos_token_id=stop)
    assert theirs.tokens == ours.tokens == free[: free.index(stop) + 1]
    assert theirs.finish == ours.finish == "stop"


def test_sampled_lookup_runs_and_repeats():
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 20}
    first, again, other = (run("hf-prompt-lookup", seed=seed, **settings).tokens for seed in (3, 3, 4))
    assert first == again != other
    assert len(first) == NEW
    assert all(0 <= token < VOCABULARY for token in first)


def test_hooks_are_taken_off_again():
    model = loops()
    run("hf-prompt-lookup", model)
    assert not model.model._forward_hooks
    assert not model.model._forward_pre_hooks
    with pytest.raises(ZeroDivisionError):
        run("hf-greedy", model, stopping_criteria=[lambda ids, scores: 1 / 0])
    assert not model.model._forward_hooks


def test_what_is_wrong_with_the_options_is_said():
    for options in ({"ngram": 0}, {"length": 0}):
        with pytest.raises(RamifyError, match="ngram and length must be at least 1"):
            replace(HFPromptLookup(), **options)
