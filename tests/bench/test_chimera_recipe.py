"""The recipe of Chimera: chains that it counts, and what it calls a claim that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ramify.bench.lexicon import Lexicon, build
from ramify.bench.recipes.chimera import _heads, _tokens_per_pass, claims
from ramify.models.causal import load


def rows(**changes: float) -> list[dict[str, Any]]:
    """What the published check found; ``changes``: by drafter and column."""
    published = {
        "Medusa heads": (0.461, 0.395, 0.366, 1.68),
        "Chimera": (0.707, 0.707, 0.702, 2.22),
        "trigram reduced to the newest token": (0.7, 0.7, 0.7, 2.03),
    }
    found = [
        {"drafter": name} | dict(zip(("+2", "+3", "+4", "T = 0.7"), figures, strict=True))
        for name, figures in published.items()
    ]
    for row in found:
        row |= {column: value for column, value in changes.items() if row["drafter"] == "Chimera"}
    return found


def test_the_published_check_holds():
    assert [row["holds"] for row in claims(rows())] == ["yes"] * 4


@pytest.mark.parametrize(
    ("changes", "failed"),
    [({"+4": 0.67}, [0]), ({"T = 0.7": 1.97}, [2, 3]), ({"T = 0.7": 2.02}, [3])],
)
def test_a_claim_can_fail(changes: dict[str, float], failed: list[int]):
    assert [place for place, row in enumerate(claims(rows(**changes))) if row["holds"] == "no"] == failed


def test_every_drafter_runs_as_a_chain():
    lm = load(build(Lexicon((), (), 40), width=24, layers=1).requires_grad_(False))
    contexts = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]]
    for name, cls, options in _heads():
        torch.manual_seed(0)
        found = _tokens_per_pass(lm, cls.new(lm, **options).requires_grad_(False), contexts, 8, 0.7)
        assert 1.0 <= found <= 4.0, name
