"""Trees merged into one: nothing lost, nothing doubled, every part finds its own; rows go where they are useful."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import lm, text
from hypothesis import given
from hypothesis import strategies as st

from ramify.api import generate, prepare
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.drawn import draw
from ramify.engine.events import Drafted, Scored
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.speculate import speculate
from ramify.engine.tree import Ghosts, TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.hidden_transfer import HiddenTransfer
from ramify.methods.draft.hidden_transfer_head import HiddenTransferHead
from ramify.methods.draft.merging import Merged, Taken
from ramify.methods.draft.ppd import Ppd
from ramify.methods.draft.ppd_head import PromptTokens
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.methods.draft.union import Parallel, Union
from ramify.methods.draft.usefulness import FIRST, OTHERS, WEIGHT, Usefulness, luck, winning
from ramify.methods.registry import create

PATHS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=6)
TREES = st.lists(PATHS.map(TokenTree.from_paths), min_size=1, max_size=4)
HOSTILE = TokenTree(torch.tensor([1, 1, 2, 2]), TreeShape.of([-1, -1, 0, 1]))  # the same path twice


def words(tree: TokenTree, nodes: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """The token path to each node."""
    tokens = tree.tokens.tolist()
    every = range(len(tree)) if nodes is None else nodes
    return [tuple(tokens[node] for node in tree.shape.path(index)) for index in every]


class Fixed(Drafter):
    """Proposes the same tree every time and keeps what it is told."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree, self.seen = tree, list[Outcome]()

    def draft(self, context: Context) -> TokenTree:
        return self.tree

    def observe(self, outcome: Outcome) -> None:
        self.seen.append(outcome)


def parallel(trees: Sequence[TokenTree], cost: Any = None, **options: Any) -> tuple[Parallel, list[Fixed]]:
    parts = [Fixed(tree) for tree in trees]
    return Parallel(Union(**options), parts, Usefulness(), cost, vocab_size=10), parts


def context(levels: int = 50) -> Context:
    return Context([9], levels, Sampler(), torch.Generator(), 1)


def outcome(tree: TokenTree, path: Sequence[int], token: int = 8, **more: Any) -> Outcome:
    """The tree scored below a pending token 9, ``path`` of it accepted, and ``token`` after that."""
    rooted = tree.rooted(9)
    tokens = [int(rooted.tokens[node + 1]) for node in path]
    accepted = [0, *(node + 1 for node in path)]
    return Outcome(rooted, torch.zeros(len(rooted), 10), accepted, [*tokens, token], **more)


# Merging


@given(TREES)
def test_every_tree_is_in_the_merged_one_and_nothing_else_is(trees: list[TokenTree]) -> None:
    merged = Merged.of(trees)
    taken = merged.take(range(len(merged)))
    found = words(taken.tree)
    assert len(set(found)) == len(found)  # no node twice
    assert set(found) == {word for tree in trees for word in words(tree)}
    for tree, mine in zip(trees, taken.mine, strict=True):
        assert words(taken.tree, mine) == words(tree)  # in the part's own order
    assert [len(path) - 1 for path in found] == merged.depth


@given(TREES, st.sampled_from(["useful", "turns", "order"]), st.integers(0, 12), st.integers(1, 4))
def test_the_budget_and_the_depth_are_kept_and_parents_with_their_children(
    trees: list[TokenTree], share: str, nodes: int, levels: int
) -> None:
    drafter, parts = parallel(trees, nodes=nodes, share=share)
    tree = drafter.draft(context(levels))
    whole = Merged.of([part.cut(levels) for part in trees])
    assert len(tree) == min(nodes, len(whole))
    found = set(words(tree))
    assert all(word[:-1] in found or len(word) == 1 for word in found)
    assert max(map(len, found), default=0) <= levels
    drafter.observe(outcome(tree, []))
    for part, own in zip(parts, trees, strict=True):
        [seen] = part.seen
        assert seen.mine is not None
        assert [word[1:] for word in words(seen.tree, seen.mine[1:])] == [
            word for word in words(own.cut(levels)) if word in found
        ]


def test_agreement_costs_one_row() -> None:
    merged = Merged.of([TokenTree.chain([1, 2, 3]), TokenTree.from_paths([[1, 2, 5], [4]])])
    assert merged.tokens == [1, 2, 3, 5, 4]
    assert merged.parents == [-1, 0, 1, 1, -1]
    assert merged.places == [[0, 1, 2], [0, 1, 3, 4]]
    assert [len(proposals) for proposals in merged.proposals] == [2, 2, 1, 1, 1]
    assert merged.proposals[4] == [(1, 3, 1)]  # part 1's node 3, its second child of the pending token


