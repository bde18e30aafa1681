"""On a GPU: the same promises in float32, a half-precision run that ends, and one wait per step.

Skipped where there is none. ``pytest tests/engine/test_cuda.py -k speed -s`` prints tokens per second.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FUSED, build, text

from ramify.api import generate
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM, load
from ramify.models.static import StaticForward

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
SETTINGS = pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
FORMS = [(family, how) for family in FUSED for how in ("eager", "sdpa") if (family, how) != ("gemma2", "sdpa")]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="inductor needs Triton on a GPU")


@pytest.mark.parametrize("forward", [None, "static"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@SETTINGS
def test_drafts_change_nothing(family: str, settings: dict[str, Any], forward: str | None) -> None:
    lm = load(build(family), device="cuda", forward=forward)
    prompts = [text(5, 1), text(17, 2, period=6), text(9, 3, period=3)]
    plain = generate(lm, prompts, "sample" if settings else "greedy", max_new_tokens=32, **settings)
    for method in ("prompt-lookup", "suffix", TokenRecycling(nodes=24), Assistant(model=lm, verifier="match")):
        ours = generate(lm, prompts, method, max_new_tokens=32, **settings)
        assert [r.tokens for r in ours] == [r.tokens for r in plain]


def test_speculative_sampling_runs_on_the_device() -> None:
    lm = load(build("llama"), device="cuda", dtype="bfloat16")
    result = generate(lm, text(9, 3), Assistant(model=lm), max_new_tokens=16, do_sample=True)
    assert len(result.tokens) == 16


# ---- the static forward ----


def scenes(lm: CausalLM) -> list[torch.Tensor]:
    """Logits and states of trees of several sizes behind texts of several lengths, with rollbacks, each size again."""
    shape = TreeShape.of([-1, 0, 0, 1, 1, 2, 3, 5])
    tree = TokenTree(torch.tensor(text(8, 5)), shape)
    session = Session(lm, 2)
    session.prefill([text(40, 1), text(23, 2)])
    found = []
    for _ in range(3):
        for trees in ([tree, tree], [TokenTree.chain([7]), TokenTree.chain([8])], [tree.cut(2), tree.cut(2)]):
            scores = session.score(trees, hidden_layers=[0, 1, -1])
            found += [scores.logits, *scores.hidden.values()]
            session.keep([trees[0].shape.path(len(trees[0]) - 1), [0]])
    session.select([1, 0, 1])
    found.append(session.score([tree] * 3).logits)
    return found


@pytest.mark.parametrize(("family", "attention"), FORMS)
def test_the_static_forward_gives_what_the_fused_one_gives(family: str, attention: str) -> None:
    model = build(family).to("cuda")
    model.set_attn_implementation(attention)
    static, fused = load(model, forward="static"), load(model, forward="fused")
    for ours, expected in zip(scenes(static), scenes(fused), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_static_forward_compiled_by_inductor(family: str) -> None:
    fused = load(build(family), device="cuda", forward="fused")
    static = CausalLM(fused.model, None, "static", StaticForward(fused.forward, "inductor"), trees=True)
    for ours, expected in zip(scenes(static), scenes(fused), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_graphs_and_buffers_are_used_again() -> None:
    lm = load(build("llama"), device="cuda", forward="static")
    sizes = []
    for _ in range(4):
        generate(lm, text(30, 1, period=6), TokenRecycling(nodes=20), max_new_tokens=40)
        sizes.append((lm.forward.prepared, torch.cuda.memory_allocated()))
    assert sizes[1] == sizes[2] == sizes[3]


# ---- waiting ----


def waits(run: Callable[[], Any]) -> tuple[int, int]:
    """How often ``run`` makes the host wait for the GPU, and in how many forward passes."""
    run()  # what is prepared once does not count
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    result = results[0] if isinstance(results, list) else results
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught), result.stats.target_calls


@pytest.mark.parametrize("forward", ["fused", "static"])
@pytest.mark.parametrize(
    ("method", "rows", "settings"),
    [
        ("greedy", 1, {}),
        ("greedy", 3, {}),
        (PromptLookup(length=7), 1, {}),
        ("sample", 1, {"do_sample": True, "temperature": 0.7}),
    ],
    ids=["greedy", "rows", "drafts", "sampled"],
)
def test_a_step_waits_once(method: Any, rows: int, settings: dict[str, Any], forward: str) -> None:
    lm = load(build("llama"), device="cuda", forward=forward)
    prompts = [text(30, row, period=6 + row) for row in range(rows)]

    def run(tokens: int) -> tuple[int, int]:
        return waits(
            lambda: generate(lm, prompts if rows > 1 else prompts[0], method, max_new_tokens=tokens, **settings)
        )

    (few, short), (many, long) = run(10), run(50)
    assert long > short
    assert (many - few) / (long - short) == 1.0


# ---- speed ----


@pytest.mark.slow
def test_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens per second of plain decoding, and of drafts of 24 nodes, for each forward pass: shown, not judged."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    forwards = {name: load(model, forward=name) for name in ("transformers", "fused", "static")}
    if importlib.util.find_spec("triton") is not None:
        inner = StaticForward(forwards["fused"].forward, "inductor")
        forwards["static, inductor"] = CausalLM(model, None, "compiled", inner, trees=True)
    for name, lm in forwards.items():
        for method in ("greedy", TokenRecycling(nodes=24)):
            speeds = []
            for _ in range(3):
                result = generate(lm, text(100, 1, period=9), method, max_new_tokens=128)
                speeds.append(result.stats.generated_tokens / result.stats.decode_seconds)
            with capsys.disabled():
                label = method if isinstance(method, str) else "drafts"
                print(f"\n{name:20} {label:8} {max(speeds):8.1f} tokens/s, {result.stats.target_calls} passes", end="")
            assert max(speeds) > 0.0
