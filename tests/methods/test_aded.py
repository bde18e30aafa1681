"""ADED: worked numbers, the search against a literal one, tables and their files, and how many nodes pay."""

from __future__ import annotations

import functools
import math
import platform
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY, byte_lm, byte_tokenizer, lm, text
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ramify.methods.draft.aded as module
import ramify.methods.draft.trigram_counts as trigram_counts
import ramify.methods.draft.trigrams as trigrams
from ramify.api import generate
from ramify.engine.drafter import Context
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.aded import AdaptiveDrafter, Aded, bundled
from ramify.methods.draft.puct import exploration, explore, likeliest, most_visited, ranked
from ramify.methods.draft.ranking import PRIOR, Ranked, Sizing, TreeSize
from ramify.methods.draft.sizing import RETRY
from ramify.methods.draft.trigram_counts import counts
from ramify.methods.draft.trigrams import Adapted, TrigramTable
from ramify.models.calibrate import CostCurve
from ramify.models.causal import DEMO, CausalLM, load
from ramify.train.data import documents, library_files
from ramify.train.job import Job
from ramify.train.recipes.aded import train

PROMPT = text(17, 2, period=6)
NEW = 32
V = 7
texts = st.lists(st.integers(0, V - 1), min_size=2, max_size=60)


def table(*documents: Sequence[int], vocab_size: int = V, **how: Any) -> TrigramTable:
    return counts(list(map(list, documents)), vocab_size).table(**how)


def draft(made: Any, tokens: Sequence[int]) -> TokenTree:
    found: TokenTree = made.draft(Context(list(tokens), 99, Sampler(), torch.Generator(), len(tokens)))
    return found


def drafter(options: Aded, corpus: TrigramTable) -> AdaptiveDrafter:
    return AdaptiveDrafter(options, Adapted(corpus, options.successors), None)


def entries(adapted: Adapted, u: int, v: int) -> dict[int, float]:
    row = adapted.row(adapted.pair(u, v))
    return dict(zip(row.tokens, row.weights, strict=True)) if row else {}


@functools.cache
def demo() -> CausalLM:
    return load("demo", dtype="float32")


def paths(tree: TokenTree) -> list[list[int]]:
    tokens = tree.tokens.tolist()
    return [[tokens[node] for node in tree.shape.path(last)] for last in range(len(tree))]


# ---------------------------------------------------------------- worked numbers


@pytest.mark.parametrize(("c1", "expected"), [(32.0, 8.22855), (1.814, 1.86478)])
def test_the_score_of_a_child(c1: float, expected: float):
    assert 2.6 / 2 + exploration(10, c1, 8.0) * 0.2 / (1 + 2) == pytest.approx(expected, abs=5e-6)


def test_adaptation_raises_what_was_written_up_to_the_cap():
    made = drafter(Aded(nodes=8), TrigramTable.empty(V))
    for call in range(1, 80):
        draft(made, [1, 2, 3])
        assert entries(made.table, 1, 2) == {3: pytest.approx(min(3.0, 0.04 * call))}
    assert entries(made.table, 1, 2) == {3: 3.0}


def test_adaptation_reads_the_last_sixteen_tokens():
    tokens = list(range(20))
    made = drafter(Aded(nodes=8), TrigramTable.empty(40))
    draft(made, tokens)
    assert len(made.table.rows) == 14
    assert entries(made.table, 3, 4) == {}
    assert entries(made.table, 4, 5) == {6: 0.04}
    assert entries(made.table, 17, 18) == {19: 0.04}


def test_the_prompt_counts_as_if_it_had_been_written():
    tokens = list(range(30))
    seeded, written = (drafter(Aded(nodes=4, seed_from_prompt=seed), TrigramTable.empty(40)) for seed in (True, False))
    seeded.start(tokens)
    for end in range(3, len(tokens) + 1):
        draft(written, tokens[:end])
    for u in range(10):  # long out of the window
        assert entries(seeded.table, u, u + 1) == pytest.approx(entries(written.table, u, u + 1))
        assert entries(seeded.table, u, u + 1) == {u + 2: pytest.approx(14 * 0.04)}


