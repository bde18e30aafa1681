"""ReCAP: worked counts, what equals the base sampler, what local passes read, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoisers import MASK, denoiser, plain_logits, request
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from ramify.engine.canvas import CanvasSession
from ramify.engine.events import Event, Scored, Unmasked
from ramify.engine.filling import Schedule
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.recap import ReCAP
from ramify.methods.unmask.recap_groups import power_counts, slices
from ramify.models.masked import MaskedLM, load_masked

BASE = {"schedule": "even", "order": "random", "last_temperature": 1.0}


def fixed(events: list[Event]) -> list[tuple[int, ...]]:
    return [event.positions for event in events if isinstance(event, Unmasked)]


def fed(result: Result) -> list[int]:
    return [event.nodes for event in result.events if isinstance(event, Scored)]


def run(lm: MaskedLM, *rows: Any, **options: Any) -> list[Result]:
    return ReCAP(**options).complete(lm, rows)


def test_the_worked_schedule() -> None:
    counts = power_counts(256, 16)
    assert counts == [1, 1, 2, 4, 6, 9, 10, 13, 15, 19, 21, 24, 28, 31, 34, 38]
    assert slices(counts, 0, 1) == [[1, 1], [2, 4], [6, 9], [10, 13], [15, 19], [21, 24], [28, 31], [34, 38]]


def test_groups_of_three_use_every_entry_once() -> None:
    """The published code's own grouping gives [4, 6, 7], [7, 7, 9] here."""
    assert slices(power_counts(256, 32), 12, 2)[12:14] == [[4, 6, 6], [7, 7, 8]]


@given(data=st.data())
def test_schedules_fix_everything_and_something_in_every_step(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 300))
    steps = data.draw(st.integers(1, count))
    counts = power_counts(count, steps)
    assert sum(counts) == count
    assert min(counts) >= 1
    plan = slices(counts, data.draw(st.integers(0, steps)), data.draw(st.integers(0, 4)))
    assert [count for group in plan for count in group] == counts


@pytest.mark.parametrize(
    ("steps", "pre_full", "positions"), [(32, 12, 5895), (24, 10, 4602), (20, 10, 4069), (16, 8, 3298), (16, 0, 2320)]
)
def test_worked_positions(image_sized: MaskedLM, steps: int, pre_full: int, positions: int) -> None:
    [result] = run(image_sized, request([1], 256, greedy=False), steps=steps, pre_full=pre_full)
    assert sum(fed(result)) == positions
    assert len(fed(result)) == steps
    assert sorted(sum(fixed(result.events), ())) == list(range(1, 257))


@pytest.fixture(scope="module")
def image_sized() -> MaskedLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=257, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return load_masked(LlamaForCausalLM(config), mask_token=15)


@settings(max_examples=15)
@given(seed=st.integers(0, 99), steps=st.integers(1, 12), greedy=st.booleans(), shift=st.booleans())
def test_without_local_passes_it_is_the_base_sampler(seed: int, steps: int, greedy: bool, shift: bool) -> None:
    lm, row = denoiser(shift=shift), request([1, 2, 3], 12, seed=seed, greedy=greedy)
    [base] = Unmask(order="random", steps=steps).complete(lm, [row])
    [found] = run(lm, row, local=0, steps=steps, **BASE)
    assert found.tokens == base.tokens
    assert fixed(found.events) == fixed(base.events)


@settings(max_examples=10)
@given(seed=st.integers(0, 99), order=st.sampled_from(["confidence", "random"]))
def test_when_all_steps_are_whole_u_means_nothing(seed: int, order: str) -> None:
    lm, row = denoiser(), request([1, 2], 11, seed=seed, greedy=False)
    [base] = run(lm, row, local=0, steps=6, order=order)
    [found] = run(lm, row, local=3, pre_full=6, steps=6, order=order)
    assert found.tokens == base.tokens


@pytest.mark.parametrize("shift", [False, True])
def test_a_group_of_all_positions_loses_nothing(shift: bool) -> None:
    """Local passes then evaluate the whole canvas; the order is that of the first pass, the tokens those of each."""
    lm = denoiser(shift=shift)
    [found] = run(lm, request([1, 2], 12), steps=4, local=3, schedule="even", confidence_noise=0.0)
    canvas = [1, 2] + [MASK] * 12
    first = plain_logits(lm, canvas)[2:, :MASK].softmax(-1).max(-1).values
    order = (first.argsort(descending=True, stable=True) + 2).tolist()
    for step in range(4):
        best = plain_logits(lm, canvas)[:, :MASK].argmax(-1)
        for position in order[3 * step : 3 * step + 3]:
            canvas[position] = int(best[position])
    assert found.tokens == canvas[2:]


@settings(max_examples=20)
@given(data=st.data())
def test_a_local_pass_over_unchanged_tokens_gives_the_whole_pass_again(data: st.DataObject) -> None:
    lm = denoiser(data.draw(st.sampled_from(["llama", "gpt2"])), shift=data.draw(st.booleans()))
    method = ReCAP(steps=4, local=1, feed_prompt=data.draw(st.booleans()), schedule="even")
    rule = method.rule(lm, [])
    row = Schedule(None, 4).begin(lm, request([1, 2, 3], 12), 0)
    session = CanvasSession(lm, [row.canvas])
    whole, _ = session.score([range(15)])
    targets = data.draw(st.lists(st.integers(3, 14), min_size=6, max_size=6, unique=True))
    rule._begin(row)
    course = rule.courses[0]
    course.now = rule._group(course, row, targets)
    kept = rule.hold(row, session.held(0), [])
    assert not set(kept) & set(targets)
    session.hold([kept])
    local, positions = session.score([targets], [data.draw(st.permutations(rule.fed(row, session.held(0)) or []))])
    assert positions == 15 - len(kept)
    torch.testing.assert_close(local[0, :, :MASK], whole[0][targets][:, :MASK], atol=1e-5, rtol=1e-5)