def test_doubled_siblings_of_one_part_are_one_node_of_it() -> None:
    taken = Merged.of([HOSTILE]).take([0, 1])
    assert taken.tree.tokens.tolist() == [1, 2]
    assert taken.mine == [[0, 1]]


def test_turns_and_order() -> None:
    trees = [TokenTree.chain([1, 2, 3]), TokenTree.chain([4, 5, 6])]
    for share, expected in (("order", {(1,), (1, 2), (1, 2, 3), (4,)}), ("turns", {(1,), (4,), (1, 2), (4, 5)})):
        drafter, _ = parallel(trees, nodes=4, share=share)
        assert set(words(drafter.draft(context()))) == expected


def test_drawn_and_soft_trees_are_refused() -> None:
    choice = draw(torch.full((10,), 0.1), 1, torch.Generator())
    drawn = TokenTree(torch.tensor(choice.tokens), TreeShape.chain(1), {-1: choice})
    with pytest.raises(RamifyError, match="drawn at random cannot be merged"):
        Merged.of([drawn])
    soft = TokenTree(torch.tensor([1]), TreeShape.chain(1), {}, torch.zeros(1, 4), torch.tensor([True]))
    with pytest.raises(RamifyError, match="soft nodes cannot be merged"):
        Merged.of([soft])


# Ghosts