# ---------------------------------------------------------------- the search


class State:
    """A state of the search as the paper tells it: every successor an object, scores computed when asked for."""

    def __init__(self, tokens: tuple[int, ...], weight: float) -> None:
        self.tokens, self.weight = tokens, weight
        self.visits, self.total = 0, 0.0
        self.children: list[State] = []


def literal_search(
    adapted: Adapted, root: tuple[int, int], iterations: int, depth: int, c1: float, c2: float, rng: Any
) -> State:
    top = State(root, 0.0)
    for _ in range(iterations):
        state, trail = top, [top]
        while state.children and len(state.tokens) < depth + 2:
            parent = state

            def score(child: State, parent: State = parent) -> float:
                if child.visits == 0:
                    return math.inf
                pull = child.weight / (1 + child.visits)  # in the order of the search's own roundings: there are ties
                return child.total / child.visits + exploration(parent.visits, c1, c2) * pull

            state = max(state.children, key=score)
            trail.append(state)
        if len(state.tokens) < depth + 2:
            state.children = [
                State((*state.tokens, token), weight) for token, weight in entries(adapted, *state.tokens[-2:]).items()
            ]
            if state.children:
                state = state.children[-1]
                trail.append(state)
        reward, tokens = 1.0, list(state.tokens)
        while rng is not None and len(tokens) < depth + 2 and entries(adapted, *tokens[-2:]):
            row = entries(adapted, *tokens[-2:])
            left = rng.random() * sum(row.values())
            drawn = next((i for i, total in enumerate(accumulate(row.values())) if left < total), len(row) - 1)
            tokens.append(list(row)[drawn])
        if rng is not None:
            reward += sum(entries(adapted, *tokens[at : at + 2])[tokens[at + 2]] for at in range(len(tokens) - 2))
        for each in trail:
            each.visits += 1
            each.total += reward
    return top


def visits(state: State) -> dict[tuple[int, ...], int]:
    found = {state.tokens[2:]: state.visits} if len(state.tokens) > 2 and state.visits else {}
    for child in state.children:
        found |= visits(child)
    return found


