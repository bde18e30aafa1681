"""Lookahead decoding: its window traced by hand and against its definition by positions, the pool, cuts and unions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import lm, text
from hypothesis import given, settings
from hypothesis import strategies as st

import ramify.methods.draft.lookahead as module
from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.request import Request
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.lookahead import Lookahead
from ramify.methods.draft.ngram_pool import Pool
from ramify.methods.draft.sizing import TRIAL
from ramify.models.calibrate import CostCurve

VOCABULARY = 40
Law = Callable[[tuple[int, ...]], int]  # the likeliest token after a text


def made(method: Lookahead, stops: Sequence[int] = ()) -> Any:
    """The drafter of a method of given sizes, so that no model is asked."""
    model: Any = SimpleNamespace()
    return method.drafter(model, Request([1], 99, stop_tokens=frozenset(stops)))


def context(tokens: Sequence[int], levels: int = 99) -> Context:
    return Context(list(tokens), levels, Sampler(), torch.Generator().manual_seed(len(tokens)), len(tokens))


def scored(tree: TokenTree, tokens: Sequence[int], law: Law) -> Outcome:
    """What the engine would make of a draft, were ``law`` the target."""
    rooted = tree.rooted(tokens[-1])
    drafted = rooted.tokens.tolist()
    logits = torch.zeros(len(rooted), VOCABULARY)
    for node in range(len(rooted)):
        seen = (*tokens, *(drafted[other] for other in rooted.shape.path(node)[1:]))
        logits[node, law(seen)] = 1.0
    path, committed = [0], []
    while True:
        committed.append(int(logits[path[-1]].argmax()))
        following = [child for child in rooted.shape.children[path[-1]] if drafted[child] == committed[-1]]
        if not following:
            return Outcome(rooted, logits, path, committed)
        path.append(following[0])


def play(drafter: Any, tokens: list[int], law: Law, steps: int, levels: int = 99) -> Iterator[tuple[Any, Outcome]]:
    """Draft, score and commit again and again; yields the drafter as it drafted, and the outcome it then sees."""
    for _ in range(steps):
        outcome = scored(drafter.draft(context(tokens, levels)).cut(levels), tokens, law)
        yield drafter, outcome
        drafter.observe(outcome)
        tokens += outcome.tokens


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    """All root-to-leaf token paths below the pending token."""
    leaves = [node for node in range(1, len(tree)) if not tree.shape.children[node]]
    tokens = tree.tokens.tolist()
    return {tuple(tokens[node] for node in tree.shape.path(leaf)[1:]) for leaf in leaves}


# ---------------------------------------------------------------- by hand


def test_the_window_by_hand():
    """N = 4, W = 3, G = 2; every token is followed by the next number, and the text is 10, so that blanks are 10."""
    drafter = made(Lookahead(ngram=4, window=3, guesses=2))
    steps = play(drafter, [10], lambda seen: (seen[-1] + 1) % VOCABULARY, 5)

    _, outcome = next(steps)  # level 0 alone, of W + N − 2 columns
    assert paths(outcome.tree) == {(10, 10, 10, 10)}
    assert outcome.tokens == [11]

    _, outcome = next(steps)  # 11 | 10 10 10 below level 1: 11 11 11 11
    assert drafter.levels == [[10, 10, 10], [11, 11, 11, 11]]
    assert paths(outcome.tree) == {(11,), (10, 11), (10, 10, 11), (10, 10, 10, 11)}
    assert outcome.tokens == [12]

    _, outcome = next(steps)  # N − 1 levels of W: the window is full
    assert drafter.levels == [[10, 10], [11, 11, 11], [12, 12, 12]]
    assert paths(outcome.tree) == {(11, 12), (10, 11, 12), (10, 10, 11, 12)}
    assert outcome.tokens == [13]
    assert not drafter.pool.grams

    _, outcome = next(steps)  # levels move up by one, and level 0 loses the column that 13 takes
    assert drafter.levels == [[11, 11], [12, 12, 12], [13, 13, 13]]
    assert drafter.pool.grams == {12: {(11, 12, 13): 0}, 10: {(11, 12, 13): 2}}
    assert paths(outcome.tree) == {(12, 13), (11, 12, 13), (11, 11, 12, 13)}
    assert outcome.tokens == [14]

    drafter, outcome = next(steps)
    assert drafter.levels == [[12, 12], [13, 13, 13], [14, 14, 14]]
    assert drafter.pool.grams[13] == {(12, 13, 14): 0}
    assert drafter.pool.grams[11] == {(12, 13, 14): 2}


def test_a_guess_that_is_right_commits_n_tokens_and_the_window_moves_as_it_is_told():
    """Numbers go round in a circle of five, so that the pool soon knows what follows each."""
    for advance, kept in (("one", 1), ("accepted", 4)):
        drafter = made(Lookahead(ngram=4, window=6, guesses=2, advance=advance))
        seen = play(drafter, [0, 1, 2, 3, 4], lambda seen: (seen[-1] + 1) % 5, 30)
        for _, outcome in seen:
            if len(outcome.tokens) == 4 and len(drafter.levels) == 3:
                before = [list(level) for level in drafter.levels]
                best = outcome.logits[list(module._ends(outcome.tree, drafter.columns))].argmax(-1).tolist()
                next(seen, None)
                break
        else:
            pytest.fail("no guess was ever right")
        after = drafter.levels
        assert after[0][: len(before[1]) - kept] == before[1][kept:]
        assert after[1][: len(before[2]) - kept + 1] == before[2][kept - 1 :]
        assert after[2][: len(best) - kept + 1] == best[kept - 1 :]
        assert [len(level) for level in after] == [5, 6, 6]


# ---------------------------------------------------------------- by definition


class Reference:
    """The window as the paper defines it: a token for every level and absolute position."""

    def __init__(self, options: Lookahead, pending: int) -> None:
        self.options, self.pending = options, pending  # position of the pending token
        self.window: list[dict[int, int]] = [{}]
        self.pool: list[tuple[int, tuple[int, ...]]] = []

    def width(self) -> int:
        return self.options.window + self.options.ngram - 1 - len(self.window)

    def check(self, levels: list[list[int]], tokens: list[int]) -> None:
        """Every token that is known is in its place, and every other is from the text."""
        assert len(levels) == len(self.window)
        for number, (level, known) in enumerate(zip(levels, self.window, strict=True)):
            first = 1 if number == 0 else 0
            assert len(level) == self.width() - first
            for column, token in enumerate(level, first):
                place = self.pending + number + column
                assert token == known[place] if place in known else token in tokens
                known[place] = token

    def move(self, tokens: list[int], law: Law, accepted: int) -> None:
        n, position = self.options.ngram, self.pending
        chain = [self.window[0][position + column] for column in range(1, self.width())]
        best = {}
        for column in range(self.width()):
            own = [level[position + number + column] for number, level in enumerate(self.window) if number]
            best[position + len(self.window) + column] = law((*tokens, *chain[:column], *own))
            if len(self.window) == n - 1:
                first = [tokens[-1], *chain][column]
                self.pool.append((first, (*own, best[position + len(self.window) + column])))
        full = len(self.window) == n - 1
        self.window.append(best)
        if full:
            del self.window[0]
        if self.options.advance == "one":  # the window keeps its tokens, wherever the text is now
            self.window = [{place + accepted: token for place, token in level.items()} for level in self.window]
        self.pending += 1 + accepted
        for number, level in enumerate(self.window):
            least = self.pending + number + (number == 0)
            for place in [place for place in level if place < least]:
                del level[place]


def law_of(seed: int, size: int) -> Law:
    """Some law over ``size`` tokens that depends on the last three."""
    return lambda seen: hash((seed, seen[-3:])) % size


@settings(max_examples=60)
@given(
    st.builds(
        Lookahead,
        ngram=st.integers(2, 5),
        window=st.integers(1, 4),
        guesses=st.integers(0, 3),
        advance=st.sampled_from(["one", "accepted"]),
    ),
    st.integers(0, 9),
    st.integers(1, 4),
)
def test_the_window_is_the_defined_one(options: Lookahead, seed: int, size: int):
    law, tokens = law_of(seed, size), [seed % size, 0]
    reference = Reference(options, len(tokens) - 1)
    for drafter, outcome in play(made(options), tokens, law, 12):
        reference.check(drafter.levels, tokens)
        known = Pool(options.guesses)
        for first, rest in reference.pool:
            known.enter(first, rest)
        assert {key: list(rest) for key, rest in drafter.pool.grams.items()} == {
            key: list(rest) for key, rest in known.grams.items()
        }
        guesses = [tuple(rest) for rest in known.grams.get(tokens[-1], {})]
        drafted = {path[:end] for path in paths(outcome.tree) for end in range(1, len(path) + 1)}
        wanted = [*guesses, *map(tuple, drafter.columns)]
        assert drafted == {path[:end] for path in wanted for end in range(1, len(path) + 1)}
        assert len(outcome.tree) <= (options.ngram - 1) * (options.window + options.guesses) + options.ngram
        reference.move(tokens, law, len(outcome.tokens) - 1)


def test_the_window_stays_greedy_whatever_is_sampled():
    drafter = made(Lookahead(ngram=3, window=3))
    tokens = text(9)
    for _ in range(4):
        tree = drafter.draft(context(tokens)).rooted(tokens[-1])
        logits = torch.rand(len(tree), VOCABULARY, generator=torch.Generator().manual_seed(len(tokens)))
        best = logits[list(module._ends(tree, drafter.columns))].argmax(-1).tolist()
        drafter.observe(Outcome(tree, logits, [0], [(best[0] + 1) % VOCABULARY]))
        assert drafter.levels[-1] == best[len(best) - len(drafter.levels[-1]) :]
        tokens.append((best[0] + 1) % VOCABULARY)


# ---------------------------------------------------------------- what a tree may lack, or have beside ours


def test_near_the_end_unscored_columns_are_blank():
    whole, cut = made(Lookahead(ngram=3, window=4)), made(Lookahead(ngram=3, window=4))
    law = law_of(3, 30)
    for drafter in (whole, cut):
        for _ in play(drafter, tokens := text(6, 1), law, 3):
            pass
    outcomes = [scored(drafter.draft(context(tokens)).cut(levels), tokens, law) for drafter, levels in
                ((whole, 99), (cut, 3))]  # fmt: skip
    assert len(outcomes[1].tree) < len(outcomes[0].tree)
    known = dict(cut.pool.grams)
    whole.observe(outcomes[0])
    cut.observe(outcomes[1])
    assert len(whole.levels[-1]) == 4
    assert cut.levels[-1] == whole.levels[-1][:3]  # of depth 1 + 2 at most: columns 0, 1 and 2
    assert cut.levels[:-1] == whole.levels[:-1]
    assert known.keys() <= cut.pool.grams.keys()
    cut.draft(context(tokens + list(outcomes[1].tokens)))
    assert [len(level) for level in cut.levels] == [3, 4]


def test_in_a_union_it_finds_its_own_nodes():
    law = law_of(5, 12)
    alone, united = made(Lookahead(ngram=4, window=3)), made(Lookahead(ngram=4, window=3))
    tokens = text(7, 2)
    for _ in range(12):
        own = alone.draft(context(tokens))
        assert united.draft(context(tokens)).tokens.tolist() == own.tokens.tolist()
        foreign = [[token, 3, 3] for token in range(5)] + [[law(tuple(tokens)), 7]]
        tree = TokenTree.from_paths([*foreign, *paths(own.rooted(0))])
        outcome = scored(own, tokens, law)
        joint = scored(tree, tokens, law)
        mine = [0, *(node for node in range(1, len(joint.tree)) if node % 2)]  # whatever it says
        alone.observe(Outcome(outcome.tree, outcome.logits, outcome.path, joint.tokens))
        united.observe(Outcome(joint.tree, joint.logits, joint.path, joint.tokens, mine=mine))
        assert (united.levels, united.pool.grams) == (alone.levels, alone.pool.grams)
        tokens += joint.tokens


def test_what_others_drafted_moves_the_window_too():
    for advance in ("one", "accepted"):
        drafter = made(Lookahead(ngram=3, window=4, advance=advance))
        for _ in play(drafter, tokens := text(6, 1), law_of(3, 30), 3):
            pass
        before, known = [list(level) for level in drafter.levels], repr(drafter.pool.grams)
        drafter.observe(scored(TokenTree.chain([1, 2]), tokens, law_of(3, 30)))
        assert drafter.levels == [level[1:] for level in before]
        assert repr(drafter.pool.grams) == known


def test_stop_tokens_end_n_grams_but_do_not_stay_in_the_window():
    drafter = made(Lookahead(ngram=3, window=3), stops=[9])
    for length in range(3, 9):
        tokens = [4] * length
        outcome = scored(drafter.draft(context(tokens)), tokens, lambda seen: 9 if seen[-1] == 5 else 5)
        assert all(token != 9 for level in drafter.levels for token in level)
        drafter.observe(Outcome(outcome.tree, outcome.logits, [0], [4]))  # what was sampled is neither
    assert (5, 9) in drafter.pool.grams[4]


# ---------------------------------------------------------------- the pool


def test_the_pool_forgets_what_was_longest_unused():
    pool = Pool(2)
    for rest in ((1, 1), (2, 2), (1, 1), (3, 3)):
        pool.enter(7, rest, column=rest[0])
    assert pool.after(7, 99) == [(3, 3), (1, 1)]
    assert pool.after(7, 2) == [(1, 1)]  # column 1 is within a window of two, column 3 is not
    assert pool.after(8, 99) == []
    nothing = Pool(0)
    nothing.enter(7, (1, 1))
    assert nothing.after(7, 99) == []


def test_the_prompt_seeds_the_pool_if_wanted():
    prompt = [1, 2, 3, 1, 2, 4, 1, 2]
    drafter = made(Lookahead(ngram=3, window=1, seed_from_prompt=True))
    tree = drafter.draft(context(prompt)).rooted(2)
    assert {path[:2] for path in paths(tree)} >= {(3, 1), (4, 1)}
    assert drafter.pool.grams[1] == {(2, 3): 0, (2, 4): 0}
    drafter.draft(context([*prompt, 5]))  # what is generated is entered as well, once
    assert drafter.pool.grams[1] == {(2, 3): 0, (2, 4): 0, (2, 5): 0}
    drafter.rewind(8)
    drafter.draft(context([*prompt, 6]))
    assert list(drafter.pool.grams[1])[-1] == (2, 6)
    unseeded = made(Lookahead(ngram=3, window=1))
    unseeded.draft(context(prompt))
    assert not unseeded.pool.grams


# ---------------------------------------------------------------- sizes


def test_the_smallest_step_is_sized_by_the_cost_curve(monkeypatch: pytest.MonkeyPatch):
    prompt = text(15, 4, period=5)
    plain = generate(lm("llama"), prompt, "greedy", max_new_tokens=60).tokens
    sizes = {}
    for name, curve in {
        "free": CostCurve("free", [1, 100], [1.0, 1.0]),
        "steep": CostCurve("steep", [1, 2, 100], [1.0, 4.0, 400.0]),
    }.items():
        monkeypatch.setattr(module, "calibrate", lambda _, curve=curve: curve)
        method = Lookahead(ngram=3, window=3, guesses=4, sized=True)
        first, second = (generate(lm("llama"), prompt, method, max_new_tokens=60) for _ in range(2))
        assert first.tokens == second.tokens == plain
        sizes[name] = [len(draft.tree) for draft, _ in second.steps if draft]
        [sizing] = method.memory.values()
        assert sizing.tried == TRIAL
        assert len(sizing.costs) == 5
    assert min(sizes["free"][:-8]) > 0
    assert max(sizes["steep"][-20:]) == 0


def test_what_a_smaller_step_would_have_committed():
    drafter = made(Lookahead(ngram=4, window=3, guesses=3))
    for column, rest in ((2, (5, 6, 7)), (1, (5, 6, 8)), (0, (5, 9, 9))):
        drafter.pool.enter(4, rest, column)
    drafter.columns = [[1, 2], [5, 1], [5, 1]]
    assert [drafter._would_commit(size, 4, [5, 6, 7, 1]) for size in range(4)] == [1, 2, 3, 4]
    assert [drafter._would_commit(size, 4, [5, 6]) for size in range(4)] == [1, 2, 2, 2]  # 6 is the target's own
    assert [drafter._would_commit(size, 3, [5, 1, 0]) for size in range(4)] == [1, 1, 3, 3]  # by the window alone


def test_what_is_wrong_with_the_options_is_said():
    for options, message in [
        ({"ngram": 1}, "ngram must be at least 2, window at least 1 and guesses at least 0, got 1, 7 and 7"),
        ({"window": 0}, "got 5, 0 and 7"),
        ({"guesses": -1}, "got 5, 7 and -1"),
        ({"advance": "accept"}, "unknown advance 'accept'; did you mean 'accepted'"),
    ]:
        with pytest.raises(RamifyError, match=message):
            Lookahead(**options)  # type: ignore[arg-type]
