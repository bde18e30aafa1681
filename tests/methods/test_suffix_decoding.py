"""SuffixDecoding: the suffix tree against brute force, its score rule, both trees, what is remembered and forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import lm, text
from hypothesis import given
from hypothesis import strategies as st

import ramify.methods.draft.suffix_decoding as module
from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.sizing import PRIOR, RETRY
from ramify.methods.draft.suffix_decoding import Outputs, SuffixDecoding
from ramify.methods.draft.suffix_tree import Node, SuffixTree, Text
from ramify.models.calibrate import CostCurve

FREE = CostCurve("free", [1, 100], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 100], [1.0, 2.0, 100.0])
MODEL: Any = object()  # never asked for anything


def letters(string: str) -> list[int]:
    return [ord(letter) for letter in string]


def context(tokens: Sequence[int], levels: int = 99) -> Context:
    return Context(list(tokens), levels, Sampler(), torch.Generator(), len(tokens))


def drafter(method: SuffixDecoding, prompt: str = "") -> Any:
    made: Any = method.drafter(MODEL, SimpleNamespace())  # type: ignore[arg-type]
    made.start(letters(prompt))
    return made


def drafted(made: Any, string: str, levels: int = 99) -> set[str]:
    """All paths of the draft after ``string``."""
    tree = made.draft(context(letters(string), levels))
    tokens = "".join(map(chr, tree.tokens.tolist()))
    return {"".join(tokens[node] for node in tree.shape.path(leaf)) for leaf in range(len(tree))}


# ---------------------------------------------------------------- the tree


def counts(texts: Sequence[Sequence[int]], depth: int) -> Counter[tuple[int, ...]]:
    """How often every string of up to ``depth`` tokens occurs, by definition."""
    return Counter(
        tuple(tokens[start:end])
        for tokens in texts
        for start in range(len(tokens))
        for end in range(start + 1, min(len(tokens), start + depth) + 1)
    )


def held(tree: SuffixTree) -> Counter[tuple[int, ...]]:
    """What the tree says, leaves written out."""
    found = Counter[tuple[int, ...]]()

    def visit(node: Node, string: tuple[int, ...]) -> None:
        if string:
            found[string] = node.count
            assert len(string) == node.depth
            assert string[-1] == node.token
        if node.children is None:
            assert node.count == 1
            tail = node.text.tokens[node.at : node.at + tree.depth - node.depth]
            for end in range(1, len(tail) + 1):
                found[(*string, *tail[:end])] = 1
            return
        best = max((child.count for child in node.children.values()), default=None)
        assert best == (node.best.count if node.best else None)
        assert node.best is None or node.best is node.children[node.best.token]
        for token, child in node.children.items():
            visit(child, (*string, token))

    visit(tree.root, ())
    return found


pieces = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), min_size=1, max_size=6)), max_size=12)


@given(pieces, st.integers(2, 6), st.sets(st.integers(0, 2)))
def test_the_tree_counts_what_texts_hold_while_they_grow_and_go(
    grown: list[tuple[int, list[int]]], depth: int, removed: set[int]
):
    tree, texts = SuffixTree(depth), [Text(), Text(), Text()]
    for number, tokens in grown:
        tree.extend(texts[number], tokens)
        assert held(tree) == counts([one.tokens for one in texts], depth)
    left = list(texts)
    for number in removed:
        tree.remove(texts[number])
        left.remove(texts[number])
        assert held(tree) == counts([one.tokens for one in left], depth)
    for one in left:  # those that stay go on growing
        tree.extend(one, [0, 1, 0])
        assert held(tree) == counts([one.tokens for one in left], depth)


@given(pieces, st.integers(2, 6), st.lists(st.integers(0, 2), min_size=1, max_size=7))
def test_a_string_is_found_where_something_follows_it(
    grown: list[tuple[int, list[int]]], depth: int, string: list[int]
):
    tree, texts = SuffixTree(depth), [Text(), Text(), Text()]
    for number, tokens in grown:
        tree.extend(texts[number], tokens)
    known = counts([one.tokens for one in texts], depth)
    follows = any(other[: len(string)] == tuple(string) and len(other) > len(string) for other in known)
    assert (tree.find(string) is not None) == follows


FLOOR = 0.1503  # no ratio of small counts, so that rounding decides nothing


def likeliest(known: Counter[tuple[int, ...]], string: tuple[int, ...], nodes: int) -> list[float]:
    """Probabilities of the likeliest nodes of the tree behind ``string``, by definition."""
    found = dict[tuple[int, ...], float]()
    while len(found) < nodes:
        ends = {string, *found}
        heads = [(known[other] / known[string], other) for other in known if other[:-1] in ends and other not in found]
        share, path = max(heads, default=(0.0, ()))
        if share < FLOOR:
            break
        found[path] = share
    return list(found.values())


@given(pieces, st.integers(2, 6), st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(1, 8), st.booleans())
def test_speculations_are_the_likeliest(
    grown: list[tuple[int, list[int]]], depth: int, string: list[int], nodes: int, branch: bool
):
    tree, texts = SuffixTree(depth), [Text(), Text(), Text()]
    for number, tokens in grown:
        tree.extend(texts[number], tokens)
    place = tree.find(string)
    if place is None:
        return
    known = counts([one.tokens for one in texts], depth)
    found = tree.speculate(place, len(string), nodes, FLOOR, branch)
    paths: list[tuple[int, ...]] = []
    for token, parent, share in zip(found.tokens, found.parents, found.probabilities, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else tuple(string)), token))
        assert share == pytest.approx(known[paths[-1]] / known[tuple(string)])
        assert branch or parent == len(paths) - 2
    assert len(set(paths)) == len(paths)
    if branch:
        assert found.probabilities == pytest.approx(likeliest(known, tuple(string), nodes))
    else:
        for path in paths:
            assert known[path] == max(known[(*path[:-1], token)] for token in range(3))
        if len(paths) < nodes:  # nothing likely enough follows
            last = paths[-1] if paths else tuple(string)
            assert all(known[(*last, token)] < FLOOR * known[tuple(string)] for token in range(3))


def test_the_latest_of_equally_frequent_children_is_the_best():
    tree, one = SuffixTree(8), Text()
    for string, best in (("aX", "X"), ("aY", "Y"), ("aX", "X"), ("aY", "Y")):
        tree.extend(one, letters(string))
        place = tree.find(letters("a"))
        assert place is not None
        assert tree.speculate(place, 1, 1, 0.1, False).tokens == letters(best)


# ---------------------------------------------------------------- the score rule


def test_probabilities_and_score_by_hand():
    """Behind "ab": X twice, Y once, and the text's own end; behind "abX" P and Q once each."""
    made = drafter(SuffixDecoding(length=9, factor=9.0, requests=0))
    string = "abXP_abXQ-abY.ab"
    found = made.draft(context(letters(string)))
    assert made.drafted.match == 2
    assert made.drafted.probabilities[:2] == pytest.approx([2 / 4, 1 / 4])
    assert "".join(map(chr, found.tokens.tolist())).startswith("XQ-abY.a")
    assert made.drafted.score == pytest.approx(0.5 + 8 * 0.25)