@given(texts, st.integers(1, 60), st.integers(1, 4), st.sampled_from([32.0, 1.814]), st.booleans(), st.integers(0, 9))
def test_the_search_is_the_papers(tokens: list[int], iterations: int, depth: int, c1: float, random_: bool, seed: int):
    adapted = Adapted(table(tokens), 24)
    for at in range(0, len(tokens) - 2, 5):
        adapted.reinforce(adapted.pair(*tokens[at : at + 2]), tokens[at + 2] // 2, 0.3, 3.0)
    root = (tokens[0], tokens[1])
    rng, again = (random.Random(seed) if random_ else None for _ in range(2))
    nodes = explore(adapted, adapted.pair(*root), iterations=iterations, depth=depth, c1=c1, c2=8.0, generator=rng)
    found = {
        (*node.path, node.row.tokens[child]): count
        for node in nodes
        for child, count in enumerate(node.visits)
        if count
    }
    assert found == visits(literal_search(adapted, root, iterations, depth, c1, 8.0, again))
    if found:
        assert sum(count for path, count in found.items() if len(path) == 1) == iterations
        for path, count in found.items():
            assert len(path) <= depth
            assert sum(below for other, below in found.items() if other[:-1] == path) <= count


def test_the_most_visited_paths_and_what_is_likeliest_behind_them():
    adapted = Adapted(table([1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 0], vocab_size=V), 24)
    nodes = explore(adapted, adapted.pair(1, 2), iterations=150, depth=3, c1=32.0, c2=8.0, generator=None)
    found = list(most_visited(adapted, nodes, 4))
    # (1, 2) -> 3 twice, 0 once; behind 2 0 comes nothing.
    assert found[:4] == [(3,), (3, 4), (3, 4), (3, 4, 5)]
    assert {path for path in found if path[0] == 0} == {(0,)}
    assert list(most_visited(adapted, nodes, 1)) == [(3,), (3, 4)]
    assert explore(adapted, adapted.pair(6, 6), iterations=9, depth=3, c1=32.0, c2=8.0, generator=None) == []


@given(texts, st.integers(1, 4))
def test_full_search_ranks_all_paths(tokens: list[int], depth: int):
    adapted = Adapted(table(tokens), 24)
    adapted.reinforce(adapted.pair(*tokens[:2]), 0, 2.5, 3.0)  # a row of weights that sum to more than 1
    worth: dict[tuple[int, ...], float] = {}

    def walk(path: tuple[int, ...], product: float) -> None:
        row = entries(adapted, *(*tokens[:2], *path)[-2:])
        for token, weight in row.items() if len(path) < depth else ():
            worth[*path, token] = product * weight / max(1.0, sum(row.values()))
            walk((*path, token), worth[*path, token])

    walk((), 1.0)
    found = list(ranked(adapted, adapted.pair(*tokens[:2]), depth))
    assert len(found) == len(set(found))
    assert set(found) == set(worth)
    values = [worth[path] for path in found]
    assert values == pytest.approx(sorted(values, reverse=True))
    chain = list(likeliest(adapted, adapted.pair(*tokens[:2]), depth))
    for place, path in enumerate(chain):
        assert len(path) == place + 1
        row = entries(adapted, *(*tokens[:2], *path[:-1])[-2:])
        assert row[path[-1]] == max(row.values())
    assert len(chain) == depth or not entries(adapted, *(*tokens[:2], *(chain[-1] if chain else ()))[-2:])


# ---------------------------------------------------------------- drafts


@given(texts, texts, st.integers(0, 30), st.sampled_from(["mcts", "greedy", "full"]), st.booleans())
def test_drafts_are_paths_of_the_table(corpus: list[int], tokens: list[int], nodes: int, search: Any, adapt: bool):
    made = drafter(Aded(nodes=nodes, search=search, adapt=adapt, iterations=40), table(corpus))
    for end in range(1, len(tokens) + 1):
        tree = draft(made, tokens[:end])
        assert len(tree) <= nodes
        found = paths(tree)
        assert len(set(map(tuple, found))) == len(found)
        for path in found:
            assert len(path) <= 4
            whole = [*tokens[:end], *path]
            for at in range(end, len(whole)):
                assert whole[at] in entries(made.table, whole[at - 2], whole[at - 1])
    assert all(0 < weight <= 3.0 for row in made.table.rows.values() for weight in row.weights)


def test_without_adaptation_a_draft_depends_on_two_tokens_and_the_seed():
    first, other = text(400, 1, period=90), text(300, 2)[:9]
    corpus = table(first, other, vocab_size=VOCABULARY)
    made = drafter(Aded(nodes=32, adapt=False), corpus)
    tree = draft(made, [*first[:20], *first[:2]])
    draft(made, other)
    again = draft(drafter(Aded(nodes=32, adapt=False), corpus), [*other, *first[:2]])
    assert len(tree) > 0
    assert paths(tree) == paths(again)
    assert not made.table.rows
    # With a small C1 the rewards decide, and those are drawn.
    dense = table(np.random.default_rng(3).integers(0, V, 3000).tolist())
    by_luck = [Aded(nodes=40, adapt=False, c1=0.1, seed=seed) for seed in range(4)]
    seeds = [paths(draft(drafter(options, dense), [1, 2])) for options in by_luck]
    assert len({str(found) for found in seeds}) > 1


def test_one_token_gives_no_draft():
    for search in ("mcts", "greedy", "full"):
        assert len(draft(drafter(Aded(nodes=8, search=search), table([1, 1, 1, 1])), [1])) == 0


def test_the_budget_takes_the_most_visited_first():
    corpus = table(np.random.default_rng(1).integers(0, V, 2000).tolist())
    large = draft(drafter(Aded(nodes=64, iterations=150), corpus), [1, 2])
    assert len(large) > 30
    for nodes in (1, 2, 9, 30):
        small = draft(drafter(Aded(nodes=nodes, iterations=150), corpus), [1, 2])
        assert paths(small) == paths(large)[:nodes]


def test_fewer_iterations_where_fewer_nodes_are_wanted(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def watch(*args: Any, iterations: int, **how: Any) -> Any:
        asked.append(iterations)
        return explore(*args, iterations=iterations, **how)

    monkeypatch.setattr(module, "explore", watch)
    for nodes in (1, 32, 64, 80):
        draft(drafter(Aded(nodes=nodes), table([1, 2, 3, 1, 2, 3])), [1, 2])
    draft(drafter(Aded(nodes=20, iterations=7), table([1, 2, 3, 1, 2, 3])), [1, 2])
    assert asked == [30, 75, 150, 150, 7]


# ---------------------------------------------------------------- generation


def test_any_table_gives_the_plain_tokens():
    noise = np.random.default_rng(0).integers(0, VOCABULARY, 20_000).tolist()
    plain = generate(lm("llama"), PROMPT, "greedy", max_new_tokens=NEW).tokens
    for corpus in (table(noise, vocab_size=VOCABULARY), table([*PROMPT, *plain], vocab_size=VOCABULARY)):
        for search in ("mcts", "greedy", "full"):
            result = generate(lm("llama"), PROMPT, Aded(corpus, nodes=16, search=search), max_new_tokens=NEW)
            assert result.tokens == plain
            assert result.stats.drafted > 0
    known = Aded(table([*PROMPT, *plain], vocab_size=VOCABULARY), nodes=16, adapt=False)
    assert generate(lm("llama"), PROMPT, known, max_new_tokens=NEW).stats.tokens_per_call > 2


def test_what_is_carried_and_what_is_not():
    corpus = table(text(60, 3), vocab_size=VOCABULARY)
    before = [(row.tokens.copy(), row.weights.copy()) for pair in corpus.pairs.tolist() if (row := corpus.row(pair))]
    carried, request = Aded(corpus, nodes=16), Aded(corpus, nodes=16, scope="request")
    calls = {}
    for method in (carried, request):
        calls[method.scope] = [
            generate(lm("llama"), PROMPT, method, max_new_tokens=NEW).stats.target_calls for _ in range(3)
        ]
    assert calls["request"][0] == calls["request"][2]
    assert calls["carried"][2] < calls["carried"][0] == calls["request"][0]
    assert carried.memory["adapted", lm("llama")].rows
    assert not replace(carried).memory
    after = [(row.tokens, row.weights) for pair in corpus.pairs.tolist() if (row := corpus.row(pair))]
    assert before == after  # the corpus is read only


def test_a_row_holds_so_many_successors(monkeypatch: pytest.MonkeyPatch):
    adapted = Adapted(table([1, 2, 3, 1, 2, 4, 1, 2, 3]), 2)
    pair = adapted.pair(1, 2)
    adapted.reinforce(pair, 5, 0.5, 3.0)
    assert entries(adapted, 1, 2) == {3: pytest.approx(2 / 3), 5: 0.5}  # the lightest, 4, made room
    adapted.reinforce(pair, 6, 0.04, 3.0)
    assert entries(adapted, 1, 2) == {3: pytest.approx(2 / 3), 6: 0.04}
    monkeypatch.setattr(trigrams, "KEYS", 2)
    for u in range(3):
        adapted.reinforce(adapted.pair(u, 6), 0, 0.04, 3.0)
    assert set(adapted.rows) == {adapted.pair(1, 6), adapted.pair(2, 6)}  # the oldest made room
    assert entries(adapted, 1, 2) == {3: pytest.approx(2 / 3), 4: pytest.approx(1 / 3)}


# ---------------------------------------------------------------- how many nodes pay


FREE = CostCurve("free", [1, 160], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 160], [1.0, 2.0, 320.0])
STEP = CostCurve("step", [1, 13, 14, 160], [1.0, 1.0, 90.0, 90.0])


def test_the_rates_and_the_cost_curve_size_the_tree():
    for curve, expected in ((FREE, 64), (STEEP, 0), (STEP, 12)):
        size = TreeSize(curve, module.FIRST)
        assert size.best(64) == expected
        assert size.best(5) == min(5, expected)
    size = TreeSize(STEEP, module.FIRST)
    assert PRIOR == 32
    for _ in range(32 * 9):
        size.observe(1, [0])
    assert size.right[0] / size.seen[0] == pytest.approx(0.932)
    assert size.right[1] / size.seen[1] == pytest.approx(module.FIRST[1])
    cheap = CostCurve("cheap", [1, 2, 160], [1.0, 1.5, 320.0])
    assert TreeSize(cheap, [0.4, 0.4]).best(2) == 0
    sure = TreeSize(cheap, [0.4, 0.4])
    for _ in range(200):
        sure.observe(2, [0])
    assert sure.best(2) == 1


@given(texts, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=6), st.integers(1, 4))
def test_hindsight_counts_the_nodes_that_would_have_been_right(tokens: list[int], guesses: list[list[int]], depth: int):
    tree = Ranked(64)
    for guess in guesses:
        tree.add(guess)
    size = TreeSize(FREE, [0.5] * 64)
    sizing = Sizing(size, depth)
    for end in range(1, len(tokens) + 1):
        sizing.wanted(tokens[:end])
        sizing.draft(tree, tokens[:end])
    known = max(0, len(tokens) - depth)
    right = Counter(node for end in range(1, known + 1) for node in tree.along(tokens[end : end + depth]))
    assert size.seen.tolist() == [PRIOR + known if node < len(tree) else PRIOR for node in range(64)]
    assert size.right.tolist() == [0.5 * PRIOR + right[node] for node in range(64)]


