"""Weight formats: each computes the product of the matrix that it says it holds, or says why it cannot."""

from __future__ import annotations

import functools
import platform
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from families import build, byte_tokenizer, text
from torch import Tensor, nn

from ramify.api import generate
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.registry import create
from ramify.models import weights as module
from ramify.models.causal import CausalLM, load
from ramify.models.weights import FORMATS, GROUP, ROUNDED, Int4, Int8, Packed, Plain, Product, unavailable

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PROMPTS = [text(6, 1), text(17, 2, period=6), text(9, 3, period=3)]


def need(name: str, dtype: torch.dtype = torch.float32) -> None:
    if why := unavailable(name, dtype, "cpu"):
        pytest.skip(why)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def holds(product: Product, x: Tensor, bias: Tensor | None, tolerance: float) -> None:
    """The product is that of ``dense``, in the shape and dtype of a linear layer."""
    found = product(x)
    expected = x.double() @ product.dense().double().T
    if bias is not None:
        expected = expected + bias.double()
    assert found.shape == (*x.shape[:-1], len(product.dense()))
    assert found.dtype == x.dtype
    assert float((found.double() - expected).abs().max() / expected.std()) <= tolerance


# ---- products ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_the_product_is_that_of_the_matrix_held(name: str, dtype: torch.dtype):
    need(name, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for outputs, inputs in ((48, 128), (16, 64), (4112, 64)):  # the last is rounded in more than one piece
        weight, given = normal(outputs, inputs, seed=1, dtype=dtype), normal(outputs, seed=2, dtype=dtype)
        for bias in (None, given):
            product = module.weight_format(name)(weight, bias)
            for rows in (1, 2, 3, 4, 5, 8, 33):
                holds(product, normal(rows, inputs, seed=rows, dtype=dtype), bias, tolerance)
            for shape in ((1, 1), (1, 7), (3, 5)):
                holds(product, normal(*shape, inputs, seed=3, dtype=dtype), bias, tolerance)


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_sizes_that_are_no_multiples(name: str):
    need(name)
    bias = normal(33, seed=2)
    product = module.weight_format(name)(normal(33, 40), bias)
    for rows in (1, 2, 7):
        holds(product, normal(rows, 40, seed=rows), bias, 1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_do_not_mix(name: str):
    need(name)
    product = module.weight_format(name)(normal(48, 128, seed=1), None)
    x = normal(6, 128)
    together = product(x)
    other = product(torch.cat([x[:3], normal(3, 128, seed=9)]))
    torch.testing.assert_close(together[:3], other[:3], atol=0.0, rtol=0.0)
    for row in range(6):
        torch.testing.assert_close(product(x[row : row + 1])[0], together[row], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_slice_of_a_larger_matrix(name: str):
    """The head of a joined matrix is a view that begins elsewhere in its storage."""
    need(name)
    whole = normal(96, 64)
    product = module.weight_format(name)(whole[32:80], None)
    assert torch.equal(product.dense(), module.weight_format(name)(whole[32:80].clone(), None).dense())
    holds(product, normal(4, 64, seed=3), None, 1e-5)


def test_plain_and_packed_change_no_weight():
    weight = normal(48, 128)
    plain = Plain(weight, None)
    assert plain.dense() is weight
    need("packed")
    assert torch.equal(Packed(weight, None).dense(), weight)


def test_packed_is_plain_in_bfloat16():
    """Bit by bit, with a bias and without, for any number of rows; seen with oneDNN on AVX-512, promised by nobody."""
    need("packed", torch.bfloat16)
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        pytest.skip("this CPU does not multiply bfloat16 natively")
    for outputs, inputs in ((96, 64), (48, 32), (512, 256)):
        weight = normal(outputs, inputs, dtype=torch.bfloat16)
        for bias in (None, normal(outputs, seed=1, dtype=torch.bfloat16)):
            plain, packed = Plain(weight, bias), Packed(weight, bias)
            for rows in (1, 2, 3, 4, 5, 8, 17, 64):
                x = normal(rows, inputs, seed=rows, dtype=torch.bfloat16)
                assert torch.equal(packed(x), plain(x))


# ---- rounding ----


def test_int8_by_hand():
    """Scale 254 / 127 = 2 in the first row, 0.5 in the second; 3 / 2 and 1 / 2 lie between two levels: to the even."""
    need("int8")
    weight = torch.zeros(2, 16)
    weight[0, :5] = torch.tensor([254.0, -254.0, 3.0, 1.0, 9.0])
    weight[1, :4] = torch.tensor([-63.5, 0.2, 0.3, 10.0])
    held = Int8(weight, None)
    assert held.scale.tolist() == [2.0, 0.5]
    assert held.weight[0, :5].tolist() == [127, -127, 2, 0, 4]
    assert held.weight[1, :4].tolist() == [-127, 0, 1, 20]
    assert held.dense()[0, :5].tolist() == [254.0, -254.0, 4.0, 0.0, 8.0]
    assert held.dense()[1, :4].tolist() == [-63.5, 0.0, 0.5, 10.0]
    x = torch.zeros(1, 16)
    x[0, :4] = torch.tensor([1.0, 1.0, 10.0, 2.0])
    assert held(x).tolist() == [[40.0, -38.5]]
    assert held.nbytes == 2 * 16 + 2 * 4


def test_int4_by_hand():
    """Levels from −1 to 14 by a scale of 1 in the first group of row 0, from 0 to 30 by 2 in its second."""
    need("int4")
    weight = torch.zeros(16, 128)
    weight[0, :64] = torch.arange(64) % 16 - 1.0
    weight[0, 5] = 4.4  # to the level 4
    weight[0, 64:] = 2.0 * (torch.arange(64) % 16)
    weight[0, 64 + 3] = 6.9  # to the level 6
    held = Int4(weight, None)
    expected = weight[0].clone()
    expected[5], expected[64 + 3] = 4.0, 6.0
    assert torch.equal(held.dense()[0], expected)
    # A zero lies in the middle of a group's 16 levels: low + 8 scales.
    assert held.scale_and_zero[:, 0].tolist() == [[1.0, 7.0], [2.0, 16.0]]
    assert torch.equal(held.dense()[1:], torch.zeros(15, 128))
    x = torch.zeros(2, 128)
    x[0, [5, 64 + 3]] = 1.0
    x[1, [0, 127]] = torch.tensor([3.0, 0.5])
    assert held(x)[:, 0].tolist() == [10.0, -3.0 + 15.0]
    assert held.nbytes == 16 * 128 // 2 + 2 * 16 * 2 * 4


def test_int8_is_off_by_half_a_level_at_most():
    need("int8")
    for dtype in (torch.float32, torch.bfloat16):
        weight = normal(96, 128, dtype=dtype) * torch.logspace(-4, 4, 96).to(dtype)[:, None]
        held = Int8(weight, None)
        error = (held.weight.float() * held.scale.float()[:, None] - weight.float()).abs()
        # A rounded scale may lie below 1/127 of the greatest weight, whose level is then cut to 127.
        slack = 0.5001 if dtype == torch.float32 else 1.0
        assert (error <= slack * held.scale.float()[:, None]).all()
        assert (error > 0.4 * held.scale.float()[:, None]).any()
        torch.testing.assert_close(held.scale.float(), weight.float().abs().amax(1) / 127, rtol=0.004, atol=0.0)


def test_int4_is_off_by_half_a_level_at_most():
    need("int4")
    spread = torch.logspace(-4, 4, 48)[:, None] * torch.tensor([1.0, 30.0]).repeat_interleave(GROUP)
    weight = (normal(48, 2 * GROUP) + 0.7) * spread
    error = (Int4(weight, None).dense() - weight).abs().view(48, 2, GROUP)
    low, high = weight.view(48, 2, GROUP).aminmax(dim=2)
    scale = ((high - low) / 15)[..., None]
    assert (error <= 0.501 * scale).all()
    assert (error > 0.4 * scale).any(dim=2).all()


def test_groups_have_scales_of_their_own():
    need("int4")
    weight = normal(16, 3 * GROUP)
    quiet = Int4(weight, None).dense()
    loud = weight.clone()
    loud[4, GROUP + 7] = 1000.0
    held = Int4(loud, None).dense()
    touched = torch.zeros(16, 3 * GROUP, dtype=torch.bool)
    touched[4, GROUP : 2 * GROUP] = True
    assert torch.equal(held[~touched], quiet[~touched])
    assert float((held - loud)[touched].abs().max()) > 1.0
    assert float(held[4, GROUP + 7]) == pytest.approx(1000.0, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ROUNDED)
def test_odd_matrices(name: str, dtype: torch.dtype):
    """Rows of zeros, constant groups, one huge weight, weights near the least number: finite, and near what was."""
    need(name, dtype)
    weight = torch.zeros(16, 64)
    weight[1] = 3.0
    weight[2] = -2.0
    weight[3, 17] = 1000.0
    weight[4] = 1e-7
    weight[5] = torch.linspace(-1e-5, 1e-5, 64)
    weight[6] = torch.where(torch.arange(64) % 2 == 0, 5.0, -5.0)
    weight = weight.to(dtype)
    held = FORMATS[name](weight, None)
    dense = held.dense().float()
    assert dense.isfinite().all()
    assert torch.equal(dense[0], torch.zeros(64))
    exact = 1e-6 if dtype == torch.float32 else 0.01
    for row in (1, 2, 6):
        torch.testing.assert_close(dense[row], weight[row].float(), rtol=exact, atol=0.0)
    assert float(dense[3, 17]) == pytest.approx(1000.0, rel=max(exact, 1e-6))
    assert float(dense[3, :17].abs().max()) == 0.0
    torch.testing.assert_close(dense[4:6], weight[4:6].float(), rtol=0.0, atol=3e-6)
    holds(held, normal(3, 64, dtype=dtype), None, 1e-5 if dtype == torch.float32 else 0.05)


def test_bytes():
    weight, bias = normal(48, 128), normal(48)
    half = weight.to(torch.bfloat16)
    expected = {"plain": 48 * 128 * 4, "packed": 48 * 128 * 4, "int8": 48 * 128 + 48 * 4,
                "int4": 48 * 64 + 48 * 2 * 2 * 4}  # fmt: skip
    for name, size in expected.items():
        need(name)
        assert module.weight_format(name)(weight, bias).nbytes == size
    assert [FORMATS[name](half, None).nbytes for name in FORMATS if not unavailable(name, half.dtype, "cpu")] == [
        {"plain": 48 * 128 * 2, "packed": 48 * 128 * 2, "int8": 48 * 128 + 48 * 2, "int4": 48 * 64 + 48 * 2 * 2 * 2}[
            name
        ]
        for name in FORMATS
        if not unavailable(name, half.dtype, "cpu")
    ]


# ---- what a format cannot hold ----


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 96), (40, 64), (33, 64), (16, 32)])
def test_int4_needs_multiples(outputs: int, inputs: int):
    with pytest.raises(ValueError, match=f"multiples of 64 inputs and 16 outputs, not {inputs} and {outputs}"):
        Int4(normal(outputs, inputs), None)


