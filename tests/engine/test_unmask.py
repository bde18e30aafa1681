"""The masked loop: blocks, schedules, caches, batches, and rules that do what they must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from denoisers import MASK, denoiser, plain_logits, request
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.engine.events import Accepted, Cut, Event, Finished, Prefilled, Remasked, Scored, Unmasked
from ramify.engine.feeding import Blockwise, Delayed, Feeding, Sequential, Whole
from ramify.engine.filling import Schedule, even
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.unmask import Choice, Rule, unmask
from ramify.errors import RamifyError
from ramify.models.masked import MaskedLM


class Best(Rule):
    """The schedule's most confident positions."""

    def choose(self, look: Look) -> Choice:
        return Choice(look.best(look.confidence, look.quota))


def run(lm: MaskedLM, requests: Sequence[Request], rule: Rule | None = None, **how: Any) -> list[Event]:
    return list(unmask(lm, requests, rule or Best(), **how))


def texts(events: list[Event]) -> dict[int, tuple[int, ...]]:
    return {event.row: event.tokens for event in events if isinstance(event, Accepted)}


def order(events: list[Event], row: int = 0) -> list[tuple[int, ...]]:
    return [event.positions for event in events if isinstance(event, Unmasked) and event.row == row]


PROMPT = [3, 14, 15]


def by_hand(lm: MaskedLM, prompt: list[int], new: int, block: int) -> list[int]:
    """LLaDA's sampler, one token a step, from whole passes of the transformers model."""
    tokens = [*prompt, *[MASK] * new]
    for begin in range(len(prompt), len(tokens), block):
        places = list(range(begin, min(begin + block, len(tokens))))
        while opened := [p for p in places if tokens[p] == MASK]:
            logits = plain_logits(lm, tokens)
            logits[:, MASK] = -torch.inf
            law = torch.softmax(logits.double(), dim=-1)
            best = max(opened, key=lambda p: float(law[p].max()))
            tokens[best] = int(law[best].argmax())
    return tokens[len(prompt) :]


@pytest.mark.parametrize("block", [3, 4, 12])
@pytest.mark.parametrize("shift", [False, True])
def test_one_token_a_step_is_the_published_sampler(block: int, shift: bool) -> None:
    lm = denoiser(shift=shift)
    events = run(lm, [request(PROMPT, 12)], schedule=Schedule(block))
    assert list(texts(events)[0]) == by_hand(lm, PROMPT, 12, block)
    assert [event.nodes for event in events if isinstance(event, Scored)] == [15] * 12
    assert isinstance(events[0], Prefilled)
    assert events[-1] == Finished(0, 11, "length")


def test_blocks_are_filled_from_left_to_right() -> None:
    events = run(denoiser(), [request(PROMPT, 10)], schedule=Schedule(block=4, steps=6))
    assert [max(positions) < 7 for positions in order(events)] == [True, True, False, False, False, False]
    assert sorted(p for positions in order(events) for p in positions) == list(range(3, 13))


def test_shares_of_a_schedule() -> None:
    assert even(10, 4) == [3, 3, 2, 2]
    assert even(2, 4) == [1, 1, 0, 0]
    sizes = [len(each) for each in order(run(denoiser(), [request(PROMPT, 10)], schedule=Schedule(steps=4)))]
    assert sizes == [3, 3, 2, 2]


