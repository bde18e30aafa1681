"""Verifiers: exact by enumeration of every draw and every coin, worked numbers, samples, and greedy identity."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare  # type: ignore[import-untyped]
from torch import Tensor

from ramify.engine import drawn as drawn_module
from ramify.engine import verify
from ramify.engine.drawn import Drawn, draw
from ramify.engine.sampling import NodeLaws, Noise, Sampler
from ramify.engine.tree import TokenTree, TreeShape
from ramify.engine.verify import VERIFIERS, Verdict, Verifier
from ramify.errors import RamifyError

Shape = tuple[Any, ...]  # a node is the tuple of its children
Law = Callable[[tuple[int, ...]], Tensor]  # the law after a prefix

LEAF: Shape = ()
CHAIN: Shape = (((LEAF,),),)  # 3 deep
PAIRS: Shape = ((LEAF, LEAF), (LEAF, LEAF))
SHAPES: dict[str, Shape] = {
    "nothing": (),
    "one": (LEAF,),
    "chain": CHAIN,
    "star": (LEAF, LEAF, LEAF),
    "pairs": PAIRS,
    "left-deep": (((LEAF,), LEAF), LEAF),
    "right-deep": (LEAF, (LEAF, (LEAF,))),
    "comb": ((LEAF,), (LEAF,), (LEAF,)),
}
Outcome = tuple[int, tuple[int, ...]]  # accepted tokens, output
GENERATOR = torch.Generator()  # the enumerated rules never touch it


# ---- enumeration: an experiment is replayed once for every sequence of random decisions ----


class Oracle:
    """Takes the decisions of ``script``, then the first possible ones, and notes the others in ``todo``."""

    def __init__(self, script: tuple[int, ...], todo: list[tuple[int, ...]]) -> None:
        self.script, self.todo, self.probability, self.place = script, todo, 1.0, 0

    def choose(self, probabilities: Sequence[float]) -> int:
        if self.place == len(self.script):
            first, *others = (index for index, probability in enumerate(probabilities) if probability > 0.0)
            self.todo.extend((*self.script, index) for index in others)
            self.script += (first,)
        choice = self.script[self.place]
        self.place += 1
        self.probability *= probabilities[choice]
        return choice


def outcomes(experiment: Callable[[Oracle], Outcome]) -> Iterator[tuple[float, Outcome]]:
    todo: list[tuple[int, ...]] = [()]
    while todo:
        oracle = Oracle(todo.pop(), todo)
        result = experiment(oracle)
        yield oracle.probability, result


class Laws:
    """Stands in for ``NodeLaws``: laws of a table, in float64."""

    def __init__(self, tree: TokenTree, target: Law, oracle: Oracle) -> None:
        self.tree, self.target, self.oracle = tree, target, oracle
        self.picked: dict[int, int] = {}

    def law(self, node: int) -> Tensor:
        return self.target(words(self.tree, node))

    def pick(self, node: int) -> int:
        if node not in self.picked:
            self.picked[node] = self.oracle.choose(self.law(node).tolist())
        return self.picked[node]


def words(tree: TokenTree, node: int) -> tuple[int, ...]:
    return tuple(tree.tokens[list(tree.shape.path(node)[1:])].tolist())


def grow(oracle: Oracle, shape: Shape, draft: Law, kind: str) -> TokenTree:
    """A draft below a root of token 0. Kinds: with, without (replacement), cut (one draw more than children),
    fixed (not drawn: likeliest first, the second twice), mixed (by depth)."""
    tokens, parents, drawn = [0], [-1], {}

    def add(node: int, prefix: tuple[int, ...], children: Shape) -> None:
        if not children:
            return
        way = ("without", "fixed", "with")[len(prefix) % 3] if kind == "mixed" else kind
        law = draft(prefix)
        if way == "fixed":
            order = law.argsort(descending=True).tolist()
            found = [*order[:2], order[1], *order[2:]][: len(children)]
        else:
            found, left = [], law
            for _ in range(len(children) + (way == "cut")):
                if float(left.sum()) == 0.0:
                    break
                found.append(oracle.choose((left / left.sum()).tolist()))
                if way != "with":
                    left = left.index_fill(0, torch.tensor(found), 0.0)
            drawn[node] = Drawn(tuple(found), law, way == "with", drawn_module._KEY)
        for token, child in zip(found, children, strict=False):
            tokens.append(token)
            parents.append(node)
            add(len(tokens) - 1, (*prefix, token), child)

    add(0, (), shape)
    return TokenTree(torch.tensor(tokens), TreeShape.of(parents), drawn)


def results(
    monkeypatch: pytest.MonkeyPatch, rule: Verifier, shape: Shape, target: Law, draft: Law, kind: str
) -> Iterator[tuple[float, int, tuple[int, ...]]]:
    """Probability, accepted tokens and output of every outcome of one step."""

    def experiment(oracle: Oracle) -> Outcome:
        monkeypatch.setattr(verify, "_coin", lambda p, _: oracle.choose([1.0 - min(p, 1.0), min(p, 1.0)]) == 1)
        monkeypatch.setattr(verify, "_pick", lambda law, _: oracle.choose((law / law.sum()).tolist()))
        tree = grow(oracle, shape, draft, kind)
        verdict = rule(tree, cast(NodeLaws, Laws(tree, target, oracle)), GENERATOR)
        assert verdict.path[0] == 0
        assert all(tree.shape.parents[b] == a for a, b in zip(verdict.path, verdict.path[1:], strict=False))
        return len(verdict.path) - 1, (*words(tree, verdict.path[-1]), verdict.token)

    for probability, (accepted, output) in outcomes(experiment):
        yield probability, accepted, output


def depth(shape: Shape) -> int:
    return 1 + max(map(depth, shape)) if shape else 0


def error(monkeypatch: pytest.MonkeyPatch, rule: Verifier, shape: Shape, target: Law, draft: Law, kind: str) -> float:
    """Largest difference between the law of the first depth + 1 tokens and the target's."""
    got: dict[tuple[int, ...], float] = defaultdict(float)
    total = 0.0
    for probability, _, output in results(monkeypatch, rule, shape, target, draft, kind):
        got[output] += probability
        total += probability
    assert total == pytest.approx(1.0, abs=1e-12)
    worst = 0.0
    frontier: list[tuple[tuple[int, ...], float, float]] = [((), 1.0, 0.0)]  # prefix, target's law, law of the output
    while frontier:
        prefix, wanted, have = frontier.pop()
        if len(prefix) == depth(shape) + 1:
            worst = max(worst, abs(wanted - have))
            continue
        for token, p in enumerate(target(prefix).tolist()):
            longer = (*prefix, token)
            frontier.append((longer, wanted * p, have * p + got.get(longer, 0.0)))
    return worst


