"""The tree of STOC-TOT while it grows: who is expanded next, what is asked, and what each node's calls were."""

from __future__ import annotations

import functools
import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ramify.engine.request import Parser
from ramify.methods.search.grounding import similarity
from ramify.methods.search.stoc_tot_roles import Roles
from ramify.methods.search.stoc_tot_tree import FAILED, Node, Step
from ramify.models.endpoint import RemoteError

if TYPE_CHECKING:
    from ramify.methods.search.stoc_tot import StocTot

T = TypeVar("T")


class Growth:
    """One tree.

    ``calls``: how often each role was asked. ``walked``: walks that came to a leaf.
    """

    def __init__(self, options: StocTot, roles: Roles, question: str, passages: Sequence[str], answer: Parser) -> None:
        self.options, self.roles, self.question, self.passages = options, roles, question, passages
        self.read = answer
        self.root, self.size, self.walked = Node(), 1, 0
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
            self.walked += 1

    def abandon(self) -> None:
        """End the lines that were still to be expanded."""
        for node in self.root.tree:
            if not node.children and node.end is None and self.options.mode == "enumerate":
                node.end = FAILED

    def expand(self, node: Node) -> None:
        """Give ``node`` its children, or make it a leaf with a final answer."""
        children: list[Node] = []
        try:
            for question in self.ask(node):
                children.append(Node(parent=node))
                children[-1].step = self.answered(children[-1], question)
            for child in children:
                found = self.put("valid", child, functools.partial(self.roles.valid, self.question, child.path))
                child.validity = min(1.0, max(self.options.floor, found))
            if not children:
                node.answer = self.read(self.conclude(node).strip())
        except RemoteError:
            node.end = FAILED
            node.calls += [call for child in children for call in child.calls]
            raise
        total = sum(child.validity for child in children) if self.options.normalise == "siblings" else 1.0
        for child in children:
            child.edge = child.validity / total
            child.probability = node.probability * child.edge
        node.children = children
        self.size += len(children)

    def conclude(self, leaf: Node) -> str:
        """The final answer of a line; where nothing was asked, the question is answered as its own only step."""
        if leaf.parent is None:
            leaf.step = self.answered(leaf, self.question)
            return leaf.step.answer
        return self.put("final", leaf, lambda: self.roles.final(self.question, leaf.path))

    def ask(self, node: Node) -> list[str]:
        """The sub-questions below ``node``; without any, ``node.end`` says why."""
        options = self.options
        if node.depth == options.depth or self.size + options.proposals > options.nodes:
            node.end = "depth limit" if node.depth == options.depth else "cap on nodes"
            return []
        count = options.proposals
        proposed = self.put(
            "propose", node, lambda: self.roles.propose(self.question, node.path, self.passages, count)[:count]
        )
        kept: list[str] = []
        for question in proposed:
            earlier = [*kept, *(step.question for step in node.path)]
            if question.strip() and not self.repeats(node, question, earlier):
                kept.append(question)
        if not kept:
            node.end = "nothing new to ask" if proposed else "done"
        return kept

    def repeats(self, node: Node, question: str, earlier: Sequence[str]) -> bool:
        """Whether ``question`` is a paraphrase of one of ``earlier``."""
        if self.options.paraphrase == "none":
            return False
        if self.options.paraphrase == "overlap":
            return any(similarity(question, other) >= self.options.threshold for other in earlier)
        return any(self.put("same", node, functools.partial(self.roles.same, question, other)) for other in earlier)

    def answered(self, node: Node, question: str) -> Step:
        evidence = tuple(self.put("evidence", node, lambda: self.roles.evidence(question, self.passages)))
        return Step(question, evidence, self.put("answer", node, lambda: self.roles.answer(question, evidence)))

    def put(self, role: str, node: Node, ask: Callable[[], T]) -> T:
        """What ``role`` says; the bill goes to ``node``."""
        self.calls[role] += 1
        try:
            return ask()
        finally:
            node.calls += self.roles.drain()
