"""The trained part of lexical unit decoding: the embedding of [PAD], and changes to the target's matrices.

The paper fine-tunes the whole model. A head holds what that changes: for every matrix W of the decoder layers a D with
W + D in its place, in full (``rank=None``, the paper's) or as a product of two thin ones (``rank=r``, LoRA,
arXiv 2106.09685). The target itself is never touched: training and decoding run copies of it.

One step. The base model's p_t says where lexical units continue (``lud_units.units``). Behind the text of T tokens
stand M branches; branch s has [PAD]s that see the text before s and predict x_{s+1}, x_{s+2}, … as far as the unit
goes, while the output at x_{s−1} predicts x_s as ever.

    L = mean over the text of −log P(x_t | x_<t)  +  mean over [PAD]s within units of −log P(x_{s+q} | x_<s, [PAD]_1..q)

The first term keeps the model's ability to go on by single tokens. No code was published; our choices, where the paper
leaves it open: the rule with p_t of the text's own token, alpha = 0.5; M = ``starts`` · T branches, at places drawn at
random among those where a unit continues, whether or not it started there (decoding may stop anywhere within one); and
``full``, a share of branches that is trained to its full length, beyond the unit's end, so that [PAD]s learn doubt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ramify.errors import RamifyError
from ramify.methods.draft.lud_units import following, layout
from ramify.methods.head import Fit, Head, Regime, teach
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM, wrap
from ramify.models.forward import Nodes
from ramify.models.layers import decoder_layers

CHUNK = 4  # windows at a time, where a head measures itself


class Delta(nn.Module):
    """A change of a matrix, zero at first: in full, or of ``rank``."""

    def __init__(self, shape: tuple[int, int], rank: int | None) -> None:
        super().__init__()
        outputs, inputs = shape
        if rank is None:
            self.whole = nn.Parameter(torch.zeros(outputs, inputs))
        else:
            self.up = nn.Parameter(torch.zeros(outputs, rank))
            self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.rank = rank

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` with the change, in its dtype."""
        return (weight + (self.whole if self.rank is None else self.up @ self.down)).to(weight.dtype)