def ghosts(parents: Sequence[int], kinds: Sequence[int], value: float, layer: int = 0) -> Ghosts:
    def states(sources: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return value + kinds[:, None] * torch.ones_like(sources)

    return Ghosts(tuple(parents), tuple(kinds), layer, states)


def ghosted() -> list[TokenTree]:
    """Two chains with ghosts, and one without any."""
    first = ghosts([-1, 2, 0, 4], [0, 1, 0, 1], 10.0)  # two in a row at the pending token, two at node 0
    second = ghosts([1, 2, -1], [0, 1, 3], 20.0)
    return [
        TokenTree(torch.tensor([1, 2]), TreeShape.chain(2), ghosts=first),
        TokenTree.chain([1, 3]),
        TokenTree(torch.tensor([5, 6]), TreeShape.chain(2), ghosts=second),
    ]


def test_ghosts_of_all_parts_stand_beside_one_tree() -> None:
    trees = ghosted()
    merged = Merged.of(trees)
    assert merged.rows() == [3, 1, 1, 1, 3, 3]
    taken = merged.take(range(len(merged)))
    assert taken.tree.tokens.tolist() == [1, 2, 3, 5, 6]
    assert taken.tree.ghosts is not None
    assert taken.tree.ghosts.parents == (-1, 5, 0, 7, 4, 9, -1)
    sources = torch.zeros(7, 2)
    states = taken.tree.ghosts.states(sources, torch.tensor(taken.tree.ghosts.kinds))
    assert states[:, 0].tolist() == [10.0, 11.0, 10.0, 11.0, 20.0, 21.0, 23.0]


def test_every_part_gets_its_own_ghosts_back() -> None:
    taken = Merged.of(ghosted()).take([0, 3])  # the node of the second part's first ghost has no row
    logits = torch.arange(5.0)[:, None] * torch.ones(5, 3)
    first, plain, second = taken.outcomes(outcome(taken.tree, [0], ghosts=logits))
    assert first.tree.ghosts is not None
    assert second.tree.ghosts is not None
    assert first.ghosts is not None
    assert second.ghosts is not None
    assert first.tree.ghosts.parents == (0, 3, 1, 5)  # counted below the pending token
    assert first.tree.ghosts.kinds == (0, 1, 0, 1)
    assert first.ghosts[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert plain.tree.ghosts is None
    assert plain.ghosts is None
    assert second.tree.ghosts.parents == (0,)
    assert second.tree.ghosts.kinds == (3,)
    assert second.ghosts[:, 0].tolist() == [4.0]
    assert (first.mine, plain.mine, second.mine) == ([0, 1], [0, 1], [0, 2])
    assert (first.accepted, plain.accepted, second.accepted) == (1, 1, 0)


def test_ghosts_of_one_pass_join_at_one_layer() -> None:
    trees = [TokenTree(torch.tensor([1]), TreeShape.chain(1), ghosts=ghosts([-1], [0], 0.0, layer)) for layer in (0, 2)]
    with pytest.raises(RamifyError, match=r"join at layers \[0, 2\] cannot share a pass"):
        Merged.of(trees).take([0])


def test_prompt_tokens_draft_beside_others() -> None:
    target = lm("llama")
    prompt = text(17, 2, period=6)
    head = PromptTokens.new(target)
    alone = generate(target, prompt, Ppd(head=head, budget=20), max_new_tokens=32)
    union = generate(target, prompt, Union([Ppd(head=head, budget=20), Suffix(length=8)], nodes=30), max_new_tokens=32)
    plain = generate(target, prompt, "greedy", max_new_tokens=32)
    assert union.tokens == alone.tokens == plain.tokens
    assert union.stats.target_calls <= min(32, alone.stats.target_calls + 2)
    both = Union([Ppd(head=head, budget=20), HiddenTransfer(head=HiddenTransferHead.new(target), budget=20)], nodes=9)
    with pytest.raises(RamifyError, match="cannot share a pass"):
        generate(target, prompt, both, max_new_tokens=32)


# What is useful


def test_rates_begin_with_a_guess_and_follow_what_happens() -> None:
    usefulness = Usefulness()
    merged = Merged.of([TokenTree.from_paths([[1, 2], [3]])])
    assert usefulness.rates(merged) == pytest.approx([FIRST, FIRST * FIRST, OTHERS])
    for _ in range(100):
        usefulness.observe(merged, [3, 7])
    first, second, other = usefulness.rates(merged)
    assert other == pytest.approx((WEIGHT * OTHERS + 100) / (WEIGHT + 100))
    assert first == pytest.approx(WEIGHT * FIRST / (WEIGHT + 100))
    assert second == pytest.approx(first * FIRST)  # never judged: its parent was never right


def test_what_follows_the_last_token_is_not_judged() -> None:
    usefulness = Usefulness()
    merged = Merged.of([TokenTree.chain([1, 2, 3])])
    usefulness.observe(merged, [1, 2])
    seen = {kind[2]: counts for kind, counts in usefulness.counts.items()}
    assert sorted(seen) == [0, 1]
    usefulness.observe(merged, [1, 2, 9])
    assert (0, 2, 2, 0, 1) in usefulness.counts


def test_kinds_tell_parts_and_agreement_apart() -> None:
    usefulness = Usefulness()
    agreed = Merged.of([TokenTree.chain([1]), TokenTree.chain([1])])
    differ = Merged.of([TokenTree.chain([1]), TokenTree.chain([2])])
    for _ in range(50):
        usefulness.observe(agreed, [1])
        usefulness.observe(differ, [2])
    assert usefulness.rates(agreed)[0] > 0.9
    one, other = usefulness.rates(differ)
    assert one < 0.1 < 0.9 < other


def test_promises_are_believed_at_first_and_then_measured() -> None:
    usefulness = Usefulness()
    tree = replace(TokenTree.from_paths([[1], [2], [3]]), promises=[0.4, 0.25, 0.001])
    merged = Merged.of([tree])
    assert [kind[1:4] for [kind] in merged.kinds] == [(-3, 0, 0), (-4, 0, 0), (-9, 0, 0)]
    assert usefulness.rates(merged) == pytest.approx([2 ** (-2 / 1.5), 0.25, 0.025], abs=0.005)
    for _ in range(100):
        usefulness.observe(merged, [2])
    other = replace(TokenTree.from_paths([[5], [6]]), promises=[0.25, 0.4])  # the place among siblings does not matter
    assert usefulness.rates(Merged.of([other])) == pytest.approx([(1 + 100) / 104, 4 * 2 ** (-2 / 1.5) / 104])


def test_promises_stay_with_their_nodes() -> None:
    tree = replace(TokenTree.from_paths([[1, 2], [3, 4]]), promises=[0.1, 0.2, 0.3, 0.4])
    assert tree.cut(1).promises == [0.1, 0.3]
    with pytest.raises(RamifyError, match="needs as many promises, got 2"):
        replace(tree, promises=[0.1, 0.2])


def test_a_variable_tells_who_wins() -> None:
    # P(w wins | e) integrated over e ~ Exp(1) is w's probability.
    for rate in (0.1, 0.4, 0.9):
        steps = torch.linspace(0.0005, 30.0, 60000, dtype=torch.float64)
        chance = torch.exp(-steps * (1 - rate) / rate)
        assert float((torch.exp(-steps) * chance).sum() * 30 / 60000) == pytest.approx(rate, rel=0.01)
        assert winning(rate, -2) == pytest.approx(math.exp(-(2**-1.5) * (1 - rate) / rate))
    assert [luck(e) for e in (1e-9, 0.0, 0.5, 0.9, 1.0, 3.9, 1e9)] == [-5, -1, -1, -1, 0, 1, 3]


def test_the_noise_decides_between_equal_proposals_where_text_is_sampled() -> None:
    noise = Noise(7)
    first = noise.race(10, 1)
    tree = replace(TokenTree.from_paths([[token] for token in range(10)]), promises=[0.1] * 10)
    drafter, _ = parallel([tree], nodes=1)
    assert drafter.draft(context()).tokens.tolist() == [0]
    sampled = Context([9], 50, Sampler(greedy=False, noise=noise), torch.Generator(), 1)
    [token] = drafter.draft(sampled).tokens.tolist()
    assert luck(float(first[token])) == min(map(luck, first.tolist()))
    unlucky = int(first.argmax())
    for _ in range(100):  # what is seen counts for more than what was expected
        drafter.observe(outcome(drafter.draft(sampled), [], token=unlucky))
    [token] = drafter.draft(sampled).tokens.tolist()
    assert luck(float(first[token])) == luck(float(first[unlucky]))


def test_the_noise_helps_a_union_to_agree_with_the_model() -> None:
    target, prompt = lm("llama"), text(40, 5)
    calls = []
    for sampler in (None, Noise(1234)):  # the right noise, and another one
        union = Union("token-recycling:nodes=40", nodes=4)
        total = 0
        for seed in range(3):
            [request] = prepare(target, [prompt], union, max_new_tokens=40, seed=seed, do_sample=True, top_k=6)
            drafter = union.drafter(target, request)
            assert isinstance(drafter, Parallel)
            if sampler is not None:
                drafter._luck = lambda context, right=drafter._luck, wrong=sampler: right(  # type: ignore[method-assign]
                    replace(context, sampler=Sampler(greedy=False, noise=wrong))
                )
            total += sum(isinstance(event, Scored) for event in speculate(target, [request], [drafter]))
        calls.append(total)
    assert calls[0] < 0.95 * calls[1]


def test_undrafted_nodes_are_judged_and_then_drafted() -> None:
    drafter, _ = parallel([TokenTree.chain([1]), TokenTree.chain([2])], nodes=1)
    assert drafter.draft(context()).tokens.tolist() == [1]
    for _ in range(8):
        drafter.observe(outcome(drafter.draft(context()), [], token=2))
    assert drafter.draft(context()).tokens.tolist() == [2]


@given(TREES, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=12))
def test_rates_fall_along_every_path(trees: list[TokenTree], texts: list[list[int]]) -> None:
    usefulness, merged = Usefulness(), Merged.of(trees)
    for tokens in texts:
        usefulness.observe(merged, tokens)
    rates = usefulness.rates(merged)
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert all(rate <= rates[parent] for rate, parent in zip(rates, merged.parents, strict=True) if parent >= 0)


def test_the_size_has_the_most_expected_tokens_per_second() -> None:
    tree = TokenTree.from_paths([[1], [2], [3]])  # rates 0.4, 0.05, 0.05
    for cost, size in (
        ({1: 1.0, 2: 1.3, 3: 1.31, 4: 2.0}, 2),  # 1, 1.077, 1.107, 0.75
        ({1: 1.0, 2: 1.3, 3: 1.5, 4: 2.0}, 1),
        ({1: 1.0, 2: 1.5, 3: 1.6, 4: 2.0}, 0),
        (dict.fromkeys(range(1, 5), 1.0), 3),
    ):
        drafter, _ = parallel([tree], cost=cost.__getitem__)
        assert len(drafter.draft(context())) == size


def test_ghosts_count_as_rows() -> None:
    tree = TokenTree(torch.tensor([1, 2]), TreeShape.of([-1, -1]), ghosts=ghosts([-1, 0, 0], [0, 0, 1], 0.0))
    asked: list[int] = []
    drafter, _ = parallel([tree], cost=lambda rows: asked.append(rows) or 1.0)
    drafter.draft(context())
    assert asked == [2, 5, 6]  # the pending token and its ghost; the first node with two; the second alone


# Composition


def test_a_union_in_a_union_finds_its_nodes_where_the_outer_one_dropped_some() -> None:
    inner, parts = parallel([TokenTree.chain([1, 2]), TokenTree.chain([4, 5])], nodes=9)
    taken = Merged.of([TokenTree.chain([7]), inner.draft(context())]).take([0, 1, 3])  # 7, 1 and 4
    assert taken.tree.tokens.tolist() == [7, 1, 4]
    _, seen = taken.outcomes(outcome(taken.tree, [2]))
    inner.observe(seen)
    assert [part.seen[0].mine for part in parts] == [[0, 2], [0, 3]]
    assert [part.seen[0].accepted for part in parts] == [0, 1]


def test_a_step_without_a_draft_shows_the_parts_nothing_of_their_own() -> None:
    drafter, parts = parallel([TokenTree.chain([1, 2])], nodes=9)
    drafter.observe(outcome(drafter.draft(context()), [0]))
    drafter.observe(outcome(TokenTree.chain([1, 2]), [0, 1], mine=(0,)))  # somebody else's chain
    drafter.observe(outcome(TokenTree.empty(), []))
    assert [seen.mine for seen in parts[0].seen] == [[0, 1, 2], [0], [0]]
    assert Taken.nothing(2).places(outcome(TokenTree.empty(), [])) == {-1: 0}


def test_text_that_is_read_along_stands_before_the_draft() -> None:
    drafter, parts = parallel([TokenTree.chain([1, 2]), TokenTree.chain([1, 3])], nodes=3)
    tree = drafter.draft(context())
    whole = tree.rooted(9).rooted(1).rooted(7)  # 7 and 1 were committed without the model; 9 is pending
    seen = Outcome(whole, torch.zeros(6, 10), [0, 1, 2, 3, 5], [1, 9, 1, 3, 8], mine=[0, 3, 4, 5])
    drafter.observe(seen)
    assert [part.seen[0].mine for part in parts] == [[0, 3, 4], [0, 3, 5]]
    assert [part.seen[0].accepted for part in parts] == [1, 2]
    counts = drafter.usefulness.counts
    agreed, second = counts[0, 2, 0, 0, 2], counts[1, 2, 1, 0, 1]
    assert agreed == (WEIGHT * FIRST + 1, WEIGHT + 1)  # judged by what came after the pending token
    assert second == (WEIGHT * FIRST + 1, WEIGHT + 1)
    assert counts[0, 2, 1, 0, 1] == (WEIGHT * FIRST, WEIGHT + 1)


def test_inside_an_assistant_that_is_set_back() -> None:
    target, prompt = lm("mistral"), text(17, 2, period=6)
    inner = Union("suffix:length=6,token-recycling:nodes=6", nodes=9)
    assistant = Assistant(model=lm("llama"), verifier="match", inner=inner, length=4)
    for settings in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7}):
        plain = generate(target, prompt, "sample" if settings["do_sample"] else "greedy", max_new_tokens=40, **settings)
        ours = generate(target, prompt, assistant, max_new_tokens=40, **settings)
        assert ours.tokens == plain.tokens