@pytest.mark.parametrize("inputs", [8, 40, 33])
def test_int8_needs_whole_blocks(inputs: int):
    """Beyond the last one its operator reads in bfloat16 what lies behind the matrix."""
    with pytest.raises(ValueError, match=f"int8 needs a multiple of 16 inputs, not {inputs}"):
        Int8(normal(48, inputs), None)


def test_unknown_names():
    with pytest.raises(RamifyError, match=r"unknown weight format 'int9'; did you mean 'int[84]'\?"):
        module.weight_format("int9")
    with pytest.raises(RamifyError, match=r"unknown weight format 'pack'; did you mean 'packed'\?"):
        load(build("llama"), weights="pack")


@pytest.fixture
def ask_anew() -> Iterator[None]:
    unavailable.cache_clear()
    yield
    unavailable.cache_clear()


def test_plain_is_available_everywhere():
    for dtype in (torch.float16, torch.float64):
        assert unavailable("plain", dtype, "cuda") == ""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors may lack the operators")
def test_every_format_is_available_here():
    """Or the tests of this file would skip each other unseen."""
    assert {name: unavailable(name, torch.float32, "cpu") for name in FORMATS} == dict.fromkeys(FORMATS, "")


@pytest.mark.parametrize("name", ["packed", "int8", "int4"])
def test_other_devices(name: str):
    assert unavailable(name, torch.float32, "cuda") == f"{name} weights are offered on CPUs only, not on cuda"


