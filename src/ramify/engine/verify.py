"""Verifiers: which path of a scored tree is accepted, and which token comes after it.

A verifier is a function ``(tree, target, generator) -> Verdict``. Node 0 of ``tree`` is the pending token,
``target.law(v)`` is p_v, the target's law after node v, and q_v is the law that the children of v were really drawn
from. Lossless means: accepted tokens and the token after them follow p exactly, whatever the draft.

All exact rules see the children x_1, x_2, ... of a node in the order of their draw, each with its law *given the
earlier ones* (``_candidates``): q every time when drawn with replacement; q without the earlier tokens, normalised,
when drawn without; one-hot when the drafter did not draw at all. A tree may hold fewer children than were drawn, as
long as their number was settled before the draw (a depth or node budget): a prefix of the draws is exact, a choice
among them by their values is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.drawn import Drawn
from ramify.engine.sampling import NodeLaws
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.models.cache import send


@dataclass(frozen=True)
class Verdict:
    """``path``: accepted nodes from the root (node 0, always accepted) down; ``token``: what follows the last one."""

    path: tuple[int, ...]
    token: int


def match(tree: TokenTree, target: NodeLaws, generator: torch.Generator) -> Verdict:
    """Sample one token at each visited node and follow the child that carries it; greedy is its zero-temperature case.

    Lossless for any drafter: every committed token is a sample of the target's law, drawn once per visited node.
    ``generator`` is unused: the choice comes from the sequence's position-indexed noise, so the tokens equal those of
    plain decoding with the same seed.
    """
    return walk(tree, target.pick)


def walk(tree: TokenTree, choose: Callable[[int], int]) -> Verdict:
    """From the root to the child that carries the token chosen after each node, as far as there is one."""
    tokens = tree.tokens.tolist()
    path = [0]
    while True:
        token = choose(path[-1])
        child = next((c for c in tree.shape.children[path[-1]] if tokens[c] == token), None)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(child)


def speculative_sampling(tree: TokenTree, target: NodeLaws, generator: torch.Generator) -> Verdict:
    """Rejection sampling from the root down, child after child.

    At a node r = p; candidate x of law q is accepted with probability min(1, r(x)/q(x)), and a rejection leaves
    r = norm(max(r - q, 0)). When no candidate is left the token is drawn from r. This one walk is

    - speculative sampling for one child (arXiv 2211.17192, 2302.01318), accepted with probability sum min(p, q);
    - SpecInfer's multi-round sampling for children drawn with replacement (arXiv 2305.09781);
    - recursive rejection sampling for children drawn without replacement (arXiv 2402.14160);
    - EAGLE-2's rule for children that were not drawn (arXiv 2406.16858): accepted with probability r(x), else x is
      removed from r, so a second sibling with the same token is never accepted.

    Lossless.
    """
    path = [0]
    while True:
        law = target.law(path[-1])
        for child, token, q in _candidates(tree, path[-1]):
            if _coin(_ratio(float(law[token]), _at(q, token)), generator):
                path.append(child)
                break
            rest = _residual(law, token, q)
            total = float(rest.sum())
            if total <= 0.0:  # r = q, so only rounding can have rejected: commit from r itself
                return Verdict(tuple(path), _pick(law, generator))
            law = rest / total
        else:
            return Verdict(tuple(path), _pick(law, generator))


def block_verification(tree: TokenTree, target: NodeLaws, generator: torch.Generator) -> Verdict:
    """Block verification (arXiv 2403.10444): a chain X_1..X_n is accepted as a whole as far as it can be.

    w_0 = 1, w_i = min(w_{i-1} p(X_i)/q(X_i), 1); S_i = sum_x max(w_i p(x) - q(x), 0) after X_i;
    h_i = S_i / (S_i + 1 - w_i) for i < n, h_n = w_n. With coins of these probabilities, the longest X_1..X_i whose
    coin falls well is accepted, and the token is drawn from norm(max(w_i p - q, 0)), from p when i = n. Lossless, and
    accepts at least as many tokens as ``speculative_sampling`` on average.

    Traversal verification on a chain is this rule term by term, its coins thrown from the last token backwards.
    """
    if not tree.shape.is_chain:
        raise RamifyError("block verification needs a draft without branches; use the verifier 'traversal' for trees")
    return traversal_verification(tree, target, generator)


@dataclass
class _Open:
    """A node on the path under inspection: its copies of p and of the weight w, and how it was proposed."""

    node: int
    token: int
    q: Tensor | None
    weight: float
    law: Tensor
    waiting: Iterator[tuple[int, int, Tensor | None]]

    def reject(self, token: int, q: Tensor | None) -> None:
        """Take the child ``token`` away: p = norm(max(w p - q, 0)) and w = S / (S + 1 - w), S the sum before norm."""
        rest = _residual(self.law, token, q, self.weight)
        total = float(rest.sum())
        gap = total + 1.0 - self.weight
        self.weight = total / gap if gap > 0.0 else 1.0  # 0/0: p = q, where only rounding can have rejected
        if total > 0.0:
            self.law = rest / total


def traversal_verification(tree: TokenTree, target: NodeLaws, generator: torch.Generator) -> Verdict:
    """Traversal verification (arXiv 2505.12398): from the leaves up to the root, the first child first.

    A child x of u has weight w = min(w_u p_u(x)/q_u(x), 1), the root 1. The first leaf is accepted, with its whole
    path, with probability w, and the token drawn from its p. Otherwise it is deleted and its parent u is left with
    p_u = norm(R), w_u = S / (S + 1 - w_u), where R = max(w_u p_u - q_u, 0) and S = sum R; u is itself a leaf once all
    its children are gone. Lossless. The paper asks for children drawn without replacement; since only the law of a
    child given the earlier ones enters, children drawn with replacement or not drawn at all are exact too.

    On trees whose leaves are equally deep it has never been seen to accept fewer tokens on average than
    ``speculative_sampling``. Where a leaf comes before a deep sibling it can: what the leaf takes, the sibling loses.
    """
    stack = [_Open(0, -1, None, 1.0, target.law(0), _candidates(tree, 0))]
    while True:
        top = stack[-1]
        step = next(top.waiting, None)
        if step is not None:
            node, token, q = step
            weight = _ratio(top.weight * float(top.law[token]), _at(q, token))
            if weight > 0.0:
                stack.append(_Open(node, token, q, weight, target.law(node), _candidates(tree, node)))
            else:  # everything below has weight 0 as well: delete it unseen
                top.reject(token, q)
        elif len(stack) == 1 or _coin(top.weight, generator):
            return Verdict(tree.shape.path(top.node), _pick(top.law, generator))
        else:
            stack.pop()
            stack[-1].reject(top.token, top.q)


def typical_acceptance(
    tree: TokenTree, target: NodeLaws, generator: torch.Generator, *, epsilon: float = 0.09, delta: float = 0.3
) -> Verdict:
    """Typical acceptance (Medusa, arXiv 2401.10774). LOSSY: the output is plausible under p, not a sample of it.

    A child x is accepted when p(x) > min(epsilon, delta * exp(-H(p))), H the entropy in nats. The longest path of
    accepted nodes wins, among equals the one of larger sum of log p; the token after it is the argmax of its law.
    ``generator`` is unused: nothing is random. Other thresholds: ``functools.partial(typical_acceptance, epsilon=..)``.
    """
    tokens = tree.tokens.tolist()
    score = {0: (0, 0.0)}
    for node in range(len(tree)):
        children = tree.shape.children[node]
        if node not in score or not children:
            continue
        law = target.law(node)
        threshold = min(epsilon, delta * math.exp(-float(torch.special.entr(law).sum())))
        length, total = score[node]
        for child in children:
            probability = float(law[tokens[child]])
            if probability > threshold:
                score[child] = (length + 1, total + math.log(probability))
    last = max(score, key=score.__getitem__)
    return Verdict(tree.shape.path(last), int(target.law(last).argmax()))


Verifier = Callable[[TokenTree, NodeLaws, torch.Generator], Verdict]


@dataclass(frozen=True)
class Rule:
    """A verifier, whether its output follows the target's law exactly, and what it does in one line."""

    function: Verifier
    lossless: bool
    summary: str


