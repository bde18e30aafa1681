"""Exact probabilities over a set of answers, and what a constraint kept of the model's law along a text.

For an answer set A, with p(x) the model's probability of the tokens of x and an end token behind them,

    q(x) = p(x) / Z        Z = Σ_{y ∈ A} p(y)

A trie is a token tree, so one forward pass scores all answers, their common beginnings once. This is not the law of
masking and renormalising token by token (``Constrained``), under which even another answer may be likeliest: with
tokens a .5, b .2, c .1, end .2, each drawn independently, and answers ab, ac, b, it is .476, .238, .286, and here .286,
.143, .571. Z is the model's probability of any of the answers, a reason to abstain where it is small.

Cost: one row for each node of the trie and of the prompt; at most ``NODES`` nodes run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.constrain.constraint import Constraint
from ramify.constrain.trie import spellings
from ramify.constrain.vocabulary import Vocabulary
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.models.causal import CausalLM

NODES = 256  # nodes in one pass: their logits are [256, V]


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What the model thinks of a set of answers.

    ``answers``: texts or token tuples. ``log_probs``: ln p of each, float64 [A]. ``lengths``: tokens of each, in its
    likeliest spelling, the end included.
    """

    answers: Sequence[str] | Sequence[tuple[int, ...]]
    log_probs: Tensor
    lengths: Sequence[int]

    @property
    def mass(self) -> float:
        """Z: the model's probability of any of the answers."""
        return float(self.log_probs.exp().sum())

    @property
    def probabilities(self) -> Tensor:
        """q: the model's law given that it says one of the answers; [A], summing to 1."""
        return torch.softmax(self.log_probs, dim=0)

    @property
    def best(self) -> int:
        """Place of the likeliest answer, the first among equals."""
        return int(self.log_probs.argmax())

    @property
    def per_token(self) -> Tensor:
        """Mean log-probability of a token of each answer [A], which does not favour short ones."""
        return self.log_probs / torch.tensor(self.lengths)

    def beyond(self, prior: AnswerScores) -> Tensor:
        """ln p(x | prompt) − ln p(x | another prompt) [A]: what this prompt says for each answer."""
        if list(prior.answers) != list(self.answers):
            raise RamifyError("the prior was computed for other answers; score the same ones behind the null prompt")
        return self.log_probs - prior.log_probs


@dataclass(frozen=True)
class Trace:
    """What a constraint kept along a text.

    ``masses``: at every token, and at the end, the model's probability of all that was allowed. ``log_prob``: ln of the
    text's probability under the model's own law, its end included if it may end there.
    """

    masses: tuple[float, ...]
    log_prob: float


def score_phrases(
    lm: CausalLM, prompt: str, answers: Sequence[str], vocabulary: Vocabulary | None = None, *, ended: bool = True
) -> AnswerScores:
    """Probabilities of ``answers`` as texts; those of an answer with and without a blank before it add up.

    ``ended``: the text has to end behind the answer; without it, p is that of a text that begins so.
    """
    vocabulary = vocabulary or Vocabulary.of(lm)
    spelled = [spellings(vocabulary, answer, prompt) for answer in answers]
    paths = [path for each in spelled for path in each]
    scores = score_answers(lm, lm.encode(prompt), paths, sorted(vocabulary.ends) if ended else ())
    logs = torch.split(scores.log_probs, [len(each) for each in spelled])
    likeliest = [each[int(own.argmax())] for own, each in zip(logs, spelled, strict=True)]
    together = torch.stack([torch.logsumexp(own, dim=0) for own in logs])
    return AnswerScores(tuple(answers), together, [len(path) + ended for path in likeliest])


