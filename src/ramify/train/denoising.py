"""What masked denoisers learn from: noise, attention layouts and losses over any transformers decoder.

LLaDA (arXiv 2502.09992), MDLM (2406.07524), BD3-LM (2503.09573), MaskGIT (2202.04200). Every loss takes a ``Denoise``,
a function from noisy ids [B, L] to logits [B, L, V]: a decoder under an explicit mask (``full_pass``, ``block_pass``)
or, in tests, an exact law.

    pre-training  p = (1 − ε) t + ε, t ~ U(0, 1), every token masked with probability p:   Σ_masked CE / p, per token
    SFT           the same on answers, prompts never masked:                      mean_b Σ_masked CE / p / length_b
    bound         l ~ U{1 … L}, exactly l masked: (L / l) Σ_masked CE.  Same expectation as pre-training, less variance
    MDLM          σ(t) = −log(1 − (1 − ε) t), weight σ' / (e^σ − 1) = 1/t on tokens masked with probability 1 − e^−σ
    BD3-LM        t for each block; a noisy block sees itself and the clean blocks before it
    MaskGIT       ⌈N cos(πr/2)⌉ masked, r ~ U(0, 1): unweighted mean of CE, labels smoothed

The first four estimate the same upper bound of −log p(x), in nats. LLaDA weighs by 1/p, MDLM by 1/t, equal up to ε: we
weigh by the probability that was used. t is stratified over the batch (MDLM's antithetic draw) everywhere. MASK is
never predicted: its logit is −∞. Cost: one pass a batch; ``block_pass`` runs 2 L positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

EPSILON = 1e-3
Denoise = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------- attention layouts and passes


def sight(length: int, block: int | None = None, prompt: int = 0) -> Tensor:
    """Which position sees which: bool [L, L]; all, or with ``block`` those of its own and earlier blocks.

    ``prompt``: so many first positions see each other alone (the prefix-causal control).
    """
    place = torch.arange(length)
    seen = torch.ones(length, length, dtype=torch.bool)
    if block is not None:
        seen = (place // block)[:, None] >= (place // block)
    seen[:prompt, prompt:] = False
    return seen


def sight_of_two(length: int, block: int) -> Tensor:
    """The same for a noisy copy with a clean copy behind it: bool [2 L, 2 L].

    A noisy position sees its own noisy block and the clean blocks before it; a clean one the clean blocks as far as
    its own.
    """
    place = torch.arange(2 * length)
    clean, part = place >= length, place % length // block
    same = (clean[:, None] == clean) & (part[:, None] == part)
    return same | (clean & (part[:, None] > part))


def full_pass(model: Any, mask_id: int, seen: Tensor, shift: bool = False) -> Denoise:
    """``model`` under the layout ``seen``; ``shift``: what is said at i − 1 is about i (Dream)."""

    def denoise(noisy: Tensor) -> Tensor:
        logits = _run(model, mask_id, noisy, seen, torch.arange(noisy.shape[1], device=noisy.device))
        return torch.cat([logits[:, :1], logits[:, :-1]], 1) if shift else logits

    return denoise


def block_pass(model: Any, mask_id: int, clean: Tensor, block: int) -> Denoise:
    """``model`` over the noisy copy with ``clean`` [B, L] behind it, in blocks; logits of the noisy copy."""
    length = clean.shape[1]
    wanted = torch.arange(length, device=clean.device)
    seen, positions = sight_of_two(length, block), wanted.repeat(2)

    def denoise(noisy: Tensor) -> Tensor:
        return _run(model, mask_id, torch.cat([noisy, clean], 1), seen, positions, wanted)

    return denoise


def _run(model: Any, mask_id: int, ids: Tensor, seen: Tensor, positions: Tensor, wanted: Tensor | int = 0) -> Tensor:
    """Logits at the ``wanted`` positions (0: all), by transformers' own convention."""
    hidden = torch.zeros(seen.shape, dtype=model.dtype, device=ids.device)
    hidden.masked_fill_(~seen.to(ids.device), torch.finfo(model.dtype).min)
    output = model(
        input_ids=ids,
        attention_mask=hidden.expand(len(ids), 1, -1, -1),
        position_ids=positions[None].expand_as(ids),
        use_cache=False,
        logits_to_keep=wanted,
    )
    never = torch.arange(output.logits.shape[-1], device=ids.device) == mask_id
    logits: Tensor = output.logits.float().masked_fill(never, -math.inf)
    return logits


# ---------------------------------------------------------------- noise


def rates(count: int, generator: torch.Generator, low: float = EPSILON, high: float = 1.0) -> Tensor:
    """Stratified draws from U(low, high), one from each of ``count`` equal parts of it, in a random order: [count].

    MDLM's antithetic t; with ``low`` and ``high`` BD3-LM's clipped schedule.
    """
    drawn = (torch.rand(count, generator=generator) + torch.randperm(count, generator=generator)) / count
    return low + (high - low) * drawn


def mask_each(chances: Tensor, maskable: Tensor, generator: torch.Generator) -> Tensor:
    """Every maskable position by itself with its chance: bool, of the shape of ``maskable`` [B, L]."""
    return (torch.rand(maskable.shape, generator=generator) < chances) & maskable


def mask_exactly(counts: Tensor, maskable: Tensor, generator: torch.Generator) -> Tensor:
    """``counts`` [B] of each row's maskable positions, every choice as likely: bool [B, L]."""
    keys = torch.rand(maskable.shape, generator=generator).masked_fill(~maskable, 2.0)
    return (keys.argsort(1).argsort(1) < counts[:, None]) & maskable


