"""The throughput of pools: what the table counts."""

from __future__ import annotations

import pytest

from ramify.bench.recipes.pool import run
from ramify.models.causal import BUNDLED


@pytest.mark.skipif(
    not (BUNDLED["demo-reasoner"] / "model.safetensors").exists(), reason="the demo reasoner is not in the package"
)
def test_the_counts() -> None:
    [table] = run(new=5, sizes=(1, 3), sequential=1, repeats=1).tables
    assert [row["paths"] for row in table.rows] == [1, 3]
    # Two for the prompt, the last token of which gives the first law, and one for every token but the last.
    assert [row["passes"] for row in table.rows] == [6, 6]
    prompt = int(table.title.rsplit(" ", 2)[-2])
    assert [row["most cache entries"] for row in table.rows] == [prompt + n * (prompt + 4) for n in (1, 3)]