@pytest.mark.parametrize("name", ["packed", "int8", "int4"])
def test_a_dtype_without_an_operator_is_a_reason(name: str):
    why = unavailable(name, torch.float64, "cpu")
    assert why.startswith(f"{name} weights in float64 do not run on this machine (")
    assert "\n" not in why
    with pytest.raises(RamifyError, match=f"{name} weights in float64 do not run .*; load the model with weights='pl"):
        load(build("llama").to(torch.float64), weights=name)


def broken(self: Product, x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel\nsecond line")


def missing(self: Product, x: Tensor) -> Tensor:
    raise AttributeError("'_OpNamespace' object has no attribute")


def silent(self: Product, x: Tensor) -> Tensor:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("operator", "said"),
    [(broken, "(no such kernel)"), (missing, "has no attribute)"), (silent, "(NotImplementedError)")],
)
def test_an_operator_that_fails_is_a_reason(operator: Any, said: str, monkeypatch: pytest.MonkeyPatch, ask_anew: None):
    monkeypatch.setattr(Packed, "__call__", operator)
    why = unavailable("packed", torch.float32, "cpu")
    assert why.startswith("packed weights in float32 do not run on this machine")
    assert said in why
    assert "\n" not in why
    with pytest.raises(RamifyError, match="load the model with weights='plain'"):
        load(build("llama"), weights="packed")
    assert load(build("llama")).how == "fused, plain weights"