def test_parts_learn_from_call_to_call_and_a_copy_starts_afresh() -> None:
    recycling = TokenRecycling(nodes=6)
    union = Union([recycling, "suffix:length=4"], nodes=8)
    generate(lm("llama"), text(9), union, max_new_tokens=16)
    [inside, _] = union.memory["parts"]
    assert inside is not recycling
    assert ("matrix", lm("llama")) in inside.memory
    assert not recycling.memory  # the object that was given is left as it was
    before = union.memory["usefulness", lm("llama"), True]
    generate(lm("llama"), text(9), union, max_new_tokens=16)
    assert union.memory["usefulness", lm("llama"), True] is before
    assert not Union([recycling], nodes=8).memory


def test_no_draft_is_larger_than_the_budget() -> None:
    target = lm("qwen3")
    method = Union("token-recycling:nodes=12,suffix:length=6", nodes=10)
    [request] = prepare(target, [text(17, 2, period=6)], method, max_new_tokens=40)
    drafter = method.drafter(target, request)
    assert isinstance(drafter, Parallel)
    events = list(speculate(target, [request], [drafter]))
    drafts = [event.tree for event in events if isinstance(event, Drafted)]
    assert max(map(len, drafts)) == 10
    assert drafter.wants_prompt_logits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "greedy,suffix"}, "greedy makes no drafts, so it cannot be part of a union"),
        ({"methods": "hf-greedy"}, "hf-greedy makes no drafts"),
        ({"methods": []}, "a union needs at least one method"),
        ({"methods": "sufix"}, "unknown method 'sufix'; did you mean 'suffix'"),
        ({"methods": "suffix:lenght=3"}, "did you mean 'length'"),
        ({"methods": [Assistant(model="demo")]}, "assistant verifies by speculative sampling"),
        ({"methods": "lud"}, "lud changes what the model says"),
        ({"nodes": -1}, "nodes must be at least 0"),
        ({"share": "fair"}, "unknown share 'fair'"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        create("union", **options)
