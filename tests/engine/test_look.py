"""What a rule sees: figures read off the logits of open positions are those of the whole law."""

from __future__ import annotations

import torch
from denoisers import request
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.engine.canvas import Canvas
from ramify.engine.filling import Filling
from ramify.engine.look import Look, likeliest


def look(logits: torch.Tensor, opened: torch.Tensor) -> Look:
    rows, count, _ = logits.shape
    fillings = []
    for row in range(rows):
        canvas = Canvas(row, torch.zeros(count, dtype=torch.long), opened[row].clone(), 0)
        fillings.append(Filling(request([], count), canvas, 0, count, [], [3], []))
    inside = torch.ones_like(opened)
    return Look(fillings, torch.arange(count).expand(rows, -1), inside, opened, logits)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3), count=st.integers(1, 6), scale=st.floats(0.1, 30.0))
def test_figures_are_those_of_the_law(seed: int, rows: int, count: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, count, 7, generator=generator)
    logits[..., 5] = -torch.inf  # the mask token's
    opened = torch.rand(rows, count, generator=generator) > 0.4
    seen, law = look(logits, opened), torch.softmax(logits.double(), dim=-1)
    first, second = law.topk(2, dim=-1).values.unbind(-1)
    entropy = torch.special.entr(law).sum(-1)
    for found, where, expected, others in (
        (seen.confidence, opened, first, 1.0),
        (seen.margin, opened, first - second, 0.0),
        (seen.entropy, opened, entropy, 0.0),
        (seen.greatest(~opened), ~opened, first, 1.0),
    ):
        torch.testing.assert_close(found, torch.where(where, expected, others), atol=1e-12, rtol=1e-12)
    words = torch.randint(0, 5, opened.shape, generator=generator)
    chances = law.gather(-1, words[..., None])[..., 0]
    torch.testing.assert_close(seen.probability(words, ~opened), torch.where(opened, 1.0, chances), rtol=1e-12, atol=0)
    assert torch.equal(seen.tokens[opened], logits.argmax(-1)[opened])
    columns = torch.randint(0, count, (rows, 2), generator=generator)
    assert torch.equal(seen.law_at(columns), seen.law.gather(1, columns[..., None].expand(-1, -1, 7)))


def test_the_first_among_equals_is_likeliest_and_best() -> None:
    assert likeliest(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]
    opened = torch.tensor([[False, True, True, True], [True, True, False, False]])
    seen = look(torch.zeros(2, 4, 3), opened)
    chosen = seen.best(torch.tensor([[9.0, 1.0, 1.0, 0.0], [0.0, 2.0, 9.0, 9.0]]), torch.tensor([1, 9]))
    assert chosen.tolist() == [[False, True, False, False], [True, True, False, False]]
    assert seen.quota.tolist() == [3, 2]  # the schedule's three, or as many as are open
