"""The trained part of parallel prompt decoding: n prompt tokens of m embeddings each, E [n·m, D] and nothing else.

Training (arXiv 2405.18628, section 3.2 and the official code) inserts the prompt tokens behind points i of a text,
many points in one pass (``ppd_layout.py``). Prompt token k of point i predicts y_{i+k+1} and is taught z_k, what the
target says there:

    L = 1/n · Σ_k α^(k−1) · KL(softmax(z_k) ‖ softmax(mean over j of the logits of embedding (k, j)))

Gradients pass the frozen target down to E. Choices where the paper and its code disagree or spend more than they need:

* KL(Q_llm ‖ P_prompt) with temperature 1, as in the code (the paper writes the other direction).
* ``insertions`` points a window, drawn at random, where the paper cuts every conversation at one random point; 1 is the
  paper's, 0 takes all positions.
* ``targets`` "corpus": z_k are the target's logits after the next 1 … n tokens of the text, which cost no further pass;
  "own": after as many greedy tokens of its own, as published; "hard": cross-entropy with the text instead of KL.
* The learning rate 0.03 suits the demo model, whose embeddings are an order larger than those of the paper's models
  (0.01); the optimiser is the paper's AdamW without decay, the schedule the trainer's.
* Embedding (k, j) sees the (k', j) of the earlier prompt tokens ("ensemble"). "decoder" and "encoder" are the code's
  ablations: all earlier embeddings; those of its own prompt token only. With m > 1 no draft tree lays them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError, unknown
from ramify.methods.draft.ppd_layout import continuation, layout, score
from ramify.methods.draft.sparse_tree import RANKS, VICUNA_7B
from ramify.methods.head import Fit, Head, Regime
from ramify.models.cache import send
from ramify.models.causal import CausalLM

MASKS = ("ensemble", "decoder", "encoder")
TARGETS = ("own", "corpus", "hard")
SAMPLED = 0.7  # temperature of the second table of rank accuracies
CHUNK = 4  # windows at a time, where the head measures itself
SETTLING = 64  # insertion points a window, there


class PromptTokens(Head):
    """n · m embeddings, and how often their guesses are right.

    ``accuracy`` [2, n, R]: how often the guess of rank r for distance k + 1 was the token that the target went on with,
    greedy and sampled; the published ones of Vicuna-7B until ``settle`` has measured them.
    """

    method = "ppd"
    regime = Regime(steps=500, learning_rate=0.03, optimizer="adamw", through=True)

    @dataclass(frozen=True)
    class Sizes:
        prompts: int = 3
        ensemble: int = 1
        mask: str = "ensemble"
        decay: float = 0.8
        targets: str = "corpus"
        insertions: int = 64

        def __post_init__(self) -> None:
            for name, least in (("prompts", 1), ("ensemble", 1), ("insertions", 0)):
                if getattr(self, name) < least:
                    raise RamifyError(f"{name} must be at least {least}, got {getattr(self, name)}")
            if not 0.0 < self.decay <= 1.0:
                raise RamifyError(f"decay lies above 0 and is at most 1, got {self.decay}")
            for name, known in (("mask", MASKS), ("targets", TARGETS)):
                if getattr(self, name) not in known:
                    raise unknown(name, getattr(self, name), known)

    def __init__(self, fit: Fit, sizes: Sizes) -> None:
        super().__init__(fit, sizes)
        self.embeddings = nn.Parameter(torch.zeros(sizes.prompts * sizes.ensemble, fit.hidden_size))
        published = torch.tensor(VICUNA_7B)[[min(k, len(VICUNA_7B) - 1) for k in range(sizes.prompts)]]
        ranks = min(RANKS, fit.vocab_size)
        self.accuracy: Tensor
        self.register_buffer("accuracy", published[None, :, :ranks].repeat(2, 1, 1))

    @classmethod
    @torch.no_grad()
    def new(cls, lm: CausalLM, **options: object) -> PromptTokens:
        """Untrained: the embeddings of random tokens of the vocabulary."""
        head = super().new(lm, **options)
        special = set(lm.tokenizer.all_special_ids) if lm.tokenizer is not None else set[int]()
        normal = torch.tensor([token for token in range(lm.vocab_size) if token not in special])
        chosen = normal[torch.randint(len(normal), (len(head.embeddings),))]
        head.embeddings.copy_(lm.forward.embed(send(chosen, lm.device)))
        return head

    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        sizes: PromptTokens.Sizes = self.sizes
        places = self._places(tokens, sizes.insertions)
        text, guesses = self.guess(lm, tokens, places)
        after = places[:, None] + torch.arange(1, sizes.prompts + 1, device=places.device)
        log_p = functional.log_softmax(guesses.float(), dim=-1)
        if sizes.targets == "hard":
            distance = -log_p.gather(-1, tokens[:, after + 1, None])[..., 0]
        else:
            z = (
                text.detach()[:, after]
                if sizes.targets == "corpus"
                else continuation(lm, tokens, places, sizes.prompts)
            )
            q = functional.log_softmax(z.float(), dim=-1)
            distance = functional.kl_div(log_p, q, reduction="none", log_target=True).sum(-1)
        decay = sizes.decay ** torch.arange(sizes.prompts, device=tokens.device)
        return (decay * distance).mean()

    def guess(self, lm: CausalLM, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of the text, and those [B, P, n, V] of the prompt tokens inserted after ``places`` [P]."""
        sizes: PromptTokens.Sizes = self.sizes
        n, m = sizes.prompts, sizes.ensemble
        text = lm.forward.embed(tokens)
        soft = self.embeddings.to(text.dtype).repeat(len(places), 1).expand(len(tokens), -1, -1)
        positions, ancestors = layout(tokens.shape[1], places, n, m, sizes.mask)
        logits = score(lm, tokens, torch.cat([text, soft], dim=1), positions, ancestors)
        length = tokens.shape[1]
        return logits[:, :length], logits[:, length:].view(len(tokens), len(places), n, m, -1).mean(dim=3)

    def states(self, sources: Tensor, kinds: Tensor) -> Tensor:
        """What enters for prompt tokens of these kinds [G], as ghost nodes: [G, D]."""
        return self.embeddings[kinds]

    @torch.no_grad()
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """How often the target's own likeliest token on the text, at distance 2, 3, …, is the first guess or among
        the first five."""
        n = self.sizes.prompts
        hits = torch.zeros(n, 5, device=tokens.device)
        for part in torch.split(tokens, CHUNK):
            places = self._places(part, 0)
            text, guesses = self.guess(lm, part, places)
            after = places[:, None] + torch.arange(1, n + 1, device=places.device)
            right = guesses.topk(5, dim=-1).indices == text.argmax(dim=-1)[:, after, None]
            hits += right.float().mean(dim=1).sum(dim=0)
        rates = (hits / len(tokens)).cumsum(dim=1)
        first = {f"agreement at +{k + 2}": float(rates[k, 0]) for k in range(n)}
        return first | {f"top-5 at +{k + 2}": float(rates[k, 4]) for k in range(n)}

    @torch.no_grad()
    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        n, ranks = self.accuracy.shape[1:]
        total = torch.zeros_like(self.accuracy)
        for index, part in enumerate(torch.split(tokens, CHUNK)):
            places = self._places(part, SETTLING)
            best = self.guess(lm, part, places)[1].topk(ranks, dim=-1).indices
            for kind, temperature in enumerate((0.0, SAMPLED)):
                z = continuation(lm, part, places, n, temperature, seed=index).float()
                law = torch.softmax(z / temperature, dim=-1) if temperature else _one_hot(z)
                total[kind] += law.gather(-1, best).mean(dim=1).sum(dim=0)
        self.accuracy.copy_(total / len(tokens))

    def _places(self, tokens: Tensor, count: int) -> Tensor:
        """``count`` insertion points (0: all) [P] for windows [B, T], in order; they depend on the tokens alone."""
        available = tokens.shape[1] - self.sizes.prompts - 1
        if available < 1:
            raise RamifyError(
                f"windows of {tokens.shape[1]} tokens are too short for {self.sizes.prompts} prompt tokens; give longer"
                " ones or fewer prompts"
            )
        if count == 0 or count >= available:
            return torch.arange(available, device=tokens.device)
        order = torch.randperm(available, generator=torch.Generator().manual_seed(int(tokens.sum())))
        return send(order[:count].sort().values, tokens.device)


def _one_hot(logits: Tensor) -> Tensor:
    return functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