def test_what_local_passes_evaluate() -> None:
    lm, row = denoiser(), request([1, 2, 3], 12)
    evaluated = {}
    for feed_prompt in (True, False):
        [result] = run(lm, row, steps=6, local=2, pre_full=1, schedule="even", feed_prompt=feed_prompt)
        evaluated[feed_prompt] = fed(result)
    assert evaluated[True] == [15, 15, 6 + 3, 6 + 3, 15, 4 + 3]
    assert evaluated[False] == [15, 15, 6, 6, 15, 4]


def test_masks_outside_the_group_can_be_hidden() -> None:
    lm, row = denoiser(), request([1, 2, 3], 12, greedy=False)
    seen, hidden = (run(lm, row, steps=6, schedule="even", cache_masked=flag)[0] for flag in (True, False))
    assert seen.tokens != hidden.tokens
    assert fed(seen) == fed(hidden)
    rule = ReCAP(steps=6, cache_masked=False, schedule="even").rule(lm, [])
    filling = Schedule(None, 6).begin(lm, row, 0)
    rule._begin(filling)
    rule.courses[0].now = rule._group(rule.courses[0], filling, [5, 6, 7, 8])
    assert rule.hold(filling, set(), []) == []  # nothing is written yet, and the prompt is fed again
    filling.canvas.fix(torch.tensor([9]), torch.tensor([1]))
    rule.courses[0].now.held = False
    assert rule.hold(filling, set(), []) == [9]


@pytest.mark.parametrize("options", [{}, {"local": 2}, {"block": 4, "steps": 6}, {"cache_masked": False}])
def test_rows_do_not_meet(options: dict[str, Any]) -> None:
    lm = denoiser()
    rows = [request([1, 2, 3], 9, seed=1, greedy=False), request([4], 12, seed=2, greedy=False)]
    together = run(lm, *rows, **({"steps": 6} | options))
    for row, result in zip(rows, together, strict=True):
        [alone] = run(lm, row, **({"steps": 6} | options))
        assert alone.tokens == result.tokens
        assert fixed(alone.events) == fixed(result.events)


def test_blocks_are_filled_from_left_to_right_with_groups_of_their_own() -> None:
    [result] = run(denoiser(), request([1], 12), block=4, steps=6, schedule="even")
    blocks = [{(position - 1) // 4 for position in positions} for positions in fixed(result.events)]
    assert blocks == [{0}, {0}, {1}, {1}, {2}, {2}]
    assert fed(result) == [13, 5, 13, 5, 13, 5]


def test_a_processor_may_forbid_the_mask() -> None:
    """What a local pass did not read has no law of its own, and is not asked for one."""

    def below_ten(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-1]) >= 10, -torch.inf)

    row = request([1, 2], 12, greedy=False)
    row.sampler.processors = (below_ten,)
    [result] = run(denoiser(), row, steps=6, local=2)
    assert max(result.tokens) < 10


def test_temperature_falls_from_one() -> None:
    """At a last temperature next to nothing the last step takes the likeliest token."""
    lm = denoiser()
    ends = set()
    for seed in range(8):
        row = request([1, 2], 6, seed=seed, greedy=False, canvas=[5, 6, 7, 8, None, None])
        [result] = run(lm, row, steps=2, local=0, last_temperature=1e-6, order="random")
        (first,), (last,) = fixed(result.events)
        tokens = [1, 2, *result.tokens]
        ends.add(tokens[first])
        canvas = [MASK if position == last else token for position, token in enumerate(tokens)]
        assert tokens[last] == int(plain_logits(lm, canvas)[last, :MASK].argmax())
    assert len(ends) > 1


def test_guidance_counts_all_steps_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    score = CanvasSession.score

    def spy(self: CanvasSession, *args: Any) -> Any:
        weights.append(self.guidance)
        return score(self, *args)

    monkeypatch.setattr(CanvasSession, "score", spy)
    [result] = run(denoiser(null=4), request([1], 10), steps=5, local=1, guidance_from=0.0, guidance=1.0)
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert len(result.tokens) == 10


def test_a_small_canvas_takes_fewer_steps_than_published() -> None:
    assert len(fed(run(denoiser(), request([1], 5))[0])) == 5
    assert len(fed(run(denoiser(), request([1], 40))[0])) == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"local": -1}, "local=-1"),
        ({"pre_full": -1}, "pre_full=-1"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"order": "confident"}, "did you mean 'confidence'"),
        ({"last_temperature": 0.0}, "last_temperature is 0"),
        ({"cache": "dual"}, "cache of its own"),
        ({"guidance_from": 0.2}, "guidance_from=0.2"),
        ({"confidence_noise": -1.0}, "confidence_noise is -1"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RamifyError, match=said):
        ReCAP(**options)


def test_a_model_that_sees_in_blocks_needs_none_of_this() -> None:
    with pytest.raises(RamifyError, match="sees in blocks"):
        run(denoiser(block=4), request([1], 8))


def test_more_steps_than_positions() -> None:
    with pytest.raises(RamifyError, match="9 steps cannot fill 8 open positions"):
        run(denoiser(), request([1], 8), steps=9)
