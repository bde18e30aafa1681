"""The recipe of lexical units: what it counts, and what it calls a claim that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ramify.api import generate
from ramify.bench.lexicon import Lexicon, build
from ramify.bench.recipes.lud import _figures, _nats, _train, _units, claims
from ramify.methods.draft.lud_head import LudHead
from ramify.models.causal import load

LANGUAGE = Lexicon.of()


def rows(**changes: float) -> list[dict[str, Any]]:
    """What the published check found, the tuned model's own text in between; ``changes`` of tokens per call."""
    published = {
        "plain decoding of the model tuned on units, alpha 0.5": (1.0, 0.17),
        "units, alpha 0.5, beta 0.95": (1.6, 0.175),
        "units, alpha 0.5, beta 0.9": (1.73, 0.181),
        "units, alpha 0.5, beta 0.8": (1.91, 0.185),
        "units, alpha 0.5, beta 0.5": (2.61, 0.564),
        "units, alpha 0.9, beta 0.9": (1.79, 0.944),
        "random spans, alpha 0.0, beta 0.9": (1.37, 0.168),
        "units, alpha 0.5, beta 0.9, verified": (1.5, 0.17),
    }
    found = []
    for name, (tokens, nats) in published.items():
        found.append({"decoding": name, "tokens per call": changes.get(name, tokens), "NLL": nats})
    return found


def test_the_published_check_holds():
    assert [row["holds"] for row in claims(rows())] == ["yes"] * 6


@pytest.mark.parametrize(
    ("name", "value", "failed"),
    [(_units(0.0, 0.9), 1.5, 0), (_units(0.5, 0.95), 1.8, 2)],
)
def test_a_claim_can_fail(name: str, value: float, failed: int):
    assert [place for place, row in enumerate(claims(rows(**{name: value}))) if row["holds"] == "no"] == [failed]


def test_what_is_counted():
    lm = load(build(LANGUAGE, width=24, layers=1))
    results = generate(lm, LANGUAGE.contexts(3, 12), "greedy", max_new_tokens=6)
    figures = _figures(results, lm)
    assert (figures["tokens per call"], figures["steps by their tokens"]) == (1.0, "1.00")
    total = 0.0
    for result in results:
        text = torch.tensor([[*result.prompt, *result.tokens]])
        with torch.no_grad():
            laws = torch.log_softmax(lm.model(text).logits[0], dim=-1)
        total -= sum(float(laws[place - 1, int(text[0, place])]) for place in range(12, 18))
    assert _nats(lm, results) == pytest.approx(total / 18, abs=1e-4)


def test_a_head_is_trained_in_passing():
    lm = load(build(LANGUAGE, width=24, layers=1).requires_grad_(False))
    torch.manual_seed(0)
    head = LudHead.new(lm, alpha=0.0)
    judged = torch.tensor(LANGUAGE.contexts(4, 64))
    before = head.measure(lm, judged)["nats a token"]
    _train(head, lm, LANGUAGE.passage(2000).tokens, 25, 0)
    assert head.measure(lm, judged)["nats a token"] < before - 0.02
    assert not any(weight.requires_grad for weight in head.parameters())
