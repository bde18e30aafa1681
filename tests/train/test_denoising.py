"""Losses of masked denoisers: on exact laws they are entropies; layouts show what they should and nothing else."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from families import VOCABULARY, build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ramify.train.denoise_grids import COLOURS, FLOOR, NOISE, agreement, cells_of, colour_entropy, grids
from ramify.train.denoise_grids import MASK as GREY
from ramify.train.denoising import (
    EPSILON,
    Denoise,
    block_loss,
    block_pass,
    bound,
    cosine_counts,
    cut,
    full_pass,
    loglinear,
    mask_each,
    mask_exactly,
    maskgit_loss,
    mdlm_loss,
    pretraining_loss,
    rates,
    sft_loss,
    sight,
    sight_of_two,
)

MASK = 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def twins(noisy: Tensor) -> Tensor:
    """The exact denoiser of two equal fair bits, ids 0 and 1: logits [B, 2, 3]."""
    other = noisy.flip(1)
    law = torch.full((*noisy.shape, 3), 0.5)
    law[..., MASK] = 0.0
    known = torch.where(noisy == MASK, other, noisy)
    for bit in (0, 1):
        law[known == bit] = torch.tensor([1.0 - bit, float(bit), 0.0])
    return law.log()


def pairs(count: int) -> Tensor:
    return torch.randint(2, (count, 1), generator=generator()).expand(-1, 2)


# ---------------------------------------------------------------- an exact denoiser pays the entropy


@pytest.mark.parametrize("loss", [pretraining_loss, mdlm_loss])
def test_the_weighted_loss_of_an_exact_denoiser_is_the_entropy(loss: Any):
    # ∫ (1/t) t² 2 ln 2 dt = ln 2 for the pair; per token half of it
    found = loss(twins, pairs(40_000), MASK, generator())
    assert 2 * found.item() == pytest.approx(math.log(2), rel=0.02)


def test_the_low_variance_bound_of_an_exact_denoiser_is_the_entropy():
    # one masked: 0; both masked: 2 ln 2; every second row each, so no noise is left
    found = bound(twins, pairs(50), MASK, generator())
    assert sorted(set(found.tolist())) == pytest.approx([0.0, 2 * math.log(2)])
    assert found.mean().item() == pytest.approx(math.log(2))


def test_the_bound_in_blocks_of_one_is_the_sum_of_all_losses():
    ids = pairs(6)
    found = bound(twins, ids, MASK, generator(), block=1)  # every block masked whole: both bits unknown
    assert found.tolist() == pytest.approx([2 * math.log(2)] * 6)


def test_the_bound_of_a_wrong_denoiser_is_higher():
    wrong: Denoise = lambda noisy: (0.9 * twins(noisy).exp() + 0.05).log()  # noqa: E731
    assert bound(wrong, pairs(50), MASK, generator()).mean() > math.log(2) + 0.05


def test_loss_and_bound_have_one_expectation():
    torch.manual_seed(0)
    table = torch.randn(4, 6, 5)

    def denoise(noisy: Tensor) -> Tensor:  # depends on what is visible
        return table[(noisy == MASK).sum(1) % 4] + 0.3 * noisy[..., None]

    ids = torch.randint(2, (30_000, 6), generator=generator())
    loss = 6 * pretraining_loss(denoise, ids, MASK, generator())
    assert loss.item() == pytest.approx(bound(denoise, ids, MASK, generator(1)).mean().item(), rel=0.02)
    assert 6 * mdlm_loss(denoise, ids, MASK, generator(2)).item() == pytest.approx(loss.item(), rel=0.03)


def test_the_weight_of_mdlm_is_one_over_t():
    time = torch.linspace(0.01, 1, 50, dtype=torch.double)
    sigma, slope = loglinear(time)
    torch.testing.assert_close(slope / torch.expm1(sigma), 1 / time)
    torch.testing.assert_close(1 - torch.exp(-sigma), (1 - EPSILON) * time)
    step = 1e-6
    torch.testing.assert_close((loglinear(time + step)[0] - sigma)[:-1] / step, slope[:-1], rtol=1e-4, atol=1e-4)


def test_maskgit_loss_of_the_exact_law_of_grids_is_the_floor_that_the_card_names():
    def exact(noisy: Tensor) -> Tensor:
        likelihood = torch.full((COLOURS + 1, COLOURS), NOISE / COLOURS)
        likelihood[:COLOURS] += (1 - NOISE) * torch.eye(COLOURS)
        likelihood[GREY] = 1.0  # a masked token tells nothing
        cells = cells_of(noisy)
        colour = likelihood[cells].log().sum(2).softmax(-1)
        law = torch.cat([colour @ likelihood[:COLOURS], torch.zeros(len(noisy), 16, 1)], -1)
        return law.log()[:, :, None].expand(-1, -1, 4, -1).reshape(-1, 4, 4, 2, 2, 9).transpose(2, 3).reshape(-1, 64, 9)

    found = maskgit_loss(exact, grids(1500, generator()), GREY, generator(), smoothing=0.0)
    assert found.item() == pytest.approx(FLOOR, abs=0.02)


def test_smoothed_labels_leave_the_mask_out():
    logits = torch.tensor([1.0, 2.0, -math.inf])
    ids = torch.zeros(3, 4, dtype=torch.long)
    found = maskgit_loss(lambda noisy: logits.expand(3, 4, 3), ids, MASK, generator(), smoothing=0.1)
    log_p = logits[:2].log_softmax(0)
    assert found.item() == pytest.approx((-0.95 * log_p[0] - 0.05 * log_p[1]).item())


# ---------------------------------------------------------------- what is masked


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=30)
def test_rates_take_one_from_every_part(count: int, seed: int):
    low, high = 0.2, 0.9
    drawn = rates(count, generator(seed), low, high)
    parts = ((drawn.double() - low) / (high - low) * count).floor().long().clamp(0, count - 1)
    assert sorted(parts.tolist()) == list(range(count))


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=30)
def test_exactly_so_many_are_masked_and_nothing_else(rows: int, length: int, seed: int):
    draw = generator(seed)
    maskable = torch.rand(rows, length, generator=draw) < 0.6
    counts = (torch.rand(rows, generator=draw) * (maskable.sum(1) + 1)).long()
    masked = mask_exactly(counts, maskable, draw)
    assert torch.equal(masked.sum(1), counts)
    assert not (masked & ~maskable).any()


def test_every_choice_of_masks_is_as_likely():
    masked = mask_exactly(
        torch.full((12_000,), 2), torch.tensor([True, False, True, True]).expand(12_000, 4), generator()
    )
    kinds, counts = masked.long().unique(dim=0, return_counts=True)
    assert len(kinds) == 3
    assert all(abs(count - 4000) < 4 * math.sqrt(4000 * 2 / 3) for count in counts.tolist())
    each = mask_each(torch.tensor(0.3), torch.ones(200, 100, dtype=torch.bool), generator())
    assert each.double().mean().item() == pytest.approx(0.3, abs=0.015)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=25)
def test_prompts_are_never_masked_nor_changed(rows: int, prompt: int, rest: int, seed: int):
    ids = torch.randint(2, (rows, prompt + rest), generator=generator(seed))
    ids[:, 0] = MASK  # a prompt may hold the mask token itself
    answer = (torch.arange(prompt + rest) >= prompt).expand(rows, -1)
    seen = []

    def denoise(noisy: Tensor) -> Tensor:
        seen.append(noisy)
        return torch.zeros(*noisy.shape, 3)

    sft_loss(denoise, ids, answer, MASK, generator(seed))
    bound(denoise, ids, MASK, generator(seed), answer)
    block_loss(denoise, ids, 2, MASK, generator(seed), answer)
    assert all(torch.equal(noisy[:, :prompt], ids[:, :prompt]) for noisy in seen)
    assert any((noisy[:, prompt:] == MASK).any() for noisy in seen)


def test_sft_divides_by_the_length_of_each_answer():
    ids = torch.zeros(2000, 6, dtype=torch.long)
    answer = torch.arange(6) >= torch.tensor([5, 2]).repeat(1000)[:, None]
    found = sft_loss(lambda noisy: torch.zeros(*noisy.shape, 4), ids, answer, MASK, generator())
    assert found.item() == pytest.approx(math.log(4), rel=0.1)  # the same for answers of 1 and of 4 tokens
    assert bound(lambda noisy: torch.zeros(*noisy.shape, 4), ids, MASK, generator(), answer).tolist() == pytest.approx(
        [math.log(4), 4 * math.log(4)] * 1000
    )


def test_cosine_counts():
    assert cosine_counts(torch.arange(9) / 8, 64).tolist() == [64, 63, 60, 54, 46, 36, 25, 13, 1]


def test_a_share_of_batches_is_cut():
    ids, draw = torch.arange(40).view(2, 20), generator()
    lengths = [cut(ids, draw, 0.5).shape[1] for _ in range(400)]
    assert 140 < sum(length < 20 for length in lengths) < 250
    assert min(lengths) == 1
    assert torch.equal(cut(ids, draw, 0.0), ids)


# ---------------------------------------------------------------- what sees what


def test_layouts_of_one_copy():
    assert sight(5).all()
    assert torch.equal(sight(5, block=1), torch.ones(5, 5).tril().bool())
    assert torch.equal(sight(5, block=5), sight(5))
    assert sight(5, block=2).long().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]
    ]  # fmt: skip
    control = sight(4, prompt=2)
    assert control.long().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize(("length", "block"), [(6, 1), (6, 2), (6, 3), (7, 3), (4, 4)])
def test_a_noisy_block_sees_itself_and_the_clean_blocks_before_it(length: int, block: int):
    seen = sight_of_two(length, block)
    for query in range(length):
        own = query // block
        noisy = {key for key in range(length) if key // block == own}
        before = {length + key for key in range(length) if key // block < own}
        assert set(seen[query].nonzero().flatten().tolist()) == noisy | before
        clean = {length + key for key in range(length) if key // block <= own}
        assert set(seen[length + query].nonzero().flatten().tolist()) == clean


# ---------------------------------------------------------------- passes over real decoders


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("block", [1, 3, 4, 12])
def test_two_copies_say_what_a_sequential_run_says(family: str, block: int):
    model, mask = build(family), VOCABULARY - 1
    clean = torch.randint(VOCABULARY - 1, (2, 12), generator=generator())
    masked = torch.rand(clean.shape, generator=generator(1)) < 0.6
    noisy = clean.masked_fill(masked, mask)
    with torch.no_grad():
        found = block_pass(model, mask, clean, block)(noisy)
        for start in range(0, 12, block):  # finished blocks before, one noisy block at the end
            so_far = torch.cat([clean[:, :start], noisy[:, start : start + block]], 1)
            wanted = full_pass(model, mask, sight(so_far.shape[1], block))(so_far)[:, start:]
            assert (found[..., mask] == -math.inf).all()
            torch.testing.assert_close(found[:, start : start + block, :mask], wanted[..., :mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_copies_say_what_a_cached_run_says(family: str):
    from transformers import DynamicCache

    model, mask, block = build(family), VOCABULARY - 1, 4
    clean = torch.randint(VOCABULARY - 1, (2, 12), generator=generator())
    noisy = clean.masked_fill(torch.rand(clean.shape, generator=generator(1)) < 0.6, mask)
    cache = DynamicCache(config=model.config)

    def feed(ids: Tensor, start: int, cache: Any) -> Tensor:
        return model(
            input_ids=ids,
            attention_mask=torch.zeros(2, 1, block, start + block),  # a block sees what is cached and itself
            position_ids=torch.arange(start, start + block).expand(2, -1),
            past_key_values=cache,
            use_cache=True,
        ).logits

    with torch.no_grad():
        found = block_pass(model, mask, clean, block)(noisy)
        for start in range(0, 12, block):
            logits = feed(noisy[:, start : start + block], start, copy.deepcopy(cache))
            torch.testing.assert_close(found[:, start : start + block, :mask], logits[..., :mask], atol=1e-4, rtol=1e-4)
            feed(clean[:, start : start + block], start, cache)  # stored once the block is complete


def test_one_block_of_all_is_full_attention_and_blocks_of_one_are_causal():
    model, mask = build("llama"), VOCABULARY - 1
    clean = torch.randint(VOCABULARY - 1, (2, 8), generator=generator())
    noisy = clean.masked_fill(torch.rand(clean.shape, generator=generator(1)) < 0.5, mask)
    with torch.no_grad():
        whole = block_pass(model, mask, clean, 8)(noisy)[..., :mask]
        torch.testing.assert_close(whole, full_pass(model, mask, sight(8))(noisy)[..., :mask], atol=1e-4, rtol=1e-4)
        causal = full_pass(model, mask, sight(8, 1))(clean)[..., :mask]
        torch.testing.assert_close(causal, model(input_ids=clean).logits[..., :mask], atol=1e-4, rtol=1e-4)


def test_the_shift_moves_what_is_said_by_one():
    model, mask = build("qwen2"), VOCABULARY - 1
    ids = torch.randint(VOCABULARY - 1, (1, 6), generator=generator())
    with torch.no_grad():
        plain, shifted = (full_pass(model, mask, sight(6), shift)(ids) for shift in (False, True))
    assert torch.equal(shifted[:, 1:], plain[:, :-1])
    assert torch.equal(shifted[:, 0], plain[:, 0])


def test_the_prompt_of_the_control_does_not_see_the_answer():
    model, mask = build("gpt2"), VOCABULARY - 1
    ids = torch.randint(VOCABULARY - 1, (1, 6), generator=generator())
    other = ids.clone()
    other[:, 4:] = mask
    with torch.no_grad():
        control, full = (full_pass(model, mask, sight(6, prompt=prompt)) for prompt in (3, 0))
        torch.testing.assert_close(control(ids)[:, :3], control(other)[:, :3])
        assert not torch.allclose(full(ids)[:, :3, :mask], full(other)[:, :3, :mask], atol=1e-3)


def test_gradients_reach_every_weight():
    model, mask = build("gpt2").train(), VOCABULARY - 1
    ids = torch.randint(VOCABULARY - 1, (4, 8), generator=generator())
    block_loss(block_pass(model, mask, ids, 4), ids, 4, mask, generator()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


# ---------------------------------------------------------------- grids


def test_grids_are_cells_of_one_colour():
    images = grids(4000, generator())
    assert images.shape == (4000, 64)
    assert set(images.unique().tolist()) == set(range(COLOURS))
    whole = (1 - NOISE + NOISE / 8) ** 4 + 7 * (NOISE / 8) ** 4
    assert agreement(images) == pytest.approx(whole, abs=0.005)
    assert colour_entropy(images) == pytest.approx(math.log(8), abs=0.001)


def test_cells_are_two_by_two():
    image = torch.arange(64)[None]
    assert cells_of(image)[0, 0].tolist() == [0, 1, 8, 9]
    assert cells_of(image)[0, 5].tolist() == [18, 19, 26, 27]
    stripes = (torch.arange(64) % 2)[None]
    assert agreement(stripes) == 0.0
    assert agreement(torch.zeros(1, 64, dtype=torch.long)) == 1.0
    assert colour_entropy(torch.zeros(1, 64, dtype=torch.long)) == 0.0
