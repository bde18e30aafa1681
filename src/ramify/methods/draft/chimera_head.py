"""The trained part of Chimera: trigram encoder, full-context encoder, residual heads, and how they are trained.

Shapes: D the target's hidden size, V its vocabulary. h_j is the target's state at position j, behind the final norm.

    g_i = [E(x_{i-2}); E(x_{i-1}); E(x_i)],  g_0 = [e_0; e_0; e_0],  g_1 = [e_0; e_1; e_1]        (E frozen)
    t_i = W_o (g_i + SiLU(W_r g_i + b_r))                  W_r = 0 at first
    o^(i)_j = Phi(t at position j + i | h_0 … h_j, the branch's own rows)
    z^(i)_j = W^(i) [h_j; o^(i)_j]                         predicts x_{j+1+i}

``head="shared"``: W^(i) = W_lm A_i with A_i [D, 2D], so that the target's own vocabulary matrix serves. Where training
begins is ours: W_o = [0 0 c] (c brings embeddings to the scale of h) and W^(i) or A_i = 0. For ``start="target"``, the
published W^(i) = [W_lm W_lm] or A_i = [1 1] with W_o = [0 0 1], begins by insisting on tokens that are known already,
and took two to three times as many steps on the demo model.

Training sees all positions at once: block B_i holds row j of step i at position j + i. It sees h_0 … h_j, its own rows
in B_1 … B_{i-1}, and itself, which is what a branch of the draft tree sees. (In the official code a row sees no draft
row, for the diagonal of its mask of minus infinities is the wrong way round, or all earlier rows of B_1.) Windows end
with known tokens, so nothing has to be appended to them.

    L = sum over i of KL(base law at j + i || softmax z^(i)_j) + 0.1 · MSE(h_{j+i}, o^(i)_j)

Options for the ablations: ``target`` "hard" is the official code's last version, cross-entropy to the corpus and no
features; ``feed`` says which token step i + 1 reads: the corpus's own ("given"), or the argmax of step i, right or
wrong, as in the official code ("guess"). A branch matters only while its guesses are right, so the first is what a head
will meet; it learns several times faster. ``detach`` keeps gradients from passing into earlier steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError, unknown
from ramify.methods.draft.borrowed import lm_head, lm_head_weight, ranked, ranked_coupled
from ramify.methods.draft.chimera_layer import ContextLayer
from ramify.methods.draft.eagle_layer import along
from ramify.methods.head import Fit, Head, Regime, sizes_of, teach
from ramify.models.causal import CausalLM

RANKS = 8
FEATURES = 0.1  # weight of the features' mean squared error
CHUNK = 4  # windows at a time, where a head measures itself


class ChimeraHead(Head):
    """Predicts K tokens ahead, each from the branch that leads to it."""

    method = "chimera"
    regime = Regime(steps=600, learning_rate=3e-3, through=True)

    @dataclass(frozen=True)
    class Sizes:
        """``heads``: how many tokens ahead. ``width``, ``attention``, ``key_heads``, ``theta``: of the full-context
        encoder, 0 for the target's own. ``trigram``, ``context``, ``residual``: False leaves that part out."""

        heads: int = 4
        head: str = "shared"
        start: str = "zero"
        width: int = 0
        attention: int = 0
        key_heads: int = 0
        theta: float = 0.0
        trigram: bool = True
        context: bool = True
        residual: bool = True
        target: str = "soft"
        feed: str = "given"
        detach: bool = True

        def __post_init__(self) -> None:
            if self.heads < 1:
                raise RamifyError(f"heads must be at least 1, got {self.heads}")
            for name, known in (
                ("head", ("shared", "full")),
                ("start", ("zero", "target")),
                ("target", ("soft", "hard")),
                ("feed", ("guess", "given")),
            ):
                if getattr(self, name) not in known:
                    raise unknown(name, str(getattr(self, name)), known)
            for name in ("width", "attention", "key_heads", "theta"):
                if getattr(self, name) < 0:
                    raise RamifyError(f"{name} must be at least 0 (0 takes the target's), got {getattr(self, name)}")

    def __init__(self, fit: Fit, sizes: Sizes) -> None:
        super().__init__(fit, sizes)
        size = fit.hidden_size
        if sizes.attention and (size % sizes.attention or size // sizes.attention % 2):
            raise RamifyError(f"{sizes.attention} attention heads do not divide {size} into even parts; choose another")
        if sizes.attention and sizes.attention % sizes.key_heads:
            raise RamifyError(f"key_heads {sizes.key_heads} do not divide the {sizes.attention} attention heads")
        grams = 3 if sizes.trigram else 1
        self.enrich = nn.Linear(3 * size, 3 * size) if sizes.trigram else None
        self.reduce = nn.Linear(grams * size, size, bias=False)
        self.layer = (
            ContextLayer(size, sizes.attention, sizes.key_heads, sizes.width, sizes.theta) if sizes.context else None
        )
        parts = 2 if sizes.residual else 1
        out = size if sizes.head == "shared" else fit.vocab_size
        self.heads = nn.ModuleList(nn.Linear(parts * size, out, bias=False) for _ in range(sizes.heads))
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.zeros(3, sizes.heads, min(RANKS, fit.vocab_size)))

    @classmethod
    @torch.no_grad()
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        config, given = lm.text_config, sizes_of(cls, options)
        heads = given.attention or config.num_attention_heads
        own = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        options |= {
            "width": given.width or getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            "attention": heads,
            "key_heads": given.key_heads or (heads if given.attention else own),
            "theta": given.theta or float(rope.get("rope_theta", 10000.0)),
        }
        head = super().new(lm, **options)
        size = head.fit.hidden_size
        scale = 1.0 if given.start == "target" else _scale(lm)
        head.reduce.weight.zero_()
        head.reduce.weight[:, -size:] = scale * torch.eye(size)
        if head.enrich is not None:
            nn.init.zeros_(head.enrich.weight)
            nn.init.zeros_(head.enrich.bias)
        known = torch.eye(size) if given.head == "shared" else lm_head_weight(lm)
        for weight in head.heads.parameters():
            weight.copy_(known.repeat(1, weight.shape[1] // size))
            if given.start == "zero":
                weight.zero_()
        return head

    def trigrams(self, embedded: Tensor) -> Tensor:
        """t [..., D] of the embeddings [..., 3, D] of three tokens."""
        if self.enrich is None:
            u = embedded[..., -1, :]
        else:
            g = embedded.flatten(-2)
            u = g + functional.silu(self.enrich(g))
        t: Tensor = self.reduce(u)
        return t

    def guess(self, lm: CausalLM, step: int, h: Tensor, o: Tensor) -> Tensor:
        """z [..., V] of step ``step`` (0 the first) from h and o [..., D]."""
        z: Tensor = self.heads[step](torch.cat([h.expand_as(o), o], dim=-1) if self.sizes.residual else o)
        return lm_head(lm)(z.to(lm.dtype)) if self.sizes.head == "shared" else z

    def unroll(self, lm: CausalLM, hidden: Tensor, tokens: Tensor, feed: str) -> tuple[list[Tensor], list[Tensor]]:
        """z^(i) [B, N, V] and o^(i) [B, N, D] for i = 1 … K of windows: ``tokens`` [B, T], ``hidden`` h [B, T, D].

        N = T − K rows. ``feed``: as in ``Sizes``.
        """
        sizes: ChimeraHead.Sizes = self.sizes
        count = tokens.shape[1] - sizes.heads
        if count < 1:
            raise RamifyError(f"windows of {tokens.shape[1]} tokens are too short for {sizes.heads} heads")
        h = hidden[:, :count]
        newest = windows_of_three(tokens[:, : count + 1])[:, 1:]
        places = torch.arange(count, device=tokens.device)
        text = self.layer.project(h, self.layer.turns(places))[1:] if self.layer is not None else None
        branch: list[tuple[Tensor, Tensor]] = []
        found: list[Tensor] = []
        states: list[Tensor] = []
        for step in range(sizes.heads):
            o = self.trigrams(lm.forward.embed(newest if step else started(newest)).float())
            if self.layer is not None and text is not None:
                queries, *own = self.layer.project(o, self.layer.turns(places + step + 1))
                o = self.layer.finish(o, along(queries, text, [*branch, (own[0], own[1])]))
                branch.append((own[0].detach(), own[1].detach()) if sizes.detach else (own[0], own[1]))
            z = self.guess(lm, step, h, o)
            found.append(z)
            states.append(o)
            following = z.argmax(dim=-1) if feed == "guess" else tokens[:, step + 2 : step + 2 + count]
            if step + 1 < sizes.heads:
                newest = torch.cat([newest[..., 1:], following[..., None]], dim=-1)
        return found, states

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        sizes: ChimeraHead.Sizes = self.sizes
        taught = teach(lm, tokens, [-1])
        hidden = taught.hidden[-1].float()
        found, states = self.unroll(lm, hidden, tokens, sizes.feed)
        base = functional.log_softmax(taught.logits.float(), dim=-1)
        law = base.exp()
        total = hidden.new_zeros(())
        for step, (z, o) in enumerate(zip(found, states, strict=True), 1):
            rows = slice(step, step + z.shape[1])
            log_p = functional.log_softmax(z.float(), dim=-1)
            if sizes.target == "hard":
                following = tokens[:, step + 1 : step + 1 + z.shape[1]]
                total = total + functional.nll_loss(log_p[:, : following.shape[1]].flatten(0, 1), following.flatten())
                continue
            total = total + (law[:, rows] * (base[:, rows] - log_p)).sum(-1).mean()
            total = total + FEATURES * functional.mse_loss(o.float(), hidden[:, rows])
        return total

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """How often the first guess at distance 2, 3, … is the target's likeliest token, those in between given."""
        found = self._ranks(lm, tokens)[0, :, 0].tolist()
        return {f"agreement at +{step + 2}": rate for step, rate in enumerate(found)}

    @torch.no_grad()
    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        self.accuracy.copy_(self._ranks(lm, tokens))

    def _ranks(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """[3, K, R]: how likely the token is the guess of rank r: greedy, sampled, sampled in view of the noise."""
        total = torch.zeros_like(self.accuracy)
        for part in torch.split(tokens, CHUNK):
            taught = teach(lm, part, [-1])
            found, _ = self.unroll(lm, taught.hidden[-1].float(), part, "given")
            for step, z in enumerate(found):
                logits = taught.logits[:, step + 1 : step + 1 + z.shape[1]]
                total[:2, step] += ranked(z, logits, total.shape[2])
                total[2, step] += ranked_coupled(z, logits, total.shape[2])
        return total / len(tokens)


def _scale(lm: CausalLM) -> float:
    """How many times larger the target's states are than its embeddings, on a text of any tokens."""
    tokens = torch.arange(1, 65, device=lm.device)[None] * 7919 % lm.vocab_size
    size = teach(lm, tokens, [-1]).hidden[-1].float().norm() / lm.forward.embed(tokens).float().norm()
    return float(size)


def windows_of_three(tokens: Tensor) -> Tensor:
    """The last three tokens [..., N, 3] at every place of ``tokens`` [..., N]; before the first there is the first."""
    first = tokens[..., :1]
    padded = torch.cat([first, first, tokens], dim=-1)
    return padded.unfold(-1, 3, 1)


def started(newest: Tensor) -> Tensor:
    """``newest`` [..., N, 3], which begins at the text's second place, with g_1 = [e_0; e_1; e_1] there."""
    newest = newest.clone()
    newest[..., 0, 1] = newest[..., 0, 2]
    return newest
