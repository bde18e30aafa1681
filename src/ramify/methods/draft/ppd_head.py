"""The trained part of parallel prompt decoding: n prompt tokens of m embeddings each, E [n·m, D] and nothing else.

Training layout (arXiv 2405.18628, section 3.2 and the official code). Behind the text rows x_1 … x_T stand the prompt
tokens of every insertion point i; prompt token k of point i has the position i + k, sees x_1 … x_i and the prompt
tokens 1 … k of its own point, and predicts y_{i+k+1}. No text row sees a prompt token, so one pass serves many points:

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
  ablations: all earlier embeddings; those of its own prompt token only. No draft tree lays them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.errors import RamifyError, unknown
from ramify.methods.draft.sparse_tree import RANKS, VICUNA_7B
from ramify.methods.head import Fit, Head, Regime
from ramify.models.cache import RowCache, send
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes

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
        logits = _score(lm, tokens, torch.cat([text, soft], dim=1), positions, ancestors)
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


def layout(length: int, places: Tensor, prompts: int, ensemble: int, mask: str) -> tuple[Tensor, Tensor]:
    """Positions [N] and ancestors bool [N, N] of ``length`` text rows and of what is inserted after ``places`` [P].

    N = length + P · prompts · ensemble; a point's rows stand together, prompt token by prompt token.
    """
    device = places.device
    step = torch.arange(prompts, device=device).repeat_interleave(ensemble)
    member = torch.arange(ensemble, device=device).repeat(prompts)
    if mask == "ensemble":
        seen = (step[:, None] >= step) & (member[:, None] == member)
    elif mask == "decoder":
        seen = torch.ones(len(step), len(step), dtype=torch.bool, device=device).tril_()
    else:
        seen = step[:, None] == step
    count = len(places) * len(step)
    ancestors = torch.zeros(length + count, length + count, dtype=torch.bool, device=device)
    ancestors[:length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    ancestors[length:, :length] = torch.arange(length, device=device) <= places.repeat_interleave(len(step))[:, None]
    ancestors[length:, length:] = torch.kron(torch.eye(len(places), dtype=torch.bool, device=device), seen)
    inserted = places[:, None] + 1 + step
    return torch.cat([torch.arange(length, device=device), inserted.flatten()]), ancestors


@torch.no_grad()
def continuation(
    lm: CausalLM, tokens: Tensor, places: Tensor, count: int, temperature: float = 0.0, seed: int = 0
) -> Tensor:
    """Logits [B, P, count, V] of the target after 1 … ``count`` tokens of its own behind every one of ``places``."""
    generator = torch.Generator(tokens.device).manual_seed(seed)
    length, own = tokens.shape[1], tokens.new_zeros(len(tokens), len(places), 0)
    found: list[Tensor] = []
    for size in range(count + 1):
        positions, ancestors = layout(length, places, size, 1, "ensemble")
        logits = _score(lm, torch.cat([tokens, own.flatten(1)], dim=1), None, positions, ancestors)
        last = logits[:, length + size - 1 :: size] if size > 0 else logits[:, places]
        if size > 0:
            found.append(last)
        if temperature:
            law = torch.softmax(last.float() / temperature, dim=-1)
            token = torch.multinomial(law.flatten(0, 1), 1, generator=generator).view(len(tokens), len(places), 1)
        else:
            token = last.argmax(dim=-1, keepdim=True)
        own = torch.cat([own, token], dim=2)
    return torch.stack(found, dim=2)


def _score(lm: CausalLM, tokens: Tensor, embeddings: Tensor | None, positions: Tensor, ancestors: Tensor) -> Tensor:
    """Logits [B, N, V] of rows that are laid out alike in every window, with gradients where they are wanted."""
    rows, count = len(tokens), len(positions)
    cache = RowCache(lm.layers, rows, count)
    cache.expect(count, tokens.device)
    filled = functional.pad(tokens, (0, count - tokens.shape[1]))
    nodes = Nodes(filled, positions.expand(rows, -1), [0] * rows, ancestors[None], embeddings=embeddings)
    logits, _ = lm.forward(nodes, cache)
    return logits


def _one_hot(logits: Tensor) -> Tensor:
    return functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