VERIFIERS: dict[str, Rule] = {
    "match": Rule(match, True, "sample as plain decoding would and follow the draft while it agrees"),
    "speculative": Rule(speculative_sampling, True, "rejection sampling from the root down, children in turn"),
    "block": Rule(block_verification, True, "joint rejection sampling of a chain, longest accepted prefix"),
    "traversal": Rule(traversal_verification, True, "joint rejection sampling of a tree, from the leaves up"),
    "typical": Rule(typical_acceptance, False, "accept whatever is likely enough under the target (Medusa)"),
}


def _candidates(tree: TokenTree, node: int) -> Iterator[tuple[int, int, Tensor | None]]:
    """Children of ``node`` in order: node, token, and law [V] given the earlier ones (None: one-hot at the token)."""
    children = tree.shape.children[node]
    if not children:
        return
    tokens: list[int] = tree.tokens[list(children)].tolist()
    drawn = tree.drawn.get(node)
    if drawn is None:
        for child, token in zip(children, tokens, strict=True):
            yield child, token, None
        return
    _check_order(node, tokens, drawn)
    law = drawn.law
    for child, token in zip(children, tokens, strict=True):
        yield child, token, law
        if not drawn.replacement:
            law = law.clone()
            law[token] = 0.0
            total = law.sum()
            if total <= 0.0:
                return
            law = law / total


def _check_order(node: int, tokens: list[int], drawn: Drawn) -> None:
    """Refuse children that are no prefix of their draws, for then their law is not the one that is recorded."""
    # A repeated draw that is missing may have been merged into its twin, which would bias the output: the number of
    # rounds would depend on what was drawn.
    merged = drawn.replacement and set(drawn.tokens[len(tokens) : len(tokens) + 1]) & set(tokens)
    if tuple(tokens) != drawn.tokens[: len(tokens)] or merged:
        raise RamifyError(
            f"the children of node {node} carry the tokens {tokens} but {list(drawn.tokens)} were drawn; "
            "keep the order of the draws, and repeated draws as separate siblings"
        )


def _at(q: Tensor | None, token: int) -> float:
    return 1.0 if q is None else float(q[token])


def _ratio(p: float, q: float) -> float:
    """min(1, p/q); a token that the target excludes is never accepted, not even where q is 0 as well."""
    return p / q if p < q else float(p > 0.0)


def _residual(law: Tensor, token: int, q: Tensor | None, weight: float = 1.0) -> Tensor:
    """max(weight * law - q, 0), in the wider precision of the two."""
    if q is None:
        rest = weight * law
        rest[token] = 0.0
        return rest
    return (weight * law - send(q, law.device)).clamp_(min=0.0)


def _coin(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    uniform = torch.rand((), dtype=torch.float64, generator=generator, device=generator.device)
    return float(uniform) < probability


def _pick(law: Tensor, generator: torch.Generator) -> int:
    """A sample of ``law`` [V], normalised or not, by an exponential race; in float64, where no quotient underflows."""
    race = torch.empty(law.shape, dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    return int((law / send(race, law.device)).argmax())
