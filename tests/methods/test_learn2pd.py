"""Learn2PD by its worked example and its invariants: the filter, the oracle, and the two ways of cutting."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import denoiser, request
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ramify.engine.canvas import Canvas
from ramify.engine.events import Accepted, Cut, Scored, Unmasked
from ramify.engine.filling import Filling
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Choice
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import create
from ramify.methods.unmask.learn2pd import Filtered, Learn2PD
from ramify.methods.unmask.learn2pd_filter import Filter, FilterSizes, find_filter
from ramify.methods.unmask.learn2pd_oracle import Oracle, decode_greedily
from ramify.methods.unmask.orders import Unmask
from ramify.methods.unmask.threshold import Threshold
from ramify.models.masked import MaskedLM

PROMPTS = [[3, 14, 15], [9, 2, 6, 5, 35], [8]]
LENGTHS = [8, 12, 10]
BLOCK = 4


def random_filter(lm: MaskedLM, block: int = BLOCK, depth: int = 2, seed: int = 0) -> Filter:
    torch.manual_seed(seed)
    return Filter.new(lm.base, block=block, depth=depth).requires_grad_(False)


class Gate(Filter):
    """Accepts with certainty from a confidence of ``level`` on, and nothing below."""

    level = 0.0

    def forward(self, confidences: Tensor) -> Tensor:
        return torch.where(confidences >= self.level, torch.inf, -torch.inf)


def gate(lm: MaskedLM, level: float, block: int = BLOCK) -> Gate:
    found = Gate.new(lm.base, block=block)
    found.level = level
    return found


def decode(
    method: MaskedMethod, lm: MaskedLM | None = None, ends: Sequence[int] = (), **more: Any
) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """For every prompt the text, and which positions each step fixed."""
    lm = lm or denoiser()
    pairs = enumerate(zip(PROMPTS, LENGTHS, strict=True))
    requests = [request(prompt, n, seed=row, stop_tokens=frozenset(ends), **more) for row, (prompt, n) in pairs]
    events = list(method.run(lm, requests))
    found = []
    for row in range(len(requests)):
        [text] = [event.tokens for event in events if isinstance(event, Accepted) and event.row == row]
        found.append((text, [e.positions for e in events if isinstance(e, Unmasked) and e.row == row]))
    return found


def look(
    logits: Tensor, opened: Sequence[bool] | None = None, ends: Sequence[int] = (), later: Tensor | None = None
) -> Look:
    """One row with a block of ``logits`` [n, V], and ``later`` [m, V] behind it."""
    count, behind = len(logits), 0 if later is None else len(later)
    is_open = torch.ones(count, dtype=torch.bool) if opened is None else torch.tensor(opened)
    canvas = Canvas(0, torch.full((count + behind,), 99), torch.cat([is_open, torch.ones(behind, dtype=torch.bool)]), 0)
    asked = Request([], count + behind, stop_tokens=frozenset(ends))
    row = Filling(asked, canvas, 0, count, [count + behind], [1] * count, [1])
    beyond = [(torch.arange(count, count + behind), torch.empty(0, 3) if later is None else later)]
    inside = torch.ones(1, count, dtype=torch.bool)
    return Look([row], torch.arange(count)[None], inside, is_open[None], logits[None], beyond)


def law(*sure: tuple[int, float]) -> Tensor:
    """Logits [n, 4] whose likeliest token and its probability are as given."""
    rows = []
    for token, chance in sure:
        row = torch.full((4,), (1 - chance) / 3)
        row[token] = chance
        rows.append(row)
    return torch.stack(rows).log()


# ---------------------------------------------------------------- the filter


def worked() -> Filter:
    found = random_filter(denoiser(), block=2)
    first, second = found.layers
    first.weight.copy_(torch.eye(2))
    first.bias.zero_()
    second.weight.copy_(torch.tensor([[8.0, 4.0], [4.0, 8.0]]))
    second.bias.fill_(-9.0)
    return found


def test_the_worked_example() -> None:
    torch.testing.assert_close(worked()(torch.tensor([0.99, 0.90])), torch.tensor([2.52, 2.16]))
    torch.testing.assert_close(worked()(torch.tensor([0.99, 0.99])), torch.tensor([2.88, 2.88]))
    rule = Filtered(worked(), 0.9, "off")
    assert rule.choose(look(law((1, 0.99), (2, 0.90)))).fix.tolist() == [[True, False]]
    assert rule.choose(look(law((1, 0.99), (2, 0.99)))).fix.tolist() == [[True, True]]


def test_the_papers_number_of_parameters() -> None:
    head = Filter.new(denoiser().base, block=32)
    assert sum(p.numel() for p in head.parameters()) == 2112
    sizes = [sum(p.numel() for p in Filter.new(denoiser().base, block=12, depth=d).parameters()) for d in (1, 2, 4)]
    assert sizes == [156, 312, 624]


def test_a_short_block_is_one_that_is_sure_of_its_end() -> None:
    head = random_filter(denoiser(), block=6)
    c = torch.tensor([[0.3, 0.8, 0.5, 0.9]])
    torch.testing.assert_close(head(c), head(torch.cat([c, torch.ones(1, 2)], 1))[:, :4])


def test_the_loss_is_that_of_independent_answers() -> None:
    head = random_filter(denoiser())
    c, y = torch.rand(5, 4), torch.rand(5, 4) > 0.5
    chance = torch.sigmoid(head(c))
    expected = -torch.where(y, chance, 1 - chance).log()
    for weight in (torch.ones(5, 4), (torch.rand(5, 4) > 0.5).float()):
        found = head.loss(denoiser().base, torch.stack([c, y.float(), weight], 1))
        torch.testing.assert_close(found, (expected * weight).sum() / weight.sum())


def test_what_is_measured() -> None:
    head = gate(denoiser(), 0.5)
    c = torch.tensor([[0.1, 0.6, 0.7, 0.9], [0.2, 0.3, 0.4, 0.8]])
    y = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    figures = Filter.measure(head, denoiser().base, torch.stack([c, y, weight], 1))
    assert figures["wrong among accepted at 0.9"] == pytest.approx(1 / 3)
    assert figures["accepted at 0.9"] == pytest.approx(3 / 6)


# ---------------------------------------------------------------- invariants


def test_accepting_nothing_is_plain_decoding() -> None:
    for more in ({}, {"greedy": False}):
        plain = decode(Unmask(block=BLOCK), **more)
        assert decode(Learn2PD(filter=random_filter(denoiser()), tau=1.0, eotp="off"), **more) == plain
        assert decode(Learn2PD(filter=None, block=BLOCK, eotp="off"), **more) == plain
    steps = Unmask(block=BLOCK, steps=6)
    assert decode(Learn2PD(filter=None, block=BLOCK, steps=6, eotp="off")) == decode(steps)


def test_accepting_everything_is_a_step_a_block() -> None:
    for (_, fixed), length in zip(decode(Learn2PD(filter=random_filter(denoiser()), tau=0.0)), LENGTHS, strict=True):
        assert list(map(len, fixed)) == [BLOCK] * (length // BLOCK) + [length % BLOCK] * (length % BLOCK > 0)


@settings(max_examples=6, deadline=None)
@given(level=st.floats(0.05, 0.95), cache=st.sampled_from(["none", "prefix", "dual"]))
def test_a_filter_of_one_level_is_a_threshold(level: float, cache: Any) -> None:
    lm = denoiser()
    filtered = Learn2PD(filter=gate(lm, level), tau=0.5, cache=cache)
    assert decode(filtered) == decode(Threshold(gamma=level, block=BLOCK, cache=cache))


@pytest.mark.parametrize("seed", range(3))
def test_every_step_fixes_something(seed: int) -> None:
    method = Learn2PD(filter=random_filter(denoiser(), seed=seed), tau=0.5)
    for (text, fixed), length in zip(decode(method), LENGTHS, strict=True):
        assert len(text) == sum(map(len, fixed)) == length
        assert all(fixed)


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.5},
        {"tau": 0.5, "eotp": "B"},
        {"tau": 0.9, "cache": "dual"},
        {"tau": 0.5, "cache": "prefix", "eotp": "B"},
    ],
)
@pytest.mark.parametrize("greedy", [True, False])
def test_a_batch_is_its_rows(options: dict[str, Any], greedy: bool) -> None:
    ends = sorted({token for text, _ in decode(Unmask(block=BLOCK), greedy=greedy) for token in text[2::3]})
    method = Learn2PD(filter=random_filter(denoiser()), **options)
    together = decode(method, ends=ends, greedy=greedy)
    assert any(len(text) < length for (text, _), length in zip(together, LENGTHS, strict=True))
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        asked = request(prompt, length, seed=row, greedy=greedy, stop_tokens=frozenset(ends))
        events = list(method.run(denoiser(), [asked]))
        assert [event.tokens for event in events if isinstance(event, Accepted)] == [together[row][0]]
        assert [event.positions for event in events if isinstance(event, Unmasked)] == together[row][1]


# ---------------------------------------------------------------- the end of the text


def cut(rule: Filtered, seen: Look) -> int | None:
    choice: Choice = rule.choose(seen)
    return choice.cut[0]


def test_rule_a_cuts_behind_what_is_fixed() -> None:
    rule = Filtered(None, 1.0, "A")
    sure_end = law((1, 0.6), (3, 0.9), (2, 0.5), (3, 0.7))
    assert cut(rule, look(sure_end, ends=[3])) == 2
    assert cut(rule, look(sure_end, ends=[1])) is None  # predicted, not fixed
    assert cut(rule, look(sure_end)) is None  # nothing ends a text
    everything = Filtered(gate(denoiser(), 0.0), 0.5, "A")
    assert cut(everything, look(law((1, 0.6), (2, 0.4), (3, 0.5), (3, 0.9)), ends=[3])) == 3  # the first of two
    assert cut(everything, look(law((1, 0.6), (2, 0.4), (3, 0.5)), ends=[3])) is None  # nothing stands behind it


def test_rule_b_cuts_on_a_guess() -> None:
    seen = law((1, 0.9), (3, 0.6), (3, 0.8), (2, 0.5))
    later = law((2, 0.9), (3, 0.7), (3, 0.95), (2, 0.5))
    accepting = Filtered(gate(denoiser(), 0.6), 0.5, "B")
    assert cut(accepting, look(seen, ends=[3], later=later)) == 2  # the first that the filter accepts
    nothing = Filtered(None, 1.0, "B")
    assert cut(nothing, look(seen, ends=[3], later=later)) == 7  # the most certain one, in a later block
    assert cut(nothing, look(seen, ends=[3], later=later[:2])) == 3
    assert cut(nothing, look(seen, [True, True, False, True], ends=[3], later=later[:1])) == 2
    assert cut(nothing, look(seen, ends=[0], later=later)) is None


def test_what_the_caller_filled_in_is_not_dropped() -> None:
    end = decode(Unmask(block=BLOCK))[0][0][3]
    canvas = [None] * 6 + [40, None]
    for eotp in ("A", "B"):
        asked = replace(request(PROMPTS[0], 8, stop_tokens=frozenset([end])), canvas=canvas)
        events = list(Learn2PD(filter=None, block=8, eotp=eotp).run(denoiser(), [asked]))
        assert all(event.length > 3 + 6 for event in events if isinstance(event, Cut))
    everywhere = replace(request(PROMPTS[0], 8, stop_tokens=frozenset(range(90))), canvas=canvas)
    lengths = [e.length for e in Learn2PD(filter=None, block=8).run(denoiser(), [everywhere]) if isinstance(e, Cut)]
    assert not lengths or min(lengths) > 9


def test_the_saving_is_in_positions() -> None:
    lm = denoiser()
    plain = list(Unmask(block=BLOCK).run(lm, [request(PROMPTS[1], 12)]))
    [text] = [event.tokens for event in plain if isinstance(event, Accepted)]
    asked = request(PROMPTS[1], 12, stop_tokens=frozenset([text[1]]))
    for eotp in ("A", "B"):
        events = list(Learn2PD(filter=None, block=BLOCK, eotp=eotp).run(lm, [asked]))
        [cut_text] = [event.tokens for event in events if isinstance(event, Accepted)]
        assert len(cut_text) < 12
        passes = [event.nodes for event in events if isinstance(event, Scored)]
        assert passes == sorted(passes, reverse=True)
        assert sum(passes) < 17 * 12


def test_rule_a_changes_no_earlier_block_of_a_model_that_sees_in_blocks() -> None:
    lm = denoiser(block=BLOCK)
    compared = 0
    for cache in ("none", "prefix"):
        plain = decode(Unmask(block=BLOCK, cache=cache), lm)
        for place in range(0, 8, 3):
            end = plain[1][0][place]
            found = decode(Learn2PD(filter=None, block=BLOCK, cache=cache), lm, ends=[end])
            for row in range(3):
                whole, text = plain[row][0], found[row][0]
                first = whole.index(end) if end in whole else len(whole)
                kept = (len(PROMPTS[row]) + first) // BLOCK * BLOCK - len(PROMPTS[row])
                assert text[: max(kept, 0)] == whole[: max(kept, 0)]
                compared += kept > 0
    assert compared > 4


# ---------------------------------------------------------------- the oracle


@pytest.mark.parametrize("block", [None, 3, 4])
def test_the_oracle_returns_the_answer(block: int | None) -> None:
    requests = [request(prompt, length) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]
    answers = [text for text, _ in decode(Unmask(block=block))]
    events, records = decode_greedily(denoiser(), requests, answers, block)
    assert [event.tokens for event in sorted(_texts(events), key=lambda event: event.row)] == answers
    for row, length in enumerate(LENGTHS):
        own = [event for event in events if isinstance(event, Unmasked) and event.row == row]
        mine = [record for record in records if record.row == row]
        assert len(own) == len(mine) <= length
        for event, each in zip(own, mine, strict=True):
            assert len(event.positions) >= 1
            assert len(each.open) == len(each.right) == len(each.confidences)
            assert int(each.open.sum()) >= len(event.positions)
            assert ((each.confidences > 0) & (each.confidences <= 1)).all()


def test_the_oracle_copies_what_it_cannot_find() -> None:
    """An answer that no pass will ever say comes out all the same, one step a block."""
    asked = [request(PROMPTS[0], 8)]
    never = [[denoiser().mask_id - 1] * 8]
    events, records = decode_greedily(denoiser(), asked, never, 4)
    assert list(_texts(events)[0].tokens) == never[0]
    assert len(records) == 2
    assert not any(bool(record.right.any()) for record in records)


def test_the_oracle_stops_where_it_repeats_itself() -> None:
    """Right in two places, then the same predictions again: the rest is copied at the second step."""
    oracle = Oracle([[0, 1, 2, 2]])
    seen = look(law((0, 0.9), (1, 0.8), (1, 0.7), (1, 0.6)))
    first = oracle.choose(seen)
    assert first.fix.tolist() == [[True, True, False, False]]
    again = look(law((0, 0.9), (1, 0.8), (1, 0.7), (1, 0.6)), [False, False, True, True])
    again.rows[0].step = 1
    second = oracle.choose(again)
    assert second.fix.tolist() == [[False, False, True, True]]
    assert second.tokens is not None
    assert second.tokens[0, 2:].tolist() == [2, 2]
    assert [record.right.tolist() for record in oracle.records] == [[True, True, False, False]] * 2
    torch.testing.assert_close(oracle.records[0].confidences, torch.tensor([0.9, 0.8, 0.7, 0.6]))


def _texts(events: Sequence[Any]) -> list[Accepted]:
    return [event for event in events if isinstance(event, Accepted)]


# ---------------------------------------------------------------- files and bad input


def test_a_filter_comes_back_from_its_folder(tmp_path: Path) -> None:
    lm = denoiser()
    saved = random_filter(lm, depth=4)
    saved.save(tmp_path)
    read = find_filter(tmp_path, lm)
    c = torch.rand(3, BLOCK)
    torch.testing.assert_close(read(c), saved(c))
    assert read.sizes == FilterSizes(BLOCK, 4)
    assert decode(Learn2PD(filter=tmp_path, tau=0.6)) == decode(Learn2PD(filter=saved, tau=0.6))


def test_a_filter_of_something_else(tmp_path: Path) -> None:
    lm = denoiser()
    random_filter(lm).save(tmp_path)
    with pytest.raises(RamifyError, match="trained for blocks of 4 positions, not 8"):
        list(Learn2PD(filter=tmp_path, block=8).run(lm, [request([1], 8)]))
    head = json.loads((tmp_path / "head.json").read_text())
    head["fit"]["hidden_size"] += 1
    (tmp_path / "head.json").write_text(json.dumps(head))
    with pytest.raises(RamifyError, match="trained for another model"):
        list(Learn2PD(filter=tmp_path).run(lm, [request([1], 8)]))
    with pytest.raises(RamifyError, match="holds no head"):
        list(Learn2PD(filter=tmp_path / "none").run(lm, [request([1], 8)]))
    with pytest.raises(RamifyError, match="there is no filter for llama"):
        list(Learn2PD().run(lm, [request([1], 8)]))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"tau": 1.5}, "tau is 1.5"),
        ({"tau": -0.1}, "tau is -0.1"),
        ({"tau": math.nan}, "tau is nan"),
        ({"eotp": "C"}, "unknown eotp 'C'"),
        ({"filtre": None}, "did you mean 'filter'"),
        ({"block": 0}, "block is 0"),
    ],
)
def test_bad_options(options: dict[str, Any], what: str) -> None:
    with pytest.raises(RamifyError, match=what):
        create("learn2pd", **options)


def test_bad_sizes_and_references() -> None:
    with pytest.raises(RamifyError, match="depth is 0"):
        FilterSizes(depth=0)
    with pytest.raises(RamifyError, match="as long as"):
        decode_greedily(denoiser(), [request([1], 8)], [[1, 2, 3]])
