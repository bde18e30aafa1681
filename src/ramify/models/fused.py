"""The fused forward pass: one lean decoder for the families that share Llama's shape.

transformers' own forward spends much of a decoding step on what surrounds the products: a module call and several
small kernels for each norm, rotation and head, separate products for queries, keys and values, copies of grouped heads.
Here a layer is two short functions over the same weights. What tells the families apart is data, read off the
loaded model: biases, head norms, norms behind a block, rotation tables, windows, soft caps. What the reader does not
know declines the whole model, which then keeps transformers' forward.

The order of operations and roundings is transformers' own, so with eager attention the logits agree to the last bit in
half precision too, wherever the same kernels run; sdpa's kernels round by the number of slots, which differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import first_line
from ramify.models.cache import RowCache, RowLayer
from ramify.models.forward import Nodes, attention_masks, nodes_at, sliding_window
from ramify.models.projection import Declined, Projection

# Families whose modelling code was read and compared; True where norms multiply by 1 + weight, in float32 (Gemma).
FAMILIES = {
    "llama": False,
    "mistral": False,
    "qwen2": False,
    "qwen3": False,
    "phi3": False,
    "gemma": True,
    "gemma2": True,
    "gemma3_text": True,
}
# Rotations whose frequencies do not depend on the length of the text.
ROTATIONS = ("default", "linear", "llama3", "yarn")
ATTENTION = ("eager", "sdpa")
# Attention runs over a multiple of so many cache slots: oneDNN generates code for every new number of them.
SLOTS = 64

_TOP = {"model", "lm_head"}
_MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_LAYER_MORE = {"pre_feedforward_layernorm", "post_feedforward_layernorm", "resid_attn_dropout", "resid_mlp_dropout"}
_ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = ({"gate_proj", "up_proj", "down_proj", "act_fn"}, {"gate_up_proj", "down_proj", "activation_fn"})


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm. ``shifted``: times 1 + weight, in float32 (Gemma); else times weight, in x's dtype."""

    weight: nn.Parameter
    eps: float
    shifted: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.shifted:
            scale = 1.0 + self.weight.float()
            return functional.rms_norm(x.float(), scale.shape, scale, self.eps).to(x.dtype)
        return self.weight * functional.rms_norm(x, self.weight.shape, None, self.eps)


