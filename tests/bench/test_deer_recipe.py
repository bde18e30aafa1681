"""The recipe of DEER: accepted lengths that it counts, agreement by place, and the tables of a small run."""

from __future__ import annotations

from collections import Counter

import heads
import pytest
import torch
from families import lm, text
from torch import Tensor

from ramify.api import generate
from ramify.bench.blocks import Decoded, agreement, continued, decode, filled
from ramify.bench.deer_letters import places
from ramify.bench.recipes.deer import histogram, run
from ramify.errors import RamifyError
from ramify.methods.draft.deer import Deer
from ramify.models.causal import CausalLM

STARTS = [text(9, row) for row in range(3)]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return lm("llama")


def test_what_is_counted(model: CausalLM):
    plain = decode(model, None, STARTS, 12)
    assert plain.tokens_per_call == 1.0
    method = Deer(head=heads.deer(model), nodes=4)
    found = decode(model, method, STARTS, 12)
    assert found.texts == plain.texts
    results = [generate(model, start, method, max_new_tokens=12) for start in STARTS]
    assert found.texts == [result.tokens for result in results]
    assert found.calls == sum(result.stats.target_calls for result in results)
    assert sum(found.accepted.values()) == found.calls
    assert found.tokens_per_call == pytest.approx(36 / found.calls)


def test_long_runs_and_histogram():
    found = Decoded([[0] * 30], 4, Counter({0: 1, 7: 1, 8: 1, 12: 1}))
    assert found.long_share == 0.5
    row = histogram("x", found)
    assert (row["0"], row["6–7"], row["8–11"], row["12–15"], row["16–23"]) == ("25.0%",) * 4 + ("0.0%",)


def test_agreement_by_place():
    """Right at places 1 and 3 always, at place 2 for every other cut."""

    def guess(tokens: list[int], cuts: list[int], ahead: int) -> Tensor:
        rows = [tokens[cut : cut + ahead] for cut in cuts]
        return torch.tensor([[a, b if cut % 2 else b + 1, c] for cut, (a, b, c) in zip(cuts, rows, strict=True)])

    found = agreement(guess, [[1, 2, 3, 4]], [[5, 6, 7, 8, 9, 10]], 3, 1)
    assert found["any"].tolist() == [1.0, 0.5, 1.0]
    assert found["then"].tolist() == [1.0, 0.5, 1.0]


def test_the_target_itself_agrees_everywhere(model: CausalLM):
    texts = decode(model, None, STARTS, 12).texts
    found = agreement(continued(model), STARTS, texts, 5, 2)
    assert found["any"].tolist() == [1.0] * 5


@pytest.mark.parametrize("sight", ["causal", "full"])
def test_a_denoiser_agrees_as_often_as_its_drafts_are_accepted(model: CausalLM, sight: str):
    head = heads.deer(model, sight=sight)
    texts = decode(model, None, STARTS, 12).texts
    found = agreement(filled(head, model), STARTS, texts, 1, 1)
    first = []
    for start, written in zip(STARTS, texts, strict=True):
        for cut in range(12):
            result = generate(model, [*start, *written[:cut]], Deer(head=head, nodes=1), max_new_tokens=2)
            first.append(float(result.stats.accepted == 1))
    assert float(found["any"][0]) == pytest.approx(sum(first) / len(first))


def test_rows_by_place():
    rates = torch.linspace(1.0, 0.25, 16)
    rows = places({"a": {"any": rates, "then": rates}})
    assert [row["agreement"] for row in rows] == ["once those before were right", "whatever those before were"]
    assert rows[0]["16"] == 0.25


def test_an_unknown_part():
    with pytest.raises(RamifyError, match="no part 'speeds'"):
        run(parts="speeds")


def test_a_small_run():
    outcome = run(parts="letters", letter_steps=2, spans=1, stage_one=1, stage_two=1, texts=8, starts=2, new_tokens=18)
    assert [len(table.rows) for table in outcome.tables] == [8, 5, 4, 4, 2]
    assert all(row["as greedy"] == "2 of 2" for row in outcome.tables[0].rows)