@given(st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=4), st.integers(2, 8), st.booleans())
def test_all_matches_are_known_without_a_search(outputs: list[list[int]], depth: int, evicted: bool):
    method = SuffixDecoding(length=5, depth=depth, requests=1 if evicted else 9)
    for tokens in outputs[:-1]:
        drafter(method).draft(context([*tokens, 0]))
    made = drafter(method, "ab")
    if evicted:
        drafter(method).draft(context([0, 1, 2, 0]))
    for end in range(len(outputs[-1]) + 1):
        made.draft(context([*letters("ab"), *outputs[-1][:end]]))
        tokens = made.text.tokens
        for tree, text_ in ((made.own, made.text), (made.past.tree, made.output)):
            places = {match: tree.find(tokens[-match:]) for match in range(1, min(len(tokens), depth))}
            assert made._matches(tree, text_) == [(match, place) for match, place in places.items() if place]


@pytest.mark.parametrize(
    ("options", "string", "expected"),
    [
        ({}, "abcXYZ.abc", {"X", "XY", "XYZ"}),  # a match of three: three tokens
        ({"factor": 2.0}, "abcXYZ.abc", {"X", "XY", "XYZ", "XYZ.", "XYZ.a", "XYZ.ab"}),
        ({"factor": 0.5, "offset": 0.5}, "abcXYZ.abc", {"X", "XY"}),
        ({"length": 2}, "abcXYZ.abc", {"X", "XY"}),
        ({"factor": 0.0}, "abcXYZ.abc", set()),
        ({"depth": 4}, "abcXYZ.abc", {"X", "XY"}),  # "bc" and two more; "abc" leaves room for one
        ({"floor": 0.6}, "abcXYZ.abc", set()),  # once of twice, the text's end being the other
        ({}, "abcdef", set()),
        ({}, "aXaYa", {"Y"}),
        ({"mode": "tree"}, "aXaYa", {"Y"}),
        ({"mode": "tree", "factor": 2.0}, "aXaYa", {"X", "Y"}),
        ({"mode": "path", "factor": 2.0}, "aXaYa", {"Y", "Ya"}),
    ],
)
def test_what_is_drafted(options: dict[str, Any], string: str, expected: set[str]):
    assert drafted(drafter(SuffixDecoding(**{"length": 40, "requests": 0} | options)), string) == expected
    grown = drafter(SuffixDecoding(**{"length": 40, "requests": 0} | options), string[:2])
    for end in range(2, len(string)):
        grown.draft(context(letters(string[:end])))
    assert drafted(grown, string) == expected