class Rotation:
    """Rotary position tables, taken from the model's own module: cos and signed sin [positions, 1, rotated size]."""

    def __init__(self, rotary: nn.Module, layer_type: str | None) -> None:
        self.rotary = rotary
        self.kind = {} if layer_type is None else {"layer_type": layer_type}
        self.cos = self.sin = torch.empty(0)

    def at(self, positions: Tensor, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [B, N, 1, R] for ``positions`` [B, N], all below ``end``."""
        if end > len(self.cos) or self.cos.dtype != like.dtype or self.cos.device != like.device:
            # Made to last, so not as tensors that only inference mode may use.
            with torch.inference_mode(False), torch.no_grad():
                places = torch.arange(max(256, 1 << (end - 1).bit_length()), device=like.device)
                cos, sin = self.rotary(like, places[None], **self.kind)
                half = sin.shape[-1] // 2
                # The rotation negates the first half; with the sign in the table it is a roll and two products.
                sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
                self.cos, self.sin = cos[0, :, None], sin[0, :, None]
        return self.cos[positions], self.sin[positions]


@dataclass(frozen=True)
class Attention:
    """What the attention of one layer needs to know. ``window`` in tokens or None; ``softcap`` or None."""

    norm: Norm
    qkv: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    out: Projection
    after: Norm | None
    heads: int
    key_heads: int
    size: int
    scale: float
    softcap: float | None
    window: int | None
    rotation: int
    math: bool

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cached: RowLayer) -> Tensor:
        """Attention block over x [B, N, D], without the residual."""
        rows, nodes, _ = x.shape
        groups = self.heads // self.key_heads
        qkv = self.qkv(self.norm(x)).view(rows, nodes, self.heads + 2 * self.key_heads, self.size)
        turned, values = torch.split(qkv, [self.heads + self.key_heads, self.key_heads], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = torch.split(turned, [self.heads, self.key_heads], dim=2)
            turned = torch.cat([self.query_norm(queries), self.key_norm(keys)], dim=2)
        queries, keys = torch.split(rotate(turned, *turn), [self.heads, self.key_heads], dim=2)
        keys, values = cached.update(keys.transpose(1, 2), values.transpose(1, 2))
        # Queries that share a key head stand below each other, so that no key is copied: [B, K, G·N, size].
        queries = queries.view(rows, nodes, self.key_heads, groups, self.size).permute(0, 2, 3, 1, 4)
        queries = queries.reshape(rows, self.key_heads, groups * nodes, self.size)
        if mask is not None and groups > 1:
            mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).reshape(len(mask), 1, groups * nodes, -1)
        if self.math:
            mixed = self._attend(queries, keys, values, mask)
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self.scale)
        mixed = mixed.view(rows, self.key_heads, groups, nodes, self.size).permute(0, 3, 1, 2, 4)
        out = self.out(mixed.reshape(rows, nodes, self.heads * self.size))
        return out if self.after is None else self.after(out)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        scores = torch.matmul(queries, keys.transpose(2, 3)).mul_(self.scale)
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_() * self.softcap
        if mask is not None:
            scores = scores.add_(mask)
        return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype), values)


@dataclass(frozen=True)
class FeedForward:
    """The gated block: down(act(gate) · up)."""

    norm: Norm
    gate_up: Projection
    activation: Callable[[Tensor], Tensor]
    down: Projection
    after: Norm | None

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        out = self.down(self.activation(gate) * up)
        return out if self.after is None else self.after(out)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R entries of every head, x [B, N, heads, size], by the tables [B, N, 1, R]; ``sin`` is signed."""
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], cos, sin), x[..., turned:]], dim=-1)
    return (x * cos).add_(x.roll(turned // 2, dims=-1).mul_(sin))


class FusedForward:
    """``Forward`` for the dense decoders of ``FAMILIES``, over the loaded model's own weights.

    Their products are computed layer by layer until ``hold`` joins them. ``weights``: the name of their format. Raises
    ``Declined`` for a model that it does not know in every respect.
    """

    name = "fused"

    def __init__(self, model: Any) -> None:
        config = _known_config(model)
        _known_modules(model)
        self.model = model
        self.dtype: torch.dtype = model.dtype
        self.weights = "plain"
        self.window = sliding_window(model)
        shifted = FAMILIES[config.model_type]
        decoder = model.model
        types = getattr(config, "layer_types", None) or [
            "sliding_attention" if self.window else "full_attention"
        ] * len(decoder.layers)
        # Gemma 3 turns by other frequencies in local layers than in global ones.
        kinds: list[str | None] = [None]
        if config.model_type == "gemma3_text":
            kinds = sorted(set(types))
        self.rotations = [Rotation(decoder.rotary_emb, kind) for kind in kinds]
        self.attention: list[Attention] = []
        self.feed_forward: list[FeedForward] = []
        for layer, kind in zip(decoder.layers, types, strict=True):
            turn = kinds.index(kind) if len(kinds) > 1 else 0
            window = self.window if kind == "sliding_attention" else None
            self.attention.append(_attention(layer, config, window, turn, shifted))
            self.feed_forward.append(_feed_forward(layer, shifted))
        self.norm = _norm(decoder.norm, shifted)
        self.head = Projection(model, "lm_head")
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._read = _parts(model)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of ``tokens``: [..., D]."""
        embedded: Tensor = self.model.model.embed_tokens(tokens)
        return embedded

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        x = self.embed(nodes.tokens) if nodes.embeddings is None else nodes.embeddings
        end = max(nodes.lengths) + nodes.tokens.shape[1]
        cache.seen = min(-(-end // SLOTS) * SLOTS, cache.capacity)
        masks = attention_masks(nodes, self.dtype, self.window, cache.seen)
        turns = [rotation.at(nodes.positions, max(end, nodes.reach), x) for rotation in self.rotations]
        return self.decode(
            x,
            turns,
            masks or (None, None),
            cache.row_layers,
            nodes.logits_at,
            nodes.hidden_layers,
            nodes.first,
            nodes.last,
        )

    def decode(
        self,
        x: Tensor,
        turns: Sequence[tuple[Tensor, Tensor]],
        masks: tuple[Tensor | None, Tensor | None],
        cached: Sequence[RowLayer],
        logits_at: Sequence[int] | None,
        hidden_layers: Sequence[int],
        first: int = 0,
        last: int | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The layers behind ``first`` up to ``last`` over x [B, N, D], the embedded nodes or what enters there.

        ``masks``: for layers that see all, for those with a window.
        """
        full, local = masks
        end = len(self.attention) if last is None else last
        states = {first: x}
        for index in range(first, end):
            attend, feed = self.attention[index], self.feed_forward[index]
            x = x + attend(x, turns[attend.rotation], full if attend.window is None else local, cached[index])
            x = x + feed(x)
            if index + 1 in hidden_layers:
                states[index + 1] = x
        if logits_at is None or len(logits_at) or -1 in hidden_layers:
            x = self.norm(x)
        states[-1] = x
        if last is None:
            # As transformers counts them, the last layer's output is the one behind the final norm.
            states[end] = x
        if logits_at is not None:
            x = nodes_at(x, logits_at)
        logits = self.head(x)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits, {layer: states[layer] for layer in hidden_layers}

    def projections(self) -> Iterator[Projection]:
        """Every matrix product of a pass, the head's last."""
        for attend, feed in zip(self.attention, self.feed_forward, strict=True):
            yield from (attend.qkv, attend.out, feed.gate_up, feed.down)
        yield self.head

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one pass over few rows reads."""
        return sum(projection.nbytes for projection in self.projections())

    def hold(self, name: str) -> list[str]:
        """Hold the matrices in the weight format ``name``, one by one; returns which stay as they are, and why.

        A product whose matrix the format cannot hold, or for which there is no memory, is computed from the layers as
        they are: slower, and as right.
        """
        stay: Counter[str] = Counter()
        # One for all: memory that is touched for the first time costs more than the conversion.
        joined = [projection for projection in self.projections() if len(projection.layers) > 1]
        largest = max((sum(layer.weight.numel() for layer in each.layers) for each in joined), default=0)
        scratch = self.head.layers[0].weight.new_empty(largest)
        for projection in self.projections():
            try:
                projection.hold(name, scratch)
            except (RuntimeError, ValueError, MemoryError) as error:
                stay[f"{'+'.join(projection.names)} stays as it was: {first_line(error)}"] += 1
        self.weights = name
        self._read = _parts(self.model)
        return [f"{why} ({count} times)" for why, count in stay.items()]

    def current(self) -> bool:
        """Whether the model is still the one that was read: no adapter, no ``model.to``, no new hook or layer since."""
        return bool(self.model.dtype == self.dtype) and _parts(self.model) == self._read


def _known_config(model: Any) -> Any:
    config = model.config
    family = config.model_type
    if family not in FAMILIES or not type(model).__module__.startswith("transformers.models."):
        known = ", ".join(name.removesuffix("_text") for name in FAMILIES)
        raise Declined(f"{type(model).__name__} is none of the families it knows ({known})")
    if getattr(config, "quantization_config", None) is not None:
        raise Declined("its weights are quantised by another library")
    if config._attn_implementation not in ATTENTION:
        raise Declined(f"its attention is {config._attn_implementation!r}, not one of {', '.join(ATTENTION)}")
    if getattr(config, "use_bidirectional_attention", None):
        raise Declined("its attention is bidirectional")
    if len(model.model.layers) != config.num_hidden_layers:
        raise Declined(f"it has {len(model.model.layers)} layers, but its config names {config.num_hidden_layers}")
    rope = config.rope_parameters
    for settings in rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]:
        if settings["rope_type"] not in ROTATIONS:
            raise Declined(f"its {settings['rope_type']!r} rotary positions change with the length of the text")
    if family == "gemma2" and config.attn_logit_softcapping and config._attn_implementation != "eager":
        raise Declined("its attention scores are capped, which only eager attention does")
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise Declined(f"it has {', '.join(sorted(unknown))} layers")
    return config


def _known_modules(model: Any) -> None:
    """Decline a model that has a part which the families' modelling code does not have."""

    def check(module: nn.Module, what: str, *known: set[str]) -> None:
        found = {name for name, _ in module.named_children()}
        if not any(found == names for names in known):
            odd = sorted(set.union(*known) ^ found)
            raise Declined(f"{what} has other parts than expected ({', '.join(odd)})")

    check(model, type(model).__name__, _TOP)
    check(model.model, type(model.model).__name__, _MODEL)
    for layer in model.model.layers:
        parts = {name for name, _ in layer.named_children()}
        if not _LAYER <= parts <= _LAYER | _LAYER_MORE:
            raise Declined(f"{type(layer).__name__} has other parts than expected")
        check(layer.self_attn, type(layer.self_attn).__name__, *_ATTENTION, _ATTENTION[0] | _HEAD_NORMS)
        check(layer.mlp, type(layer.mlp).__name__, *_MLP)
    if _hooks(model):
        raise Declined("hooks are registered on its layers, which only transformers' forward calls")


def _hooks(model: Any) -> int:
    """How many hooks, or functions in place of ``forward``, the model's inner modules have.

    Those on the whole model see no single layer; transformers' own, which collect hidden states, change nothing.
    """
    return sum(
        getattr(hook, "__module__", "") != "transformers.utils.output_capturing"
        for module in model.modules()
        if module is not model
        for hooks in (module._forward_hooks, module._forward_pre_hooks, {0: vars(module).get("forward")})
        for hook in hooks.values()
        if hook is not None
    )


def _parts(model: Any) -> tuple[list[nn.Module], list[int], int]:
    """What a reading of the model depends on: its modules, where their parameters lie, and how many hooks there are."""
    return list(model.modules()), [parameter.data_ptr() for parameter in model.parameters()], _hooks(model)


def _attention(layer: Any, config: Any, window: int | None, turn: int, shifted: bool) -> Attention:
    own = layer.self_attn
    names = ("qkv_proj",) if hasattr(own, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
    behind = hasattr(layer, "pre_feedforward_layernorm")
    return Attention(
        norm=_norm(layer.input_layernorm, shifted),
        qkv=Projection(own, *names),
        query_norm=_norm(own.q_norm, shifted) if hasattr(own, "q_norm") else None,
        key_norm=_norm(own.k_norm, shifted) if hasattr(own, "k_norm") else None,
        out=Projection(own, "o_proj"),
        after=_norm(layer.post_attention_layernorm, shifted) if behind else None,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        size=own.head_dim,
        scale=own.scaling,
        # Gemma 3 has the setting too, and transformers does not use it there.
        softcap=config.attn_logit_softcapping if config.model_type == "gemma2" else None,
        window=window,
        rotation=turn,
        math=config._attn_implementation == "eager",
    )


def _feed_forward(layer: Any, shifted: bool) -> FeedForward:
    own = layer.mlp
    names = ("gate_up_proj",) if hasattr(own, "gate_up_proj") else ("gate_proj", "up_proj")
    # With norms behind the blocks, "post_attention_layernorm" is one of them; without, it stands before this block.
    behind = hasattr(layer, "pre_feedforward_layernorm")
    return FeedForward(
        norm=_norm(layer.pre_feedforward_layernorm if behind else layer.post_attention_layernorm, shifted),
        gate_up=Projection(own, *names),
        activation=own.activation_fn if hasattr(own, "activation_fn") else own.act_fn,
        down=Projection(own, "down_proj"),
        after=_norm(layer.post_feedforward_layernorm, shifted) if behind else None,
    )


def _norm(module: Any, shifted: bool) -> Norm:
    return Norm(module.weight, module.eps if shifted else module.variance_epsilon, shifted)
