"""Published Medusa and EAGLE checkpoints, in the safetensors layouts that other libraries write.

| layout | told by | tensors |
|---|---|---|
| Medusa | ``0.0.linear.weight`` | ``{head}.{block}.linear.*``, then ``{head}.{blocks}.weight`` [V, D] |
| EAGLE, EAGLE-2 | ``fc.weight`` [D, 2D] | ``layers.0.*`` without input norm; perhaps ``embed_tokens``, ``fc.bias`` |
| EAGLE-3 | ``fc.weight`` [D, 3D] | ``midlayer.*``, ``norm``, ``lm_head``, ``d2t``, ``t2d``; perhaps ``embed_tokens`` |
| speculators | as these two | ``midlayer`` is called ``layers.0``; in EAGLE ``transformer``, and ``fc`` ``fusion_fc`` |
| SGLang | as all of these | names may begin with ``model.`` |

Loading is strict: a tensor that is missing, one that nothing reads, and a shape that does not fit are errors, and a
pickle is refused. Sizes are read off the tensors wherever these tell them, for configs are often wrong (the one of
FasterDecoding/medusa-vicuna-7b-v1.3 says two heads, and the file holds five). What a layout leaves open:

* ``embed_tokens`` that equals the target's, as it should, is left out again; another one is used as it is.
* ``t2d`` repeats ``d2t`` from the other side; it has to agree with it.
* the layers that EAGLE-3 reads: ``eagle_aux_hidden_state_layer_ids`` counts what enters a layer in vLLM's configs, and
  what leaves it in SGLang's (inside ``eagle_config``); by default what enters layers 2, L/2 and L − 3.
* heads of one layer of Llama's shape as wide as their target are read; others are refused by name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LlamaConfig

from ramify.errors import RamifyError, first_line
from ramify.methods.draft.eagle_head import EagleHead, EagleSizes, aux_layers
from ramify.methods.draft.medusa_head import MedusaHead, MedusaSizes
from ramify.methods.head import Fit, Head, fill, load_head, read_tensors
from ramify.models.causal import CausalLM

H = TypeVar("H", bound=Head)
RENAMED = (
    (r"^model\.", ""),  # SGLang
    (r"^medusa_head\.", ""),  # heads that were saved with their target
    (r"^midlayer\.", "layers.0."),  # EAGLE-3
    (r"^transformer\.", "layers.0."),  # speculators' EAGLE
    (r"^fusion_fc\.", "fc."),
    (r"^(\d+)\.(\d+)\.linear\.", r"blocks.\1.\2.linear."),  # Medusa
    (r"^(\d+)\.\d+\.(weight)$", r"lm_heads.\1.\2"),
)
CONFIG = (
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings"),
)
DERIVED = re.compile(r"rotary_emb\.inv_freq$")  # a buffer of old transformers versions, computed from the config


def find_head(cls: type[H], source: Any, lm: CausalLM) -> H:
    """The head of ``cls`` that ``source`` names: as ``load_head`` takes it, or a folder in a published layout."""
    if isinstance(source, str | Path):
        folder = Path(source)
        if (folder / "config.json").is_file() and not (folder / "head.json").exists():
            source = read_published(folder, lm)
    found: H = load_head(cls, source, lm)
    return found


def read_published(folder: Path, lm: CausalLM) -> Head:
    """The head in a folder of a published layout, for ``lm``; raises ``RamifyError`` where it is not one in full."""
    name = f"the head in {folder}"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise RamifyError(f"{name} is damaged: config.json cannot be read ({first_line(error)})") from error
    config = config | config.get("transformer_layer_config", {})
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]:
        for key, tensor in read_tensors(file, name).items():
            renamed = _renamed(key)
            if renamed in tensors:
                raise RamifyError(f"{name} holds {renamed} twice, once as {key}; remove one of them")
            if not DERIVED.search(key):
                tensors[renamed] = tensor
    if "blocks.0.0.linear.weight" in tensors:
        return _medusa(tensors, lm, name)
    if "fc.weight" in tensors:
        return _eagle(tensors, config, lm, name)
    found = ", ".join(sorted(tensors)[:3]) or "nothing"
    raise RamifyError(f"{name} is in no layout that is known (Medusa, EAGLE, EAGLE-3); it holds {found}")


def _renamed(key: str) -> str:
    for pattern, ours in RENAMED:
        key = re.sub(pattern, ours, key)
    return key


def _medusa(tensors: dict[str, Tensor], lm: CausalLM, name: str) -> Head:
    heads = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    layers = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("blocks."))
    own = tensors.get("lm_heads.0.weight")
    if own is None:
        raise RamifyError(f"{name} does not fit its description: it lacks the vocabulary matrix 0.{layers}.weight")
    head = MedusaHead(Fit(own.shape[1], own.shape[0], lm.layers, ""), MedusaSizes(heads, layers))
    fill(head, tensors | {"accuracy": head.accuracy}, name)
    return head


def _eagle(tensors: dict[str, Tensor], config: dict[str, Any], lm: CausalLM, name: str) -> Head:
    size, inputs = tensors["fc.weight"].shape
    if inputs not in (2 * size, 3 * size):
        raise RamifyError(
            f"{name} turns {inputs} numbers into {size}; heads as wide as their target turn twice or three times as "
            "many into one state"
        )
    version = 3 if inputs == 3 * size else 1
    embedding, read_out, d2t = (tensors.get(key) for key in ("embed_tokens.weight", "lm_head.weight", "d2t"))
    vocabulary = int(config.get("vocab_size", lm.vocab_size))
    own_embedding = embedding is not None and not _is_the_targets(embedding, lm)
    if embedding is not None and not own_embedding:
        del tensors["embed_tokens.weight"]
    _check_t2d(tensors, vocabulary, name)
    layer = _layer_sizes(tensors, config, name)
    aux: dict[str, Any] = _aux(config, lm.layers) if version == 3 else {}
    sizes = EagleSizes(
        **layer,
        **aux,
        version=version,
        draft_vocabulary=0 if d2t is None else len(d2t),
        fc_bias="fc.bias" in tensors,
        own_embedding=own_embedding,
        own_lm_head=read_out is not None,
        norm_first=bool(config.get("norm_before_residual", False)),
    )
    head = EagleHead(Fit(size, vocabulary, lm.layers, ""), sizes)
    fill(head, tensors, name)
    return head


def _layer_sizes(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> dict[str, Any]:
    """The layer's sizes, from its tensors where they tell them."""
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise RamifyError(f"{name} has the activation {activation!r}; only 'silu' is known")
    try:
        llama = LlamaConfig(**{key: config[key] for key in CONFIG if config.get(key) is not None})
        query, key, gate = (
            tensors[f"layers.0.{part}_proj.weight"].shape[0] for part in ("self_attn.q", "self_attn.k", "mlp.gate")
        )
    except KeyError as error:
        raise RamifyError(f"{name} does not fit its description: it lacks {error.args[0]}") from None
    rope = dict(llama.rope_parameters or {})
    if rope.get("rope_type") == "yarn":
        rope.setdefault("original_max_position_embeddings", llama.max_position_embeddings)
    heads = llama.num_attention_heads
    return {
        "heads": heads,
        "head_size": query // heads,
        "key_heads": key // (query // heads),
        "width": gate,
        "eps": llama.rms_norm_eps,
        "rope": rope,
        "attention_bias": "layers.0.self_attn.q_proj.bias" in tensors,
    }