@settings(max_examples=20)
@given(new=st.integers(1, 9), block=st.integers(1, 10), data=st.data())
def test_any_schedule_fills_every_position_once(new: int, block: int, data: st.DataObject) -> None:
    block = min(block, new)
    steps = data.draw(st.integers(-(-new // block), new))
    events = run(denoiser(), [request(PROMPT, new)], schedule=Schedule(block, steps))
    written = [p for positions in order(events) for p in positions]
    assert sorted(written) == list(range(3, 3 + new))
    assert len(order(events)) == steps == sum(isinstance(event, Scored) for event in events)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("feeding", [Whole(), Blockwise(), Blockwise(dual=True), Delayed(3)])
def test_a_batch_is_its_rows(feeding: Feeding, greedy: bool) -> None:
    requests = [
        request([3, 14, 15], 9, seed=1, greedy=greedy),
        request([7], 5, seed=2, greedy=greedy),
        request([9, 2, 6, 5, 3], 11, seed=3, greedy=greedy),
    ]
    together = texts(run(denoiser(), requests, schedule=Schedule(block=4), feeding=feeding))
    for place, each in enumerate(requests):
        alone = texts(run(denoiser(), [each], schedule=Schedule(block=4), feeding=feeding))
        assert together[place] == alone[0]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
def test_a_cache_that_is_renewed_at_every_step_is_none(cache: str, shift: bool) -> None:
    lm = denoiser(shift=shift)
    feeding = Delayed(1, shift) if cache == "delayed" else Blockwise(cache == "dual", 1, shift)
    whole = run(lm, [request(PROMPT, 12)], schedule=Schedule(block=4))
    assert texts(run(lm, [request(PROMPT, 12)], schedule=Schedule(block=4), feeding=feeding)) == texts(whole)


@pytest.mark.parametrize("shift", [False, True])
def test_positions_that_a_cache_saves(shift: bool) -> None:
    lm = denoiser(shift=shift)

    def fed(feeding: Feeding) -> list[int]:
        events = run(lm, [request(PROMPT, 12)], schedule=Schedule(block=4), feeding=feeding)
        return [event.nodes for event in events if isinstance(event, Scored)]

    more = int(shift)  # the position before the block gives the logits of its first one
    first, second, third = 12 + more, 8 + more, 4 + more
    assert fed(Blockwise(shift=shift)) == [15, *[first] * 3, 15, *[second] * 3, 15, *[third] * 3]
    assert fed(Blockwise(dual=True, shift=shift)) == [15, *[third] * 3] * 3
    delayed = fed(Delayed(4, shift))
    assert delayed[::4] == [15, 15, 15]
    assert delayed[1] == 12 if not shift else delayed[1] >= 12  # the prompt is held, what was just written is not
    assert sum(delayed) < 15 * 12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("prompt", "block"), [(4, 4), (3, 4), (5, 8), (6, 2)])
def test_a_prefix_cache_is_exact_where_the_model_sees_in_blocks(
    family: str, shift: bool, prompt: int, block: int
) -> None:
    lm = denoiser(family, block=4, shift=shift)
    asked = [request([20 + i for i in range(prompt)], 13), request([50, 51], 7)]
    schedule = Schedule(block)
    whole = run(lm, asked, schedule=schedule)
    held = run(lm, asked, schedule=schedule, feeding=Sequential(4, keeps=True, shift=shift))
    bare = run(lm, asked, schedule=schedule, feeding=Sequential(4, shift=shift))
    assert texts(whole) == texts(held) == texts(bare)
    positions = [sum(e.nodes for e in events if isinstance(e, Scored)) for events in (whole, bare, held)]
    assert positions[0] > positions[1] > positions[2]


def test_a_model_that_sees_in_blocks_is_filled_block_by_block() -> None:
    """Its blocks count from the beginning of the canvas: behind a prompt of three, one place of the first is left."""
    events = run(denoiser(block=4), [request(PROMPT, 9)])
    assert [positions[0] // 4 for positions in order(events)] == [0, *[1] * 4, *[2] * 4]


def test_infilling_leaves_what_is_given() -> None:
    given_ = [None, 40, None, None, 41]
    asked = Request(PROMPT, 8, canvas=given_)
    events = run(denoiser(), [asked])
    text = texts(events)[0]
    assert (text[1], text[4]) == (40, 41)
    assert sorted(p for positions in order(events) for p in positions) == [3, 5, 6]


def test_a_canvas_may_begin_open() -> None:
    assert len(texts(run(denoiser(), [Request([], 4)]))[0]) == 4


def test_a_text_ends_at_its_stop_token() -> None:
    full = texts(run(denoiser(), [request(PROMPT, 12)]))[0]
    stop = full[5]
    events = run(denoiser(), [request(PROMPT, 12, stop_tokens=frozenset({stop}))])
    assert texts(events)[0] == full[: full.index(stop) + 1]
    assert events[-1] == Finished(0, 11, "stop")


def test_sampling_depends_on_the_seed_alone() -> None:
    def drawn(seed: int) -> tuple[int, ...]:
        return texts(run(denoiser(), [request(PROMPT, 10, seed=seed, greedy=False)]))[0]

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) == 4


@dataclass
class Doing(Rule):
    """Fixes the first open position, and does something else in its second step."""

    what: Any
    step: int = 0

    def choose(self, look: Look) -> Choice:
        self.step += 1
        one = torch.ones(len(look.rows), dtype=torch.long)
        fix = look.best(-look.positions.double(), one)
        return self.what(look, fix) if self.step == 2 else Choice(fix)


def test_cutting_ends_the_canvas() -> None:
    events = run(denoiser(), [request(PROMPT, 12)], Doing(lambda _, fix: Choice(fix, cut=[7])), schedule=Schedule(5))
    assert [event for event in events if isinstance(event, Cut)] == [Cut(0, 1, 7)]
    assert len(texts(events)[0]) == 4
    assert len(order(events)) == 4


def test_cutting_in_a_later_block() -> None:
    events = run(denoiser(), [request(PROMPT, 12)], Doing(lambda _, fix: Choice(fix, cut=[10])), schedule=Schedule(5))
    assert len(texts(events)[0]) == 7


@pytest.mark.parametrize("feeding", [Whole(), Blockwise(), Blockwise(dual=True), Delayed(4)])
def test_what_is_opened_again_is_read_again(feeding: Feeding) -> None:
    def reopen(look: Look, fix: torch.Tensor) -> Choice:
        return Choice(fix, reopen=~look.open & look.inside)

    events = run(denoiser(), [request(PROMPT, 6)], Doing(reopen), feeding=feeding)
    assert [event for event in events if isinstance(event, Remasked)] == [Remasked(0, 1, (3,))]
    assert sorted(p for positions in order(events) for p in positions) == [3, 3, 4, 5, 6, 7, 8]
    assert len(texts(events)[0]) == 6


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda _, fix: Choice(torch.zeros_like(fix)), "fixed nothing"),
        (lambda _, fix: Choice(torch.ones_like(fix)), "open positions only"),
        (lambda _, fix: Choice(fix, torch.full(fix.shape, MASK)), "mask token, which is never an answer"),
    ],
)
def test_rules_that_do_what_they_must_not(what: Any, says: str) -> None:
    with pytest.raises(RamifyError, match=says):
        run(denoiser(), [request(PROMPT, 6)], Doing(what))