class LudHead(Head):
    """A [PAD] embedding, and what fine-tuning changes in each layer."""

    method = "lud"
    regime = Regime(steps=400, learning_rate=3e-3, optimizer="adamw", through=True)

    @dataclass(frozen=True)
    class Sizes:
        """``rank``: of the changes, None for full matrices. ``alpha``, ``longest``: of lexical units. ``starts``:
        branches per token of text. ``full``: share of branches of full length. ``matrices``: shapes in one layer, which
        are the target's."""

        rank: int | None = None
        alpha: float = 0.5
        longest: int = 4
        starts: float = 0.375
        full: float = 0.0
        matrices: dict[str, list[int]] = field(default_factory=dict)

        def __post_init__(self) -> None:
            for name, least in (("rank", 1), ("longest", 1)):
                value = getattr(self, name)
                if value is not None and value < least:
                    raise RamifyError(f"{name} must be at least {least}, got {value}")
            for name in ("alpha", "full"):
                if not 0.0 <= getattr(self, name) <= 1.0:
                    raise RamifyError(f"{name} lies between 0 and 1, got {getattr(self, name)}")
            if not 0.0 < self.starts <= 1.0:
                raise RamifyError(f"starts is a number of branches per token, above 0 and at most 1, got {self.starts}")

    def __init__(self, fit: Fit, sizes: Sizes) -> None:
        super().__init__(fit, sizes)
        self.pad = nn.Parameter(torch.zeros(fit.hidden_size))
        self.deltas = nn.ModuleList(
            nn.ModuleDict(
                {
                    name.replace(".", "/"): Delta((outputs, inputs), sizes.rank)
                    for name, (outputs, inputs) in sizes.matrices.items()
                }
            )
            for _ in range(fit.layers)
        )
        self._student: CausalLM | None = None

    @classmethod
    @torch.no_grad()
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        """Untrained: no change yet, and the mean embedding for [PAD]."""
        shapes = [_matrices(layer) for layer in decoder_layers(lm.original)]
        if not all(shape == shapes[0] for shape in shapes):
            raise RamifyError(f"the layers of {lm.name} have matrices of different shapes, which lud cannot change")
        head = super().new(lm, **options | {"matrices": shapes[0]})
        every = torch.arange(lm.vocab_size, device=lm.device)
        head.pad.copy_(lm.forward.embed(every).float().mean(dim=0))
        return head

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        starts, wanted = self.branches(lm, tokens)
        text, guesses = self.guess(lm, tokens, starts)
        own = functional.cross_entropy(text[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
        if not bool(wanted.any()):
            return own
        targets = _ahead(tokens, starts, guesses.shape[2])
        return own + functional.cross_entropy(guesses[wanted].float(), targets[wanted])

    @torch.no_grad()
    def branches(self, lm: CausalLM, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Starts [B, M] of branches, and which of their [PAD]s are trained: bool [B, M, longest]."""
        sizes: LudHead.Sizes = self.sizes
        rows, length = tokens.shape
        if length < sizes.longest + 2:
            raise RamifyError(f"windows of {length} tokens are too short for units of {sizes.longest + 1}")
        p = torch.softmax(teach(lm, tokens).logits[:, :-1].float(), dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
        continues = functional.pad(p >= sizes.alpha, (1, 0))
        count = following(continues, sizes.longest)
        generator = torch.Generator().manual_seed(int(tokens.sum()))
        order = torch.rand(rows, length, generator=generator).to(tokens.device)
        order[:, 0] = -1.0  # nothing stands before the first token
        starts = torch.where(count > 0, order, order - 2.0).topk(max(1, int(sizes.starts * length)), dim=1).indices
        whole = (torch.rand(starts.shape, generator=generator) < sizes.full).to(tokens.device)
        room = length - 1 - starts
        count = torch.where(whole, room.clamp(max=sizes.longest), count.gather(1, starts))
        step = torch.arange(1, sizes.longest + 1, device=tokens.device)
        return starts.clamp(min=1), (step <= count[..., None]) & (starts > 0)[..., None]

    def guess(self, lm: CausalLM, tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of the text, and those [B, M, longest, V] of the [PAD]s behind x_{s−1} for each start s."""
        pads = self.sizes.longest
        rows, length = tokens.shape
        positions, ancestors = layout(length, starts, pads)
        count = positions.shape[1]
        student = self._trained(lm)
        text = student.forward.embed(tokens)
        soft = self.pad.to(text.dtype).expand(rows, count - length, -1)
        cache = RowCache(lm.layers, rows, count)
        cache.expect(count, tokens.device)
        filled = functional.pad(tokens, (0, count - length))
        embeddings = torch.cat([text, soft], dim=1)
        logits, _ = student.forward(Nodes(filled, positions, [0] * rows, ancestors, embeddings), cache)
        return logits[:, :length], logits[:, length:].view(rows, starts.shape[1], pads, -1)

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """Nats a token of the model so far and of the base, and how often a [PAD] within a unit is right."""
        own = base = 0.0
        right = torch.zeros(2, self.sizes.longest, device=tokens.device)
        for part in torch.split(tokens, CHUNK):
            starts, wanted = self.branches(lm, part)
            text, guesses = self.guess(lm, part, starts)
            targets = part[:, 1:].flatten()
            own += float(functional.cross_entropy(text[:, :-1].float().flatten(0, 1), targets)) * len(part)
            taught = teach(lm, part).logits[:, :-1].float()
            base += float(functional.cross_entropy(taught.flatten(0, 1), targets)) * len(part)
            hits = (guesses.argmax(dim=-1) == _ahead(part, starts, guesses.shape[2])) & wanted
            right += torch.stack([hits.sum(dim=(0, 1)), wanted.sum(dim=(0, 1))])
        found = {"nats a token": own / len(tokens), "nats a token of the base": base / len(tokens)}
        rates = (right[0] / right[1].clamp(min=1)).tolist()
        return found | {f"right at [PAD] {q}": rate for q, rate in enumerate(rates, 1)}

    def _trained(self, lm: CausalLM) -> CausalLM:
        """A copy of the target whose matrices are computed from the changes as they are now."""
        if self._student is None:
            model = self._copied(lm)
            for layer, deltas in zip(decoder_layers(model), self.deltas, strict=True):
                for name, delta in _named(deltas):
                    parametrize.register_parametrization(layer.get_submodule(name), "weight", delta)
            self._student = wrap(model, None, lm.name, "transformers")
        return self._student

    @torch.no_grad()
    def merged(self, lm: CausalLM) -> CausalLM:
        """A copy of the target with the changes in its matrices, run as ``lm`` is."""
        model = self._copied(lm)
        for layer, deltas in zip(decoder_layers(model), self.deltas, strict=True):
            for name, delta in _named(deltas):
                weight = layer.get_parameter(f"{name}.weight")
                weight.copy_(delta(weight))
        forward = None if lm.forward.name == "fused" else lm.forward.name
        weights = lm.forward.weights if lm.forward.name == "fused" else None
        return wrap(model, lm.tokenizer, f"{lm.name} with lexical units", forward, weights, owned=True)

    def _copied(self, lm: CausalLM) -> Any:
        """The target's transformers model once more, with its own weights; refused where the changes do not fit."""
        model = copy.deepcopy(lm.original).requires_grad_(False).eval()
        model.__dict__.pop("_ramify", None)  # how the engine sees the original
        if any(_matrices(layer) != self.sizes.matrices for layer in decoder_layers(model)):
            raise RamifyError(f"this lud head changes other matrices than {lm.name} has; train one for this model")
        return model


def _matrices(layer: nn.Module) -> dict[str, list[int]]:
    return {
        name.removesuffix(".weight"): list(weight.shape)
        for name, weight in layer.named_parameters()
        if weight.ndim == 2 and name.endswith(".weight")
    }


def _named(deltas: nn.Module) -> list[tuple[str, Delta]]:
    return [(name.replace("/", "."), delta) for name, delta in deltas.named_children() if isinstance(delta, Delta)]


def _ahead(tokens: Tensor, starts: Tensor, pads: int) -> Tensor:
    """x_{s+q} for q = 1 … pads: [B, M, pads]; 0 beyond the window."""
    padded = functional.pad(tokens, (0, pads))
    places = starts[..., None] + torch.arange(1, pads + 1, device=tokens.device)
    return padded.gather(1, places.flatten(1)).view(places.shape)
