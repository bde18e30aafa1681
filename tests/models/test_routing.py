"""Detours: which experts copies take, how they are weighed, and that nothing else of the pass changes."""

from __future__ import annotations

import pytest
import torch
from families import build, lm, text

from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM, load
from ramify.models.routing import Routers, other_experts

R = torch.tensor([2.0, 1.9, 1.5, 0.2])
FAMILIES = ["qwen3_moe", "mixtral", "olmoe"]
SPECS = {
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {"num_experts": 4, "norm_topk_prob": False}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 4, "head_dim": 8}),
}


def mixture(family: str) -> CausalLM:
    import transformers

    if family not in SPECS:
        return lm(family)
    config, kind, settings = SPECS[family]
    torch.manual_seed(0)
    base = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
        "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
    }  # fmt: skip
    return load(getattr(transformers, kind)(getattr(transformers, config)(**base | settings)).eval())


def test_the_experts_of_the_second_pass() -> None:
    logits, none = R.expand(2, 4), torch.zeros(2, 4)
    assert other_experts(logits, none, 0.5, 2).sort().values.tolist() == [[0, 1], [0, 2]]
    assert other_experts(logits, none, 0.1, 2).sort().values.tolist() == [[0, 1], [0, 1]]
    assert other_experts(logits, none, 1e6, 2).sort().values.tolist() == [[0, 1], [2, 3]]
    added = torch.zeros(1, 4)
    added[0, 3] = 2.0
    assert other_experts(logits[:1], added, 0.0, 2).tolist() == [[3, 0]]
    assert other_experts(logits[:0], none[:0], 0.5, 2).shape == (0, 2)
    assert R[[0, 2]].softmax(-1).tolist() == pytest.approx([0.6225, 0.3775], abs=1e-4)


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_a_great_penalty_makes_the_passes_disjoint(passes: int) -> None:
    torch.manual_seed(passes)
    logits = torch.randn(5, passes, 8)
    chosen = other_experts(logits, torch.randn(5, passes, 8), 1e6, 2)
    for row in chosen.flatten(1).tolist():
        assert len(set(row)) == 2 * passes


def siblings(model: CausalLM, tokens: list[int], copies: int, rows: int = 1) -> tuple[Session, list[TokenTree]]:
    session = Session(model, rows)
    session.prefill([tokens[row:-1] for row in range(rows)])
    tree = TokenTree(torch.full((1 + copies,), tokens[-1]), TreeShape.of([-1] * (1 + copies)))
    return session, [tree] * rows


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss"])
def test_without_noise_all_passes_are_the_clean_one(family: str) -> None:
    model = mixture(family)
    routers = Routers(model)
    session, trees = siblings(model, text(9), 3)
    detour = routers.detour(torch.zeros(1, routers.layers, 3, routers.experts))
    with detour:
        logits = session.score(trees).logits[0]
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-5, rtol=1e-4)
    assert detour.changed == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_nodes_do_not_touch_each_other(family: str) -> None:
    model = mixture(family)
    routers = Routers(model)
    session, trees = siblings(model, text(9), 2, rows=3)
    plain = session.score(trees).logits[:, 0]
    noise = 5 * torch.randn(3, routers.layers, 2, routers.experts, generator=torch.Generator().manual_seed(1))
    detour = routers.detour(noise)
    with detour:
        logits = session.score(trees).logits
    assert 0 < detour.changed <= 1
    torch.testing.assert_close(logits[:, 0], plain, atol=1e-5, rtol=1e-4)
    assert (logits[:, 1:] - plain[:, None]).abs().amax(-1).median() > 1e-3
    for row in range(3):
        alone, tree = siblings(model, text(9)[row:], 2)
        with routers.detour(noise[row : row + 1]):
            torch.testing.assert_close(alone.score(tree).logits[0], logits[row], atol=1e-5, rtol=1e-4)
    session.keep([[0]] * 3)
    torch.testing.assert_close(
        session.score([TokenTree.chain([5])] * 3).logits[:, 0],
        torch.stack([after(model, [*text(9)[row:], 5]) for row in range(3)]),
        atol=1e-4,
        rtol=1e-4,
    )


@torch.no_grad()
def after(model: CausalLM, tokens: list[int]) -> torch.Tensor:
    found: torch.Tensor = model.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_a_model_that_chooses_so(family: str) -> None:
    """A copy that is forced to some experts gives what the model gives when its router prefers them by itself."""
    model = mixture(family)
    routers = Routers(model)
    over_all = family != "mixtral"  # by the other families' configs: norm_topk_prob is False
    assert routers.over_all == [over_all] * 2
    wanted = torch.tensor([1, 3])
    session, trees = siblings(model, text(6), 1)
    forced = torch.zeros(1, routers.layers, 1, 4)
    forced[..., wanted] = 1e4
    with routers.detour(forced):
        found = session.score(trees).logits[0, 1]

    def only_wanted(_: object, __: object, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        logits, weights, indices = output
        weights, indices = weights.clone(), indices.clone()
        own = logits[-1].softmax(-1)[wanted]
        weights[-1] = own if over_all else own / own.sum()
        indices[-1] = wanted
        return logits, weights, indices

    hooks = [module.register_forward_hook(only_wanted) for module in routers.modules]
    expected = after(model, text(6))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_hooks_are_gone_even_after_an_error() -> None:
    model = mixture("qwen3_moe")
    routers = Routers(model)
    before = [dict(module._forward_hooks) for module in routers.modules]  # transformers may keep some of its own
    with pytest.raises(ValueError, match="on purpose"), routers.detour(torch.zeros(1, 2, 1, 4)):
        raise ValueError("on purpose")
    assert [dict(module._forward_hooks) for module in routers.modules] == before


def test_what_cannot_be_routed() -> None:
    with pytest.raises(RamifyError, match="has no expert routers"):
        Routers(lm("llama"))
    odd = build("qwen3_moe")
    for module in odd.modules():
        if "Router" in type(module).__name__:
            module.register_forward_hook(lambda _, __, output: (output[0], output[1] * 0.5, output[2]))
    with pytest.raises(RamifyError, match="Qwen3MoeTopKRouter is no plain top-k router"):
        Routers(load(odd))
