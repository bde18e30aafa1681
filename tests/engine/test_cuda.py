"""On a GPU: the same promises in float32, and a half-precision run that ends. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from families import build, text

from ramify.api import generate
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}], ids=["greedy", "sampled"]
)
def test_drafts_change_nothing(family: str, settings: dict) -> None:
    lm = load(build(family), device="cuda")
    prompts = [text(5, 1), text(17, 2, period=6), text(9, 3, period=3)]
    plain = generate(lm, prompts, "sample" if settings else "greedy", max_new_tokens=32, **settings)
    for method in ("prompt-lookup", "suffix", TokenRecycling(nodes=24), Assistant(model=lm, verifier="match")):
        ours = generate(lm, prompts, method, max_new_tokens=32, **settings)
        assert [r.tokens for r in ours] == [r.tokens for r in plain]


def test_speculative_sampling_runs_on_the_device() -> None:
    lm = load(build("llama"), device="cuda", dtype="bfloat16")
    result = generate(lm, text(9, 3), Assistant(model=lm), max_new_tokens=16, do_sample=True)
    assert len(result.tokens) == 16
