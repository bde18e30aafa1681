"""From logits to tokens: one transfer for what a step asks, and the same tokens however they are asked for."""

from __future__ import annotations

import math
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


def test_noise_is_exponential_and_of_its_position_alone() -> None:
    race = Noise(3).race(100_000, 7)
    assert race.dtype == torch.float32
    assert float(race.min()) > 0.0
    assert float(race.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((race > 1.0).float().mean()) == pytest.approx(math.exp(-1), abs=0.01)
    others = [Noise(3).race(100_000, 8), Noise(4).race(100_000, 7), Noise(3, 1).race(100_000, 7), Noise(-3).race(10, 7)]
    for other in others[:3]:
        assert abs(float(torch.corrcoef(torch.stack([race, other]))[0, 1])) < 0.02
    assert torch.equal(race, Noise(3).race(100_000, 7))


def test_who_guesses_the_law_foresees_the_token() -> None:
    """With the target's own scores as the guess, the surest token is the one that the noise chooses."""
    sampler = Sampler(WARPERS[1:], greedy=False, noise=Noise(3))
    logits = 3 * torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    sure = sampler.foresee(logits, range(9, 15))
    assert torch.allclose(sure.exp().sum(dim=1), torch.ones(6))
    assert [Sampler.pick(sampler, torch.tensor([4]), logits[row], 9 + row) for row in range(6)] == sure.argmax(
        1
    ).tolist()
    alone = torch.cat([sampler.foresee(logits[[row]], [9 + row]) for row in range(6)])
    assert torch.equal(sure, alone)
    cut = torch.topk(logits / 0.8, 9, dim=1).indices  # top-k applies to the guess
    assert all(torch.isfinite(sure[row, cut[row]]).all() for row in range(6))
    assert torch.isinf(sure).sum() == 6 * 21


def test_greedy_text_is_foreseen_by_the_guess_itself() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(Sampler().foresee(logits, [4]), logits.float().log_softmax(dim=1))


def test_a_guess_at_some_tokens_meets_their_own_noise() -> None:
    sampler = Sampler(greedy=False, noise=Noise(3))
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([3, 8, 21])
    whole = sampler.foresee(logits, [4])[:, ids].log_softmax(dim=1)
    torch.testing.assert_close(sampler.foresee(logits[:, ids], [4], 30, ids), whole)


def test_shares_are_kept_where_the_guess_is_off_by_gumbel_noise() -> None:
    """Worked by simulation: the target's scores are the guess plus Gumbel variables, over many positions."""
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(greedy=False, noise=Noise(11))
    guess = torch.tensor([2.0, 1.5, 0.0, -1.0])
    promised, kept = 0.0, 0.0
    for position in range(4000):
        off = -torch.empty(4).exponential_(generator=generator).log()
        token = sampler.pick(torch.tensor([0]), guess + off, position)
        sure = sampler.foresee(guess[None], [position])[0].exp()
        promised += float(sure.max())
        kept += float(token == int(sure.argmax()))
    assert kept / 4000 == pytest.approx(promised / 4000, abs=0.02)
    assert kept / 4000 > 0.6


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
