"""MaskGIT: the worked schedule, its extremes, the noise, the growing guidance, bad input."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, request
from hypothesis import given
from hypothesis import strategies as st

from ramify.engine.canvas import CanvasSession
from ramify.engine.events import Event, Unmasked
from ramify.errors import RamifyError
from ramify.methods.unmask.maskgit import MaskGIT, cosine_left, ramp
from ramify.methods.unmask.orders import Unmask


def fixed(events: list[Event]) -> list[tuple[int, ...]]:
    return [event.positions for event in events if isinstance(event, Unmasked)]


def test_the_worked_schedule() -> None:
    left = cosine_left(64, 8)
    assert left == [62, 59, 53, 45, 35, 24, 12, 0]
    [result] = MaskGIT(steps=8).complete(denoiser(), [request([1], 64, greedy=False)])
    assert [len(positions) for positions in fixed(result.events)] == [2, 3, 6, 8, 10, 11, 12, 12]


@given(data=st.data())
def test_every_step_fixes_something_and_all_of_them_everything(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 300))
    steps = data.draw(st.integers(1, count))
    opened = [count]
    for left in cosine_left(count, steps)[:-1]:
        opened.append(min(left, opened[-1] - 1))
    assert min(opened) >= 1
    assert opened == sorted(opened, reverse=True)
    assert opened[-1] >= steps - len(opened) + 1


def test_without_noise_and_draws_it_fixes_the_surest_first() -> None:
    lm = denoiser()
    [found] = MaskGIT(steps=9, confidence_noise=0.0).complete(lm, [request([1, 2], 9)])
    [expected] = Unmask(steps=9).complete(lm, [request([1, 2], 9)])
    assert fixed(found.events) == fixed(expected.events)
    assert found.tokens == expected.tokens


def test_noise_changes_the_order_and_the_seed_decides_it() -> None:
    lm = denoiser()
    orders = [
        fixed(MaskGIT(steps=9, confidence_noise=1e6).complete(lm, [request([1, 2], 9, seed=seed)])[0].events)
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_noise_is_gone_in_the_last_step_but_one_that_has_a_choice() -> None:
    """(1 − r) is 1/T there: with T = 2 the first step still has half of the noise."""
    lm = denoiser()
    calm = MaskGIT(steps=2, confidence_noise=0.0).complete(lm, [request([1, 2], 9)])[0]
    wild = MaskGIT(steps=2, confidence_noise=1e6).complete(lm, [request([1, 2], 9)])[0]
    assert fixed(calm.events)[0] != fixed(wild.events)[0]
    assert sorted(sum(fixed(wild.events), ())) == list(range(2, 11))


def test_rows_do_not_meet() -> None:
    lm = denoiser()
    rows = [request([1, 2, 3], 7, seed=1, greedy=False), request([4], 11, seed=2, greedy=False)]
    together = MaskGIT(steps=4).complete(lm, rows)
    for row, result in zip(rows, together, strict=True):
        assert MaskGIT(steps=4).complete(lm, [row])[0].tokens == result.tokens


def test_guidance_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    score = CanvasSession.score

    def spy(self: CanvasSession, *args: object) -> object:
        weights.append(self.guidance)
        return score(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CanvasSession, "score", spy)
    MaskGIT(steps=5, guidance_from=0.0, guidance=1.0).complete(denoiser(null=4), [request([1], 8)])
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_guidance_that_stays_is_guidance() -> None:
    lm, rows = denoiser(null=4), [request([1, 2], 8, greedy=False)]
    grown = MaskGIT(steps=4, guidance_from=0.7, guidance=0.7).complete(lm, rows)[0]
    plain = MaskGIT(steps=4, guidance=0.7).complete(lm, rows)[0]
    assert grown.tokens == plain.tokens
    assert grown.tokens != MaskGIT(steps=4).complete(lm, rows)[0].tokens
    assert ramp(None, 0.3, 5) == 0.3


def test_a_small_canvas_takes_fewer_steps_than_published() -> None:
    [small] = MaskGIT().complete(denoiser(), [request([1], 5)])
    [large] = MaskGIT().complete(denoiser(), [request([1], 40)])
    assert (len(fixed(small.events)), len(fixed(large.events))) == (5, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"confidence_noise": -1.0}, "confidence_noise is -1"),
        ({"confidence_noise": float("nan")}, "confidence_noise"),
        ({"guidance_from": 0.1}, "guidance_from=0.1"),
        ({"guidance_from": -0.1, "guidance": 1.0}, "guidance_from=-0.1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_options(options: dict[str, float], said: str) -> None:
    with pytest.raises(RamifyError, match=said):
        MaskGIT(**options)  # type: ignore[arg-type]


def test_more_steps_than_positions() -> None:
    with pytest.raises(RamifyError, match="9 steps cannot fill 8 open positions"):
        MaskGIT(steps=9).complete(denoiser(), [request([1], 8)])


def test_the_noise_is_gumbels() -> None:
    """Its mean is 0.5772 and its variance π²/6: with both, ranking log p + noise samples without replacement."""
    from ramify.engine.look import Look
    from ramify.methods.unmask.maskgit import gumbel

    class Even(Look):
        def uniform(self, stream: int = 0) -> torch.Tensor:
            return (torch.arange(100_000, dtype=torch.float64) + 0.5)[None] / 100_000

    noise = gumbel(Even([], torch.zeros(0), torch.zeros(0), torch.zeros(0), torch.zeros(0)))
    assert noise.mean().item() == pytest.approx(0.57722, abs=1e-3)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=1e-2)