def test_along_is_the_walk_through_the_trie():
    tree = Ranked(4)
    assert tree.add([5, 6])
    assert tree.add([5, 7])
    assert tree.add([8])
    assert not tree.add([8, 9])
    assert (tree.tokens, tree.parents) == ([5, 6, 7, 8], [-1, 0, 0, -1])
    assert tree.along([5, 7, 1]) == [0, 2]
    assert tree.along([6]) == []
    assert paths(tree.first(3)) == [[5], [5, 6], [5, 7]]


def test_where_nothing_pays_few_steps_search(monkeypatch: pytest.MonkeyPatch):
    searches = []

    def watch(*args: Any, **how: Any) -> Any:
        searches.append(1)
        return explore(*args, **how)

    monkeypatch.setattr(module, "explore", watch)
    plain = generate(lm("llama"), PROMPT, "greedy", max_new_tokens=NEW).tokens
    for curve, expected in ((STEEP, NEW // RETRY), (FREE, None)):
        searches.clear()
        monkeypatch.setattr(module, "calibrate", lambda lm, curve=curve: curve)
        result = generate(lm("llama"), PROMPT, Aded(), max_new_tokens=NEW)
        assert result.tokens == plain
        if expected is None:
            assert result.stats.target_calls - len(searches) in (0, 1)  # the last token may leave no room
            assert result.stats.drafted > 0
        else:
            assert abs(len(searches) - expected) <= 1
            assert result.stats.drafted == 0


# ---------------------------------------------------------------- tables


@given(st.lists(texts, max_size=4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 30))
def test_a_table_is_what_was_counted(documents: list[list[int]], keep: int, least: int, chunk: int):
    brute = Counter(tuple(d[at : at + 3]) for d in documents for at in range(len(d) - 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trigram_counts, "CHUNK", chunk)
        found = counts(documents, V)
    made = found.table(keep=keep, least=least)
    assert int(found.counts.sum()) == sum(brute.values())
    for u in range(V):
        for v in range(V):
            total = sum(count for (a, b, _), count in brute.items() if (a, b) == (u, v))
            best = sorted((-count, w) for (a, b, w), count in brute.items() if (a, b) == (u, v))[:keep]
            row = made.row(u * V + v)
            expected = [(w, -count / total) for count, w in best if -count >= least]
            assert (list(zip(row.tokens, row.weights, strict=True)) if row else []) == [
                (w, pytest.approx(p)) for w, p in expected
            ]
    small = found.table(entries=3)
    assert len(small) == min(3, sum(min(12, c) for c in Counter((a, b) for a, b, _ in brute).values()))


def test_a_table_survives_its_file(tmp_path: Path):
    made = table(text(500, 1), text(300, 2), vocab_size=VOCABULARY, fingerprint="abc")
    made.save(tmp_path / "t.safetensors")
    again = TrigramTable.load(tmp_path / "t.safetensors")
    assert (again.vocab_size, again.fingerprint) == (VOCABULARY, "abc")
    for name in ("pairs", "starts", "tokens"):
        assert (getattr(again, name) == getattr(made, name)).all()
    assert np.allclose(again.weights, made.weights, rtol=1e-3)
    assert len(TrigramTable.empty(9)) == 0


def damaged(name: str, tensors: dict[str, np.ndarray], told: dict[str, str]) -> None:
    if name == "no format":
        told["format"] = "something else"
    elif name == "lacks":
        del tensors["sizes"]
    elif name == "spare":
        tensors["more"] = tensors["sizes"]
    elif name == "sizes":
        tensors["sizes"] = tensors["sizes"] + np.uint8(1)
    elif name == "vocabulary":
        told["vocab_size"] = "3"
    elif name == "order":
        tensors["pairs"] = np.ascontiguousarray(tensors["pairs"][::-1])
    elif name == "weights":
        tensors["weights"] = tensors["weights"] * np.float16(2)
    elif name == "types":
        tensors["tokens"] = tensors["tokens"].astype(np.float32)
    else:
        tensors["tokens"] = tensors["tokens"][:, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no format", "is no tri-gram table"),
        ("lacks", "it holds pairs, tokens, weights instead"),
        ("spare", "it holds more, pairs"),
        ("sizes", "do not fit each other"),
        ("vocabulary", "outside its vocabulary of 3"),
        ("order", "not in order"),
        ("weights", "no probabilities"),
        ("types", "of other types"),
        ("shape", "no lists"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, message: str):
    file = tmp_path / "t.safetensors"
    table(text(100, 1), vocab_size=VOCABULARY).save(file)
    tensors, told = load_file(file), {"format": trigrams.FORMAT, "vocab_size": str(VOCABULARY), "tokenizer": ""}
    save_file(tensors, file, told)
    assert len(TrigramTable.load(file)) == len(tensors["tokens"])
    damaged(name, tensors, told)
    save_file(tensors, file, told)
    with pytest.raises(RamifyError, match=message):
        TrigramTable.load(file)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(RamifyError, match="there is no tri-gram table"):
        TrigramTable.load(tmp_path / "nothing.safetensors")
    file = tmp_path / "t.safetensors"
    table(text(100, 1), vocab_size=VOCABULARY).save(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RamifyError, match=r"is damaged .*; make it again with ramify train aded"):
        generate(lm("llama"), PROMPT, "aded", options={"table": str(file)}, max_new_tokens=4)


def test_a_table_must_fit_the_model():
    with pytest.raises(RamifyError, match=r"does not fit .*: it counts over 7 tokens, not 96"):
        generate(lm("llama"), PROMPT, Aded(table([1, 2, 3]), nodes=4), max_new_tokens=4)
    bytes_ = byte_lm()
    other = replace(table([1, 2, 3], vocab_size=bytes_.vocab_size), fingerprint="another")
    with pytest.raises(RamifyError, match="its tokenizer has another vocabulary; make one for it"):
        generate(bytes_, "abc", Aded(other, nodes=4), max_new_tokens=4)
    assert generate(bytes_, "abc", Aded(replace(other, fingerprint=""), nodes=4), max_new_tokens=4).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": -1}, "nodes must be at least 0, got -1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"paths": 0}, "paths must be at least 1"),
        ({"successors": 0}, "successors must be at least 1"),
        ({"c1": -1.0}, "c1 must be at least 0"),
        ({"c2": 0.0}, "c2 must be above 0"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"cap": math.nan}, "cap must be above 0"),
        ({"window": 2}, "a tri-gram needs 3 tokens"),
        ({"reward": "tabel"}, "did you mean 'table'"),
        ({"search": "mtcs"}, "did you mean 'mcts'"),
        ({"scope": "requests"}, "did you mean 'request'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        Aded(**options)


def test_bad_corpora_are_refused():
    with pytest.raises(RamifyError, match="outside the vocabulary of 7"):
        counts([[1, 2, 7]], 7)
    with pytest.raises(RamifyError, match="too large for tri-grams"):
        counts([], 1 << 21)
    with pytest.raises(RamifyError, match="keep is 0"):
        counts([[1, 2, 3]], 7).table(keep=0)


# ---------------------------------------------------------------- the recipe, and what is bundled


def test_the_recipe_makes_a_table_that_is_used(tmp_path: Path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat, the cat sat")
    job = Job(tmp_path / "out", byte_lm(), tmp_path / "a.txt", options={"keep": 3})
    *_, last = train(job)
    assert (last.step, last.loss) == (last.steps, None)
    assert last.evaluation is not None
    made = TrigramTable.load(tmp_path / "out" / "trigrams.safetensors")
    assert last.evaluation["kept"] == len(made)
    ids = byte_tokenizer()("the", add_special_tokens=False)["input_ids"]
    row = made.row(ids[0] * made.vocab_size + ids[1])
    assert row is not None
    assert row.tokens == [ids[2]]
    assert "`ramify train aded --model" in (tmp_path / "out" / "README.md").read_text()
    method = Aded(str(tmp_path / "out" / "trigrams.safetensors"), nodes=8)
    assert generate(byte_lm(), "the c", method, max_new_tokens=4).tokens
    assert method.memory["corpus", byte_lm()].vocab_size == 258


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "takes no --steps"),
        ({"dry": True}, "takes no --steps, --learning-rate or --dry-run"),
        ({"options": {"kept": 3}}, "did you mean 'keep'"),
        ({"options": {"least": 9}}, "the corpus is too short"),
    ],
)
def test_the_recipe_refuses(tmp_path: Path, change: dict[str, Any], message: str):
    (tmp_path / "a.txt").write_text("some words")
    with pytest.raises(RamifyError, match=message):
        list(train(replace(Job(tmp_path / "out", byte_lm(), tmp_path / "a.txt"), **change)))