def slightly_wrong(self: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(x, 1.01 * self.weight.to_dense(), self.bias)


def not_a_number(self: Any, x: Tensor) -> Tensor:
    return torch.nan * nn.functional.linear(x, self.weight.to_dense(), self.bias)


@pytest.mark.parametrize("operator", [slightly_wrong, not_a_number])
def test_an_operator_that_computes_wrong_is_a_reason(operator: Any, monkeypatch: pytest.MonkeyPatch, ask_anew: None):
    need("packed")
    unavailable.cache_clear()
    monkeypatch.setattr(Packed, "__call__", operator)
    assert unavailable("packed", torch.float32, "cpu") == "packed weights compute wrong products on this machine"


# ---- models ----


def logits(lm: CausalLM, tokens: list[int]) -> Tensor:
    session = Session(lm)
    session.prefill([tokens[:10]])
    return session.score(TokenTree.chain(tokens[10:])).logits[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("qwen2", **WIDE).save_pretrained(folder)
    return folder


def test_a_folder_is_packed_and_an_object_is_not(folder: Path):
    need("packed")
    loaded = load(folder)
    assert (loaded.how, loaded.notes) == ("fused, packed weights", [])
    assert load(folder, weights="plain").how == "fused, plain weights"
    assert load(folder, forward="transformers").how == "transformers, plain weights"
    assert load(folder, weights="packed", forward="fused").how == "fused, packed weights"
    model = build("qwen2", **WIDE)
    given = load(model)
    assert given.how == "fused, plain weights"
    assert type(model.lm_head) is nn.Linear
    torch.testing.assert_close(logits(loaded, text(30)), logits(given, text(30)), atol=1e-4, rtol=1e-5)
    packed = load(model, weights="packed")
    assert packed.how == "fused, packed weights"
    assert type(model.lm_head) is not nn.Linear
    assert generate(packed, text(9), max_new_tokens=20).tokens == generate(loaded, text(9), max_new_tokens=20).tokens


def test_where_nothing_can_be_packed_the_weights_stay(folder: Path):
    loaded = load(folder, dtype=torch.float64)
    assert (loaded.how, loaded.notes) == ("fused, plain weights", [])


@pytest.mark.parametrize("name", ["packed", "int8", "int4"])
def test_transformers_forward_runs_on_its_own_weights(name: str, folder: Path):
    for source in (build("llama"), folder):
        with pytest.raises(RamifyError, match=f"{name} weights need the fused forward pass; leave out forward='transf"):
            load(source, forward="transformers", weights=name)
    assert load(build("llama"), forward="transformers", weights="plain").how == "transformers, plain weights"


def test_what_int4_cannot_hold_stays_as_it_was():
    """Of a Llama of width 64 with 96 hidden units, all but the products that read those 96."""
    need("int4")
    model, twin = build("llama", **WIDE | {"intermediate_size": 96}), build("llama", **WIDE | {"intermediate_size": 96})
    lm = load(model, weights="int4")
    assert lm.how == "fused, int4 weights"
    [note] = lm.notes
    assert note.startswith("down_proj stays ")
    assert note.endswith("int4 needs multiples of 64 inputs and 16 outputs, not 96 and 64 (2 times)")
    layer = model.model.layers[0].mlp
    assert type(layer.down_proj) is nn.Linear
    assert torch.equal(layer.down_proj.weight, twin.model.layers[0].mlp.down_proj.weight)
    assert type(layer.gate_proj) is not nn.Linear
    held_to_dense(lm, twin)


def held_to_dense(lm: CausalLM, twin: Any) -> None:
    """``lm`` computes what transformers computes on ``twin`` once that has the weights that ``lm`` really holds."""
    forward: Any = lm.forward
    with torch.no_grad():
        for projection in forward.projections():
            if projection.product is None:
                continue
            place = next(name for name, part in lm.model.named_modules() if part is projection.parent)
            parts = [getattr(twin.get_submodule(place), name) for name in projection.names]
            dense = projection.product.dense().split([part.out_features for part in parts])
            for part, weight in zip(parts, dense, strict=True):
                part.weight = nn.Parameter(weight.clone())  # a new one: a tied head must not change the embeddings
        tokens = text(40)
        expected = twin(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, 10:]
    assert float((logits(lm, tokens) - expected).abs().max() / expected.std()) <= 2e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3"])
@pytest.mark.parametrize("name", ["packed", "int8", "int4"])
def test_a_converted_model_is_the_model_of_the_weights_it_holds(name: str, family: str, tied: bool):
    need(name)
    model, twin = (build(family, **WIDE, tie_word_embeddings=tied) for _ in range(2))
    original = logits(load(twin, forward="transformers"), text(40))
    lm = load(model, weights=name)
    assert (lm.how, lm.notes) == (f"fused, {name} weights", [])
    moved = float((logits(lm, text(40)) - original).abs().max() / original.std())
    assert (moved > 0.01) == (name in ROUNDED)
    held_to_dense(lm, twin)


def test_too_little_memory_leaves_the_weights(monkeypatch: pytest.MonkeyPatch):
    need("packed")
    before = logits(load(build("qwen2")), text(30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=10_000))
    model = build("qwen2")
    lm = load(model, weights="packed")
    # Twice its bytes must be free: only the 32 x 32 numbers of the attention's output are small enough.
    large = ("down_proj", "gate_proj+up_proj", "lm_head", "q_proj+k_proj+v_proj")
    for note, names in zip(sorted(lm.notes), large, strict=True):
        assert note.startswith(f"{names} stays ")
        assert "too little memory is left to hold it as packed" in note
    assert type(model.model.layers[0].mlp.gate_proj) is nn.Linear
    assert type(model.model.layers[0].self_attn.o_proj) is not nn.Linear
    torch.testing.assert_close(logits(lm, text(30)), before, atol=1e-4, rtol=1e-5)

    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=0))
    untouched = build("qwen2")
    lm = load(untouched, weights="packed")
    assert len(lm.notes) == 5
    assert all(type(part) is nn.Linear for name, part in untouched.named_modules() if name.endswith("_proj"))
    torch.testing.assert_close(logits(lm, text(30)), before, atol=1e-4, rtol=1e-5)
    assert generate(lm, text(9), max_new_tokens=4).stats.generated_tokens == 4


