"""Other experts than the router's own: chosen nodes of one forward pass take another route through the model.

The router of a mixture of experts gives each node the k experts of its greatest logits r. A detour lets pass
j = 1 … J of a token take

    S_j = TopK(r + perturbation_j − penalty · U_j),   U_j[e] = how many of the passes 1 … j − 1 took e

in every such layer; the passes stand side by side in one forward pass, so each layer knows what the earlier ones took.
The chosen experts are weighed by the unperturbed r, as the model weighs its own. All other nodes are left alone.

Which modules are routers, and how they weigh, is found by watching one short pass: a router gives (logits [n, E],
weights [n, k], indices [n, k]) with the k greatest logits, and weights by a softmax over those or over all. Whatever
does otherwise (groups of experts, sigmoids, correcting biases) is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.models.causal import CausalLM

GLANCE = 8  # tokens of the pass that is watched


class Routers:
    """The routers of ``lm``: ``layers`` of them, each choosing ``chosen`` of at most ``experts``.

    Raises ``RamifyError`` for a dense model, and for routers that choose or weigh in a way that is not known.
    """

    def __init__(self, lm: CausalLM) -> None:
        self.modules = [module for module in lm.model.modules() if "Router" in type(module).__name__]
        if not self.modules:
            raise RamifyError(
                f"{lm.name} has no expert routers, so no token can take another route; use a mixture of experts"
            )
        seen = _watch(lm, self.modules)
        rules = [_rule(output) for output in seen]
        for module, rule in zip(self.modules, rules, strict=True):
            if rule is None:
                raise RamifyError(
                    f"the experts of {lm.name} cannot be chosen otherwise: {type(module).__name__} is no plain top-k "
                    "router with softmax weights; use a method without routing"
                )
        self.over_all = [rule == "all" for rule in rules]
        self.layers = len(self.modules)
        self.experts = max(output[0].shape[-1] for output in seen)
        self.chosen = max(output[2].shape[-1] for output in seen)

    def detour(self, perturbations: Tensor, penalty: float = 0.0) -> Detour:
        """The context of one pass over rows of 1 + J or more nodes: nodes 1 … J of every row take other experts.

        ``perturbations``: what is added to the routers' logits, [rows, layers, J, experts].
        """
        return Detour(self, perturbations, penalty)


class Detour:
    """Other routes for some nodes while the context is open.

    ``changed``: share of the choices that were not the router's own for the same input, after the pass.
    """

    def __init__(self, routers: Routers, perturbations: Tensor, penalty: float) -> None:
        self.routers, self.perturbations, self.penalty = routers, perturbations, penalty
        self.changed = 0.0
        self._hooks: list[Any] = []

    def __enter__(self) -> Detour:
        self.changed = 0.0
        for layer, module in enumerate(self.routers.modules):
            self._hooks.append(module.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook(self, layer: int) -> Any:
        def choose(_: Any, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            logits, weights, indices = output
            rows, _, copies, _ = self.perturbations.shape
            experts, k = logits.shape[-1], indices.shape[-1]
            own = logits.reshape(rows, -1, experts)[:, 1 : 1 + copies].float()
            added = self.perturbations[:, layer, :, :experts].to(own.device)
            chosen = other_experts(own, added, self.penalty, k)
            weighed = own.softmax(-1).gather(-1, chosen) if self.routers.over_all[layer] else _softmax_at(own, chosen)
            weights, indices = weights.reshape(rows, -1, k).clone(), indices.reshape(rows, -1, k).clone()
            before = indices[:, 1 : 1 + copies].sort(dim=-1).values
            if copies:
                differs = (before != chosen.sort(dim=-1).values).any(dim=-1)
                self.changed += float(differs.float().mean()) / self.routers.layers
            weights[:, 1 : 1 + copies] = weighed.to(weights.dtype)
            indices[:, 1 : 1 + copies] = chosen
            return logits, weights.reshape(-1, k), indices.reshape(-1, k)

        return choose


def other_experts(logits: Tensor, perturbations: Tensor, penalty: float, k: int) -> Tensor:
    """The experts of J passes after one another: logits and perturbations [..., J, E] to indices [..., J, k]."""
    used = torch.zeros_like(logits[..., 0, :]) if logits.shape[-2] else logits.new_zeros(())
    passes = []
    for own, added in zip(logits.unbind(-2), perturbations.unbind(-2), strict=True):
        chosen = (own + added - penalty * used).topk(k, dim=-1).indices
        used = used.scatter_add(-1, chosen, torch.ones_like(own))
        passes.append(chosen)
    shape = (*logits.shape[:-2], 0, k)
    return torch.stack(passes, dim=-2) if passes else torch.zeros(shape, dtype=torch.long, device=logits.device)


def _softmax_at(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.gather(-1, chosen).softmax(-1)


@torch.inference_mode()
def _watch(lm: CausalLM, modules: Sequence[Any]) -> list[Any]:
    """What each of ``modules`` returns in a short pass; None for one that did not run."""
    seen: dict[int, Any] = {}

    def note(module: Any, _: Any, output: Any) -> None:
        seen[id(module)] = output

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        lm.model(input_ids=torch.arange(min(GLANCE, lm.vocab_size), device=lm.device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen.get(id(module)) for module in modules]


def _rule(output: Any) -> str | None:
    """Over which experts a router's softmax runs, "chosen" or "all"; None if it is no plain top-k router."""
    if not isinstance(output, tuple) or len(output) != 3 or not all(isinstance(each, Tensor) for each in output):
        return None
    logits, weights, indices = output
    if logits.dim() != 2 or weights.shape != indices.shape or indices.is_floating_point():
        return None
    logits = logits.float()
    k = indices.shape[-1]
    taken = logits.gather(-1, indices)
    if not torch.equal(taken.sort(dim=-1, descending=True).values, logits.topk(k, dim=-1).values):
        return None
    tolerance = 1e-5 if weights.dtype == torch.float32 else 1e-2
    for rule, expected in (("chosen", taken.softmax(-1)), ("all", logits.softmax(-1).gather(-1, indices))):
        if torch.allclose(weights.float(), expected, atol=tolerance):
            return rule
    return None
