"""Parallel prompt decoding (PPD): trained prompt tokens guess ahead in the very pass that verifies earlier guesses.

Chen et al., "Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference",
arXiv 2405.18628 (Findings of EMNLP 2025). n embeddings are trained, nothing else (``ppd_head.py``). Every guess v of
the draft tree carries c(v) of them and the pending token all n, as ghost nodes: prompt token k stands k places behind
its node, and its logits guess the token k + 1 ahead. Whichever node v* is accepted last, the guesses for the next step
are there already: the top 10 of each of its prompt tokens fill the tree T_d of the next state, d = c(v*).

The trees are laid out as in ``sparse_tree.py``, from the head's own rank accuracies, apart for greedy and for sampled
text. ``budget=None`` takes the B with the most expected tokens a second on the machine's cost curve,
(1 + E(B)) / cost(B + 1 + n), and drafts nothing where none beats plain decoding. Ours: with it the n that pays best,
for where rows are dear, as on a CPU, the later prompt tokens may cost more than they bring.

Exact for every target law: the engine verifies by matching. (The paper samples by typical acceptance, which is not
exact.) Prompt tokens are never accepted and leave nothing in the cache. The first step has no guesses and scores the
pending token with its prompt tokens; so does every step after one that ended, in a union with other drafters, at a node
that carries none of ours. Siblings of different parents share their guesses, as P(v) supposes.

Cost per step: one pass of up to B + 1 + n rows, and a top-10 of d rows. The head has n · m · D numbers. Limit: prompt
tokens trained under the ablation masks "encoder", and "decoder" with m > 1, are laid out by no tree and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ramify.engine.drafter import Drafter
from ramify.engine.request import Request
from ramify.engine.tree import Ghosts
from ramify.errors import RamifyError, unknown
from ramify.methods.base import DraftMethod
from ramify.methods.draft.ghost_draft import GhostDrafter, Plan
from ramify.methods.draft.ppd_head import PromptTokens
from ramify.methods.draft.sparse_tree import ALLOCATIONS, DynamicTree, SparseTree, dynamic_tree
from ramify.methods.draft.template import Template
from ramify.methods.head import load_head
from ramify.methods.registry import register
from ramify.models.calibrate import calibrate
from ramify.models.causal import CausalLM

BUDGETS = (2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 50, 60, 80, 105)


@register(
    name="ppd",
    title="Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference",
    paper="arXiv 2405.18628",
    family="draft",
    needs=("logits", "training"),
    lossless=True,
    stable=False,
)
@dataclass(frozen=True)
class Ppd(DraftMethod):
    """Trained prompt tokens beside every node of the draft tree guess the next draft in the same pass.

    ``head``: the trained prompt tokens, a folder that ``ramify train ppd`` made; None for the demo model's own.
    ``budget``: guesses and their prompt tokens in a pass (0: draft nothing); None sizes it by the machine's cost curve.
    ``prompts``: use the first so many prompt tokens; None is all of them, or as many as pay where the budget is sized.
    ``allocation``: how prompt tokens are shared out, "pruned" (paper), or an ablation: "naive", "random", "chain".
    """

    trains = PromptTokens

    head: Any = None
    budget: int | None = None
    prompts: int | None = None
    allocation: Literal["pruned", "naive", "random", "chain"] = "pruned"

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget != 0 and self.budget < 2:
            raise RamifyError(f"budget must be at least 2, for a guess and its prompt token, or 0; got {self.budget}")
        if self.prompts is not None and self.prompts < 1:
            raise RamifyError(f"prompts must be at least 1, got {self.prompts}")
        if self.allocation not in ALLOCATIONS:
            raise unknown("allocation", self.allocation, ALLOCATIONS)

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        head: PromptTokens | None = self.memory.get(("head", lm))
        if head is None:
            head = self.memory["head", lm] = load_head(PromptTokens, self.head, lm)
            _require_tree(head)
        key = "plans", request.sampler.greedy, lm
        if key not in self.memory:
            tree = self._tree(lm, head.accuracy[0 if request.sampler.greedy else 1].tolist())
            self.memory[key] = plans(tree, head) if tree is not None else None
        found: list[Plan] | None = self.memory[key]
        return Drafter() if found is None else GhostDrafter(found, head.accuracy.shape[-1], head.sizes.ensemble)

    def _tree(self, lm: CausalLM, accuracy: Sequence[Sequence[float]]) -> DynamicTree | None:
        if self.prompts is not None and self.prompts > len(accuracy):
            raise RamifyError(f"the head has {len(accuracy)} prompt tokens, fewer than the {self.prompts} asked for")
        if self.budget is not None:
            return dynamic_tree(accuracy[: self.prompts], self.budget, self.allocation) if self.budget else None
        curve = calibrate(lm)
        numbers = [self.prompts] if self.prompts is not None else range(1, len(accuracy) + 1)
        trees = [dynamic_tree(accuracy[:n], budget, self.allocation) for n in numbers for budget in BUDGETS]
        best = max(trees, key=lambda tree: (1.0 + tree.expected) / curve.cost(tree.rows))
        return best if 1.0 + best.expected > curve.ratio(best.rows) else None


def plans(tree: DynamicTree, head: PromptTokens) -> list[Plan]:
    """The drafts of the states 0 (nothing is known: the pending token and its prompt tokens alone) to n."""
    states = [SparseTree((), (), (), 0.0), *tree.trees]
    return [Plan(Template(state.paths), _ghosts(state, len(tree.trees), head)) for state in states]


def _ghosts(tree: SparseTree, root: int, head: PromptTokens) -> Ghosts:
    """``root`` prompt tokens behind the pending token and c(v) behind every guess, each as m parallel chains."""
    ensemble = head.sizes.ensemble
    parents: list[int] = []
    kinds: list[int] = []
    for node, prompts in [(-1, root), *enumerate(tree.prompts)]:
        for kind in range(prompts * ensemble):
            earlier = len(tree.paths) + len(parents) - ensemble
            parents.append(node if kind < ensemble else earlier)
            kinds.append(kind)
    return Ghosts(tuple(parents), tuple(kinds), 0, head.states)


def _require_tree(head: PromptTokens) -> None:
    """Refuse a head whose prompt tokens see each other in a way that no tree lays out."""
    sizes = head.sizes
    if (sizes.mask == "decoder" and sizes.ensemble > 1) or (sizes.mask == "encoder" and len(head.embeddings) > 1):
        raise RamifyError(
            f"prompt tokens that see each other as mask={sizes.mask!r} says cannot stand in a draft tree; "
            "train them with mask=ensemble"
        )
