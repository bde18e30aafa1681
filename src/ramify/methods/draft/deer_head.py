"""The trained part of DEER: a masked denoiser that fills a block behind a text in one pass.

Some layers of the target, the first and the last ones, between its embedding and its LM head (both shared), and two
embeddings of their own: the mask M and the separator, which stands behind the block. Since neither is in the target's
vocabulary, neither can be said: they are forbidden before anything is sampled.

    q_i(·) = softmax(LM head(h_i)),      h = layers([x_1 … x_j, M × k, SEP])                    one pass

``sight="causal"`` (ours): the text sees what is before it, the block sees the text and all of itself. Keys and values
of the text then never change, and a draft costs a pass over the k + 1 nodes and the newest tokens. ``sight="full"`` is
the paper's: all see each other, and every draft reads the whole text again. ``shift``: what stands at i is guessed
at i − 1, as the target's own layers are used to.

    loss = Σ w_i · 1[masked] · CE_i / t,   w_i = α^(R−i), i = 1 … R from the cut on

over blocks of R ~ U{1 … ``last``} at random cuts, all masked (t = 1): the paper's second stage; the first stages are in
``ramify.train.deer``. ``normalise`` divides by the mean of w: without it, a larger α is a larger step. Of a causal
head, ``blocks`` blocks share one pass over their text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError, unknown
from ramify.methods.draft.borrowed import laws
from ramify.methods.draft.deer_layout import SIGHTS, Layout, layout, scattered
from ramify.methods.draft.few_layers import FewLayers, config_of
from ramify.methods.head import Fit, Regime, sizes_of, teach
from ramify.models.cache import RowCache, send
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes

MASK, SEPARATOR = 0, 1  # rows of ``marks``
CHUNK = 4  # windows at a time, where the head measures itself


@dataclass(frozen=True)
class DeerSizes:
    """``layers``: how many of the target's, or which, counted from 0. ``sight``: "causal" or "full". ``shift``: guess
    what stands at i at i − 1. ``most``: masks of a block at most. ``last``: those of the second stage. ``blocks``: of a
    causal head, in one pass of training. ``alpha``, ``normalise``: of the weights. ``config``: of the draft model, from
    the target's.
    """

    layers: Any = 3
    sight: str = "causal"
    shift: bool = True
    most: int = 32
    last: int = 24
    blocks: int = 16
    alpha: float = 1.01
    normalise: bool = False
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.sight not in SIGHTS:
            raise unknown("sight", self.sight, SIGHTS)
        if self.most < 1 or not 1 <= self.last <= self.most or self.blocks < 1:
            raise RamifyError("take at least one block, one mask, and a last stage of no more masks than the most")
        if self.alpha <= 0.0:
            raise RamifyError(f"alpha is {self.alpha}; weights are powers of a number above 0")


class DeerHead(FewLayers):
    """``marks`` [2, D]: the embeddings of mask and separator. ``accuracy`` [2, most]: how likely a guess at each place
    is accepted once those before it were, when greedy and when sampled."""

    method = "deer"
    regime = Regime(steps=900, learning_rate=2e-3, through=True)
    Sizes = DeerSizes

    def __init__(self, fit: Fit, sizes: DeerSizes) -> None:
        if sizes.config is None:
            raise RamifyError("a deer head is described by the config of its draft model")
        super().__init__(fit, sizes, sizes.config)
        self.marks = nn.Embedding(2, fit.hidden_size)
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.zeros(2, sizes.most))

    @classmethod
    @torch.no_grad()
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        given = sizes_of(cls, options).layers
        kept = outer(given, lm.layers) if isinstance(given, int) else list(given)
        if not kept or not all(0 <= layer < lm.layers for layer in kept):
            raise RamifyError(f"{lm.name} has {lm.layers} layers, which {given} is no choice of")
        head = super().new(lm, **options | {"layers": kept, "config": config_of(lm, kept)})
        head.take(lm, kept)
        known = lm.forward.embed(torch.arange(lm.vocab_size, device=lm.device)).float().cpu()
        head.marks.weight.copy_(known.mean(dim=0) + known.std(dim=0) * torch.randn(2, known.shape[1]))
        return head

    def guess(self, lm: CausalLM, texts: Tensor, where: Layout, masked: Tensor | None = None) -> Tensor:
        """Logits [B, n, V] about the tokens of the blocks in ``texts`` [B, T]; ``masked`` bool [B, n], None for all."""
        own, device = self.as_lm(lm), texts.device
        targets, tokens = send(where.targets, device), send(where.tokens, device)
        embed = own.forward.embed
        total = len(where.positions)
        marks = self.marks.weight
        states = marks[MASK].expand(len(texts), total, -1).clone()
        states[:, : where.text] = embed(texts[:, : where.text])
        if masked is not None:
            shown = embed(texts[:, targets])
            states[:, tokens] = torch.where(send(masked, device)[..., None], states[:, tokens], shown)
        states[:, send(where.separators, device)] = marks[SEPARATOR]
        cache = RowCache(own.layers, len(texts), total)
        cache.expect(total, device)
        nodes = Nodes(
            texts.new_zeros(len(texts), total),
            send(where.positions, device).expand(len(texts), -1),
            [0] * len(texts),
            send(where.sees, device)[None],
            states,
            where.sources,
            reach=int(where.positions.max()) + 1,
        )
        logits: Tensor = own.forward(nodes, cache)[0]
        return logits

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        return self.refine(lm, tokens, 1, torch.Generator().manual_seed(int(tokens.sum())))

    def refine(self, lm: CausalLM, texts: Tensor, first: int, generator: torch.Generator) -> Tensor:
        """The loss of blocks at random cuts from ``first`` on."""
        count = self.sizes.blocks if self.sizes.sight == "causal" else 1
        sizes = torch.randint(1, self.sizes.last + 1, (count,), generator=generator)
        where = layout(scattered(count, first, texts.shape[1], sizes, generator), self.sizes.sight, self.sizes.shift)
        weight = torch.cat([weights(size, self.sizes.alpha, self.sizes.normalise) for size in sizes.tolist()])
        losses = losses_of(self.guess(lm, texts, where), texts[:, where.targets])
        return (losses * send(weight, losses.device)).mean()

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """How often the guess at a place is the target's likeliest token, once those before it were."""
        rates = self._rates(lm, tokens)[0].tolist()
        chosen = sorted({1, 2, 4, 8, 16, len(rates)} & set(range(1, len(rates) + 1)))
        tokens_of = {"tokens a call": 1.0 + sum(survival(rates))}
        return {f"agreement at {place}": rates[place - 1] for place in chosen} | tokens_of

    @torch.no_grad()
    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        self.accuracy.copy_(self._rates(lm, tokens))

    def _rates(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """[2, most]: how much of target's and drafter's law is common at a place, weighed by how often one gets there.

        Greedy laws are one-hot. The text stands for what was accepted so far.
        """
        sizes: DeerSizes = self.sizes
        reached = torch.zeros(2, sizes.most, device=tokens.device)
        common = torch.zeros_like(reached)
        generator = torch.Generator().manual_seed(int(tokens.sum()))
        room = tokens.shape[1] - 1 - sizes.most
        for part in torch.split(tokens, CHUNK):
            taught = teach(lm, part).logits
            for cut in (1 + torch.randint(room, (8,), generator=generator)).tolist():
                where = layout([(cut, sizes.most)], sizes.sight, sizes.shift)
                guessed = self.guess(lm, part, where)
                truth = taught[:, cut - 1 : cut - 1 + sizes.most]
                for kind, (p, q) in enumerate(zip(laws(truth), laws(guessed), strict=True)):
                    accepted = torch.minimum(p, q).sum(dim=-1)
                    before = functional.pad(accepted, (1, -1), value=1.0).cumprod(dim=1)
                    reached[kind] += before.sum(dim=0)
                    common[kind] += (before * accepted).sum(dim=0)
        return common / reached.clamp(min=1e-6)


def outer(count: int, layers: int) -> list[int]:
    """``count`` of so many layers: the first and the last ones, of the first the larger half."""
    late = min(count, layers) // 2
    return [*range(min(count, layers) - late), *range(layers - late, layers)]


def weights(size: int, alpha: float, normalise: bool = False) -> Tensor:
    """w_i = α^(size − i) for i = 1 … size, the largest at the cut; ``normalise``: divided by their mean."""
    found = alpha ** torch.arange(size - 1, -1, -1, dtype=torch.float64)
    return (found / found.mean() if normalise else found).float()


def losses_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropies [B, n] of ``logits`` [B, n, V]."""
    found = functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return found.view(tokens.shape)


def survival(rates: list[float]) -> list[float]:
    """How likely the guesses at place 1, 2, … are accepted with all before them."""
    found, alive = [], 1.0
    for rate in rates:
        alive *= rate
        found.append(alive)
    return found
