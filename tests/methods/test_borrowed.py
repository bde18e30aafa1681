"""How heads compute when they draft: rounded matrices in half precision on a CPU, the target's own elsewhere."""

from __future__ import annotations

import pytest
import torch
from families import lm
from torch import nn

from ramify.methods.draft.borrowed import lm_head, product, quick_head
from ramify.models.causal import load
from ramify.models.weights import Int4, Packed, Plain, Product, unavailable

needs_int4 = pytest.mark.skipif(
    bool(unavailable("int4", torch.bfloat16, "cpu")), reason="this machine has no product of 4 bits in bfloat16"
)


@torch.no_grad()
def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm())


@needs_int4
def test_half_precision_is_rounded_and_float32_is_not() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(128, 64), nn.Linear(128, 32)
    x = torch.randn(3, 128)
    exact = torch.cat([first(x), second(x)], dim=1)
    single, half = load("demo", dtype="float32"), load("demo", dtype="bfloat16")
    assert isinstance(product(single, first, second), Packed | Plain)
    torch.testing.assert_close(product(single, first, second)(x), exact, atol=1e-5, rtol=1e-5)
    rounded = product(half, first, second)
    assert isinstance(rounded, Int4)
    assert 0.0 < error(rounded(x.bfloat16()), exact) < 0.15


def test_a_shape_that_4_bits_cannot_hold_stays_whole() -> None:
    half = load("demo", dtype="bfloat16")
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10, bias=False), torch.randn(2, 24)
    found = product(half, layer)
    assert not isinstance(found, Int4)
    assert error(found(x.bfloat16()), layer(x)) < 0.02


@needs_int4
@pytest.mark.parametrize("weights", ["plain", "packed"])
def test_the_lm_head_is_copied_for_drafts_and_the_targets_own_is_untouched(weights: str) -> None:
    if unavailable(weights, torch.bfloat16, "cpu"):
        pytest.skip(f"this machine has no {weights} weights")
    half = load("demo", dtype="bfloat16", weights=weights)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = lm_head(half)(x)
    found: Product | nn.Module = quick_head(half)
    assert isinstance(found, Int4)
    assert 0.0 < error(found(x), before) < 0.15
    assert torch.equal(lm_head(half)(x), before)


@needs_int4
def test_rounded_targets_and_float32_lend_their_own_head() -> None:
    for model in (load("demo", dtype="bfloat16", weights="int4"), load("demo", dtype="float32"), lm("llama")):
        assert quick_head(model) is lm_head(model)
