"""The trained part of hidden transfer: one D x D map for each pseudo step, and its training layout.

h_n^(l) is the output of layer l at position n, t the layer of transfer, L the last one; x_{n+1} is read from h_n^(L).
Pseudo step i = 1 … K of position n stands at position n + i:

    h~_{n+i}^(t) = W_i h_n^(t) + b_i        (``chain``: W_i h~_{n+i−1}^(t) + b_i)
    p~_{n+i}     = softmax(LM head(norm(h~_{n+i}^(L))))        guesses x_{n+i+1}

Behind layer t it runs through the frozen layers, where it sees the text up to n, the pseudo steps 1 … i − 1 of the same
position (``see_earlier``) and itself. No row of the text sees it, so one pass over a text trains at many positions N:

    loss = 1/|N| Σ_{n ∈ N} Σ_i λ^(i−1) KL(p(· | x_≤n+i) ‖ p~_{n+i}),        λ = 0.8

The teacher is the target itself on the true text, in that same pass. Gradients go through the frozen layers behind t.
``positions`` of a window are drawn at random, for K T pseudo steps cost more than they teach; 0 takes all.

No code was published, and t, K, λ, the loss, start and bias are not told where we could read; they are our choices, and
options where they deserve an ablation. W_i begins as the identity: a pseudo step then starts as a copy of the present.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.engine.tree import Ghosts, GhostShape, TreeShape
from ramify.errors import RamifyError, unknown
from ramify.methods.draft.borrowed import laws
from ramify.methods.draft.sparse_tree import RANKS, VICUNA_7B
from ramify.methods.head import Fit, Head, Regime
from ramify.models.cache import RowCache, send
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes

CHUNK = 4  # windows at a time, where the head measures itself


@dataclass(frozen=True)
class TransferSizes:
    """``layer``: t, None for half of the layers. ``ahead``: K. ``see_earlier``, ``chain``: see above. ``bias``: b_i.

    ``start``: W_i begins as the "identity" or "random". ``decay``: λ. ``mse``: weight of the squared distance to the
    real state before the LM head. ``targets``: the "teacher"'s law, or the "text" (cross-entropy with its tokens).
    ``positions``: how many of a window train a step, 0 for all.
    """

    layer: int | None = None
    ahead: int = 3
    see_earlier: bool = True
    chain: bool = False
    bias: bool = True
    start: str = "identity"
    decay: float = 0.8
    mse: float = 0.0
    targets: str = "teacher"
    positions: int = 64

    def __post_init__(self) -> None:
        for name, least in (("ahead", 1), ("mse", 0), ("positions", 0)):
            if getattr(self, name) < least:
                raise RamifyError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0.0 < self.decay <= 1.0:
            raise RamifyError(f"decay lies above 0 and is at most 1, got {self.decay}")
        for name, known in (("start", ("identity", "random")), ("targets", ("teacher", "text"))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)


@dataclass(frozen=True)
class Guessed:
    """Logits of a text [B, T, V] and of its pseudo steps [B, G, V], the states that the LM head saw, both kinds in a
    row [B, T + G, D], and where the pseudo steps stand: ``depth`` is their position."""

    text: Tensor
    pseudo: Tensor
    hidden: Tensor
    where: GhostShape


class HiddenTransferHead(Head):
    """K linear maps. ``accuracy`` [2, K, ranks]: how likely the guess of each rank is the target's token, when greedy
    and when sampled; that of PPD on Vicuna-7B until ``settle`` has measured it."""

    method = "hidden-transfer"
    regime = Regime(steps=400, learning_rate=2e-3, through=True)
    Sizes = TransferSizes

    def __init__(self, fit: Fit, sizes: TransferSizes) -> None:
        super().__init__(fit, sizes)
        self.layer = fit.layers // 2 if sizes.layer is None else sizes.layer
        if not 0 <= self.layer <= fit.layers:
            raise RamifyError(f"states can be transferred behind layer 0 to {fit.layers}, not {self.layer}")
        size = fit.hidden_size
        self.maps = nn.ModuleList(nn.Linear(size, size, bias=sizes.bias) for _ in range(sizes.ahead))
        for each in self.maps.children():
            if sizes.start == "identity":
                nn.init.eye_(each.weight)  # type: ignore[arg-type]
            if sizes.bias:
                nn.init.zeros_(each.bias)  # type: ignore[arg-type]
        published = torch.tensor(VICUNA_7B)[[min(step, len(VICUNA_7B) - 1) for step in range(sizes.ahead)]]
        ranks = min(RANKS, fit.vocab_size)
        self.accuracy: Tensor
        self.register_buffer("accuracy", published[None, :, :ranks].repeat(2, 1, 1))

    def states(self, sources: Tensor, kinds: Tensor) -> Tensor:
        """Pseudo states [..., G, D] of the steps ``kinds`` [G], counted from 0, at sources [..., G, D]."""
        made: list[Tensor] = []
        for each in self.maps:
            made.append(each(made[-1] if made and self.sizes.chain else sources.float()))
        return torch.stack(made, dim=-2)[..., torch.arange(len(kinds), device=kinds.device), kinds, :]

    def ghosts(self, counts: tuple[int, ...]) -> Ghosts:
        """``counts[0]`` pseudo steps behind the pending token, ``counts[v + 1]`` behind node v of a tree."""
        parents: list[int] = []
        kinds: list[int] = []
        for node, count in enumerate(counts, -1):
            for step in range(count):
                parents.append(node if step == 0 else len(counts) - 2 + len(parents))
                kinds.append(step)
        return Ghosts(tuple(parents), tuple(kinds), self.layer, self.states, strangers=not self.sizes.see_earlier)

    def guess(self, lm: CausalLM, tokens: Tensor, positions: int = 0) -> Guessed:
        """The pseudo steps of ``positions`` positions (0: all) of windows [B, T], in one pass over the layers behind t.

        The positions are the same in all windows, and depend on the tokens alone. All of their steps lie in the window.
        """
        rows, length = tokens.shape
        ghosts = self._scattered(tokens, positions)
        where = ghosts.on(TreeShape.chain(length))
        total = length + len(ghosts)
        places = torch.cat([torch.arange(length), where.depth]).expand(rows, -1)
        ancestors = torch.ones(1, total, total, dtype=torch.bool).tril_()
        ancestors[0, :length, length:] = False
        ancestors[0, length:] = where.ancestors
        places, ancestors = send(places, tokens.device), send(ancestors, tokens.device)
        cache = RowCache(lm.layers, rows, total)
        with torch.no_grad():
            entering = lm.forward.embed(tokens)
            if self.layer > 0:
                cache.expect(length, tokens.device)
                text = Nodes(tokens, places[:, :length], [0] * rows, ancestors[:, :length, :length])
                text = replace(text, logits_at=(), hidden_layers=(self.layer,), last=self.layer)
                entering = lm.forward(text, cache)[1][self.layer]
        sources, kinds = send(where.sources, tokens.device), send(where.kinds, tokens.device)
        made = self.states(entering[:, sources], kinds).to(entering.dtype)
        every = functional.pad(tokens, (0, len(ghosts)))
        both = Nodes(every, places, [0] * rows, ancestors, torch.cat([entering, made], dim=1))
        cache.expect(total, tokens.device)
        logits, hidden = lm.forward(replace(both, hidden_layers=(-1,), first=self.layer), cache)
        return Guessed(logits[:, :length].detach(), logits[:, length:], hidden[-1], where)

    def _scattered(self, tokens: Tensor, positions: int) -> Ghosts:
        ahead, length = self.sizes.ahead, tokens.shape[1]
        if length <= ahead:
            raise RamifyError(f"windows of {length} tokens are too short for {ahead} pseudo steps; give longer ones")
        order = torch.randperm(length - ahead, generator=torch.Generator().manual_seed(int(tokens.sum())))
        counts = [0] * (length + 1)
        for place in order[: positions or length].tolist():
            counts[place + 1] = ahead
        return self.ghosts(tuple(counts))

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        sizes: TransferSizes = self.sizes
        length = tokens.shape[1] - 1
        found = self.guess(lm, tokens[:, :-1], sizes.positions)
        depth = send(found.where.depth, tokens.device)
        weight = send(sizes.decay ** found.where.kinds.float(), tokens.device)
        log_p = functional.log_softmax(found.pseudo.float(), dim=-1)
        if sizes.targets == "teacher":
            q = functional.log_softmax(found.text[:, depth].float(), dim=-1)
            distance = functional.kl_div(log_p, q, reduction="none", log_target=True).sum(dim=-1)
        else:
            distance = -log_p.gather(-1, tokens[:, depth + 1, None])[..., 0]
        if sizes.mse > 0.0:
            gap = found.hidden[:, length:].float() - found.hidden[:, depth].detach().float()
            distance = distance + sizes.mse * gap.square().mean(dim=-1)
        return (weight * distance).mean() * sizes.ahead

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """How often the target's likeliest token at distance 2, 3, … is the first guess, or among the first five."""
        rates = self._ranks(lm, tokens)[0]
        first = {f"top-1 at +{step + 2}": float(each[0]) for step, each in enumerate(rates)}
        return first | {f"top-5 at +{step + 2}": float(each[:5].sum()) for step, each in enumerate(rates)}

    @torch.no_grad()
    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        self.accuracy.copy_(self._ranks(lm, tokens))

    def _ranks(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """[2, K, ranks]: the mean share of the target's law that falls on the guess of each rank."""
        total = torch.zeros_like(self.accuracy)
        for part in torch.split(tokens, CHUNK):
            found = self.guess(lm, part[:, :-1])
            depth = send(found.where.depth, part.device)
            best = found.pseudo.topk(total.shape[2], dim=-1).indices
            for kind, law in enumerate(laws(found.text)):
                share = law[:, depth].gather(-1, best).sum(dim=0)
                total[kind] += share.view(-1, *total.shape[1:]).mean(dim=0)
        return total / len(tokens)