def score_answers(
    lm: CausalLM, prompt: Sequence[int], answers: Sequence[Sequence[int]], ends: Sequence[int]
) -> AnswerScores:
    """Probabilities of ``answers`` as ids behind the ids ``prompt``, each followed by any of ``ends``.

    Without ``ends``, p is that of a text that begins with the answer. Raises ``RamifyError`` for an empty set, an empty
    answer, one that is named twice, and an empty prompt.
    """
    paths = [tuple(answer) for answer in answers]
    if not paths or not all(paths):
        raise RamifyError("an answer set needs at least one answer, and each at least one token")
    if len(set(paths)) < len(paths):
        raise RamifyError("the answer set names one answer twice (or two that the tokenizer does not tell apart)")
    if not prompt:
        raise RamifyError("the prompt is empty; give at least one token")
    found = torch.zeros(len(paths), dtype=torch.float64)
    session: Session | None = None
    for places, tree in _trees(paths, prompt[-1], merged=lm.trees):
        if session is None or not lm.trees:  # without trees nothing that was read can be taken back
            session = _opened(lm, prompt, len(tree))
        logp = torch.log_softmax(session.score(tree).logits[0].double(), dim=-1).cpu()
        session.keep([() if lm.trees else range(len(tree))])
        child = {edge: node for node, edge in enumerate(zip(tree.shape.parents, tree.tokens.tolist(), strict=True))}
        for place in places:
            found[place] = _read(child, logp, paths[place], ends)
    return AnswerScores(paths, found, [len(path) + bool(ends) for path in paths])


def _trees(paths: Sequence[tuple[int, ...]], pending: int, merged: bool) -> list[tuple[list[int], TokenTree]]:
    """Tries of at most about ``NODES`` nodes, with the places of the ``paths`` in each; one by one if not ``merged``.

    Sorted, so that common beginnings come together.
    """
    groups: list[list[int]] = []
    room = 0
    for place in sorted(range(len(paths)), key=lambda place: paths[place]) if merged else range(len(paths)):
        room -= len(paths[place])
        if room < 0 or not merged:
            groups.append([])
            room = NODES - len(paths[place])
        groups[-1].append(place)
    return [(group, TokenTree.from_paths(paths[place] for place in group).rooted(pending)) for group in groups]


def _read(child: dict[tuple[int, int], int], logp: Tensor, path: Sequence[int], ends: Sequence[int]) -> float:
    """ln p of ``path`` and an end, from the log-laws [N, V] at a tree's nodes, of which 0 is the pending token.

    ``child``: by parent and token, the node.
    """
    node, total = 0, 0.0
    for token in path:
        total += float(logp[node, token])
        node = child[node, token]
    return total + (float(torch.logsumexp(logp[node, list(ends)], dim=0)) if ends else 0.0)


def _opened(lm: CausalLM, prompt: Sequence[int], nodes: int) -> Session:
    """A session that has read all of ``prompt`` but its last token, with room for ``nodes`` more."""
    session = Session(lm, 1, capacity=len(prompt) + nodes)
    if len(prompt) > 1:
        session.prefill([list(prompt[:-1])])
    return session


@torch.inference_mode()
def trace(lm: CausalLM, prompt: Sequence[int], tokens: Sequence[int], constraint: Constraint) -> Trace:
    """What ``constraint`` kept along ``tokens`` behind ``prompt``, and of the end if they may end there; one pass."""
    session = _opened(lm, prompt, len(tokens) + 1)
    laws = torch.softmax(session.score(TokenTree.chain([prompt[-1], *tokens])).logits[0].double(), dim=-1).cpu()
    states = [constraint.start()]
    for token in tokens:
        states.append(constraint.advance(states[-1], token))
    if not states[-1].accepting:
        laws, states = laws[:-1], states[:-1]
    masses = (laws * constraint.mask(states)).sum(dim=-1)
    chosen = laws[range(len(tokens)), list(tokens)].log().sum()
    ending = laws[-1, sorted(constraint.vocabulary.ends)].sum().log() if len(states) > len(tokens) else 0.0
    return Trace(tuple(masses.tolist()), float(chosen + ending))
