"""Passes over a canvas: what is fed, what is held, and that rows do not meet."""

from __future__ import annotations

import pytest
import torch
from denoisers import MASK, denoiser, plain_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.engine.canvas import Canvas, CanvasSession
from ramify.errors import RamifyError
from ramify.models.masked import MaskedLM


def row(tokens: list[int], index: int = 0, start: int = 1) -> Canvas:
    ids = torch.tensor(tokens)
    return Canvas(index, ids, ids == MASK, start)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found[..., :MASK], expected[..., :MASK], atol=1e-4, rtol=1e-4)


LONG = [5, 6, MASK, MASK, 9, MASK, 11, MASK, 2, MASK]
SHORT = [8, MASK, 3, MASK]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_different_length_do_not_meet(family: str) -> None:
    lm = denoiser(family)
    session = CanvasSession(lm, [row(LONG), row(SHORT, 1)])
    logits, nodes = session.score([range(len(LONG)), range(len(SHORT))])
    assert nodes == len(LONG)
    close(logits[0], plain_logits(lm, LONG))
    close(logits[1, : len(SHORT)], plain_logits(lm, SHORT))


@settings(max_examples=25)
@given(data=st.data())
def test_what_is_held_unchanged_gives_what_a_whole_pass_gives(data: st.DataObject) -> None:
    lm = denoiser(data.draw(st.sampled_from(["llama", "gpt2"])), shift=data.draw(st.booleans()))
    canvas = row(LONG)
    session = CanvasSession(lm, [canvas])
    session.score([range(len(LONG))])
    wanted = data.draw(st.lists(st.integers(1, len(LONG) - 1), min_size=1, unique=True))
    sources = {max(p - int(lm.facts.shift), 0) for p in wanted}
    kept = data.draw(st.lists(st.sampled_from([p for p in range(len(LONG)) if p not in sources]), unique=True))
    session.hold([kept])
    assert session.held(0) == set(kept)
    logits, nodes = session.score([wanted])
    assert nodes == len(LONG) - len(kept)
    close(logits[0], plain_logits(lm, LONG)[wanted])


def test_what_is_held_stays_as_it_was() -> None:
    lm = denoiser()
    canvas = row(LONG)
    session = CanvasSession(lm, [canvas])
    session.score([range(len(LONG))])
    session.hold([[0, 1, 2]])
    canvas.tokens[0] = 40  # is not fed again, so nothing can notice
    close(session.score([range(3, 10)])[0][0], plain_logits(lm, LONG)[3:])
    session.forget(0)
    close(session.score([range(3, 10)])[0][0], plain_logits(lm, [40, *LONG[1:]])[3:])


def test_a_held_position_is_not_fed() -> None:
    session = CanvasSession(denoiser(), [row(LONG)])
    session.score([range(len(LONG))])
    session.hold([[2, 3]])
    with pytest.raises(RamifyError, match="cannot be fed"):
        session.score([[2]], [[2, 4]])


def test_some_positions_alone() -> None:
    """What is neither fed nor held is not seen."""
    lm = denoiser()
    session = CanvasSession(lm, [row(LONG)])
    logits, nodes = session.score([[1]], [[0, 1, 2]])
    assert nodes == 3
    close(logits[0, 0], plain_logits(lm, LONG[:3])[1])


def test_rows_leave() -> None:
    lm = denoiser()
    session = CanvasSession(lm, [row(LONG), row(SHORT, 1)])
    session.score([range(len(LONG)), range(len(SHORT))])
    session.hold([[0, 1], [0, 2]])
    session.select([1])
    assert session.held(0) == {0, 2}
    close(session.score([[1, 3]])[0][0], plain_logits(lm, SHORT)[[1, 3]])


def guided(lm: MaskedLM, weight: float) -> torch.Tensor:
    logits, nodes = CanvasSession(lm, [row(LONG, start=2)], weight).score([range(2, 10)])
    assert nodes == 2 * len(LONG)
    return logits[0]


@pytest.mark.parametrize("null", [None, 77])
def test_guidance(null: int | None) -> None:
    """LLaDA: l_u + (w + 1)(l − l_u), where u has the mask token, or the null one, in the place of the prompt."""
    lm = denoiser(null=null)
    absent = MASK if null is None else null
    conditional, free = plain_logits(lm, LONG)[2:], plain_logits(lm, [absent, absent, *LONG[2:]])[2:]
    close(guided(lm, 1.5), free + 2.5 * (conditional - free))


def test_fixing_reopening_cutting() -> None:
    canvas = row(LONG)
    canvas.fix(torch.tensor([2, 5]), torch.tensor([20, 21]))
    assert canvas.tokens.tolist() == [5, 6, 20, MASK, 9, 21, 11, MASK, 2, MASK]
    canvas.reopen(torch.tensor([5]), MASK)
    assert canvas.open.nonzero()[:, 0].tolist() == [3, 5, 7, 9]
    canvas.cut(5)
    assert len(canvas) == 5