def test_the_tree_is_as_deep_as_there_is_room():
    made = drafter(SuffixDecoding(length=40))
    assert drafted(made, "abcXYZ.abc", levels=1) == {"X"}
    assert drafted(made, "abcXYZ.abc", levels=2) == {"X", "XY"}


def test_a_longer_match_wins_among_equals_and_loses_to_a_better_score():
    # "b" is followed by X four times of six, "ab" by Y once of twice: one token each.
    string = "bXbXbXbXabYab"
    assert drafted(drafter(SuffixDecoding(length=1)), string) == {"X"}
    assert drafted(drafter(SuffixDecoding(length=9)), string) == {"Y", "Ya"}  # 0.5 + 0.5 against 0.67
    # "b" and "ab" are both followed by X once of twice.
    made = drafter(SuffixDecoding(length=1))
    assert drafted(made, "abXab") == {"X"}
    assert made.drafted.match == 2


def test_the_requests_own_tree_comes_before_the_other():
    method = SuffixDecoding(length=1)
    other = drafter(method)
    other.draft(context(letters("abYab")))  # its output: abYab
    equal = drafter(method, "abX.")
    assert drafted(equal, "abX.ab") == {"X"}
    better = drafter(method, "abX.abZ.")  # own: one of three; the other's: of four, with this request's own output
    assert drafted(better, "abX.abZ.q") == set()
    for _ in range(3):
        drafter(method).draft(context(letters("abYabY")))
    assert drafted(better, "abX.abZ.qab") == {"Y"}


# ---------------------------------------------------------------- what is remembered


def test_outputs_are_remembered_and_prompts_are_not():
    method = SuffixDecoding(length=9)
    first = drafter(method, "prompt:")
    first.draft(context(letters("prompt:")))
    first.draft(context(letters("prompt:output")))
    later = drafter(method)
    assert drafted(later, "xut") == {"p", "pu"}
    assert drafted(later, "xutmp") == {"u"}  # "mp" is the first prompt's: only "p" is known, from its output
    assert method.memory[MODEL].tree.find(letters("rom")) is None
    assert drafted(drafter(SuffixDecoding(length=9)), "xut") == set()


def test_the_oldest_outputs_make_room():
    outputs = Outputs(SuffixTree(8), 2)
    first = outputs.begin()
    outputs.extend(first, letters("abc"))
    second = outputs.begin()
    outputs.extend(second, letters("abd"))
    assert held(outputs.tree) == counts([letters("abc"), letters("abd")], 8)
    third = outputs.begin()
    outputs.extend(third, letters("xyz"))
    assert held(outputs.tree) == counts([letters("abd"), letters("xyz")], 8)
    outputs.extend(first, letters("late"))  # a request that runs on after it had to make room
    assert held(outputs.tree) == counts([letters("abd"), letters("xyz")], 8)
    outputs.extend(second, letters("e"))
    assert held(outputs.tree) == counts([letters("abde"), letters("xyz")], 8)

    none = Outputs(SuffixTree(8), 0)
    none.extend(none.begin(), letters("abc"))
    assert not held(none.tree)


