"""STOC-TOT: Stochastic Tree-of-Thought with Constrained Decoding for Complex Reasoning in Multi-Hop Question Answering,
https://arxiv.org/abs/2407.03687

A tree over texts. The root is the question Q; the children of a node u are sub-questions q_1 … q_n that might be asked
next, each answered from its own evidence. The model says how likely each line is to lead to the answer, v_j ∈ [ε, 1]:

    e_j = v_j / Σ_k v_k          P(child_j) = P(u) · e_j          Score(a) = Σ_leaves P(leaf) · 1[answer(leaf) = a]

so the leaves' P sum to 1 and lines are weighted, never cut. Sub-answers and final answers are held to a bank of words
of the question and its evidence, by masking where logits are at hand (``LocalRoles``), in the prompt where they are not
(``TextRoles``). The model is used through five roles: propose, evidence, answer, valid, final.

What is established (abstract and summaries; no code was published, and the method section could not be read): the tree
from sub-questions, probabilities by the model, removal of paraphrases, a vocabulary bank at answer time, no training.
All else is our reconstruction: the prompts; n = 3, depth 3, at most 40 nodes, ε = 0.001; shares among siblings
(``normalise="none"`` keeps the product of validities, the other reading, which punishes long lines); the sum over
leaves (best leaf and vote are there to compare); paraphrases by word overlap; whether "stochastic" means that
the tree is enumerated with probabilities or that walks are drawn from it (``mode``). Low probability cuts nothing but
for the cap on nodes, which makes leaves of the least likely nodes.

Cost: at most 3 calls for a node, one more for each expansion, one for a leaf; n = 3 at depth 2: 13 nodes, 9 leaves, 49
calls. Limits: numbers that have to be computed from the evidence are in no bank; a model that calls everything likely
makes equal shares (``Solution.spread`` near 0), and then the sum is a vote.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ramify.errors import RamifyError, unknown
from ramify.methods.search.grounding import similarity
from ramify.methods.search.stoc_tot_roles import Roles
from ramify.methods.search.stoc_tot_tree import RULES, Node, Solution, Step

MODES = ("enumerate", "sample")
NORMALISE = ("siblings", "none")
PARAPHRASE = ("overlap", "model", "none")


@dataclass(frozen=True)
class StocTot:
    """Answer a question by a tree of sub-questions with probabilities.

    ``proposals``: n, sub-questions asked for at a node. ``depth``: longest line of them. ``mode``: "enumerate" the
    tree, or "sample" ``walks`` lines from root to leaf by e, expanding what they reach, with ``seed``. ``normalise``:
    "siblings" for shares e, "none" for products of v. ``aggregate``: "sum", "best" leaf, "vote" of the leaves, or the
    "first" line alone. ``paraphrase``: drop a sub-question that repeats an earlier sibling or an ancestor by "overlap"
    (word F1 of at least ``threshold``), by asking the "model", or "none". ``nodes``: cap on the tree. ``floor``: ε.
    """

    proposals: int = 3
    depth: int = 3
    mode: str = "enumerate"
    walks: int = 8
    normalise: str = "siblings"
    aggregate: str = "sum"
    paraphrase: str = "overlap"
    threshold: float = 0.8
    nodes: int = 40
    floor: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("mode", self.mode, MODES), ("normalise", self.normalise, NORMALISE),
            ("aggregate", self.aggregate, RULES), ("paraphrase", self.paraphrase, PARAPHRASE),
        ):  # fmt: skip
            if value not in known:
                raise unknown(kind, value, known)
        for name in ("proposals", "depth", "walks", "nodes"):
            if getattr(self, name) < 1:
                raise RamifyError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.floor < 1:
            raise RamifyError(f"floor is {self.floor:g}; it is the least validity, above 0 and below 1")
        if not 0 < self.threshold <= 1:
            raise RamifyError(f"threshold is {self.threshold:g}; it is an overlap above 0, and 1 at most")
        if self.mode == "sample" and self.normalise == "none":
            raise RamifyError("walks are drawn by shares among siblings; use normalise='siblings' with mode='sample'")

    def solve(self, roles: Roles, question: str, passages: Sequence[str]) -> Solution:
        """Grow the tree for ``question`` over ``passages`` and put its leaves together.

        The solution's answer is None where no leaf has one. Raises ``RamifyError`` for an empty question, and what the
        roles raise.
        """
        if not question.strip():
            raise RamifyError("the question is empty; ask something")
        read, written = roles.spent.read, roles.spent.written
        growth = _Growth(self, roles, question, passages)
        if self.mode == "enumerate":
            growth.enumerate()
        else:
            growth.sample()
        walks = self.walks if self.mode == "sample" else 0
        spent = roles.spent.read - read, roles.spent.written - written
        solution = Solution(question, growth.root, self.aggregate, walks, growth.calls, *spent)
        if self.mode == "enumerate" and self.normalise == "siblings":
            assert abs(sum(leaf.probability for leaf in solution.leaves) - 1) < 1e-6
        return solution


class _Growth:
    """One tree while it grows."""

    def __init__(self, options: StocTot, roles: Roles, question: str, passages: Sequence[str]) -> None:
        self.options, self.roles, self.question, self.passages = options, roles, question, passages
        self.root, self.size = Node(), 1
        self.calls: Counter[str] = Counter()

    def enumerate(self) -> None:
        """Expand everything, the likeliest first, so that the cap makes leaves of the least likely."""
        frontier = [(-1.0, 0, self.root)]
        entered = 1
        while frontier:
            _, _, node = heapq.heappop(frontier)
            self.expand(node)
            for child in node.children:
                heapq.heappush(frontier, (-child.probability, entered, child))
                entered += 1

    def sample(self) -> None:
        """Draw walks from the root by the shares of siblings, expanding what they reach."""
        generator = random.Random(self.options.seed)
        for _ in range(self.options.walks):
            node = self.root
            while True:
                if not node.children and node.end is None:
                    self.expand(node)
                if node.end is not None:
                    break
                node = generator.choices(node.children, [child.edge for child in node.children])[0]
            node.walks += 1

    def expand(self, node: Node) -> None:
        """Give ``node`` its children, or make it a leaf with a final answer."""
        steps = self.ask(node)
        for step in steps:
            child = Node(step, node)
            child.validity = min(1.0, max(self.options.floor, self.valid(child)))
            node.children.append(child)
        total = sum(child.validity for child in node.children) if self.options.normalise == "siblings" else 1.0
        for child in node.children:
            child.edge = child.validity / total
            child.probability = node.probability * child.edge
        self.size += len(steps)
        if not steps:
            node.answer = self.conclude(node).strip() or None

    def conclude(self, leaf: Node) -> str:
        """The final answer of a line; where nothing was asked, the question is answered as its own only step."""
        if leaf.parent is None:
            leaf.step = self.answered(self.question)
            return leaf.step.answer
        self.calls["final"] += 1
        return self.roles.final(self.question, leaf.path)

    def ask(self, node: Node) -> list[Step]:
        """The answered sub-questions below ``node``; without any, ``node.end`` says why."""
        options = self.options
        if node.depth == options.depth or self.size + options.proposals > options.nodes:
            node.end = "depth limit" if node.depth == options.depth else "cap on nodes"
            return []
        self.calls["propose"] += 1
        proposed = self.roles.propose(self.question, node.path, self.passages, options.proposals)[: options.proposals]
        kept: list[str] = []
        for question in proposed:
            if question.strip() and not self.repeats(question, [*kept, *(step.question for step in node.path)]):
                kept.append(question)
        if not kept:
            node.end = "nothing new to ask" if proposed else "done"
        return [self.answered(question) for question in kept]

    def repeats(self, question: str, earlier: Sequence[str]) -> bool:
        """Whether ``question`` is a paraphrase of one of ``earlier``."""
        if self.options.paraphrase == "none":
            return False
        if self.options.paraphrase == "overlap":
            return any(similarity(question, other) >= self.options.threshold for other in earlier)
        for other in earlier:
            self.calls["same"] += 1
            if self.roles.same(question, other):
                return True
        return False

    def answered(self, question: str) -> Step:
        self.calls["evidence"] += 1
        evidence = tuple(self.roles.evidence(question, self.passages))
        self.calls["answer"] += 1
        return Step(question, evidence, self.roles.answer(question, evidence))

    def valid(self, node: Node) -> float:
        self.calls["valid"] += 1
        return self.roles.valid(self.question, node.path)