def accepted(monkeypatch: pytest.MonkeyPatch, name: str, shape: Shape, target: Law, draft: Law, kind: str) -> float:
    rule = VERIFIERS[name].function
    return sum(p * count for p, count, _ in results(monkeypatch, rule, shape, target, draft, kind))


def table(seed: int, size: int) -> tuple[Law, Law]:
    """Random history-dependent target and draft: some zeros, and after some prefixes both equal."""

    @functools.cache
    def pair(prefix: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, size, len(prefix), *prefix])
        laws = rng.dirichlet(np.full(size, 0.7), size=2) * (rng.random((2, size)) > 0.2)
        laws[laws.sum(axis=1) == 0.0] = 1.0
        p, q = torch.from_numpy(laws / laws.sum(axis=1, keepdims=True))
        return (p, p.clone()) if rng.random() < 0.15 else (p, q)

    return (lambda prefix: pair(prefix)[0]), (lambda prefix: pair(prefix)[1])


def constant(*law: float) -> Law:
    return lambda prefix: torch.tensor(law, dtype=torch.float64)


# ---- exactness ----

EXACT = [(name, kind) for name in ("match", "speculative", "traversal") for kind in ("with", "without", "fixed")]
EXACT += [(name, kind) for name in ("speculative", "traversal") for kind in ("cut", "mixed")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "kind"), EXACT)
def test_output_follows_the_target(monkeypatch: pytest.MonkeyPatch, name: str, kind: str, shape: str) -> None:
    for seed in range(2):
        target, draft = table(seed, 3)
        assert error(monkeypatch, VERIFIERS[name].function, SHAPES[shape], target, draft, kind) < 1e-9