def _aux(config: dict[str, Any], layers: int) -> dict[str, int]:
    """The layers that EAGLE-3 reads, counted as the states that leave them."""
    entering = config.get("eagle_aux_hidden_state_layer_ids")
    leaving = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    ids = [layer + 1 for layer in leaving] if leaving else entering
    if not ids:
        return aux_layers(layers)
    if len(ids) != 3 or not all(0 < layer <= layers for layer in ids):
        raise RamifyError(f"EAGLE-3 reads three of the target's {layers} layers, but the config names {list(ids)}")
    return dict(zip(("low", "middle", "high"), ids, strict=True))


def _is_the_targets(embedding: Tensor, lm: CausalLM) -> bool:
    if embedding.shape != (lm.vocab_size, lm.text_config.hidden_size):
        return False
    targets = lm.model.get_input_embeddings().weight
    return torch.equal(embedding.to(targets), targets)


def _check_t2d(tensors: dict[str, Tensor], vocabulary: int, name: str) -> None:
    """Take ``t2d`` out of ``tensors``, and ``d2t`` with it where it maps every token to itself."""
    d2t, t2d = tensors.get("d2t"), tensors.pop("t2d", None)
    if d2t is None:
        if t2d is not None:
            raise RamifyError(f"{name} does not fit its description: it has t2d without d2t")
        return
    ids = torch.arange(len(d2t)) + d2t
    marks = torch.zeros(vocabulary, dtype=torch.bool)
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        raise RamifyError(f"{name} drafts tokens outside the vocabulary of {vocabulary}: d2t points there")
    marks[ids] = True
    if t2d is not None and not torch.equal(marks, t2d.bool()):
        raise RamifyError(f"{name} is damaged: its tables d2t and t2d name different tokens")