@given(*[st.lists(st.integers(0, 2), max_size=9) for _ in range(3)], st.integers(2, 11), st.booleans())
def test_it_goes_back_to_where_it_was(
    output: list[int], others: list[int], earlier: list[int], length: int, evicted: bool
):
    both = []
    for back in (True, False):
        method = SuffixDecoding(length=5, requests=1 if evicted else 9)
        drafter(method).draft(context([*earlier, 0]))
        made = drafter(method, "ab")
        if evicted:
            drafter(method)
        if back:
            made.draft(context([*letters("ab"), *output]))
            made.rewind(length)
        known = [*letters("ab"), *output][:length] + others
        made.draft(context(known))  # which of equally frequent children it takes may differ: none came last any more
        both.append((held(made.own), held(method.memory[MODEL].tree)))
    assert both[0] == both[1]


def test_an_object_remembers_and_a_fresh_one_does_not():
    prompt = text(14, 2, period=6)
    plain = generate(lm("llama"), prompt, "greedy", max_new_tokens=30).tokens
    for mode in ("path", "tree"):
        method = SuffixDecoding(mode=mode, length=24, factor=4.0)  # type: ignore[arg-type]
        first, second = (generate(lm("llama"), prompt, method, max_new_tokens=30) for _ in range(2))
        assert first.tokens == second.tokens == plain
        assert second.stats.target_calls < first.stats.target_calls
        again = SuffixDecoding(mode=mode, length=24, factor=4.0, requests=0)  # type: ignore[arg-type]
        calls = [generate(lm("llama"), prompt, again, max_new_tokens=30).stats.target_calls for _ in range(2)]
        assert calls == [first.stats.target_calls] * 2


# ---------------------------------------------------------------- sizes


def test_drafts_are_sized_by_what_they_promise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "calibrate", lambda _: FREE)
    made = drafter(SuffixDecoding())
    assert drafted(made, "abcXYZ.abc") == {"X", "XY", "XYZ"}
    made.observe(Outcome(TokenTree.chain([0] * 3), torch.zeros(3, 3), [0, 1, 2], ()))
    assert made.sizing.promised[2] == pytest.approx(PRIOR[1] + 2 * 0.5)  # two nodes were scored
    assert made.sizing.accepted[2] == PRIOR[0] + 2
    made.observe(Outcome(TokenTree.chain([0] * 3), torch.zeros(3, 3), [0, 1, 2], (), mine=[0]))  # none of its own
    assert made.sizing.accepted[2] == PRIOR[0] + 2

    # One node gives 1 + 0.75 · 0.5 tokens, two 1.75: worth a cost of 1.2, not one of 9.
    monkeypatch.setattr(module, "calibrate", lambda _: CostCurve("some", [1, 2, 3], [1.0, 1.2, 9.0]))
    assert drafted(drafter(SuffixDecoding()), "abcXYZ.abc") == {"X"}
    monkeypatch.setattr(module, "calibrate", lambda _: STEEP)
    made = drafter(SuffixDecoding())
    assert [len(made.draft(context(letters("abcXYZ.abc")))) for _ in range(RETRY)] == [0] * (RETRY - 1) + [1]


@pytest.mark.parametrize("curve", [FREE, STEEP])
def test_sized_drafts_change_no_token(curve: CostCurve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "calibrate", lambda _: curve)
    prompt = text(15, 4, period=5)
    result = generate(lm("llama"), prompt, SuffixDecoding(), max_new_tokens=40)
    assert result.tokens == generate(lm("llama"), prompt, "greedy", max_new_tokens=40).tokens
    if curve is FREE:
        assert result.stats.accepted > 0
    else:
        assert result.stats.row_steps <= 40 + 40 // RETRY


def test_what_is_wrong_with_the_options_is_said():
    for options, message in [
        ({"length": 0}, "length must be at least 1, depth at least 2 and requests at least 0, got 0, 64 and 10000"),
        ({"depth": 1}, "got None, 1 and 10000"),
        ({"requests": -1}, "got None, 64 and -1"),
        ({"factor": -1.0}, "factor and offset must be at least 0 and floor between 0 and 1, got -1.0, 0.0 and 0.1"),
        ({"floor": 0.0}, "got 1.0, 0.0 and 0.0"),
        ({"mode": "trees"}, "unknown mode 'trees'; did you mean 'tree'"),
    ]:
        with pytest.raises(RamifyError, match=message):
            SuffixDecoding(**options)  # type: ignore[arg-type]
