"""Hidden transfer: states of a middle layer are mapped to pseudo states of the next positions, which run on from there.

Wu et al., "Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration", arXiv 2404.12022; the
same authors' "FIRP: Faster LLM inference via future intermediate representation prediction", arXiv 2410.20488.
Behind layer t every node v of the draft tree, the pending token too, is joined by pseudo steps 1 … c(v): ghost nodes
whose states are linear maps of v's own (``hidden_transfer_head.py``). They pass the frozen layers behind t beside the
tree, and the target's LM head reads off them the tokens two and more places behind v. Whichever node is accepted
last, its pseudo steps fill the tree of the next step: a node of rank r at depth i carries the r-th guess of step i.

No code was published and the tree is not told where we could read. Ours is PPD's dynamic tree, for PPD is this method
with t = 0 and a constant in place of the map: ``sparse_tree.py`` lays it out from the head's own rank accuracies, apart
for greedy and for sampled text, and gives nodes that are rarely the last fewer pseudo steps. Its budget B is the one
with the most expected tokens a second, where pseudo steps cost only the layers that they pass:

    seconds = t/L · cost(1 + nodes) + (L − t)/L · cost(1 + nodes + pseudo steps)

and none when drafting does not pay. Exact for every target law: the engine verifies by matching, pseudo steps are never
accepted and leave nothing in the cache. The first step has no guesses: it scores the pending token with its own
pseudo steps. In a union with other drafters the last accepted node may carry none of ours; then too.

Cost per step: the rows above in two passes, of layers up to t and behind it, K products D x D, a top-10 of K rows.
Limits: models that take trees; all pseudo steps of a head join behind the same layer (the papers plot one for each
step); t = L, behind the last layer, only under the fused forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.ghost_draft import GhostDrafter, Plan
from ramify.methods.draft.hidden_transfer_head import HiddenTransferHead
from ramify.methods.draft.sparse_tree import ALLOCATIONS, DynamicTree, SparseTree, dynamic_tree
from ramify.methods.draft.template import Template
from ramify.methods.head import load_head
from ramify.methods.registry import register
from ramify.models.calibrate import CostCurve, calibrate
from ramify.models.causal import CausalLM

BUDGETS = (4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 50, 60, 80, 105, 130)


@register(
    name="hidden-transfer",
    title="Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration",
    paper="arXiv 2404.12022",
    family="draft",
    needs=("logits", "hidden states", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class HiddenTransfer(DraftMethod):
    """Pseudo states of later positions join the pass at a middle layer and guess the next draft.

    ``head``: the trained maps, a folder that ``ramify train hidden-transfer`` made; None for the demo model's own.
    ``budget``: nodes and their pseudo steps in a pass, without the pending token and its own (0: draft nothing); None
    sizes it by the machine's cost curve. ``allocation``: how pseudo steps are shared out, "pruned", or "naive" (as
    many for every node), "random", "chain" (no tree).
    """

    trains = HiddenTransferHead

    head: Any = None
    budget: int | None = None
    allocation: Literal["pruned", "naive", "random", "chain"] = "pruned"

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget != 0 and self.budget < 2:
            raise RamifyError(f"budget must be at least 2, for a node and a pseudo step, or 0; got {self.budget}")
        if self.allocation not in ALLOCATIONS:
            raise unknown("allocation", self.allocation, ALLOCATIONS)

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        head: HiddenTransferHead | None = self.memory.get(("head", lm))
        if head is None:
            head = self.memory["head", lm] = load_head(HiddenTransferHead, self.head, lm)
        key = "plans", request.sampler.greedy, lm
        if key not in self.memory:
            tree = self._tree(lm, head, head.accuracy[0 if request.sampler.greedy else 1].tolist())
            self.memory[key] = plans(tree, head) if tree is not None else None
        found: list[Plan] | None = self.memory[key]
        return Drafter() if found is None else GhostDrafter(found, head.accuracy.shape[-1])

    def _tree(self, lm: CausalLM, head: HiddenTransferHead, accuracy: Sequence[Sequence[float]]) -> DynamicTree | None:
        if self.budget is not None:
            return dynamic_tree(accuracy, self.budget, self.allocation) if self.budget else None
        curve, share = calibrate(lm), head.layer / lm.layers
        trees = [dynamic_tree(accuracy, budget, self.allocation) for budget in BUDGETS]
        best = max(trees, key=lambda tree: speed(tree, curve, share))
        return best if speed(best, curve, share) > 1.0 / curve.cost(1) else None


def speed(tree: DynamicTree, curve: CostCurve, share: float) -> float:
    """Expected tokens a second, where ``share`` of the layers run before the pseudo steps join."""
    seconds = 0.0
    for chance, state in zip(tree.steady, tree.trees, strict=True):
        nodes, pseudo = 1 + len(state.paths), len(tree.trees) + sum(state.prompts)
        seconds += chance * (share * curve.cost(nodes) + (1.0 - share) * curve.cost(nodes + pseudo))
    return (1.0 + tree.expected) / seconds


def plans(tree: DynamicTree, head: HiddenTransferHead) -> list[Plan]:
    """The drafts for 0 guessed tokens (the pending one and its pseudo steps alone) to K."""
    states = [SparseTree((), (), (), 0.0), *tree.trees]
    return [Plan(Template(state.paths), head.ghosts((head.sizes.ahead, *state.prompts))) for state in states]
