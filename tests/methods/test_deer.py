"""DEER: blocks that see themselves, laws that tokens were drawn from, rejection, weights, and what bounds a draft."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import heads
import pytest
import torch
from families import CONTEXT, VOCABULARY, build, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare  # type: ignore[import-untyped]
from torch import Tensor

from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.drawn import draw
from ramify.engine.sampling import NodeLaws, Sampler
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.engine.verify import speculative_sampling
from ramify.errors import RamifyError
from ramify.methods.draft import deer_draft
from ramify.methods.draft.deer import Deer
from ramify.methods.draft.deer_draft import FEW, BlockDrafter, Filler, fastest, verifying
from ramify.methods.draft.deer_head import DeerHead, DeerSizes, outer, weights
from ramify.methods.draft.deer_layout import layout, scattered
from ramify.methods.draft.sizing import PromisedSize
from ramify.methods.head import load_head
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load

PROMPT = text(17, 2, period=6)
RUNS = 1000
WAYS = [(sight, shift) for sight in ("causal", "full") for shift in (True, False)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5 * float(expected.std()), rtol=3e-5)


def context(tokens: list[int], levels: int = 50, sampler: Sampler | None = None, seed: int = 0) -> Context:
    return Context(tokens, levels, sampler or Sampler(), torch.Generator().manual_seed(seed), len(tokens))


@functools.cache
def target(family: str = "llama") -> CausalLM:
    return lm(family)


# ---- worked numbers ----


@pytest.mark.parametrize(
    ("alpha", "first", "total"), [(1.01, 2.574, 159.93), (1.02, 6.562, 284.65), (1.05, 103.0, 2143.7)]
)
def test_weights_of_the_second_stage(alpha: float, first: float, total: float):
    found = weights(96, alpha)
    assert float(found[0]) == pytest.approx(first, rel=1e-3)
    assert float(found[-1]) == 1.0
    assert float(found.double().sum()) == pytest.approx(total, rel=1e-4)
    assert float(weights(96, alpha, normalise=True).mean()) == pytest.approx(1.0)
    assert torch.equal(weights(5, 1.0), torch.ones(5))


@dataclass
class Toy:
    """Stands in for a ``Filler``: guesses with fixed laws [k, V]."""

    laws: Tensor
    calls: list[tuple[list[int], int]] = field(default_factory=list)

    class lm:
        context = 1000
        layers, trees = 1, True

        @staticmethod
        def refresh() -> None: ...

    def fill(self, session: Any, text: list[int], count: int) -> Tensor:
        self.calls.append((list(text), count))
        return self.laws[:count].log()


P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.25, 0.5, 0.25], [0.6, 0.0, 0.4]])  # at first, after 0, 1, 2


def steps(q: Tensor, count: int, most: int | None = None) -> tuple[list[list[int]], int]:
    """The first two tokens of ``count`` texts whose law is P, drafted with ``q``, and how many were accepted."""
    pace = None if most is None else PromisedSize(CostCurve("", list(range(1, 9)), [1.0] * 8), most)
    drafter = BlockDrafter(Toy(q), len(q), pace, frozenset(), coupled=False)  # type: ignore[arg-type]
    sampler, randomness, found, accepted = Sampler(greedy=False), torch.Generator().manual_seed(1), [], 0
    for seed in range(count):
        written: list[int] = []
        while len(written) < 2:
            tokens = [0, *written]
            tree = drafter.draft(context(tokens, 2 - len(written), sampler, 10 * seed + len(written))).rooted(
                tokens[-1]
            )
            seen = [*([0] if not written else [written[0] + 1])]  # which law follows: that of a node's last token
            rows = seen + [1 + int(token) for token in tree.tokens[1:]]
            verdict = speculative_sampling(
                tree, NodeLaws(sampler, tree, P[rows].log(), torch.tensor([*tokens, 0, 0, 0]), len(tokens)), randomness
            )
            accepted += len(verdict.path) - 1
            written += [*tree.tokens[list(verdict.path[1:])].tolist(), verdict.token]
        found.append(written[:2])
    return found, accepted


@pytest.mark.parametrize("most", [None, 2], ids=["all verified", "as many as pay"])
@pytest.mark.parametrize(
    "q",
    [
        [[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]],
        [[1 / 3] * 3, [1 / 3] * 3],
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],  # a token that P never says behind the first
        [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]],
    ],
    ids=["good", "uniform", "hostile", "exact"],
)
def test_first_two_tokens_have_the_targets_law(q: list[list[float]], most: int | None):
    found, accepted = steps(torch.tensor(q), RUNS, most)
    joint = (P[0][:, None] * P[1:]).flatten().double()
    seen = torch.bincount(torch.tensor([3 * a + b for a, b in found]), minlength=9)
    assert seen[joint == 0].sum() == 0
    assert chisquare(seen[joint > 0], RUNS * joint[joint > 0] / joint.sum()).pvalue > 1e-3
    assert 0 < accepted < 2 * RUNS


def test_mass_that_is_accepted_and_the_rest():
    """Σ min(p, q) = .6; behind a refusal tokens come from (.75, .25, 0), not from p."""
    q, p = torch.tensor([0.2, 0.2, 0.6]), torch.tensor([0.5, 0.3, 0.2])
    randomness, refused, kept = torch.Generator().manual_seed(0), torch.zeros(3), 0
    shape = TreeShape.chain(1)
    for _ in range(3000):
        drawn = draw(q, 1, randomness)
        tree = TokenTree(torch.tensor(drawn.tokens), shape, {-1: drawn}).rooted(0)
        target = NodeLaws(Sampler(greedy=False), tree, p.log().expand(2, -1), torch.zeros(4, dtype=torch.long), 1)
        verdict = speculative_sampling(tree, target, randomness)
        if len(verdict.path) == 2:
            kept += 1
        else:
            refused[verdict.token] += 1
    assert kept / 3000 == pytest.approx(0.6, abs=0.04)
    assert (refused / refused.sum()).tolist() == pytest.approx([0.75, 0.25, 0.0], abs=0.05)


# ---- blocks ----


def test_layout_of_two_blocks():
    found = layout([(2, 2), (3, 1)], "causal", shift=True)
    assert found.text == 3
    assert found.positions.tolist() == [0, 1, 2, 2, 3, 4, 3, 4]
    assert found.tokens.tolist() == [3, 4, 6]
    assert found.separators.tolist() == [5, 7]
    assert found.targets.tolist() == [2, 3, 3]
    assert found.ranks.tolist() == [0, 1, 0]
    assert found.sources == [1, 3, 2]
    assert found.sees.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 0, 1, 1],
    ]
    assert layout([(2, 2)], "causal", shift=False).sources == [2, 3]
    assert layout([(2, 2)], "full", shift=False).sees.all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), most=st.integers(1, 9), first=st.integers(1, 20))
def test_scattered_blocks_stay_within_the_text(seed: int, most: int, first: int):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, most + 1, (5,), generator=generator)
    for cut, size in scattered(5, first, first + most, sizes, generator):
        assert first <= cut <= cut + size <= first + most


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(("sight", "shift"), WAYS)
def test_drafting_sees_what_training_showed(family: str, sight: str, shift: bool):
    """Logits of the cached drafter = those of a training pass; many blocks in one pass = each by itself."""
    model = target(family)
    head = heads.deer(model, sight=sight, shift=shift)
    texts = torch.tensor([text(40, 3)])
    blocks = [(7, 5), (12, 3), (30, 9)]
    alone = [head.guess(model, texts, layout([block], sight, shift))[0] for block in blocks]
    if sight == "causal":
        close(head.guess(model, texts, layout(blocks, sight, shift))[0], torch.cat(alone))
    filler = Filler(head, model)
    session = Session(filler.lm)
    for (cut, size), expected in zip(blocks, alone, strict=True):
        close(filler.fill(session, texts[0, :cut].tolist(), size), expected)
        assert session.lengths == ([cut] if sight == "causal" else [0])
    close(filler.fill(session, texts[0, :7].tolist(), 5), alone[0])  # and taken back


@torch.no_grad()
def test_visible_tokens_of_a_block_are_seen_by_the_masked_ones():
    model = target()
    head = heads.deer(model)
    one, other = torch.tensor([text(20, 3)]), torch.tensor([text(20, 3)])
    other[0, 12] += 1
    where = layout([(10, 4)], "causal", shift=False)
    masked = torch.tensor([[True, True, False, True]])
    found = [head.guess(model, each, where, masked)[0] for each in (one, other)]
    assert (found[0] - found[1]).abs().amax(1).min() > 1e-4
    hidden = [head.guess(model, each, where)[0] for each in (one, other)]
    assert torch.equal(*hidden)


def test_a_long_prompt_is_read_in_passes_of_its_own():
    model = load(build("llama", max_position_embeddings=512))
    filler = Filler(heads.deer(model), model)
    read = text(FEW + 40, 1)
    session, whole = Session(filler.lm), Session(filler.lm)
    found = filler.fill(session, read, 4)
    for end in (50, 100, len(read)):
        again = filler.fill(whole, read[:end], 4)
    close(found, again)


# ---- drafts ----


@pytest.mark.parametrize(("sight", "shift"), WAYS)
@pytest.mark.parametrize("nodes", [1, 3, 12])
def test_text_is_the_greedy_one(sight: str, shift: bool, nodes: int):
    model = target("gpt_neox")
    head = heads.deer(model, sight=sight, shift=shift)
    found = generate(model, PROMPT, Deer(head=head, nodes=nodes), max_new_tokens=20)
    assert found.tokens == generate(model, PROMPT, "greedy", max_new_tokens=20).tokens
    assert max(found.stats.accepted_lengths) <= nodes + 1


def test_a_draft_carries_the_laws_it_was_drawn_from():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper

    model = target()
    filler = Filler(heads.deer(model), model)
    sampler = Sampler([TemperatureLogitsWarper(0.7), TopKLogitsWarper(5)], greedy=False)
    tree = BlockDrafter(filler, 6, None, frozenset(), False).draft(context(PROMPT, sampler=sampler))
    logits = filler.fill(Session(filler.lm), PROMPT, 6)
    assert sorted(tree.drawn) == [-1, 0, 1, 2, 3, 4]
    for place in range(6):
        drawn = tree.drawn[place - 1]
        torch.testing.assert_close(drawn.law, sampler.law(torch.tensor(PROMPT), logits[place]))
        assert drawn.tokens == (int(tree.tokens[place]),)
        assert int(drawn.law.count_nonzero()) == 5


def test_what_bounds_a_draft():
    model = target()
    filler = Filler(heads.deer(model), model)

    def size(tokens: list[int], levels: int = 50, stop: frozenset[int] = frozenset()) -> int:
        return len(BlockDrafter(filler, 6, None, stop, False).draft(context(tokens, levels)))

    assert size(PROMPT) == 6
    assert size(PROMPT, levels=2) == 2
    assert [size(text(length, 1)) for length in (CONTEXT - 8, CONTEXT - 4, CONTEXT - 1, CONTEXT)] == [6, 3, 0, 0]
    tokens = BlockDrafter(filler, 6, None, frozenset(), False).draft(context(PROMPT)).tokens.tolist()
    assert size(PROMPT, stop=frozenset([tokens[2]])) == tokens.index(tokens[2]) + 1


def test_an_end_of_text_within_a_block_ends_it():
    model = target()
    plain = generate(model, PROMPT, "greedy", max_new_tokens=24).tokens
    stop = plain[10]
    method = Deer(head=heads.deer(model), nodes=8)
    found = generate(model, PROMPT, method, max_new_tokens=24, eos_token_id=stop)
    assert found.tokens == plain[: plain.index(stop) + 1]


def test_fewer_tokens_are_verified_where_promises_fade():
    sure, unsure = torch.tensor([[0.97, 0.02, 0.01]] * 3), torch.tensor([[0.4, 0.3, 0.3]] * 3)
    curve = CostCurve("", [1, 2, 3, 4, 5, 6, 7], [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2])
    drafted = {}
    for name, laws in (("sure", sure), ("unsure", torch.cat([sure[:1], unsure]))):
        drafter = BlockDrafter(Toy(laws), len(laws), PromisedSize(curve, len(laws)), frozenset(), False)  # type: ignore[arg-type]
        drafted[name] = len(drafter.draft(context([0, 1])))
    assert drafted["sure"] == 3
    assert drafted["unsure"] < 3


def test_the_pace_learns_from_outcomes():
    laws = torch.tensor([[0.9, 0.05, 0.05]] * 4)
    pace = PromisedSize(CostCurve("", [1, 2, 3, 4, 5], [1.0, 1.3, 1.6, 1.9, 2.2]), 4)
    drafter = BlockDrafter(Toy(laws), 4, pace, frozenset(), False)  # type: ignore[arg-type]
    first = drafter.draft(context([0, 1]))
    for _ in range(30):
        tree = drafter.draft(context([0, 1])).rooted(1)
        drafter.observe(Outcome(tree, torch.zeros(len(tree), 3), [0], [2]))
    assert len(drafter.draft(context([0, 1]))) < len(first)


def test_rewinding_forgets_what_was_read():
    model = target()
    filler = Filler(heads.deer(model), model)
    one, other = BlockDrafter(filler, 5, None, frozenset(), False), BlockDrafter(filler, 5, None, frozenset(), False)
    one.draft(context(text(30, 5)))
    one.rewind(4)
    changed = [*text(30, 5)[:4], *text(12, 7)]
    assert torch.equal(one.draft(context(changed)).tokens, other.draft(context(changed)).tokens)


def test_masks_are_as_many_as_pay(monkeypatch: pytest.MonkeyPatch):
    model = target()
    filler = Filler(heads.deer(model), model)
    rows = list(range(1, 40))
    dear, cheap = (
        CostCurve("dear", rows, [float(n) for n in rows]),
        CostCurve("cheap", rows, [1 + 0.01 * n for n in rows]),
    )
    curves = {id(model): cheap, id(filler.lm): cheap}
    monkeypatch.setattr(deer_draft, "calibrate", lambda lm: curves[id(lm)])
    assert fastest(model, filler, [0.99] * 12) == 12
    assert fastest(model, filler, [0.1] * 12) == 0  # two passes for 1.1 tokens
    curves[id(model)] = dear
    assert fastest(model, filler, [0.9] * 12) == 0
    assert verifying(model, filler, 3).seconds == pytest.approx([n + 1.05 for n in (1, 2, 3, 4)])


# ---- the head ----


def test_outer_layers():
    assert outer(3, 8) == [0, 1, 7]
    assert outer(4, 8) == [0, 1, 6, 7]
    assert outer(1, 8) == [0]
    assert outer(9, 2) == [0, 1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_saving_and_loading(family: str, tmp_path: Path):
    model = target(family)
    head = heads.deer(model, layers=1)
    head.save(tmp_path)
    loaded = load_head(DeerHead, tmp_path, model)
    assert loaded.sizes == head.sizes
    where, texts = layout([(9, 4)], "causal", True), torch.tensor([text(20, 3)])
    with torch.no_grad():
        assert torch.equal(loaded.guess(model, texts, where), head.guess(model, texts, where))
    assert not any("embed" in name or "lm_head" in name or "wte" in name for name in loaded.state_dict())


def test_it_learns_to_go_on():
    model = target()
    head = heads.deer(model)
    texts = torch.tensor([text(48, row, period=4) for row in range(4)])
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = head.loss(model, texts)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert head.loss(model, texts).item() == pytest.approx(head.loss(model, texts).item())


def test_a_head_measures_itself():
    model = target()
    head = heads.deer(model, layers=model.layers)
    texts = torch.tensor([text(60, row) for row in range(6)])
    head.settle(model, texts)
    # Shifted and causal over all of the target's layers: the first guess is the target's own.
    assert head.accuracy[:, 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert 0.0 <= float(head.accuracy[:, 1:].min()) <= float(head.accuracy[:, 1:].max()) < 1.0
    assert head.measure(model, texts)["agreement at 1"] == 1.0


# ---- refusals ----


def test_bad_options():
    with pytest.raises(RamifyError, match="nodes must be at least 0"):
        Deer(nodes=-1)
    with pytest.raises(RamifyError, match="not lossless"):
        Deer(verifier="typical")  # type: ignore[arg-type]
    for sizes, words in (
        ({"sight": "fool"}, "did you mean 'full'"),
        ({"most": 8, "last": 9}, "last stage of no more masks"),
        ({"alpha": 0.0}, "alpha is 0.0"),
    ):
        with pytest.raises(RamifyError, match=words):
            DeerSizes(**sizes)
    with pytest.raises(RamifyError, match="2 layers"):
        DeerHead.new(target(), layers=[0, 2])
    with pytest.raises(RamifyError, match="one block"):
        layout([(1, 1), (2, 1)], "full", True)
    with pytest.raises(RamifyError, match="a token before its cut"):
        layout([(0, 1)], "causal", True)
    with pytest.raises(RamifyError, match="no room"):
        scattered(1, 5, 8, torch.tensor([4]), torch.Generator())


def test_more_masks_than_the_head_knows():
    model = target()
    with pytest.raises(RamifyError, match="trained for 12 masks at most"):
        generate(model, PROMPT, Deer(head=heads.deer(model), nodes=13), max_new_tokens=2)


def test_a_head_of_another_model():
    other, method = load(build("llama", vocab_size=VOCABULARY + 1)), Deer(head=heads.deer(target()), nodes=2)
    with pytest.raises(RamifyError, match="trained for another model"):
        generate(other, PROMPT, method, max_new_tokens=2)


def test_nothing_is_drafted_with_no_masks():
    model = target()
    found = generate(model, PROMPT, Deer(head=heads.deer(model), nodes=0), max_new_tokens=4)
    assert found.stats.drafted == 0
