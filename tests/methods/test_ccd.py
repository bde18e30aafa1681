"""CCD by its worked example and its invariants, and the rule of its released code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from denoisers import denoiser, request
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ramify.engine.canvas import Canvas
from ramify.engine.events import Accepted, Scored, Unmasked
from ramify.engine.filling import Filling
from ramify.engine.look import Look
from ramify.engine.request import Request
from ramify.engine.unmask import Rule, unmask
from ramify.errors import RamifyError
from ramify.methods.base import MaskedMethod
from ramify.methods.registry import create
from ramify.methods.unmask.ccd import CCD, Coherent, mixed
from ramify.methods.unmask.ccd_code import CCDCode, Released
from ramify.methods.unmask.orders import Unmask

PROMPTS = [[3, 14, 15], [9, 2, 6, 5, 35], [8]]


class World:
    """Laws that do not depend on what is fixed: one table [n, X] for each step."""

    def __init__(self, rule: Rule, count: int) -> None:
        canvas = Canvas(0, torch.full((count,), 99), torch.ones(count, dtype=torch.bool), 0)
        self.row = Filling(Request([], count), canvas, 0, count, [], [1] * count, [])
        self.rule = rule

    def step(self, table: Tensor) -> tuple[dict[int, int], dict[str, list[float]]]:
        """What the rule fixes under the laws of ``table``, and what it tells of it."""
        canvas, places = self.row.canvas, torch.arange(len(table))
        inside = torch.ones(1, len(table), dtype=torch.bool)
        look = Look([self.row], places[None], inside, canvas.open[None].clone(), table.double().log().float()[None])
        choice = self.rule.choose(look)
        tokens = look.tokens if choice.tokens is None else choice.tokens
        fixed = choice.fix[0].nonzero()[:, 0]
        canvas.fix(fixed, tokens[0, fixed])
        self.row.step += 1
        told = {name: values[0, fixed].tolist() for name, values in choice.details.items()}
        return dict(zip(fixed.tolist(), tokens[0, fixed].tolist(), strict=True)), told


def rule(**options: Any) -> Coherent:
    return Coherent(CCD(**options), 1)


def table(rows: dict[int, Sequence[float]], count: int, size: int = 3) -> Tensor:
    """[count, size], uniform but for ``rows``."""
    laws = torch.full((count, size), 1 / size)
    for place, law in rows.items():
        laws[place] = torch.tensor(law)
    return laws


# ---------------------------------------------------------------- the worked example

A, B, C, D, E = range(5)
SURE = (0.999, 0.0005, 0.0005)
SURER = (0.9999, 0.00005, 0.00005)
HISTORY = [
    table({A: (0.75, 0.20, 0.05), B: (0.05, 0.90, 0.05), D: SURER, E: SURE}, 5),
    table({A: (0.70, 0.20, 0.10), B: (0.10, 0.80, 0.10), E: SURER}, 5),
]
NOW = table({A: (0.80, 0.15, 0.05), B: (0.95, 0.03, 0.02), C: (0.99, 0.005, 0.005)}, 5)


def after(world: World, history: list[Tensor]) -> World:
    assert [world.step(laws)[0] for laws in history] == [{D: 0}, {E: 0}]
    return world


def test_the_worked_example() -> None:
    fixed, told = after(World(rule(), 5), HISTORY).step(NOW)
    assert fixed == {A: 0}
    assert told["entropy"] == pytest.approx([0.7073], abs=5e-5)
    assert told["jsd"] == pytest.approx([0.0066], abs=5e-5)


def test_the_worked_example_without_its_winner() -> None:
    """B changed its mind: its average is of a word that it does not say now."""
    history = [laws.clone() for laws in HISTORY]
    for laws in history:
        laws[A] = 1 / 3
    now = NOW.clone()
    now[A] = 1 / 3
    for token, word in (("average", 1), ("current", 0)):
        # A and C are not among the two most certain of both steps, B is.
        world = World(rule(token=token, top=3), 5)
        fixed, told = after(world, history).step(now)
        assert fixed == {B: word}
        assert told["entropy"] == pytest.approx([0.8480], abs=5e-5)
        assert told["jsd"] == pytest.approx([0.4261], abs=5e-5)
    assert after(World(rule(fresh=True, top=3), 5), history).step(now)[0] == {C: 0}


def test_plain_decoding_takes_what_looks_certain() -> None:
    entropy = Unmask(order="entropy").rule(denoiser(), [request([1], 1)])
    assert after(World(entropy, 5), HISTORY).step(NOW)[0] == {C: 0}


def test_the_figure_of_the_paper() -> None:
    """The most certain position, 7, is not in the history and is rejected; the candidates are 8, 9 and 11."""
    good, better = (0.9, 0.05, 0.05), (0.95, 0.03, 0.02)
    lasting = {8: good, 9: good, 11: good}
    steps = [table(lasting | {0: better}, 12), table(lasting | {1: better}, 12), table(lasting | {7: SURE}, 12)]
    for adaptive, expected in ((False, {8: 0}), (True, {8: 0, 9: 0, 11: 0})):
        world = World(rule(adaptive=adaptive, eps=math.inf), 12)
        assert [world.step(laws)[0] for laws in steps] == [{0: 0}, {1: 0}, expected]


def test_the_gate_of_ccd_ds() -> None:
    """Consistent but not certain: nothing is added to what CCD fixes."""
    good = (0.9, 0.05, 0.05)
    entropy = -sum(p * math.log(p) for p in good)
    for eps, count in ((entropy - 0.01, 1), (entropy + 0.01, 2)):
        world = World(rule(adaptive=True, eps=eps), 6)
        sizes = [len(world.step(table(dict.fromkeys(range(6), good), 6))[0]) for _ in range(3)]
        assert sizes == [1, 1, count]  # of the four remembered at first, two are left


def test_a_position_of_some_steps() -> None:
    """persist="any" takes a position that is in one entry, and averages over those."""
    steps = [table({0: SURE, 1: SURE}, 4), table({1: SURER, 2: (0.6, 0.3, 0.1)}, 4), table({2: SURE, 3: SURER}, 4)]
    for persist, expected in (("all", {3: 0}), ("any", {2: 0})):
        world = World(rule(persist=persist, top=2), 4)
        fixed = {}
        for laws in steps:
            fixed, told = world.step(laws)
        assert fixed == expected
    average = (torch.tensor(SURE) + torch.tensor([0.6, 0.3, 0.1])) / 2
    assert told["entropy"] == pytest.approx([torch.special.entr(average).sum().item()], abs=1e-5)


# ---------------------------------------------------------------- invariants


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(0, 3), top=st.integers(1, 6), scale=st.floats(0.1, 6.0))
def test_an_average_is_a_law_and_the_divergence_says_what_it_mixes(
    seed: int, depth: int, top: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    now = torch.softmax(scale * torch.randn(2, top, 7, generator=generator, dtype=torch.float64), -1)
    laws = torch.softmax(scale * torch.randn(2, depth, top, 7, generator=generator, dtype=torch.float64), -1)
    same = torch.eye(top, dtype=torch.bool).expand(2, depth, top, top)
    average, entropy, jsd = mixed(now, laws, same)
    torch.testing.assert_close(average.sum(-1), torch.ones(2, top, dtype=torch.float64))
    terms = [now, *laws.unbind(1)]
    mean = sum(torch.special.entr(law).sum(-1) for law in terms) / len(terms)
    torch.testing.assert_close(jsd, entropy - mean, atol=1e-12, rtol=0)
    assert (jsd > 0).all() if depth else (jsd.abs() < 1e-12).all()
    _, _, none = mixed(now, now[:, None].expand(2, depth, top, 7), same)
    assert (none < 1e-12).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(0, 3), count=st.integers(1, 8))
def test_laws_that_do_not_change_are_decoded_as_always(seed: int, depth: int, count: int) -> None:
    laws = torch.softmax(3 * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), -1)
    plain = World(Unmask(order="entropy").rule(denoiser(), [request([1], 1)]), count)
    coherent = World(rule(history=depth, top=count), count)
    for _ in range(count):
        assert coherent.step(laws)[0] == plain.step(laws)[0]


def decode(method: MaskedMethod, prompts: Sequence[list[int]] = PROMPTS, new: int = 8, **more: Any) -> list[Any]:
    """For every prompt the text, and which positions each step fixed."""
    requests = [request(prompt, new + 2 * place, seed=place, **more) for place, prompt in enumerate(prompts)]
    events = list(method.run(denoiser(), requests))
    found = []
    for row in range(len(prompts)):
        [text] = [event.tokens for event in events if isinstance(event, Accepted) and event.row == row]
        fixed = [event.positions for event in events if isinstance(event, Unmasked) and event.row == row]
        assert len({place for step in fixed for place in step}) == sum(map(len, fixed)) == len(text)
        found.append((text, fixed))
    return found


def test_without_history_it_is_plain_decoding() -> None:
    assert decode(CCD(history=0, top=99)) == decode(Unmask(order="entropy"))
    assert decode(CCD(history=2, block=2)) == decode(Unmask(order="entropy", block=2))  # never two steps behind it


@pytest.mark.parametrize("method", [CCD(), CCD(history=3, top=2), CCDCode(), CCD(persist="any"), CCD(fresh=True)])
def test_ccd_takes_as_many_steps_as_plain_decoding(method: MaskedMethod) -> None:
    for place, (_, fixed) in enumerate(decode(method)):
        assert list(map(len, fixed)) == [1] * (8 + 2 * place)


@pytest.mark.parametrize("eps", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("top", [5, 8])
def test_ccd_ds_fixes_between_one_and_the_remembered(eps: float, top: int) -> None:
    longest = 0
    for place, (_, fixed) in enumerate(decode(CCD(adaptive=True, eps=eps, top=top))):
        assert all(1 <= len(step) <= top for step in fixed)
        assert len(fixed) <= 8 + 2 * place
        longest = max(longest, *map(len, fixed))
    assert (longest > 1) == (eps == math.inf)


@pytest.mark.parametrize(
    "method",
    [
        CCD(),
        CCD(adaptive=True, eps=math.inf),
        CCD(adaptive=True, eps=2.0, block=4, persist="any"),
        CCD(steps=4, top=3),
        CCD(fresh=True, token="current", cache="dual", block=4),
        CCDCode(adaptive=True),
        CCDCode(block=7),
    ],
    ids=repr,
)
@pytest.mark.parametrize("greedy", [True, False])
def test_a_batch_is_its_rows(method: MaskedMethod, greedy: bool) -> None:
    together = decode(method, greedy=greedy)
    for place, prompt in enumerate(PROMPTS):
        one = list(method.run(denoiser(), [request(prompt, 8 + 2 * place, seed=place, greedy=greedy)]))
        assert [event.tokens for event in one if isinstance(event, Accepted)] == [together[place][0]]
        assert [event.positions for event in one if isinstance(event, Unmasked)] == together[place][1]


def test_what_is_remembered_is_small() -> None:
    requests = [request(prompt, 8) for prompt in PROMPTS]
    method = CCD(history=3, top=2)
    coherent = method.rule(denoiser(), requests)
    assert isinstance(coherent, Coherent)
    events = list(unmask(denoiser(), requests, coherent))
    assert coherent.laws is not None
    assert coherent.laws.shape == (3, 3, 2, denoiser().vocab_size)
    assert all(event.details.keys() == {"entropy", "jsd"} for event in events if isinstance(event, Unmasked))
    assert sum(isinstance(event, Scored) for event in events) == 8


# ---------------------------------------------------------------- the released code


def code(**options: Any) -> World:
    return World(Released(CCDCode(**options), 1), 20)


def ranked(*places: int) -> Tensor:
    """Laws by which these positions are the most certain, in this order."""
    laws = torch.full((20, 3), 1 / 3)
    for rank, place in enumerate(places):
        laws[place] = torch.tensor([0.99 - 0.01 * rank, 0.005 + 0.005 * rank, 0.005 + 0.005 * rank])
    return laws


def test_the_code_looks_one_step_back() -> None:
    world = code(adaptive=True)
    for place in range(4):
        assert world.step(ranked(place))[0] == {place: 0}
    assert world.step(ranked(4, 5, 6, 7))[0] == {4: 0}  # now 5 and 6 are watched
    changed = ranked(5, 6, 7, 8)
    changed[6] = changed[6][[1, 0, 2]]
    assert world.step(changed)[0] == {5: 0}  # 6 has another word, 7 was not watched; 6, 7 and 8 are watched
    assert world.step(ranked(9, 7, 8))[0] == {9: 0}  # not watched, and yet not rejected
    # 7, 8, 6 and 10 are watched, the last two as the first of equals; 6 is not among the five most certain now.
    assert world.step(ranked(7, 8, 10, 11, 12, 13))[0] == {7: 0, 8: 0, 10: 0}


def test_steps_in_a_row_fix_no_more_than_what_is_remembered() -> None:
    """Candidates of d + 1 steps all stand among the V of the first: V / (d + 1) a step at most, in the paper 4 / 4."""
    good = dict.fromkeys(range(24), (0.99, 0.005, 0.005))
    for history, top in ((1, 4), (2, 4), (3, 4), (2, 9)):
        world = World(rule(adaptive=True, history=history, top=top), 24)
        sizes = [len(world.step(table(good, 24))[0]) for _ in range(8)]
        assert all(sum(sizes[step : step + history + 1]) <= top for step in range(history, 8 - history))
        assert sum(sizes[history:]) > 8 - history or (history, top) == (3, 4)


def test_the_code_with_the_schedules_number() -> None:
    world = code()
    for place in range(5):
        world.step(ranked(place, 5, 6, 7))
    assert world.step(ranked(5, 6, 7))[0] == {5: 0}
    assert world.step(ranked(6, 7))[0] == {6: 0}


def test_the_code_looks_at_two_when_a_tenth_is_left() -> None:
    world = code(adaptive=True)
    sizes = []
    for step in range(20):
        left = world.row.canvas.open.nonzero()[:, 0].tolist()
        if not left:
            break
        sizes.append((len(left), len(world.step(ranked(*left))[0])))
        assert step < 20
    assert sizes[:5] == [(20, 1), (19, 1), (18, 1), (17, 1), (16, 1)]
    assert max(fixed for _, fixed in sizes) == 5
    assert all(fixed <= 2 for left, fixed in sizes if left <= 2)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("ccd", {"history": -1}, "history is -1"),
        ("ccd", {"top": 0}, "at least 1 position"),
        ("ccd", {"eps": -0.1}, "entropy in nats"),
        ("ccd", {"eps": math.nan}, "entropy in nats"),
        ("ccd", {"persist": "al"}, "did you mean 'all'"),
        ("ccd", {"token": "avarage"}, "did you mean 'average'"),
        ("ccd", {"order": "entropie"}, "did you mean 'entropy'"),
        ("ccd", {"epsilon": 1}, "did you mean 'eps'"),
        ("ccd-code", {"expand": -1.0}, "expand is -1"),
        ("ccd-code", {"warmup": 0}, "warmup"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(RamifyError, match=what):
        create(name, **options)