def cut(ids: Tensor, generator: torch.Generator, share: float = 0.01) -> Tensor:
    """``ids`` [B, L], in a ``share`` of all calls cut to a random length, so that short texts are known too."""
    if torch.rand((), generator=generator) >= share:
        return ids
    return ids[:, : int(torch.randint(1, ids.shape[1] + 1, (), generator=generator))]


# ---------------------------------------------------------------- losses


def pretraining_loss(denoise: Denoise, ids: Tensor, mask_id: int, generator: torch.Generator) -> Tensor:
    """LLaDA's loss of ``ids`` [B, L], nats per token."""
    chances = rates(len(ids), generator)[:, None]
    masked = mask_each(chances, torch.ones_like(ids, dtype=torch.bool), generator)
    return (_losses(denoise, ids, masked, mask_id) / chances).sum() / ids.numel()


def sft_loss(
    denoise: Denoise,
    ids: Tensor,
    answer: Tensor,
    mask_id: int,
    generator: torch.Generator,
    clip: tuple[float, float] = (EPSILON, 1.0),
) -> Tensor:
    """LLaDA's loss of answers, their padding included (``answer``: bool [B, L]), each divided by its length.

    ``clip``: between which chances an answer is masked, as in ``block_loss``.
    """
    chances = rates(len(ids), generator, *clip)[:, None]
    masked = mask_each(chances, answer, generator)
    return ((_losses(denoise, ids, masked, mask_id) / chances).sum(1) / answer.sum(1)).mean()


def mdlm_loss(denoise: Denoise, ids: Tensor, mask_id: int, generator: torch.Generator) -> Tensor:
    """MDLM's loss of ``ids`` [B, L] with log-linear noise, nats per token."""
    time = rates(len(ids), generator)[:, None]
    sigma, slope = loglinear(time)
    masked = mask_each(1 - torch.exp(-sigma), torch.ones_like(ids, dtype=torch.bool), generator)
    return (_losses(denoise, ids, masked, mask_id) * slope / torch.expm1(sigma)).sum() / ids.numel()


def loglinear(time: Tensor) -> tuple[Tensor, Tensor]:
    """σ(t) = −log(1 − (1 − ε) t) and its derivative."""
    kept = 1 - (1 - EPSILON) * time
    return -torch.log(kept), (1 - EPSILON) / kept


def block_loss(
    denoise: Denoise,
    ids: Tensor,
    block: int,
    mask_id: int,
    generator: torch.Generator,
    answer: Tensor | None = None,
    clip: tuple[float, float] = (EPSILON, 1.0),
) -> Tensor:
    """BD3-LM's loss of ``ids`` [B, L] under ``block_pass``, nats per token of ``answer`` (bool [B, L], by default all).

    ``clip``: between which chances a block is masked. Narrower than (0, 1) it is another objective, with less variance.
    """
    blocks = math.ceil(ids.shape[1] / block)
    drawn = rates(len(ids) * blocks, generator, *clip).view(len(ids), blocks)
    chances = drawn.repeat_interleave(block, 1)[:, : ids.shape[1]]
    learnt = torch.ones_like(ids, dtype=torch.bool) if answer is None else answer
    masked = mask_each(chances, learnt, generator)
    return (_losses(denoise, ids, masked, mask_id) / chances).sum() / learnt.sum()


def maskgit_loss(
    denoise: Denoise, ids: Tensor, mask_id: int, generator: torch.Generator, smoothing: float = 0.1
) -> Tensor:
    """MaskGIT's loss of ``ids`` [B, N], nats per masked token."""
    counts = cosine_counts(rates(len(ids), generator, 0.0), ids.shape[1])
    masked = mask_exactly(counts, torch.ones_like(ids, dtype=torch.bool), generator)
    logits = denoise(ids.masked_fill(masked, mask_id))[masked]
    log_p = logits.log_softmax(-1)
    plain = -log_p.gather(-1, ids[masked][:, None])[:, 0]
    sayable = logits.isfinite()
    even = -log_p.masked_fill(~sayable, 0.0).sum(-1) / sayable.sum(-1)  # MASK has no part in the smoothed labels
    return ((1 - smoothing) * plain + smoothing * even).mean()


def cosine_counts(ratios: Tensor, length: int) -> Tensor:
    """How many of ``length`` positions are masked at each ratio: ⌈N cos(πr/2)⌉, at least 1."""
    return torch.ceil(length * torch.cos(math.pi / 2 * ratios)).long().clamp(min=1)


def bound(
    denoise: Denoise,
    ids: Tensor,
    mask_id: int,
    generator: torch.Generator,
    answer: Tensor | None = None,
    block: int | None = None,
) -> Tensor:
    """One draw of the low-variance upper bound of −log p of each row's ``answer`` (by default all of it): nats [B].

    ``block``: the blocks of ``block_pass``, each with a bound of its own, their sum is returned; they fill the rows
    without rest. How many positions are masked is stratified over the batch. Average 128 draws or more of one text.
    """
    asked = (torch.ones_like(ids, dtype=torch.bool) if answer is None else answer).reshape(-1, block or ids.shape[1])
    size = asked.sum(1)
    counts = torch.minimum((rates(len(asked), generator, 0.0) * size).long() + 1, size.clamp(min=1))
    masked = mask_exactly(counts, asked, generator).view_as(ids)
    found = _losses(denoise, ids, masked, mask_id).view(asked.shape).sum(1) * size / counts
    return found.view(len(ids), -1).sum(1)


def _losses(denoise: Denoise, ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """Cross-entropy at the masked positions, 0 elsewhere: visible tokens are what they are (MDLM's SUBS): [B, L]."""
    logits = denoise(ids.masked_fill(masked, mask_id))
    found = cross_entropy(logits[masked].float(), ids[masked], reduction="none")
    return torch.zeros(ids.shape, device=ids.device).masked_scatter(masked, found)
