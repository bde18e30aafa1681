"""The recipe of hidden transfer: what it charges for a pass, and that its variants are what their labels say."""

from __future__ import annotations

import pytest
import torch
from families import lm, text

from ramify.bench.recipes import hidden_transfer
from ramify.bench.recipes.hidden_transfer import ABLATIONS, allocations, row_layers, tokens_per_call
from ramify.methods.draft.hidden_transfer_head import HiddenTransferHead
from ramify.methods.registry import create


def test_a_pseudo_step_is_charged_for_the_layers_that_it_passes():
    # The pending token and two nodes; one and three steps behind these, three behind the pending token.
    assert row_layers([1, 3], 0, 8) == 3 + 7
    assert row_layers([1, 3], 6, 8) == 3 + 7 / 4
    assert row_layers([1, 3], 8, 8) == 3


@pytest.mark.parametrize(("name", "sizes"), ABLATIONS.items())
def test_variants_are_what_their_labels_say(name: str, sizes: dict[str, object]):
    head = HiddenTransferHead.new(lm("llama"), **(sizes | {"layer": min(int(str(sizes["layer"])), 2)}))
    assert f"t = {sizes['layer']}" in name
    assert ("K =" not in name) == (head.sizes.ahead == 3)
    assert ("do not see" in name) == (not head.sizes.see_earlier)
    assert ("from the one before" in name) == head.sizes.chain
    assert ("squared" in name) == (head.sizes.mse > 0)
    assert ("the text" in name) == (head.sizes.targets == "text")


def test_allocations_share_the_trees(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(
        hidden_transfer, "tokens_per_call", lambda lm, prompts, method, *rest: seen.append(method) or 1.5
    )
    head = HiddenTransferHead.new(lm("llama"))
    with torch.no_grad():
        head.maps[0].weight.mul_(2.0)
    found = allocations(lm("llama"), [], head, 8, 0, [])
    assert [row["drafter"] for row in found][:2] == ["chain", "naive, B = 20"]
    assert {(method.budget, method.allocation) for method in seen} == {
        (2, "chain"), (20, "naive"), (20, "random"), (20, "pruned"), (60, "naive"), (60, "pruned")
    }  # fmt: skip
    assert sum(method.head is head for method in seen) == len(seen) / 2
    assert all(row["T = 0.7, trained"] == 1.5 for row in found)


def test_tokens_per_call_is_of_all_prompts_together():
    prompts = [text(9, 1), text(12, 2)]
    assert tokens_per_call(lm("llama"), prompts, create("greedy"), 6, 0) == 1.0
    assert tokens_per_call(lm("llama"), [text(12, 2, period=3)], create("prompt-lookup", length=5), 12, 0) >= 1.0
    assert tokens_per_call(lm("llama"), prompts, create("sample"), 6, 0, 0.7) == 1.0
