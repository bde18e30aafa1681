"""Tree of Thoughts: Deliberate Problem Solving with Large Language Models, https://arxiv.org/abs/2305.10601

Breadth-first search over states, which are lists of thoughts. S_0 holds the empty state; for each of ``depth`` steps

    candidates = the states of S_{t−1}, each with one of the thoughts that the model has for it
    S_t        = the b candidates that the model scores best

and the thoughts of the last step are answers. The model proposes all thoughts of a state in one reply, a line each, or
samples k of them. It scores a state by verdicts, impossible .001, likely 1, sure 20, summed over samples, or by votes
over all candidates. Defaults are those of the Game of 24: depth 4, b = 5, proposals, 3 values of each state.

As the authors' code has it: a candidate that repeats another one of the step scores 0, and so does a last state without
an answer; values are kept by their prompt; the sort is stable; ``select="sample"`` draws b times in proportion to the
scores, with replacement. Two accuracies are reported, for it is not established which of them the paper's 74 % is: the
mean over the b last states (``Thoughts.mean``) and any of the b (``Thoughts.any``).

Ours: prompts for any question instead of one for each task; where the model offers probabilities, a state scores
p(yes) / p(no) after a value prompt, which is the order of log p(yes) − log p(no) on a scale that 0 ends; a state for
which the model has no further thought stays a candidate as it is, where the code would lose it; a state that was drawn
twice is kept once, for its thoughts would only repeat; votes are over distinct candidates, for duplicates would split
them; the answer is that of the best last state, of which the paper says nothing.

Cost: b calls for thoughts and b · k for values in each step; at depth 4 with 5 lines in each reply at most 16 calls for
thoughts and answers, and 60 values (of 3 samples each where they are verdicts). Limits: a model that judges as badly as
it proposes gains nothing; calls are made one after the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ramify.engine.events import Event, Noted
from ramify.engine.grove import Grove
from ramify.engine.request import Parser, whole
from ramify.engine.writer import Writer
from ramify.errors import RamifyError, unknown
from ramify.methods.asking import AskingMethod
from ramify.methods.registry import register
from ramify.methods.search.tree_of_thoughts_prompts import PromptedThinker, Thinker
from ramify.methods.search.tree_of_thoughts_states import Breadth, Thoughts
from ramify.models.endpoint import RemoteError

GENERATE = ("propose", "sample")
EVALUATE = ("value", "vote")
SELECT = ("greedy", "sample")
JUDGES = ("logits", "words")


@register(
    name="tree-of-thoughts",
    title="Tree of Thoughts: Deliberate Problem Solving with Large Language Models",
    paper="2305.10601",
    family="search",
    needs=("text",),
    lossless=False,
    stable=False,
)
@dataclass(frozen=True)
class TreeOfThoughts(AskingMethod):
    """Search thought by thought, keeping the states that the model itself thinks best.

    ``depth``: steps, the last of which answers. ``keep``: b, states kept after each. ``generate``: "propose" all
    thoughts of a state in one reply, or "sample" each. ``proposals``: k, how many. ``evaluate``: by "value" of each
    state or by "vote" over all. ``evaluations``: verdicts on a state, or votes. ``judge``: values by "logits" (yes
    against no) or in "words"; None for logits where they are offered. ``select``: the "greedy" best, or "sample" by
    score. ``thought_tokens``: longest reply with thoughts. ``answer_tokens``: longest answer.
    """

    depth: int = 4
    keep: int = 5
    generate: str = "propose"
    proposals: int = 5
    evaluate: str = "value"
    evaluations: int = 3
    judge: str | None = None
    select: str = "greedy"
    thought_tokens: int = 96
    answer_tokens: int = 48

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("generate", self.generate, GENERATE), ("evaluate", self.evaluate, EVALUATE),
            ("select", self.select, SELECT), ("judge", self.judge, (None, *JUDGES)),
        ):  # fmt: skip
            if value not in known:
                raise unknown(kind, str(value), [str(each) for each in known if each])
        for name in ("depth", "keep", "proposals", "evaluations", "thought_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise RamifyError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate == "vote" and self.judge is not None:
            raise RamifyError("votes are given in words and judge nothing; leave judge out, or use evaluate='value'")

    def consult(
        self, writer: Writer, question: str, passages: Sequence[str], answer: Parser, row: int = 0
    ) -> Iterator[Event]:
        thinker = PromptedThinker(writer, passages, self.generate, self.judge, self.thought_tokens, self.answer_tokens)
        found = self.search(thinker, question, answer, seed=writer.seed)
        if found.failure:
            yield Noted(found.failure)
        leaves = [(state, state.answer) for state in found.states]
        votes: dict[str, float] = {}
        for state in found.states:
            if state.answer is not None and state.score > 0:
                votes[state.answer] = max(votes.get(state.answer, 0.0), state.score)
        yield from Grove(found.root, writer.encode, row).decided(leaves, found.answer, votes)

    def search(self, thinker: Thinker, question: str, answer: Parser = whole, seed: int = 0) -> Thoughts:
        """The tree for ``question``; ``answer`` reads the answer from a last thought.

        Where a server fails for good, the answers that were there by then decide. Raises ``RamifyError`` for an empty
        question, and what the thinker raises, a server's failure too where there is no answer yet.
        """
        if not question.strip():
            raise RamifyError("the question is empty; ask something")
        walk = Breadth(self, thinker, question, answer, random.Random(seed))
        try:
            for _ in range(self.depth):
                walk.step()
        except RemoteError as error:
            answered = walk.abandon()
            if not answered:
                raise
            said = f"{str(error).rstrip('.')}; the answer is that of the {len(answered)} states that had one before"
            return Thoughts(walk.root, answered, said)
        return Thoughts(walk.root, walk.finished())