@pytest.mark.parametrize("kind", ["with", "without", "fixed", "cut", "mixed"])
@pytest.mark.parametrize("name", ["speculative", "block", "traversal"])
def test_output_of_chains_and_stars_over_four_tokens(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    shapes = [(), (LEAF,), CHAIN] if name == "block" else [CHAIN, (LEAF, LEAF, LEAF), (LEAF, (LEAF,))]
    for seed in range(3):
        target, draft = table(100 + seed, 4)
        for shape in shapes:
            assert error(monkeypatch, VERIFIERS[name].function, shape, target, draft, kind) < 1e-9


def test_draft_equal_to_target_is_always_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = table(5, 3)
    for name in ("speculative", "block", "traversal"):
        assert error(monkeypatch, VERIFIERS[name].function, CHAIN, target, target, "with") < 1e-9
        assert accepted(monkeypatch, name, CHAIN, target, target, "with") == pytest.approx(3.0)


def test_enumeration_notices_a_law_that_was_not_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widespread error: the draft's argmax, judged by its softmax; the output law is (.4, .6, 0)."""
    target, draft = constant(0.5, 0.3, 0.2), constant(0.2, 0.5, 0.3)

    def wrong(tree: TokenTree, laws: NodeLaws, generator: torch.Generator) -> Verdict:
        claim = Drawn((1,), draft(()), True, drawn_module._KEY)
        lie = TokenTree(torch.tensor([0, 1]), TreeShape.chain(2), {0: claim})
        return verify.speculative_sampling(lie, laws, generator)

    law = [0.0, 0.0, 0.0]
    for probability, _, output in results(monkeypatch, wrong, (LEAF,), target, draft, "fixed"):
        law[output[0]] += probability
    assert law == pytest.approx([0.4, 0.6, 0.0])


# ---- worked numbers ----


@pytest.mark.parametrize(
    ("children", "kind", "rate"),
    [(1, "with", 0.7), (1, "without", 0.7), (2, "with", 0.760), (2, "without", 0.8086), (3, "with", 0.808),
     (3, "without", 1.0), (1, "fixed", 0.3), (2, "fixed", 0.5)],
)  # fmt: skip
def test_acceptance_at_one_node(monkeypatch: pytest.MonkeyPatch, children: int, kind: str, rate: float) -> None:
    target, draft = constant(0.5, 0.3, 0.2), constant(0.2, 0.5, 0.3)
    got = accepted(monkeypatch, "speculative", (LEAF,) * children, target, draft, kind)
    assert got == pytest.approx(rate, abs=5e-4)


def test_acceptance_of_fixed_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = constant(0.5, 0.3, 0.2), constant(0.3, 0.5, 0.2)  # candidates: token 1, then 0, then 0 again
    assert accepted(monkeypatch, "speculative", (LEAF,) * 2, target, draft, "fixed") == pytest.approx(0.8)
    assert accepted(monkeypatch, "speculative", (LEAF,) * 3, target, draft, "fixed") == pytest.approx(0.8)


def test_residual_after_a_rejection() -> None:
    law, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    rest = verify._residual(law, 1, q)
    assert (rest / rest.sum()).tolist() == [1.0, 0.0, 0.0]
    assert law.tolist() == pytest.approx([0.5, 0.3, 0.2])  # untouched


def test_block_and_token_wise_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft, chain = constant(1 / 3, 2 / 3), constant(2 / 3, 1 / 3), ((LEAF,),)
    assert accepted(monkeypatch, "speculative", chain, target, draft, "with") == pytest.approx(10 / 9)
    assert accepted(monkeypatch, "block", chain, target, draft, "with") == pytest.approx(11 / 9)


def test_block_agrees_with_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 5 as the paper writes it, forwards, gives the same law of the number of accepted tokens."""
    for seed in range(5):
        target, draft = table(200 + seed, 3)
        have, want = [0.0] * 4, [0.0] * 4
        for probability, count, _ in results(monkeypatch, verify.block_verification, CHAIN, target, draft, "with"):
            have[count] += probability
        for prefix in np.ndindex(3, 3, 3):
            words_, chance, weight, h = tuple(map(int, prefix)), 1.0, 1.0, [1.0]
            for i, x in enumerate(words_):
                p, q = float(target(words_[:i])[x]), float(draft(words_[:i])[x])
                chance *= q
                weight = min(weight * p / q, 1.0) if q > 0.0 else 0.0
                if i < 2:
                    rest = float((weight * target(words_[: i + 1]) - draft(words_[: i + 1])).clamp(min=0).sum())
                    gap = rest + 1.0 - weight
                    h.append(rest / gap if gap > 1e-15 else 1.0)
                else:
                    h.append(weight)
            for count in (3, 2, 1, 0):
                want[count] += chance * h[count]
                chance *= 1.0 - h[count]
        assert have == pytest.approx(want, abs=1e-9)


def typical(law: Sequence[float], **options: float) -> list[bool]:
    """Which tokens of a law are accepted."""

    def takes(token: int) -> bool:
        tree = TokenTree.chain([0, token])
        laws = Laws(tree, constant(*law), Oracle((), []))
        rule: Verifier = functools.partial(cast(Any, verify.typical_acceptance), **options)
        return len(rule(tree, cast(NodeLaws, laws), GENERATOR).path) == 2

    return [takes(token) for token in range(len(law))]


def test_typical_thresholds() -> None:
    assert typical([0.5, 0.3, 0.2]) == [True] * 3
    assert math.exp(-1.030) == pytest.approx(0.357, abs=1e-3)
    assert typical([0.5, 0.3, 0.2], epsilon=1.0, delta=0.2005 / 0.357) == [True, True, False]  # exp(-H) = 0.357
    assert typical([0.5, 0.3, 0.2], epsilon=1.0, delta=0.1990 / 0.357) == [True, True, True]
    assert typical([0.5, 0.32, 0.0901, 0.0899]) == [True, True, True, False]  # epsilon = 0.09 is the smaller bound
    assert typical([0.1] * 10, epsilon=1.0, delta=0.99) == [True] * 10  # 0.3 exp(-H) = 0.03
    assert typical([0.1] * 10, epsilon=1.0, delta=1.01) == [False] * 10
    assert typical([0.097] * 10 + [0.0284, 0.0016]) == [True] * 11 + [False]  # 0.3 exp(-H) = 0.0279
    assert typical([0.097] * 10 + [0.0275, 0.0025]) == [True] * 10 + [False] * 2


def test_typical_takes_the_longest_then_the_likeliest_path() -> None:
    def target(prefix: tuple[int, ...]) -> Tensor:
        return torch.tensor([0.2, 0.3, 0.5] if len(prefix) < 2 else [0.1, 0.8, 0.1], dtype=torch.float64)

    tree = TokenTree.from_paths([[2], [0, 1], [1, 1], [1, 0]]).rooted(0)
    laws = cast(NodeLaws, Laws(tree, target, Oracle((), [])))
    verdict = verify.typical_acceptance(tree, laws, GENERATOR)
    assert (words(tree, verdict.path[-1]), verdict.token) == ((1, 1), 1)


# ---- how much is accepted ----


@pytest.mark.parametrize("seed", range(8))
def test_order_of_expected_acceptance(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    target, draft = table(300 + seed, 3)
    rate = functools.partial(accepted, monkeypatch, target=target, draft=draft)
    chain = rate("speculative", ((LEAF,),), kind="with")
    rounds = rate("speculative", PAIRS, kind="with")
    recursive = rate("speculative", PAIRS, kind="without")
    assert chain <= rounds + 1e-12
    assert rounds <= recursive + 1e-12
    assert recursive <= rate("traversal", PAIRS, kind="without") + 1e-12
    assert chain <= rate("block", ((LEAF,),), kind="with") + 1e-12


def test_traversal_can_lose_where_a_leaf_comes_before_a_deep_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = table(30, 3)
    rate = functools.partial(accepted, monkeypatch, shape=SHAPES["right-deep"], target=target, draft=draft)
    assert rate("speculative", kind="without") == pytest.approx(0.87495, abs=1e-5)
    assert rate("traversal", kind="without") == pytest.approx(0.85594, abs=1e-5)


# ---- real draws, real generator ----

SIZE = 6
P_LOGITS = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))
Q_LAWS = torch.softmax(P_LOGITS + torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(2)), dim=-1)


def drafted(generator: torch.Generator, *, chain: bool) -> TokenTree:
    """Below token 0: two draws without replacement, under the first one draw, under the second a fixed token; or a
    chain of two draws."""
    top = draw(Q_LAWS[0], 1 if chain else 2, generator)
    below = draw(Q_LAWS[top.tokens[0]], 1, generator, replacement=True)
    if chain:
        return TokenTree(torch.tensor([0, *top.tokens, *below.tokens]), TreeShape.chain(3), {0: top, 1: below})
    return TokenTree(
        torch.tensor([0, *top.tokens, *below.tokens, 3]), TreeShape.of((-1, 0, 0, 1, 2)), {0: top, 1: below}
    )


@pytest.mark.parametrize("name", [name for name, rule in VERIFIERS.items() if rule.lossless])
def test_twenty_thousand_samples(name: str) -> None:
    """Chi-squared of the first two tokens."""
    generator, rng = torch.Generator().manual_seed(11), np.random.default_rng(12)
    target = torch.softmax(P_LOGITS, dim=-1).double().numpy()
    counts, scratch, samples = np.zeros((SIZE, SIZE)), torch.zeros(8, dtype=torch.long), 20_000
    rule = VERIFIERS[name].function
    spare = rng.random(samples)
    for sample in range(samples):
        tree = drafted(generator, chain=name == "block")
        sampler = Sampler(greedy=False, noise=Noise(sample))
        verdict = rule(tree, NodeLaws(sampler, tree, P_LOGITS[tree.tokens], scratch, 1), generator)
        first, *more = (*words(tree, verdict.path[-1]), verdict.token)
        second = more[0] if more else min(int((target[first].cumsum() < spare[sample]).sum()), SIZE - 1)
        counts[first, second] += 1
    wanted = target[0][:, None] * target * samples
    assert chisquare(counts.ravel(), wanted.ravel() * samples / wanted.sum()).pvalue > 1e-3


# ---- greedy ----


@st.composite
def hostile(draw_: st.DrawFn) -> TokenTree:
    """Any tree below token 0: repeated siblings, siblings in any order, some children drawn from any law."""
    size = draw_(st.integers(0, 12))
    chain = draw_(st.booleans())
    parents = [-1, *(i if chain else draw_(st.integers(0, i)) for i in range(size))]
    shape = TreeShape.of(parents)
    tokens = torch.tensor([0, *draw_(st.lists(st.integers(0, SIZE - 1), min_size=size, max_size=size))])
    generator = torch.Generator().manual_seed(draw_(st.integers(0, 1000)))
    drawn = {}
    for node in range(len(shape)):
        children = list(shape.children[node])
        if len(children) > 0 and draw_(st.booleans()):
            law = torch.rand(SIZE, generator=generator) + 0.01
            law[draw_(st.integers(0, SIZE - 1))] = 0.0
            draws = draw(law, len(children), generator, replacement=len(children) >= SIZE or draw_(st.booleans()))
            drawn[node], tokens[children] = draws, torch.tensor(draws.tokens)
    return TokenTree(tokens, shape, drawn)


@settings(max_examples=60, deadline=None)
@given(tree=hostile(), shift=st.integers(0, 5))
def test_greedy_gives_the_greedy_tokens(tree: TokenTree, shift: int) -> None:
    """Next token = 2 · token + depth + shift: no rule may leave that path, whatever the draft."""

    def following(token: int, place: int) -> int:
        return (2 * token + place + shift) % SIZE

    logits = torch.randn(len(tree), SIZE)
    for node, place in enumerate(tree.shape.depth):
        logits[node, following(int(tree.tokens[node]), place)] = 9.0
    for name, rule in VERIFIERS.items():
        laws = NodeLaws(Sampler(), tree, logits, torch.zeros(20, dtype=torch.long), 1)
        if name == "block" and not tree.shape.is_chain:
            continue
        verdict = rule.function(tree, laws, torch.Generator().manual_seed(0))
        token = 0
        for place, have in enumerate((*words(tree, verdict.path[-1]), verdict.token)):
            token = following(token, place)
            assert have == token, name
        plain = verify.match(tree, laws, GENERATOR)
        assert len(verdict.path) >= len(plain.path)
        assert len(verdict.path) == len(plain.path) or not rule.lossless


# ---- contracts ----


def test_drawn_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="make it with draw"):
        Drawn((0,), torch.tensor([1.0]), True, object())
    with pytest.raises(TypeError):
        Drawn((0,), torch.tensor([1.0]), True)  # type: ignore[call-arg]


def test_draw_keeps_the_law_that_it_draws_from() -> None:
    weights = torch.tensor([3.0, 1.0, 0.0], dtype=torch.bfloat16)
    draws = draw(weights, 5, torch.Generator().manual_seed(0))
    weights.zero_()
    assert draws.law.dtype == torch.float32
    assert draws.law.tolist() == [0.75, 0.25, 0.0]
    assert sorted(draws.tokens) == [0, 1]  # no more than the law supports


def test_draw_never_takes_an_impossible_token() -> None:
    law = torch.zeros(50)
    law[7], law[9] = 1.0, 1e-45
    generator = torch.Generator().manual_seed(0)
    assert all(draw(law, 2, generator).tokens == (7, 9) for _ in range(200))


def test_draw_without_replacement_is_in_the_order_of_the_draws() -> None:
    law, generator = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.Generator().manual_seed(0)
    counts = np.zeros((4, 4))
    for _ in range(4000):
        counts[draw(law, 2, generator).tokens] += 1
    p = law.double().numpy()
    wanted = p[:, None] * p[None, :] / (1.0 - p[:, None])
    off = ~np.eye(4, dtype=bool)
    assert counts[~off].sum() == 0
    assert chisquare(counts[off], wanted[off] / wanted[off].sum() * 4000).pvalue > 1e-3


def test_block_refuses_branches() -> None:
    tree = TokenTree.from_paths([[1], [2]]).rooted(0)
    laws = cast(NodeLaws, Laws(tree, constant(0.5, 0.5, 0.0), Oracle((), [])))
    with pytest.raises(RamifyError, match="without branches"):
        verify.block_verification(tree, laws, GENERATOR)


@pytest.mark.parametrize(
    ("tokens", "found", "replacement"),
    [([1, 0], (0, 1), False), ([0, 2], (0, 1, 2), False), ([0, 1], (0,), True), ([0, 1], (0, 1, 0), True),
     ([0, 1], (0, 0, 1), True)],
)  # fmt: skip
def test_children_must_follow_their_draws(tokens: list[int], found: tuple[int, ...], replacement: bool) -> None:
    claim = Drawn(found, torch.full((3,), 1 / 3), replacement, drawn_module._KEY)
    tree = TokenTree(torch.tensor([0, *tokens]), TreeShape.of((-1, 0, 0)), {0: claim})
    laws = cast(NodeLaws, Laws(tree, constant(0.2, 0.3, 0.5), Oracle((), [])))
    for name in ("speculative", "traversal"):
        with pytest.raises(RamifyError, match="order of the draws"):
            VERIFIERS[name].function(tree, laws, GENERATOR)


def test_verifiers_keep_float64_and_leave_laws_alone() -> None:
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rest = verify._residual(law, 0, torch.tensor([0.2, 0.5, 0.3]))
    assert rest.dtype == torch.float64
    assert verify._residual(law, 0, None).tolist() == [0.0, 0.3, 0.2]
    assert law.tolist() == [0.5, 0.3, 0.2]


def test_a_token_that_the_target_excludes_is_never_accepted() -> None:
    assert verify._ratio(0.0, 0.0) == verify._ratio(0.0, 0.5) == 0.0
    assert verify._ratio(0.1, 0.0) == verify._ratio(0.3, 0.3) == 1.0
    assert verify._ratio(0.1, 0.4) == 0.25
