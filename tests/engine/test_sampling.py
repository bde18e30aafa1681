"""From logits to tokens: one transfer for what a step asks, and the same tokens however they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import lm, text
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper

from ramify.api import generate
from ramify.engine import sampling
from ramify.engine.sampling import AHEAD, NodeLaws, Noise, Sampler, likeliest
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError

SHAPE = TreeShape.of([-1, 0, 0, 1, 3])
TREE = TokenTree(torch.tensor([5, 2, 3, 2, 7]), SHAPE)
WARPERS = [RepetitionPenaltyLogitsProcessor(1.4), TemperatureLogitsWarper(0.8), TopKLogitsWarper(9)]
SAMPLERS = {
    "greedy": Sampler(),
    "greedy, processed": Sampler(WARPERS[:1]),
    "sampled": Sampler(WARPERS, greedy=False, noise=Noise(3)),
}


def laws(sampler: Sampler, logits: Tensor) -> NodeLaws:
    return NodeLaws(sampler, TREE, logits, torch.tensor([2, 4, 5, *[0] * 9]), 3)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_picks_are_samples_of_the_laws(sampler: Sampler) -> None:
    logits = 3 * torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    picked, found = laws(sampler, logits), laws(sampler, logits)
    for node in range(5):
        law = found.law(node)
        expected = law.argmax() if sampler.greedy else sampler.noise.pick(law, 3 + SHAPE.depth[node])
        assert picked.pick(node) == int(expected)


def test_who_looks_ahead_sees_the_noise_that_chooses() -> None:
    law = torch.softmax(torch.randn(30, generator=torch.Generator().manual_seed(1)), dim=-1)
    noise = Noise(3)
    for position in range(2 * AHEAD):
        race = noise.ahead(30, position)
        assert torch.equal(race, noise.ahead(30, position))
        assert int((law / race).argmax()) == Noise(3).pick(law, position)
    assert len(noise._ahead) == AHEAD
    assert [noise.pick(law, position) for position in range(9)] == [Noise(3).pick(law, each) for each in range(9)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_logits_that_are_no_numbers_are_refused(sampler: Sampler, bad: float) -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    logits[:, 11] = bad
    for ask in (laws(sampler, logits).pick, laws(sampler, logits).law):
        with pytest.raises(RamifyError, match="NaN or infinite logits"):
            ask(0)


def test_likeliest_tokens_in_any_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.randn(3, 4, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
        logits[1, 2, [8, 50]] = 9.0
        assert likeliest(logits) == logits.argmax(dim=-1).tolist()
        assert likeliest(logits)[1][2] == 8


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_one_transfer_for_a_step(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows when greedy, of a row when sampled. Counted where numbers leave the device; the rest is in CUDA."""
    transfers = []
    fetch = sampling._fetch

    def counting(*given: Tensor) -> list[int]:
        transfers.append(given)
        return fetch(*given)

    monkeypatch.setattr(sampling, "_fetch", counting)
    prompts = [text(9, row) for row in range(3)]
    results = generate(lm("llama"), prompts, "sample" if settings else "greedy", max_new_tokens=8, **settings)
    assert [len(result.tokens) for result in results] == [8, 8, 8]
    assert len(transfers) == (24 if settings else 8)