@functools.cache
def rounded(name: str, family: str) -> CausalLM:
    return load(build(family, **WIDE), weights=name)


@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("name", ROUNDED)
def test_drafts_are_exact_with_respect_to_the_rounded_model(name: str, family: str, method: str):
    need(name)
    lm = rounded(name, family)
    assert lm.notes == []
    options = {"length": 6} if method == "prompt-lookup" else {"nodes": 24}
    given = {"max_new_tokens": 40, "do_sample": False}
    plain = [generate(lm, prompt, "greedy", **given).tokens for prompt in PROMPTS]
    drafted = generate(lm, PROMPTS, create(method, **options), **given)
    assert [result.tokens for result in drafted] == plain
    assert sum(result.stats.accepted for result in drafted) > 0
    exact = load(build(family, **WIDE))
    assert [generate(exact, prompt, "greedy", **given).tokens for prompt in PROMPTS] != plain


# ---- the original weights ----


def test_the_original_of_a_packed_folder_is_loaded_again(folder: Path):
    need("packed")
    lm = load(folder)
    assert lm.original is not lm.model
    assert lm.original is lm.original
    assert type(lm.original.lm_head) is nn.Linear
    assert lm.original.dtype == lm.dtype
    ours = generate(lm, text(9), "greedy", max_new_tokens=20).tokens
    assert generate(lm, text(9), "hf-greedy", max_new_tokens=20).tokens == ours
    assert type(lm.model.lm_head) is not nn.Linear


