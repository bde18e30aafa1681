"""The fused forward pass gives what transformers gives, or it declines; there is nothing between.

Its models are loud where new ones are silent: norms and biases are random, not ones and zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONTEXT, FUSED, WINDOW, build, text
from scenes import FORMS, SCENES, TREE, beyond_the_window, one_node, ragged
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ramify.api import generate
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.models import fused as module
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM, load
from ramify.models.forward import Nodes
from ramify.models.fused import Declined, FusedForward
from ramify.models.weights import unavailable

CLOSE = 2e-5  # in standard deviations
LAYERS = 3
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
EVERY = [0, 1, 2, LAYERS, -1]
LONG = text(70, 4)

needs_packed = pytest.mark.skipif(
    bool(unavailable("packed", torch.float32, "cpu")), reason=unavailable("packed", torch.float32, "cpu")
)


def loud(family: str, attention: str | None = None, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of three layers with random norms and biases; equal weights for equal arguments."""
    given = {"num_hidden_layers": LAYERS} | ({"layer_types": KINDS} if family in ("gemma2", "gemma3") else {})
    model = build(family, **given | changes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.to(dtype)


@functools.cache
def pair(family: str, attention: str, dtype: torch.dtype = torch.float32) -> tuple[CausalLM, CausalLM]:
    """The fused forward pass and transformers' own, over two models with equal weights."""
    fused = load(loud(family, attention, dtype), forward="fused")
    own = load(loud(family, attention, dtype), forward="transformers")
    assert (fused.forward.name, own.forward.name) == ("fused", "transformers")
    assert fused.notes == []
    return fused, own


def gap(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in standard deviations of what is expected."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    return float((actual.double() - expected.double()).abs().max() / expected.double().std())


def close(actual: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    assert gap(actual, expected) <= tolerance


@torch.no_grad()
def fresh(model: Any, tokens: list[int]) -> Tensor:
    """transformers' own logits [n, V], without cache and masks of ours."""
    logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def scored(lm: CausalLM, tokens: list[int], begin: int = 20) -> Tensor:
    """Logits [n - begin, V] of a session over ``tokens``, of which ``begin`` are cached first."""
    session = Session(lm)
    session.prefill([tokens[:begin]])
    return session.score(TokenTree.chain(tokens[begin:])).logits[0]


def path(tree: TokenTree, node: int) -> list[int]:
    return tree.tokens[list(tree.shape.path(node))].tolist()


# ---- the families as they are ----


def test_every_family_is_here():
    assert {build(family).config.model_type for family in FUSED} == set(module.FAMILIES)


@pytest.mark.parametrize(("family", "attention"), FORMS)
def test_what_transformers_gives(family: str, attention: str):
    fused, own = pair(family, attention)
    for case in SCENES:
        for found, expected in zip(case(fused), case(own), strict=True):
            close(found.logits, expected.logits)
            assert list(found.hidden) == list(expected.hidden)
            for layer, states in expected.hidden.items():
                close(found.hidden[layer], states)


@pytest.mark.parametrize(("family", "attention"), FORMS)
def test_every_node_is_a_pass_of_its_own(family: str, attention: str):
    """Held to transformers without a cache and a mask of ours."""
    fused, own = pair(family, attention)
    session = Session(fused)
    session.prefill([text(20)])
    scores = session.score(TREE, hidden_layers=EVERY)
    for node in range(len(TREE)):
        with torch.no_grad():
            alone = own.model(
                input_ids=torch.tensor([text(20) + path(TREE, node)]), use_cache=False, output_hidden_states=True
            )
        close(scores.logits[0, node], alone.logits[0, -1])
        for layer in EVERY:
            close(scores.hidden[layer][0, node], alone.hidden_states[layer][0, -1])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_texts_longer_than_the_first_rotation_tables(family: str):
    tokens = text(540)
    fused = load(loud(family, max_position_embeddings=600), forward="fused")
    session = Session(fused)
    session.prefill([tokens[:250]])
    found = [session.score(TokenTree.chain(tokens[250:300])).logits[0]]
    session.keep([range(50)])
    found.append(session.score(TokenTree.chain(tokens[300:])).logits[0])
    close(torch.cat(found), fresh(loud(family, max_position_embeddings=600), tokens)[250:])


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_double_precision(family: str):
    """No closer than single precision: transformers takes norms and softmax in float32 whatever the model's dtype."""
    fused = load(loud(family, dtype=torch.float64), forward="fused")
    close(scored(fused, LONG), fresh(loud(family, dtype=torch.float64), LONG)[20:], 1e-5)


def native_bfloat16() -> bool:
    """Whether products in bfloat16 run on the kernels for which equality was seen: AVX-512, and no tiles (AMX)."""
    has = [getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile")]
    return has == [True, False]


@pytest.mark.parametrize(("family", "attention"), FORMS)
def test_bfloat16(family: str, attention: str):
    """Under eager attention the same roundings in the same order: equal bit by bit, logits and hidden states.

    That holds as long as the kernels compute an output the same way in a joined matrix as in its parts, and a query
    alone as among those of its group and behind more masked slots. No library promises it; it was seen with oneDNN on
    AVX-512. Under sdpa, whose kernel works through the slots in blocks, the masked slots that the fused pass adds move
    some roundings; there, and elsewhere, the two passes are held to a rounding's distance.
    """
    fused, own = pair(family, attention, torch.bfloat16)
    tolerance = 0.0 if native_bfloat16() and attention == "eager" else 0.1
    for case in SCENES:
        for found, expected in zip(case(fused), case(own), strict=True):
            close(found.logits, expected.logits, tolerance)
            for layer, states in expected.hidden.items():
                close(found.hidden[layer], states, tolerance)


@pytest.mark.parametrize(("family", "attention"), [("llama", "eager"), ("qwen3", "sdpa"), ("gemma2", "eager")])
def test_float16(family: str, attention: str):
    fused, own = pair(family, attention, torch.float16)
    for found, expected in zip(ragged(fused), ragged(own), strict=True):
        close(found.logits, expected.logits, 0.05)


@pytest.mark.parametrize("family", FUSED)
def test_gradients_pass_through_it(family: str):
    """After a session too, whose inference mode leaves tensors that autograd may not touch."""
    models = [loud(family), loud(family)]
    fused, own = load(models[0], forward="fused"), load(models[1], forward="transformers")
    tokens = torch.tensor([text(9)])
    nodes = Nodes(tokens, torch.arange(9)[None], [0], torch.ones(1, 9, 9, dtype=torch.bool).tril())
    gradients = []
    for lm in (fused, own):
        Session(lm).prefill([text(4)])
        cache = RowCache(lm.layers, rows=1)
        cache.expect(9, tokens.device)
        logits, _ = lm.forward(nodes, cache)
        logits.square().mean().backward()
        layer = lm.model.model.layers[0]
        gradients.append([layer.input_layernorm.weight.grad, layer.mlp.down_proj.weight.grad])
    for found, expected in zip(*gradients, strict=True):
        close(found, expected, 1e-4)


# ---- configurations: right ... ----


def head_bias(model: Any) -> None:
    size = model.config.vocab_size
    model.lm_head.bias = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(2)))


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **settings}}