def test_other_models_start_from_nothing():
    method = Aded(nodes=4)
    generate(lm("llama"), PROMPT, method, max_new_tokens=2)
    assert len(method.memory["corpus", lm("llama")]) == 0


@pytest.mark.skipif(not module.BUNDLED.exists(), reason="the demo model is not in the package")
def test_the_bundled_table_fits_the_demo_model_and_is_small():
    assert module.BUNDLED.stat().st_size <= 2_000_000
    assert bundled().refuses(demo()) == ""
    assert bundled().fingerprint
    method = Aded(nodes=16)
    result = generate(demo(), "def read(path):\n    with open(", method, max_new_tokens=24)
    assert result.stats.accepted > 0
    assert method.memory["corpus", demo()] is bundled()
    empty = Aded("empty", nodes=16)
    generate(demo(), "def read(path):", empty, max_new_tokens=2)
    assert len(empty.memory["corpus", demo()]) == 0


@pytest.mark.skipif(
    not (DEMO / "training.json").exists() or platform.python_version() != "3.11.7",
    reason="the bundled table was counted on the library of Python 3.11.7",
)
def test_the_held_out_modules_are_not_in_the_bundled_table():
    """Of the tri-grams that a module has three times, the table knows nearly all only if the module was counted."""
    known = dict.fromkeys(("trained", "held out"), 0.0)
    trained, held_out = library_files()
    for name, files in (("trained", trained[40:400:60]), ("held out", held_out[:6])):
        shares = []
        for file in files:
            [document] = documents(demo(), file)
            own = Counter(zip(document, document[1:], document[2:], strict=False))
            often = [gram for gram, count in own.items() if count >= 3]
            rows = [bundled().row(u * bundled().vocab_size + v) for u, v, _ in often]
            hits = [row is not None and w in row.tokens for row, (_, _, w) in zip(rows, often, strict=True)]
            shares += hits
        known[name] = sum(shares) / len(shares)
    assert known["trained"] > 0.9
    assert known["held out"] < 0.8