def test_a_rule_without_end() -> None:
    class Back(Rule):
        def choose(self, look: Look) -> Choice:
            fix = look.best(look.confidence, torch.ones(1, dtype=torch.long))
            return Choice(fix, reopen=~look.open & look.inside)

    with pytest.raises(RamifyError, match="comes to no end"):
        run(denoiser(), [request(PROMPT, 6)], Back())


@pytest.mark.parametrize(
    ("asked", "schedule", "says"),
    [
        (request(PROMPT, 126), Schedule(), "129 positions .* longer than the 128"),
        (request(PROMPT, 0), Schedule(), "nothing is left to fill in"),
        (Request(PROMPT, 5, canvas=[4, 5]), Schedule(), "no open position"),
        (Request(PROMPT, 5, canvas=[None, 96]), Schedule(), "outside the vocabulary"),
        (request(PROMPT, 6), Schedule(steps=7), "7 steps cannot fill 6 open positions in 1 blocks; give 1 to 6"),
        (request(PROMPT, 6), Schedule(block=2, steps=2), "2 steps cannot fill 6 open positions in 3 blocks"),
    ],
)
def test_canvases_that_cannot_be_filled(asked: Request, schedule: Schedule, says: str) -> None:
    with pytest.raises(RamifyError, match=says):
        run(denoiser(), [asked], schedule=schedule)


def test_blocks_that_contradict_those_of_the_model() -> None:
    with pytest.raises(RamifyError, match="blocks of 6 positions cut across those of 4"):
        run(denoiser(block=4), [request(PROMPT, 12)], schedule=Schedule(6))


def test_nan_logits() -> None:
    from families import build

    from ramify.models.causal import wrap
    from ramify.models.masked import masked

    lm = masked(wrap(build("gpt2"), None, "it"), MASK)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(RamifyError, match="NaN or infinite"):
        run(lm, [request(PROMPT, 3)])


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("feeding", [Whole(), Blockwise(dual=True), Delayed(4)])
def test_processors_rule_over_open_positions_only(feeding: Feeding, greedy: bool) -> None:
    """What stands in the canvas may be forbidden to be written; where it is held, nothing else is left there."""

    def forbid(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([40, 41]), -torch.inf)

    asked = Request(
        PROMPT, 13, Sampler([forbid], greedy=greedy, noise=Noise(3)), canvas=[None, 40, None, 41, *[None] * 6]
    )
    text = texts(run(denoiser(), [asked], feeding=feeding, schedule=Schedule(block=5)))[0]
    assert (text[1], text[3]) == (40, 41)
    assert not {40, 41} & {*text[:1], *text[2:3], *text[4:]}