LOCAL = {"use_sliding_window": True, "sliding_window": WINDOW}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
RIGHT: dict[str, tuple[str, str | None, dict[str, Any], Callable[[Any], None] | None]] = {
    "attention bias": ("llama", None, {"attention_bias": True}, None),
    "attention bias, qwen3": ("qwen3", None, {"attention_bias": True}, None),
    "attention bias, gemma": ("gemma", None, {"attention_bias": True}, None),
    "bias in the feed-forward block": ("llama", None, {"mlp_bias": True}, None),
    "bias of the head": ("llama", None, {}, head_bias),
    "bias of a tied head": ("qwen2", None, {"tie_word_embeddings": True}, head_bias),
    **{f"tied head, {family}": (family, None, {"tie_word_embeddings": True}, None) for family in FUSED},
    "linear rope": ("llama", None, rope("linear", factor=3.0), None),
    "llama3 rope": ("llama", None, rope("llama3", **LLAMA3), None),
    "yarn rope": ("qwen2", None, rope("yarn", **YARN), None),
    "yarn rope, qwen3": ("qwen3", None, rope("yarn", attention_factor=1.7, **YARN), None),
    "other base of the rope": ("mistral", None, rope("default") | {"rope_parameters": {"rope_theta": 50.0}}, None),
    "a rope for each kind of layer": ("gemma3", None, {"rope_parameters": TWO_ROPES}, None),
    "partial rotation": ("phi3", None, {"partial_rotary_factor": 0.5}, None),
    "partial rotation, eager": ("phi3", "eager", {"partial_rotary_factor": 0.25}, None),
    "alternating layers, qwen2": ("qwen2", None, LOCAL | {"layer_types": KINDS}, None),
    "alternating layers, qwen3": ("qwen3", "eager", LOCAL | {"layer_types": KINDS[1:] + KINDS[1:2]}, None),
    "windows in upper layers": ("qwen3", None, LOCAL | {"max_window_layers": 1}, None),
    "windows in all layers": ("qwen2", None, LOCAL | {"max_window_layers": 0}, None),
    "global layers only, gemma2": ("gemma2", None, {"layer_types": ["full_attention"] * 3}, None),
    "local layers only, gemma3": ("gemma3", None, {"layer_types": ["sliding_attention"] * 3}, None),
    "no window, mistral": ("mistral", None, {"sliding_window": None}, None),
    "no window, phi3": ("phi3", None, {"sliding_window": None}, None),
    "a window of one token": ("mistral", "eager", {"sliding_window": 1}, None),
    "wide heads": ("llama", None, {"head_dim": 20}, None),
    "wide heads, eager": ("qwen3", "eager", {"head_dim": 20}, None),
    "narrow heads": ("gemma", None, {"head_dim": 4}, None),
    "wide heads, mistral": ("mistral", None, {"head_dim": 16}, None),
    "one key head": ("llama", None, {"num_key_value_heads": 1}, None),
    "one key head, eager": ("gemma2", "eager", {"num_key_value_heads": 1}, None),
    "one key head, phi3": ("phi3", None, {"num_key_value_heads": 1}, None),
    "a key head for each head": ("llama", "eager", {"num_key_value_heads": 4}, None),
    "a key head for each head, sdpa": ("gemma3", "sdpa", {"num_key_value_heads": 4}, None),
    "no caps": ("gemma2", None, {"attn_logit_softcapping": None, "final_logit_softcapping": None}, None),
    "tight caps": ("gemma2", None, {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}, None),
    "cap of the scores only": ("gemma2", None, {"attn_logit_softcapping": 1.0, "final_logit_softcapping": None}, None),
    "cap of the logits only": ("gemma2", None, {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0}, None),
    "cap of the logits, gemma3": ("gemma3", None, {"final_logit_softcapping": 2.0}, None),
    "other scale of the scores": ("gemma3", None, {"query_pre_attn_scalar": 2}, None),
    "gelu": ("llama", None, {"hidden_act": "gelu"}, None),
    "relu, phi3": ("phi3", None, {"hidden_act": "relu"}, None),
    "silu, gemma2": ("gemma2", None, {"hidden_activation": "silu"}, None),
    "large epsilon": ("qwen3", None, {"rms_norm_eps": 0.3}, None),
    "large epsilon, gemma3": ("gemma3", None, {"rms_norm_eps": 0.3}, None),
    "five layers": ("llama", None, {"num_hidden_layers": 5}, None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_configuration_is_right(name: str):
    family, attention, changes, after = RIGHT[name]
    models = [loud(family, attention, **changes), loud(family, attention, **changes)]
    for model in models if after else ():
        after(model)
    lm = load(models[0], forward="fused")
    expected = fresh(models[1], LONG)
    assert gap(fresh(loud(family, attention), LONG)[20:], expected[20:]) > 1e-2, "the setting changes nothing here"
    close(scored(lm, LONG), expected[20:])
    session = Session(lm, 2)
    session.prefill([LONG[:12], LONG[:40]])
    trees = session.score([TREE, TREE]).logits
    for row, before in enumerate((12, 40)):
        for node in (4, 6, 7):
            close(trees[row, node], fresh(models[1], LONG[:before] + path(TREE, node))[-1])


def test_gemma3_has_a_cap_of_the_scores_that_transformers_does_not_use():
    """In half precision the probe alone would not notice it."""
    for attention, dtype in (("eager", torch.float32), ("sdpa", torch.float32), ("eager", torch.bfloat16)):
        changes = {"attn_logit_softcapping": 5.0}
        lm = load(loud("gemma3", attention, dtype, **changes))
        expected = fresh(loud("gemma3", attention, dtype, **changes), LONG)[20:]
        close(scored(lm, LONG), expected, CLOSE if dtype == torch.float32 else 0.1)


# ---- ... or declined ----


class Adapted(nn.Linear):
    """A linear layer with something added, as adapters of low rank are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * x.mean(dim=-1, keepdim=True)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.inner(x)


def adapt(model: Any) -> None:
    own = model.model.layers[1].self_attn
    adapted = Adapted(own.q_proj.in_features, own.q_proj.out_features, bias=False)
    adapted.weight = own.q_proj.weight
    own.q_proj = adapted


def wrap_projection(model: Any) -> None:
    model.model.layers[0].mlp.down_proj = Wrapped(model.model.layers[0].mlp.down_proj)


def wrap_head(model: Any) -> None:
    model.lm_head = Wrapped(model.lm_head)


def wrap_block(model: Any) -> None:
    model.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp, nn.Tanh())


def hook(model: Any) -> None:
    model.model.layers[1].register_forward_hook(lambda module, given, output: 1.5 * output)


def early_hook(model: Any) -> None:
    model.model.norm.register_forward_pre_hook(lambda module, given: (given[0] + 1.0,))


def own_forward(model: Any) -> None:
    """As libraries do that move weights to the device just before they are needed."""
    block = model.model.layers[0].mlp
    block.forward = lambda x, before=block.forward: 2.0 * before(x)


def more_parts(model: Any) -> None:
    model.model.layers[0].extra = nn.Linear(2, 2)


def more_parts_of_attention(model: Any) -> None:
    model.model.layers[2].self_attn.sink = nn.Linear(2, 2)


def one_bias(model: Any) -> None:
    own = model.model.layers[0].self_attn
    own.q_proj.bias = nn.Parameter(torch.ones(own.q_proj.out_features))


def fewer_layers(model: Any) -> None:
    model.config.num_hidden_layers = 2


def quantised(model: Any) -> None:
    model.config.quantization_config = {"quant_method": "none that exists"}


def flexible(model: Any) -> None:
    model.config._attn_implementation = "flex_attention"


LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
DECLINED: dict[str, tuple[str, dict[str, Any], Callable[[Any], None] | None, str]] = {
    "mixture of experts": ("mixtral", {}, None, "MixtralForCausalLM is none of the families it knows"),
    "mixture of experts, qwen3": ("qwen3_moe", {}, None, "Qwen3MoeForCausalLM is none of the families it knows"),
    "gpt2": ("gpt2", {}, None, "is none of the families it knows (llama, mistral, qwen2"),
    "dynamic rope": ("llama", rope("dynamic", factor=2.0), None, "'dynamic' rotary positions change with the length"),
    "longrope": (
        "phi3", rope("longrope", **LONGROPE) | {"original_max_position_embeddings": 64}, None,
        "'longrope' rotary positions change with the length",
    ),
    "quantised weights": ("llama", {}, quantised, "its weights are quantised by another library"),
    "adapter": ("qwen2", {}, adapt, "q_proj is no plain linear layer but a Adapted"),
    "wrapped projection": ("llama", {}, wrap_projection, "down_proj is no plain linear layer but a Wrapped"),
    "wrapped projection, phi3": ("phi3", {}, wrap_projection, "down_proj is no plain linear layer but a Wrapped"),
    "wrapped head": ("gemma", {}, wrap_head, "lm_head is no plain linear layer but a Wrapped"),
    "wrapped block": ("llama", {}, wrap_block, "Sequential has other parts than expected"),
    "hook": ("llama", {}, hook, "hooks are registered on its layers"),
    "hook before": ("gemma3", {}, early_hook, "hooks are registered on its layers"),
    "forward of its own": ("llama", {}, own_forward, "hooks are registered on its layers"),
    "additional module": ("mistral", {}, more_parts, "MistralDecoderLayer has other parts than expected"),
    "additional module in the attention": (
        "qwen3", {}, more_parts_of_attention, "Qwen3Attention has other parts than expected (qkv_proj, sink)"
    ),
    "bias of the queries alone": ("llama", {}, one_bias, "of q_proj, k_proj, v_proj only some have a bias"),
    "fewer layers than built": ("llama", {}, fewer_layers, "it has 3 layers, but its config names 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_not_known_keeps_transformers_forward(name: str):
    family, changes, after, reason = DECLINED[name]
    model = (loud if family in FUSED else build)(family, **changes)
    if after is not None:
        after(model)
    with pytest.raises(Declined) as declined:
        FusedForward(model)
    assert reason in str(declined.value)

    lm = load(model)
    assert (lm.forward.name, lm.forward.weights, lm.trees) == ("transformers", "plain", True)
    [note] = lm.notes
    assert note.startswith("no fused forward pass: ")
    assert reason in note
    # Shorter than the length at which the rotations of a cached text would turn stale.
    close(scored(lm, LONG[:60]), fresh(model, LONG[:60])[20:])
    for asked in ({"forward": "fused"}, {"weights": "packed"}, {"weights": "int8"}):
        with pytest.raises(RamifyError, match="cannot run the fused forward pass") as error:
            load(model, **asked)
        assert reason in str(error.value)
        assert "\n" not in str(error.value)
    assert load(model, weights="plain").notes == lm.notes


@pytest.mark.parametrize("family", ["gemma", "gemma3"])
def test_bidirectional_attention_is_declined(family: str):
    model = loud(family, use_bidirectional_attention=True)
    with pytest.raises(Declined, match="its attention is bidirectional"):
        FusedForward(model)
    lm = load(model)
    assert (lm.forward.name, lm.trees) == ("transformers", False)
    assert lm.notes == [f"no fused forward pass: {lm.reason}"]
    with pytest.raises(RamifyError, match="cannot run the fused forward pass: a tree scored at once differs"):
        load(model, forward="fused")


def test_flex_attention_is_declined():
    """On CPUs it takes no tree either: its kernel reads beyond a mask of numbers and ends the process."""
    model = loud("llama")
    flexible(model)
    with pytest.raises(Declined, match="its attention is 'flex_attention', not one of eager, sdpa"):
        FusedForward(model)
    lm = load(model)
    assert (lm.forward.name, lm.trees) == ("transformers", False)
    assert "flex_attention takes no tree mask on CPUs" in lm.reason
    with pytest.raises(RamifyError, match="cannot run the fused forward pass: flex_attention"):
        load(model, forward="fused")


def test_a_forward_pass_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(module.FAMILIES, "llama", True)
    monkeypatch.setattr(module, "_norm", lambda norm, shifted: module.Norm(norm.weight, 1e-6, shifted))
    model = loud("llama")
    lm = load(model)
    assert lm.forward.name == "transformers"
    assert lm.notes[0].startswith("no fused forward pass: its logits differ by ")
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    with pytest.raises(RamifyError, match="its logits differ by"):
        load(model, forward="fused")


def test_transformers_forward_on_demand():
    lm = load(loud("llama"), forward="transformers")
    assert (lm.forward.name, lm.notes) == ("transformers", ["transformers' forward pass was asked for"])
    with pytest.raises(RamifyError, match="unknown forward pass 'fussed'; did you mean 'fused'"):
        load(loud("llama"), forward="fussed")


# ---- a model that is changed after it was loaded ----


def random(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(9)))


def new_projection(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj = nn.Linear(32, 32)
    model.model.layers[0].self_attn.q_proj.weight = random(32, 32)


def new_head(model: Any) -> None:
    model.set_output_embeddings(nn.Linear(32, 96, bias=False))


def new_embeddings(model: Any) -> None:
    model.set_input_embeddings(nn.Embedding(96, 32))


def new_norm(model: Any) -> None:
    kind = type(model.model.norm)
    model.model.norm = kind(32, eps=0.5)


def new_act(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Tanh()


def new_rope(model: Any) -> None:
    model.model.rotary_emb = loud("qwen2", rope_parameters={"rope_type": "default", "rope_theta": 9.0}).model.rotary_emb


def new_decoder(model: Any) -> None:
    model.model = build("qwen2", seed=3, num_hidden_layers=LAYERS).model


def data_of(*names: str, shape: tuple[int, ...]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        functools.reduce(getattr, names, model.model.layers[1]).data = random(*shape).data

    return change


def parameter_of(*names: str, shape: tuple[int, ...]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        setattr(functools.reduce(getattr, names[:-1], model.model.layers[1]), names[-1], random(*shape))

    return change


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "double precision": (lambda model: model.to(torch.float64), "fused"),
    "there and back": (lambda model: model.to(torch.bfloat16).to(torch.float32), "fused"),
    "data of a weight": (data_of("self_attn", "k_proj", "weight", shape=(16, 32)), "fused"),
    "data of a weight that stands alone": (data_of("mlp", "down_proj", "weight", shape=(32, 48)), "fused"),
    "data of a bias": (data_of("self_attn", "q_proj", "bias", shape=(32,)), "fused"),
    "data of a norm": (data_of("input_layernorm", "weight", shape=(32,)), "fused"),
    "another weight": (parameter_of("self_attn", "v_proj", "weight", shape=(16, 32)), "fused"),
    "another weight that stands alone": (parameter_of("self_attn", "o_proj", "weight", shape=(32, 32)), "fused"),
    "another bias": (parameter_of("self_attn", "v_proj", "bias", shape=(16,)), "fused"),
    "a bias where there was none": (parameter_of("mlp", "down_proj", "bias", shape=(32,)), "fused"),
    "another norm weight": (parameter_of("post_attention_layernorm", "weight", shape=(32,)), "fused"),
    "another norm": (new_norm, "fused"),
    "another head": (new_head, "fused"),
    "a bias of the head": (head_bias, "fused"),
    "other embeddings": (new_embeddings, "fused"),
    "another activation": (new_act, "fused"),
    "another rope": (new_rope, "fused"),
    "another decoder": (new_decoder, "fused"),
    "another projection": (new_projection, "fused"),
    "adapter": (adapt, "transformers"),
    "wrapped projection": (wrap_projection, "transformers"),
    "wrapped block": (wrap_block, "transformers"),
    "hook": (hook, "transformers"),
    "hook before": (early_hook, "transformers"),
    "forward of its own": (own_forward, "transformers"),
}


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy text."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(fresh(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_followed(name: str):
    torch.manual_seed(0)
    change, forward = CHANGES[name]
    lm = load(loud("qwen2"), forward="fused")
    before, old = scored(lm, LONG), lm.forward
    change(lm.model)
    prompt = text(9)
    assert generate(lm, prompt, "prompt-lookup", options={"length": 5}, max_new_tokens=20).tokens == greedy(
        lm.model, prompt, 20
    )
    assert lm.forward.name == forward
    assert (lm.notes == []) == (forward == "fused")
    expected = fresh(lm.model, LONG)[20:]
    close(scored(lm, LONG), expected)
    if name != "double precision":
        assert gap(expected, before) > 1e-3, "the change changes nothing here"
    assert lm.forward is not old


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_weights_changed_in_place_are_followed_as_they_are(family: str):
    lm = load(loud(family), forward="fused")
    before, old = scored(lm, LONG), lm.forward
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.mul_(1.2)
        lm.model.lm_head.weight[5] += 1.0
    close(scored(lm, LONG), fresh(lm.model, LONG)[20:])
    assert gap(scored(lm, LONG), before) > 1e-2
    assert lm.forward is old


@needs_packed
@pytest.mark.parametrize("name", ["double precision", "data of a norm", "another projection", "adapter", "hook"])
def test_a_change_after_conversion_is_refused(name: str):
    if name == "adapter":
        change: Callable[[Any], object] = wrap_projection
    elif name == "data of a norm":
        change = parameter_of("input_layernorm", "weight", shape=(32,))
    else:
        change = CHANGES[name][0]
    lm = load(loud("qwen2"), weights="packed")
    assert generate(lm, text(9), max_new_tokens=2).stats.generated_tokens == 2
    change(lm.model)
    for _ in range(2):
        with pytest.raises(RamifyError, match="was changed after its weights were converted; make changes before"):
            generate(lm, text(9), max_new_tokens=2)


def test_transformers_forward_follows_another_dtype():
    lm = load(loud("llama"), forward="transformers")
    lm.model.to(torch.float64)
    close(scored(lm, LONG), fresh(lm.model, LONG)[20:])
    assert (lm.forward.name, lm.forward.dtype) == ("transformers", torch.float64)


# ---- what joining leaves of the model ----


def storages(model: Any) -> dict[int, int]:
    found = (weight.untyped_storage() for weight in model.parameters())
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FUSED)
def test_nothing_is_stored_twice(family: str, tied: bool):
    model = loud(family, tie_word_embeddings=tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    bytes_before = sum(storages(model).values())
    lm = load(model, forward="fused")
    assert sum(storages(model).values()) == bytes_before
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        name: weight.shape for name, weight in before.items()
    }
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert isinstance(lm.forward, FusedForward)
    own = storages(model)
    for projection in lm.forward.projections():
        product: Any = projection.product
        assert product.weight.untyped_storage().data_ptr() in own
        assert product.nbytes == sum(layer.weight.nbytes for layer in projection.layers)
    head = model.lm_head.weight.nbytes
    matrices = sum(weight.nbytes for name, weight in before.items() if weight.dim() == 2 and "embed" not in name)
    assert lm.forward.nbytes == (matrices if "lm_head.weight" in before else matrices + head)


def test_a_second_wrapper_shares_what_the_first_joined():
    model = loud("qwen2")
    first = load(model)
    forward, joined = first.forward, storages(model)
    second = load(model)
    assert storages(model) == joined
    close(scored(first, LONG), scored(second, LONG), 0.0)
    assert first.forward is forward
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(2.0)
    for lm in (first, second):
        close(scored(lm, LONG), fresh(model, LONG)[20:])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3"])
def test_a_fused_model_can_be_saved(family: str, tied: bool, tmp_path: Path):
    model, twin = loud(family, tie_word_embeddings=tied), loud(family, tie_word_embeddings=tied)
    load(model, forward="fused")
    model.save_pretrained(tmp_path / "fused")
    twin.save_pretrained(tmp_path / "twin")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("fused", "twin")]
    assert sizes[0] == sizes[1]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", attn_implementation="eager")
    twin.set_attn_implementation("eager")
    assert torch.equal(fresh(again, LONG), fresh(twin, LONG))
    fourth = loud(family, tie_word_embeddings=tied, seed=5)
    fourth.set_attn_implementation("eager")
    assert not torch.equal(fresh(fourth, LONG), fresh(twin, LONG))
    fourth.load_state_dict(model.state_dict())
    assert torch.equal(fresh(fourth, LONG), fresh(twin, LONG))


def test_a_fused_model_takes_another_state():
    """``load_state_dict`` writes into the weights that are there."""
    lm = load(loud("llama"), forward="fused")
    other = loud("llama", seed=5)
    lm.model.load_state_dict(other.state_dict())
    close(scored(lm, LONG), fresh(other, LONG)[20:])


@needs_packed
@pytest.mark.parametrize("family", FUSED)
def test_transformers_runs_on_packed_weights_and_saves_none(family: str, tmp_path: Path):
    model, twin = loud(family), loud(family)
    lm = load(model, weights="packed")
    assert (lm.how, lm.notes) == ("fused, packed weights", [])
    assert not any(type(layer) is nn.Linear for layer in model.modules())
    close(scored(lm, LONG), fresh(twin, LONG)[20:])
    close(fresh(model, LONG), fresh(twin, LONG))
    for save in (model.state_dict, lambda: model.save_pretrained(tmp_path / "packed")):
        with pytest.raises(RamifyError, match="converted for speed and cannot be saved; load it with weights='plain'"):
            save()


@needs_packed
def test_packed_weights_in_bfloat16():
    """Bit by bit what plain ones give, where products in bfloat16 run natively."""
    if why := unavailable("packed", torch.bfloat16, "cpu"):
        pytest.skip(why)
    tolerance = 0.0 if native_bfloat16() else 0.15
    for family, attention in FORMS:
        packed = load(loud(family, attention, torch.bfloat16), weights="packed")
        plain, _ = pair(family, attention, torch.bfloat16)
        for case in (one_node, ragged, beyond_the_window):
            for found, expected in zip(case(packed), case(plain), strict=True):
                close(found.logits, expected.logits, tolerance)


def test_a_loaded_model_says_how_it_runs():
    assert "fused, plain weights" in repr(load(loud("llama")))
    assert "transformers, plain weights" in repr(load(build("gpt2")))
    assert load(loud("llama")).context == CONTEXT


@pytest.mark.parametrize("how", ["transformers", "fused"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_window_that_the_family_does_not_know_is_none(family: str, how: str):
    """Configs carry ``sliding_window`` along where the modelling code ignores it; the text outgrows it."""
    changed = build(family)
    changed.config.sliding_window = WINDOW
    tokens = text(3 * WINDOW, 5)
    lm_ = load(changed, forward=how)
    session = Session(lm_)
    session.prefill([tokens[:-1]])
    found = session.score(TokenTree.chain(tokens[-1:])).logits[0, 0]
    with torch.no_grad():
        expected = changed(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.std())