def test_the_original_has_the_dtype_and_attention_asked_for(folder: Path):
    need("packed", torch.bfloat16)
    lm = load(folder, dtype="bfloat16", attention="eager")
    assert lm.forward.weights == "packed"
    assert lm.original.dtype == torch.bfloat16
    assert lm.original.config._attn_implementation == "eager"
    assert not lm.original.training


def test_rounded_weights_have_their_own_text_and_the_originals(folder: Path):
    """hf-greedy on int8 weights runs the model that was loaded, not the rounded one."""
    need("int8")
    lm, exact = load(folder, weights="int8"), load(folder, weights="plain")
    tokens = [generate(each, PROMPTS[0], "hf-greedy", max_new_tokens=20).tokens for each in (lm, exact)]
    assert tokens[0] == tokens[1]


def test_plain_weights_are_the_original(folder: Path):
    for lm in (load(folder, weights="plain"), load(build("llama")), load(folder, forward="transformers")):
        assert lm.original is lm.model


def test_a_packed_object_has_no_original():
    need("packed")
    lm = load(build("llama"), weights="packed", tokenizer=byte_tokenizer())
    with pytest.raises(RamifyError, match="holds packed weights and nothing to load its own from; load it with"):
        generate(lm, text(5), "hf-greedy", max_new_tokens=3)
    assert generate(lm, text(5), "greedy", max_new_tokens=3).stats.generated_tokens == 3


def test_the_formats_that_round():
    assert set(ROUNDED) < set(module.FORMATS)
