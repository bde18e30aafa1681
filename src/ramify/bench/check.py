"""``ramify verify``: does this method change this model's output? Checked on the user's own model and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ramify.api import generate
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.base import Method
from ramify.methods.registry import create
from ramify.models.causal import CausalLM
from ramify.models.weights import ROUNDED


@dataclass(frozen=True)
class Check:
    """One finding: ``ok`` is True, False, or None where nothing is promised (half precision, rounded weights, lossy
    methods), or not all that was asked for could be had."""

    name: str
    ok: bool | None
    detail: str


@dataclass
class Verification:
    """All findings for one model and method; ``ok`` unless one of them failed."""

    model: str
    method: str
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in self.checks]
        return {"model": self.model, "method": self.method, "ok": self.ok, "checks": checks}


def verify(
    lm: CausalLM,
    method: str | Method,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Verification:
    """Compare ``method`` with plain decoding on ``prompts``, token by token.

    In float32 a lossless method must give the same tokens; at a first difference the gap between the two largest
    logits there (greedy) is reported, since half precision computes other row counts by other kernels and near-ties
    may flip. With rounded weights all is held against the model so rounded, from which a method that decodes the model
    itself (``prepares``) may differ. ``settings`` as in ``generate``; under sampling the noise is shared, so that equal
    laws give equal tokens.
    """
    chosen = create(method)
    found = Verification(lm.name, chosen.card.name)
    lm.refresh()
    rounded = lm.forward.weights in ROUNDED
    found.checks += _model_checks(lm, rounded)
    exact = chosen.card.lossless and lm.dtype in (torch.float32, torch.float64) and not (rounded and chosen.prepares)
    # Said outright, for the model's own generation config may say otherwise.
    sampled = settings["do_sample"] = bool((settings | chosen.pinned).get("do_sample"))
    rule = getattr(chosen, "verifier", "match")
    if sampled and (chosen.prepares or rule != "match"):
        cure = "verify it without sampling" if chosen.prepares else "verify it with verifier='match'"
        raise RamifyError(f"{chosen.card.name} draws its own noise when it samples; {cure}")
    same = 0
    for index, prompt in enumerate(prompts):
        plain = generate(
            lm,
            prompt,
            "sample" if sampled else "greedy",
            max_new_tokens=max_new_tokens,
            seed=seed,
            **settings,
        )
        ours = generate(lm, prompt, chosen, max_new_tokens=max_new_tokens, seed=seed, **settings)
        if plain.tokens == ours.tokens:
            same += 1
        else:
            at = _first_difference(plain.tokens, ours.tokens)
            detail = f"differs at token {at}" + ("" if sampled else f", {_gap(lm, plain.prompt + plain.tokens[:at])}")
            found.checks.append(Check(f"prompt {index + 1}", False if exact else None, detail))
        if progress:
            progress(index + 1, len(prompts))
    share = f"{same} of {len(prompts)} prompts identical to plain decoding over {max_new_tokens} tokens"
    found.checks.append(Check("same output", same == len(prompts) or (False if exact else None), share))
    return found


def _model_checks(lm: CausalLM, rounded: bool) -> Iterator[Check]:
    """What runs, and what the promises are about."""
    how = "one pass scores a token tree like its paths, and a rollback leaves no trace" if lm.trees else lm.reason
    yield Check("token trees", lm.trees or None, how)
    # Rounded weights run only where they were asked for; a note then names matrices that could not be rounded.
    yield Check("forward", None if rounded and lm.notes else True, "; ".join([lm.how, *lm.notes]))
    if rounded:
        kind = lm.forward.weights
        yield Check("weights", None, f"exact with respect to the {kind} model, not to the one it was rounded from")


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _gap(lm: CausalLM, tokens: list[int]) -> str:
    """How far apart the two best tokens were where the outputs part."""
    session = Session(lm)
    session.prefill([tokens[:-1]])
    logits = session.score(TokenTree.chain(tokens[-1:])).logits[0, 0].float()
    best = logits.topk(2).values
    apart = float(best[0] - best[1])
    return f"where the two best logits are {apart:.3g} apart (all logits spread by {float(logits.std()):.3g})"
