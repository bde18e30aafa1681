"""STOC-TOT: Stochastic Tree-of-Thought with Constrained Decoding for Complex Reasoning in Multi-Hop Question Answering,
https://arxiv.org/abs/2407.03687

A tree over texts. The root is the question Q; the children of a node u are sub-questions q_1 … q_n that might be asked
next, each answered from its own evidence. The model says how likely each line is to lead to the answer, v_j ∈ [ε, 1]:

    e_j = v_j / Σ_k v_k          P(child_j) = P(u) · e_j          Score(a) = Σ_leaves P(leaf) · 1[answer(leaf) = a]

so the leaves' P sum to 1 and lines are weighted, never cut. Sub-answers and final answers are held to a bank of words
of the question and its evidence, by masking where logits are at hand, in the prompt where they are not. v is p(yes)
against p(no) where the model offers probabilities, else a number that it says. The model is used through five roles:
propose, evidence, answer, valid, final.

What is established (abstract and summaries; no code was published, and the method section could not be read): the tree
from sub-questions, probabilities by the model, removal of paraphrases, a vocabulary bank at answer time, no training.
All else is our reconstruction: the prompts; n = 3, depth 3, at most 40 nodes, ε = 0.001; shares among siblings
(``normalise="none"`` keeps the product of validities, the other reading, which punishes long lines); the sum over
leaves (best leaf and vote are there to compare); paraphrases by word overlap; whether "stochastic" means that
the tree is enumerated with probabilities or that walks are drawn from it (``mode``). Low probability cuts nothing but
for the cap on nodes, which makes leaves of the least likely nodes.

Cost: at most 3 calls for a node, one more for each expansion, one for a leaf; n = 3 at depth 2: 13 nodes, 9 leaves, 49
calls. Limits: numbers that have to be computed from the evidence are in no bank; a model that calls everything likely
makes equal shares (``Solution.spread`` near 0), and then the sum is a vote. Calls are made one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ramify.engine.events import Event, Noted
from ramify.engine.grove import Grove
from ramify.engine.request import Parser, whole
from ramify.engine.writer import Writer
from ramify.errors import RamifyError, unknown
from ramify.methods.asking import AskingMethod
from ramify.methods.registry import register
from ramify.methods.search.stoc_tot_growth import Growth
from ramify.methods.search.stoc_tot_roles import CONSTRAINTS, JUDGES, PromptedRoles, Roles
from ramify.methods.search.stoc_tot_tree import RULES, Solution
from ramify.models.endpoint import RemoteError

MODES = ("enumerate", "sample")
NORMALISE = ("siblings", "none")
PARAPHRASE = ("overlap", "model", "none")


@register(
    name="stoc-tot",
    title="STOC-TOT: Stochastic Tree-of-Thought with Constrained Decoding for Complex Reasoning in Multi-Hop QA",
    paper="2407.03687",
    family="search",
    needs=("text",),
    lossless=False,
    stable=False,
)
@dataclass(frozen=True)
class StocTot(AskingMethod):
    """Answer a question about passages by a tree of sub-questions with probabilities.

    ``proposals``: n, sub-questions asked for at a node. ``depth``: longest line of them. ``mode``: "enumerate" the
    tree, or "sample" lines from root to leaf by e, expanding what they reach. ``walks``: lines that are sampled.
    ``normalise``: "siblings" for shares e, "none" for products of v. ``aggregate``: "sum", "best" leaf, "vote" of the
    leaves, or the "first" line alone. ``paraphrase``: drop a sub-question that repeats an earlier sibling or an
    ancestor by "overlap" of words, by asking the "model", or "none". ``threshold``: F1 of words from which two
    questions are the same. ``nodes``: cap on the tree. ``floor``: ε. ``seed``: of the walks, beside that of the call.
    ``constraint``: what answers are held to, "trie" (words of the bank), "bag" (their tokens), "span" (runs of words of
    the evidence or the question), "prompt" (the bank is listed, nothing is enforced) or "none"; None for "trie" where
    logits are at hand, else "prompt". ``judge``: v by "logits" (yes against no) or as a "number" that the model says;
    None for logits where they are offered. ``answer_tokens``: longest answer. ``question_tokens``: longest list of
    questions.
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
    constraint: str | None = None
    judge: str | None = None
    answer_tokens: int = 24
    question_tokens: int = 96

    verbatim: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("mode", self.mode, MODES), ("normalise", self.normalise, NORMALISE),
            ("aggregate", self.aggregate, RULES), ("paraphrase", self.paraphrase, PARAPHRASE),
            ("constraint", self.constraint, (None, *CONSTRAINTS)), ("judge", self.judge, (None, *JUDGES)),
        ):  # fmt: skip
            if value not in known:
                raise unknown(kind, str(value), [str(each) for each in known if each])
        for name in ("proposals", "depth", "walks", "nodes", "answer_tokens", "question_tokens"):
            if getattr(self, name) < 1:
                raise RamifyError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.floor < 1:
            raise RamifyError(f"floor is {self.floor:g}; it is the least validity, above 0 and below 1")
        if not 0 < self.threshold <= 1:
            raise RamifyError(f"threshold is {self.threshold:g}; it is an overlap above 0, and 1 at most")
        if self.mode == "sample" and self.normalise == "none":
            raise RamifyError("walks are drawn by shares among siblings; use normalise='siblings' with mode='sample'")

    def consult(
        self, writer: Writer, question: str, passages: Sequence[str], answer: Parser, row: int = 0
    ) -> Iterator[Event]:
        roles = PromptedRoles(writer, self.constraint, self.judge, self.answer_tokens, self.question_tokens)
        walking = replace(self, seed=self.seed + writer.seed)
        solution = walking.solve(roles, question, passages, answer)
        if solution.failure:
            yield Noted(solution.failure)
        scores = solution.scores
        leaves = sorted(solution.leaves, key=lambda leaf: -leaf.probability)
        answers = [None if leaf.answer is None else solution.spelled(leaf.answer) for leaf in leaves]
        ranked = sorted(zip(leaves, answers, strict=True), key=lambda each: each[1] != solution.answer)
        votes = {solution.spelled(each): score for each, score in scores.items()}
        yield from Grove(solution.root, writer.encode, row).decided(ranked, solution.answer, votes)

    def solve(self, roles: Roles, question: str, passages: Sequence[str], answer: Parser = whole) -> Solution:
        """Grow the tree for ``question`` over ``passages`` and put its leaves together.

        The solution's answer is None where no leaf has one. ``answer`` reads it from a final reply. Where a server
        fails for good, the leaves that were answered by then decide. Raises ``RamifyError`` for an empty question, and
        what the roles raise, a server's failure too where no leaf has an answer yet.
        """
        if not question.strip():
            raise RamifyError("the question is empty; ask something")
        growth = Growth(self, roles, question, passages, answer)
        failure = ""
        try:
            if self.mode == "enumerate":
                growth.enumerate()
            else:
                growth.sample()
        except RemoteError as error:
            answered = [node for node in growth.root.tree if node.answer is not None]
            if not answered:
                raise
            growth.abandon()
            failure = (
                f"{str(error).rstrip('.')}; the answer is that of the {len(answered)} lines that were answered before"
            )
        solution = Solution(question, growth.root, self.aggregate, growth.walked, growth.calls, failure)
        if self.mode == "enumerate" and self.normalise == "siblings":
            assert abs(sum(leaf.probability for leaf in solution.leaves) - 1) < 1e-6
        return solution
