"""The recipe that measures Medusa and EAGLE heads: labels say what runs, and any head can be named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import heads
import pytest
from families import lm

import ramify.bench.recipes.heads as recipe
from ramify.errors import RamifyError
from ramify.methods.draft.eagle import Eagle
from ramify.methods.draft.medusa import Medusa


def run(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, dict[str, Any], list[list[Any]]]:
    seen: dict[int, Any] = {}
    compared: list[list[Any]] = []

    def count(model: Any, method: Any, *rest: Any) -> dict[str, float]:
        seen[id(method)] = method
        return {"greedy": 2.0, "T = 0.7": 1.5}

    def compare(model: Any, prompts: Any, methods: list[Any], **settings: Any) -> Any:
        compared.append(methods)
        return SimpleNamespace(rows=[])

    monkeypatch.setattr(recipe, "load", lambda *_, **__: lm("llama"))
    monkeypatch.setattr(recipe, "_tokens_per_call", count)
    monkeypatch.setattr(recipe, "compare", compare)
    outcome = recipe.run(prompts=1, max_new_tokens=4, **options)
    labels = [row["variant"] for row in outcome.tables[0].rows]
    return outcome, dict(zip(labels, seen.values(), strict=True)), compared


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    heads.medusa(lm("llama")).save(tmp_path / "medusa")
    heads.eagle(lm("llama"), draft_vocabulary=40).save(tmp_path / "eagle")
    return {"medusa": str(tmp_path / "medusa"), "eagle": str(tmp_path / "eagle")}


def test_labels_say_what_runs(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    more = f"a={folders['medusa']},b={folders['eagle']}"
    outcome, methods, (greedy, sampled) = run(monkeypatch, **folders, more=more)
    for label, method in methods.items():
        assert isinstance(method, Medusa if label.startswith(("medusa", "a,")) else Eagle)
        if "nodes" in label and "published" not in label:
            assert f"{method.nodes} nodes" in label
        if "depth" in label:
            assert f"depth {method.depth}" in label
        if isinstance(method, Eagle):
            assert method.coupled is not label.endswith("not coupled")
        if "eagle, chain" in label:
            assert (method.k, method.depth) == (1, 5)
    chain = methods["medusa, chain, 5 nodes"]
    assert not chain.head.accuracy[:, :, 1:].any()
    assert methods["medusa, measured tree, 16 nodes"].head.accuracy[:, :, 1:].any()  # its own is left as it was
    assert greedy[0] == "greedy"
    assert sampled[0] == "sample"
    assert [type(method) for method in greedy[1:]] == [Medusa, Eagle, Eagle, Eagle, Medusa, Eagle]
    assert "5 heads, shared projection" in outcome.notes[0]
    assert "b: version 1, MLP 48, 40 draft tokens, trained over 1 distance," in outcome.notes[0]


def test_a_head_of_another_method_is_refused(tmp_path: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RamifyError, match="holds no head that ramify trained"):
        run(monkeypatch, **folders, more=f"x={tmp_path}")
    (tmp_path / "head.json").write_text('{"method": "ppd"}')
    with pytest.raises(RamifyError, match="a head of 'ppd'; this measures those of medusa and eagle"):
        run(monkeypatch, **folders, more=f"x={tmp_path}")
