"""The tree of sub-questions that STOC-TOT grows, and what it comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ramify.engine.writer import Call
from ramify.errors import unknown
from ramify.methods.search.grounding import bank, covers, normalise

RULES = ("sum", "best", "vote", "first")
LIMITS = ("depth limit", "cap on nodes")  # ends that are no end of the model's own
FAILED = "server"  # the end of a line that a server left unfinished


@dataclass(frozen=True)
class Step:
    """One answered sub-question and the sentences it was answered from."""

    question: str
    evidence: tuple[str, ...]
    answer: str


@dataclass(eq=False)
class Node:
    """A line of sub-questions from the root to ``step`` (None at the root, unless it is a leaf).

    ``validity``: v of the step. ``edge``: e, its share among its siblings. ``probability``: P of the line.
    ``children``: what was asked next. ``end``: why it is a leaf, None while it is none. ``answer``: the final answer
    at a leaf, None where there is none. ``walks``: sampled walks that ended here. ``calls``: what the model was asked
    for this node.
    """

    step: Step | None = None
    parent: Node | None = None
    validity: float = 1.0
    edge: float = 1.0
    probability: float = 1.0
    children: list[Node] = field(default_factory=list)
    end: str | None = None
    answer: str | None = None
    walks: int = 0
    calls: list[Call] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The step in words, and at a leaf its final answer."""
        asked = "" if self.step is None else f"{self.step.question} {self.step.answer or 'unknown'}"
        return f"{asked}\nAnswer: {self.answer}".strip() if self.answer is not None else asked

    @property
    def weight(self) -> float:
        return self.probability

    @property
    def finish(self) -> str:
        """How the line ended, as paths say it; "not drawn" where no walk came by."""
        if self.end is None or self.end == FAILED:
            return self.end or "not drawn"
        return "length" if self.end in LIMITS else "stop"

    @property
    def path(self) -> tuple[Step, ...]:
        """The answered sub-questions from the root to here."""
        before = self.parent.path if self.parent is not None else ()
        return before if self.step is None else (*before, self.step)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def tree(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.tree

    def evidence(self) -> list[str]:
        """The sentences of the whole line, each once."""
        return list(dict.fromkeys(sentence for step in self.path for sentence in step.evidence))


@dataclass(frozen=True, eq=False)
class Solution:
    """What a tree came to.

    ``root``: the tree. ``rule``: how leaves were put together. ``walks``: walks drawn, 0 where all was enumerated.
    ``calls``: how often each role was asked. ``failure``: why the tree is unfinished, "" where it is whole.
    """

    question: str
    root: Node
    rule: str
    walks: int
    calls: Counter[str]
    failure: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Tokens read by all roles."""
        return sum(call.read for node in self.nodes for call in node.calls)

    @property
    def tokens(self) -> int:
        """Tokens written by all roles."""
        return sum(len(call.tokens) for node in self.nodes for call in node.calls)

    @property
    def nodes(self) -> list[Node]:
        return list(self.root.tree)

    @property
    def leaves(self) -> list[Node]:
        """Nodes that came to their end; with sampled walks, those that a walk has reached."""
        return [node for node in self.root.tree if node.end is not None]

    @property
    def answer(self) -> str | None:
        """The answer by ``rule``, as the likeliest leaf spells it; None where no leaf has one."""
        return self.decide(self.rule)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each normalised answer by ``rule``, the greatest first."""
        return self.scored(self.rule)

    def scored(self, rule: str) -> dict[str, float]:
        """The score of each normalised answer, the greatest first.

        "sum": Σ P over its leaves (over walks, their share). "best": the greatest P of its leaves. "vote": its leaves,
        counted. "first": the leaf of the proposals made first, and no other. Ties go to the likelier single leaf, but
        in a vote, which knows no probabilities, to the answer that came first.
        """
        weight = self._weight(rule)
        scores: dict[str, float] = {}
        best: dict[str, float] = {}
        for leaf in self.leaves:
            if leaf.answer is not None:
                answer = _same(leaf.answer)
                best[answer] = max(best.get(answer, 0.0), leaf.probability)
                scores[answer] = scores.get(answer, 0.0) + weight(leaf)
        found = best if rule == "best" else scores
        ranked = sorted(found) if rule != "vote" else list(found)
        ranked.sort(key=lambda each: (-round(found[each], 9), -round(best[each], 9) if rule != "vote" else 0.0))
        return {answer: found[answer] for answer in ranked if found[answer] > 0}

    def decide(self, rule: str) -> str | None:
        """The answer that scores best by ``rule``, as its likeliest leaf spells it."""
        winner = next(iter(self.scored(rule)), None)
        return None if winner is None else self.spelled(winner)

    def spelled(self, answer: str) -> str:
        """``answer`` as the likeliest of its leaves spells it."""
        leaves = [leaf for leaf in self.leaves if leaf.answer is not None and _same(leaf.answer) == _same(answer)]
        return max(leaves, key=lambda leaf: leaf.probability).answer or answer

    def recall(self, gold: str) -> float:
        """Share of the leaves' probability whose vocabulary bank holds every word of ``gold``.

        At 0 a constrained answer cannot be right, whatever the model knows.
        """
        total = sum(leaf.probability for leaf in self.leaves)
        held = [leaf for leaf in self.leaves if covers(bank(self.question, leaf.evidence()), gold)]
        return sum(leaf.probability for leaf in held) / total if total else 0.0

    @property
    def grounded(self) -> float:
        """Share of the answered leaves whose answer consists of words of their bank."""
        answers = [(leaf, leaf.answer) for leaf in self.leaves if leaf.answer is not None]
        inside = [covers(bank(self.question, leaf.evidence()), answer) for leaf, answer in answers]
        return sum(inside) / len(inside) if inside else 0.0

    @property
    def spread(self) -> float:
        """Mean over all sets of siblings of their greatest minus their smallest validity.

        Near 0 the probabilities say nothing: they are equal shares, and the sum is a vote.
        """
        sets = [[child.validity for child in node.children] for node in self.nodes if len(node.children) > 1]
        return sum(max(each) - min(each) for each in sets) / len(sets) if sets else 0.0

    def show(self) -> None:
        """Print the tree."""
        print(self)

    def __str__(self) -> str:
        lines = [self.question, *_drawn(self.root.children, "")]
        if self.root.end is not None:
            lines.append(f"   ⇒ {_said(self.root)}")
        ranked = ", ".join(f"{answer} {score:.3g}" for answer, score in self.scores.items())
        lines.append(f"Answer: {self.answer or 'none'} (by {self.rule}: {ranked or 'no leaf has an answer'})")
        calls = ", ".join(f"{count} {role}" for role, count in self.calls.items())
        drawn = f", {self.walks} walks" if self.walks else ""
        lines.append(
            f"{len(self.nodes)} nodes, {len(self.leaves)} leaves{drawn}; {self.calls.total()} calls ({calls}); "
            f"{self.prompt_tokens:,} tokens read, {self.tokens:,} written"
        )
        return "\n".join(lines)

    def _weight(self, rule: str) -> Callable[[Node], float]:
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        if rule == "sum" and self.walks:
            return lambda leaf: leaf.walks / self.walks
        if rule == "first":
            first = self.root
            while first.children:
                first = first.children[0]
            return lambda leaf: float(leaf is first)
        return (lambda leaf: leaf.probability) if rule == "sum" else lambda leaf: 1.0


def _same(answer: str) -> str:
    """What equal answers have in common; an article that is all there is ("vitamin A") counts."""
    return normalise(answer) or answer.lower().strip()


def _drawn(siblings: Sequence[Node], margin: str) -> Iterator[str]:
    for place, node in enumerate(siblings):
        last = place == len(siblings) - 1
        if node.step is None:
            continue
        yield (
            f"{margin}{'└─' if last else '├─'} {node.probability:.3f}  {node.step.question} → "
            f"{node.step.answer or 'no answer'}  (v {node.validity:.2f})"
        )
        below = margin + ("   " if last else "│  ")
        yield from (f"{below}   “{sentence}”" for sentence in node.step.evidence)
        if node.end is not None:
            yield f"{below}⇒ {_said(node)}"
        yield from _drawn(node.children, below)


def _said(leaf: Node) -> str:
    walks = f", {leaf.walks} walks" if leaf.walks else ""
    return f"{leaf.answer or 'no answer'}  ({leaf.end}{walks})"
