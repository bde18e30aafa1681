"""Published checkpoints: files written here in every public layout load strictly and draft what their source drafts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import heads
import pytest
import torch
from families import VOCABULARY, lm, text
from safetensors.torch import save_file
from torch import Tensor

from ramify.api import generate
from ramify.engine.events import Drafted
from ramify.errors import RamifyError
from ramify.methods.draft.eagle import Eagle
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.medusa import Medusa
from ramify.methods.draft.medusa_head import MedusaHead
from ramify.methods.draft.published import find_head, read_published

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}
MEDUSA = {"base_model_name_or_path": "some/llama", "medusa_num_heads": 2, "medusa_num_layers": 1}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / name)
    return folder


def drafts(method: Any, model: Any) -> list[list[int]]:
    result = generate(model, text(17, 2, period=6), method, max_new_tokens=12, do_sample=False)
    return [event.tree.tokens.tolist() for event in result.events if isinstance(event, Drafted)]


# ---------------------------------------------------------------- Medusa


def medusa_source(layers: int = 1) -> MedusaHead:
    return heads.medusa(lm("llama"), heads=5, layers=layers, projection="own")


def medusa_tensors(head: MedusaHead) -> dict[str, Tensor]:
    layers = head.sizes.layers
    found = {f"{k}.{layers}.weight": each.weight for k, each in enumerate(head.lm_heads)}
    for k, blocks in enumerate(head.blocks):
        for layer, block in enumerate(blocks):
            found |= {f"{k}.{layer}.linear.weight": block.linear.weight, f"{k}.{layer}.linear.bias": block.linear.bias}
    return found


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("prefix", ["", "medusa_head."])
def test_medusa(layers: int, prefix: str, tmp_path: Path):
    """The config says two heads, as that of medusa-vicuna-7b-v1.3 does; the file holds five."""
    source, model = medusa_source(layers), lm("llama")
    tensors = {prefix + key: tensor for key, tensor in medusa_tensors(source).items()}
    folder = write(tmp_path / "medusa", MEDUSA, tensors, "medusa_lm_head.safetensors")
    found = find_head(MedusaHead, folder, model)
    assert (found.sizes.heads, found.sizes.layers, found.sizes.projection) == (5, layers, "own")
    options = {"tree": "mc_sim_7b_63", "nodes": 20}
    assert drafts(Medusa(head=folder, nodes=20), model) == drafts(Medusa(head=source, **options), model)
    assert drafts(Medusa(head=str(folder), nodes=20), model) != drafts(
        Medusa(head=heads.medusa(model), **options), model
    )


# ---------------------------------------------------------------- EAGLE and EAGLE-2


def state(head: EagleHead) -> dict[str, Tensor]:
    return dict(head.state_dict())


@pytest.mark.parametrize("embedding", ["none", "same", "other"])
@pytest.mark.parametrize("bias", [False, True])
def test_eagle(embedding: str, bias: bool, tmp_path: Path):
    model = lm("llama")
    source = heads.eagle(model, fc_bias=bias, own_embedding=embedding == "other")
    with torch.no_grad():
        if source.embed_tokens is not None:
            source.embed_tokens.weight.mul_(1.5)
    tensors = state(source)
    if embedding == "same":
        tensors["embed_tokens.weight"] = model.model.get_input_embeddings().weight
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old transformers versions saved it
    folder = write(tmp_path / "eagle", LLAMA | {"bias": bias}, tensors)
    found = find_head(EagleHead, folder, model)
    assert found.sizes == source.sizes
    assert (found.embed_tokens is not None) == (embedding == "other")
    options = {"nodes": 10, "depth": 3, "k": 3}
    expected = drafts(Eagle(head=source, **options), model)
    assert drafts(Eagle(head=folder, **options), model) == expected
    assert sum(map(len, expected)) > 40


def test_eagle_as_speculators_saves_it(tmp_path: Path):
    model = lm("llama")
    source = heads.eagle(model)
    renamed = {
        key.replace("fc.", "fusion_fc.").replace("layers.0.", "transformer."): value
        for key, value in state(source).items()
    }
    config = {"speculators_model_type": "eagle", "fusion_bias": False, "transformer_layer_config": LLAMA}
    found = read_published(write(tmp_path / "eagle", config, renamed), model)
    assert found.sizes == source.sizes


# ---------------------------------------------------------------- EAGLE-3

THIRD = LLAMA | {"draft_vocab_size": 30}


def third(**sizes: Any) -> EagleHead:
    head = heads.eagle(lm("llama"), **{"version": 3, "draft_vocabulary": 30} | sizes)
    head.read(lm("llama"), [list(range(2, 92, 3)) * 2])
    return head


def eagle3_tensors(head: EagleHead) -> dict[str, Tensor]:
    tensors = {key.replace("layers.0.", "midlayer."): value for key, value in state(head).items()}
    if head.d2t is not None:
        marks = torch.zeros(VOCABULARY, dtype=torch.bool)
        marks[head.ids(torch.arange(len(head.d2t)))] = True
        tensors["t2d"] = marks
    return tensors


@pytest.mark.parametrize("prefix", ["", "model."])
def test_eagle3(prefix: str, tmp_path: Path):
    model, source = lm("llama"), third()
    assert len(set(source.d2t.tolist())) > 1
    bare = ("lm_head.weight", "d2t", "t2d")  # SGLang's prefix is before what belongs to its inner model
    tensors = {key if key in bare else prefix + key: value for key, value in eagle3_tensors(source).items()}
    folder = write(tmp_path / "eagle3", THIRD, tensors)
    found = find_head(EagleHead, folder, model)
    assert replace(found.sizes, own_lm_head=False) == source.sizes
    assert found.reads == source.reads == (2, 1, 1)
    assert torch.equal(found.d2t, source.d2t)
    options = {"nodes": 10, "depth": 3, "k": 3}
    assert drafts(Eagle(head=folder, **options), model) == drafts(Eagle(head=source, **options), model)


def test_eagle3_over_the_whole_vocabulary(tmp_path: Path):
    model, source = lm("llama"), third(draft_vocabulary=0)
    folder = write(tmp_path / "eagle3", LLAMA, eagle3_tensors(source))
    options = {"nodes": 10, "depth": 3, "k": 3}
    assert drafts(Eagle(head=folder, **options), model) == drafts(Eagle(head=source, **options), model)


@pytest.mark.parametrize("norm_first", [False, True])
def test_eagle3_as_speculators_saves_it(norm_first: bool, tmp_path: Path):
    model, source = lm("llama"), third(norm_first=norm_first, own_embedding=True)
    config = {
        "speculators_model_type": "eagle3",
        "draft_vocab_size": 30,
        "norm_before_residual": norm_first,
        "eagle_aux_hidden_state_layer_ids": None,
        "transformer_layer_config": LLAMA,
    }
    tensors = {key.replace("midlayer.", "layers.0."): value for key, value in eagle3_tensors(source).items()}
    found = read_published(write(tmp_path / "eagle3", config, tensors), model)
    assert found.sizes.norm_first == norm_first
    assert not found.sizes.own_embedding  # it is the target's


@pytest.mark.parametrize(
    ("config", "reads"),
    [
        ({}, (2, 1, 1)),  # 2, L // 2 and L − 3 of a model of two layers, kept inside it
        ({"eagle_aux_hidden_state_layer_ids": [1, 1, 2]}, (1, 1, 2)),  # vLLM: what enters a layer
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 0, 1]}}, (1, 1, 2)),  # SGLang: what leaves it
    ],
)
def test_which_layers_are_read(config: dict[str, Any], reads: tuple[int, ...], tmp_path: Path):
    folder = write(tmp_path / "eagle3", THIRD | config, eagle3_tensors(third()))
    assert find_head(EagleHead, folder, lm("llama")).reads == reads


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
    ],
)
def test_positions_are_the_configs(config: dict[str, Any], rope: dict[str, Any], tmp_path: Path):
    model = lm("llama")
    folder = write(tmp_path / "eagle", LLAMA | config, state(heads.eagle(model)))
    found = find_head(EagleHead, folder, model)
    assert rope.items() <= found.sizes.rope.items()
    options = {"nodes": 10, "depth": 3, "k": 3}
    assert drafts(Eagle(head=folder, **options), model) != drafts(Eagle(head=heads.eagle(model), **options), model)


# ---------------------------------------------------------------- what is refused

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
REFUSED: list[tuple[str, Change, str]] = [
    ("medusa", lambda c, t: t.pop("3.0.linear.bias"), "lacks blocks.3.0.linear.bias"),
    ("medusa", lambda c, t: [t.pop(f"{k}.1.weight") for k in range(5)], "lacks the vocabulary matrix 0.1.weight"),
    ("medusa", lambda c, t: t.update({"norm.weight": torch.ones(32)}), "has unknown norm.weight"),
    ("medusa", lambda c, t: t.update({"4.1.weight": torch.ones(95, 32)}), "another shape for lm_heads.4.weight"),
    (
        "medusa",
        lambda c, t: t.update({f"{k}.1.weight": torch.ones(95, 32) for k in range(5)}),
        "its vocabulary is 96, not 95",
    ),
    ("eagle", lambda c, t: t.pop("layers.0.mlp.up_proj.weight"), "lacks layers.0.mlp.up_proj.weight"),
    ("eagle", lambda c, t: t.pop("layers.0.self_attn.q_proj.weight"), "lacks layers.0.self_attn.q_proj.weight"),
    ("eagle", lambda c, t: t.update({"layers.0.input_layernorm.weight": torch.ones(32)}), "has unknown layers.0.input"),
    ("eagle", lambda c, t: t.update({"layers.1.mlp.up_proj.weight": torch.ones(48, 32)}), "has unknown layers.1.mlp"),
    ("eagle", lambda c, t: t.update({"model.fc.weight": torch.ones(32, 64)}), "holds fc.weight twice"),
    ("eagle", lambda c, t: t.update({"fc.weight": torch.ones(32, 80)}), "turns 80 numbers into 32"),
    ("eagle", lambda c, t: c.update(hidden_act="gelu"), "activation 'gelu'; only 'silu' is known"),
    ("eagle", lambda c, t: c.update(vocab_size=95), "its vocabulary is 96, not 95"),
    ("eagle", lambda c, t: c.update(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "unknown rotary positions"),
    ("eagle3", lambda c, t: t.pop("lm_head.weight"), "lacks lm_head.weight"),  # SGLang ran such a head at random
    ("eagle3", lambda c, t: t.pop("midlayer.hidden_norm.weight"), "lacks layers.0.hidden_norm.weight"),
    ("eagle3", lambda c, t: t.update(d2t=t["d2t"] + 9), "outside the vocabulary of 96: d2t points there"),
    ("eagle3", lambda c, t: t.update(t2d=~t["t2d"]), "d2t and t2d name different tokens"),
    ("eagle3", lambda c, t: t.pop("d2t"), "it has t2d without d2t"),
    ("eagle3", lambda c, t: (t.pop("d2t"), t.pop("t2d")), "another shape for lm_head.weight"),
    ("eagle3", lambda c, t: c.update(eagle_aux_hidden_state_layer_ids=[1, 2]), "names \\[1, 2\\]"),
    (
        "eagle3",
        lambda c, t: c.update(eagle_aux_hidden_state_layer_ids=[1, 2, 9]),
        "reads three of the target's 2 layers",
    ),
    ("eagle3", lambda c, t: t.clear() or t.update(other=torch.ones(1)), "no layout that is known .* it holds other"),
]


@pytest.mark.parametrize(("layout", "change", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_does_not_fit_is_refused(layout: str, change: Change, message: str, tmp_path: Path):
    model = lm("llama")
    config, tensors = {
        "medusa": lambda: (MEDUSA, medusa_tensors(medusa_source())),
        "eagle": lambda: (LLAMA, state(heads.eagle(model))),
        "eagle3": lambda: (THIRD, eagle3_tensors(third())),
    }[layout]()
    config, tensors = dict(config), dict(tensors)
    cls: Any = MedusaHead if layout == "medusa" else EagleHead
    find_head(cls, write(tmp_path / "whole", config, tensors), model)
    change(config, tensors)
    with pytest.raises(RamifyError, match=message):
        find_head(cls, write(tmp_path / "changed", config, tensors), model)


def test_pickles_and_damage_are_refused(tmp_path: Path):
    model = lm("llama")
    (tmp_path / "config.json").write_text(json.dumps(MEDUSA))
    with pytest.raises(RamifyError, match=r"no model.safetensors"):
        find_head(MedusaHead, tmp_path, model)
    torch.save(medusa_tensors(medusa_source()), tmp_path / "medusa_lm_head.pt")
    with pytest.raises(RamifyError, match=r"comes as a pickle \(medusa_lm_head.pt\), which can run code"):
        find_head(MedusaHead, tmp_path, model)
    (tmp_path / "medusa_lm_head.safetensors").write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}')
    with pytest.raises(RamifyError, match=r"the weights of the head in .* are damaged"):
        find_head(MedusaHead, tmp_path, model)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RamifyError, match=r"config.json cannot be read"):
        find_head(MedusaHead, tmp_path, model)


def test_the_wrong_kind_is_named(tmp_path: Path):
    model = lm("llama")
    folder = write(tmp_path / "eagle", LLAMA, state(heads.eagle(model)))
    with pytest.raises(RamifyError, match="is a EagleHead, not a MedusaHead"):
        find_head(MedusaHead, folder, model)
    with pytest.raises(RamifyError, match=r"holds no head: there is no head.json"):
        find_head(EagleHead, tmp_path, model)


def test_our_own_folders_and_objects_still_load(tmp_path: Path):
    model = lm("llama")
    head = heads.eagle(model)
    head.save(tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text("{}")  # of no meaning beside head.json
    found = find_head(EagleHead, tmp_path / "own", model)
    assert torch.equal(found.fc.weight, head.fc.weight)
    assert find_head(EagleHead, head, model) is head
