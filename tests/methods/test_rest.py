"""REST against a search by brute force, its datastore and the files of one, and how many nodes pay."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY, byte_lm, lm, text
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ramify.methods.draft.datastore as datastore
import ramify.methods.draft.rest as module
from ramify.api import generate
from ramify.engine.drafter import Context, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.datastore import SORTED, Datastore, suffix_order
from ramify.methods.draft.rest import Rest, Retriever, bundled, most_frequent
from ramify.methods.draft.sizing import PromisedSize
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load
from ramify.train.data import documents, library_files
from ramify.train.job import Job
from ramify.train.recipes.rest import train

PROMPT = text(17, 2, period=6)
NEW = 32
V = 4
corpora = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=50), min_size=1, max_size=4)


def draft(options: Rest, store: Datastore, tokens: Sequence[int]) -> TokenTree:
    made = Retriever(options, store, None)
    return made.draft(Context(list(tokens), 99, Sampler(), torch.Generator(), len(tokens)))


@functools.cache
def demo() -> CausalLM:
    return load("demo", dtype="float32")


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    tokens = tree.tokens.tolist()
    return [tuple(tokens[node] for node in tree.shape.path(last)) for last in range(len(tree))]


def occurrences(documents: list[list[int]], piece: Sequence[int]) -> list[tuple[list[int], int]]:
    """Every place at which ``piece`` ends, by brute force."""
    return [
        (document, end)
        for document in documents
        for end in range(len(piece), len(document) + 1)
        if document[end - len(piece) : end] == list(piece)
    ]


# ---------------------------------------------------------------- by brute force


@given(
    corpora,
    st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 8),
)
def test_drafts_are_what_followed_the_longest_suffix(
    corpus: list[list[int]], tokens: list[int], shortest: int, nodes: int, length: int
):
    tree = draft(Rest(nodes=nodes, longest=5, shortest=shortest, length=length), Datastore.of(corpus, V), tokens)
    found: list[tuple[list[int], int]] = []
    for size in range(min(5, len(tokens)), shortest - 1, -1):
        found = occurrences(corpus, tokens[-size:])
        if found:
            break
    counts = Counter(
        tuple(document[end : end + depth])
        for document, end in found
        for depth in range(1, length + 1)
        if end + depth <= len(document)
    )
    best = sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix))[:nodes]
    assert paths(tree) == best


@given(corpora, st.lists(st.integers(0, V - 1), min_size=1, max_size=6))
def test_the_datastore_finds_what_a_search_finds(corpus: list[list[int]], piece: list[int]):
    store = Datastore.of(corpus, V)
    flat = [token for document in corpus for token in [*document, V]]
    places = store.find(piece)
    assert sorted(places.tolist()) == [at for at in range(len(flat)) if flat[at : at + len(piece)] == piece]
    following = [flat[place + len(piece) :][: SORTED - len(piece)] for place in places.tolist()]
    assert following == sorted(following)
    rows = store.behind(places + len(piece), 4)
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        ahead = flat[place + len(piece) :]
        ahead = ahead[: ahead.index(V)][:4]
        assert row == ahead + [-1] * (4 - len(ahead))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), st.sampled_from([5, 60_000, 100_000]))
def test_the_order_is_that_of_a_sort(tokens: list[int], largest: int):
    array = np.array([*tokens, *tokens, largest], dtype=np.uint32)
    whole = array.tolist()
    assert suffix_order(array).tolist() == sorted(range(len(whole)), key=lambda at: (whole[at : at + SORTED], at))


def test_large_vocabularies_compare_alike():
    tokens = [[70_000, 5, 256, 70_000, 4464, 5, 70_000, 5, 1]]
    store = Datastore.of(tokens, 100_000)
    assert store.tokens.dtype == np.uint32
    assert sorted(store.find([70_000, 5]).tolist()) == [0, 6]
    assert store.find([4464]).tolist() == [4]  # 70000 modulo 2^16


# ---------------------------------------------------------------- worked by hand

STORE = Datastore.of([[1, 2, 3, 5], [1, 2, 3, 6, 7], [0, 2, 3, 5, 4], [2, 4]], 8)


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        ([1, 2, 3], {}, [(5,), (6,), (6, 7)]),  # behind 1 2 3, twice
        ([9 % 8, 2, 3], {"nodes": 2}, [(5,), (6,)]),
        ([4, 2, 3], {}, [(5,), (6,), (5, 4), (6, 7)]),  # only 2 3, three times: 5 twice
        ([4, 2, 3], {"nodes": 1}, [(5,)]),
        ([4, 2, 3], {"nodes": 0}, []),
        ([4, 2, 3], {"length": 1}, [(5,), (6,)]),
        ([4, 2], {}, []),  # 2 alone is shorter than the shortest suffix
        ([4, 2], {"shortest": 1, "nodes": 3}, [(3,), (3, 5), (4,)]),
        ([3, 5], {}, [(4,)]),  # one of the two matches ends with its text
        ([2, 4], {}, []),  # so does the only one
        ([7, 0, 2, 3], {"longest": 2}, [(5,), (6,), (5, 4), (6, 7)]),
        ([2], {}, []),
    ],
)
def test_small_datastore(tokens: list[int], options: dict[str, Any], expected: list[tuple[int, ...]]):
    assert paths(draft(Rest(**{"nodes": 64} | options), STORE, tokens)) == expected


def test_of_too_many_matches_some_are_read_at_even_distances():
    store = Datastore.of([[1, 2, token] for token in range(3, 103)], 200)
    assert [token for (token,) in paths(draft(Rest(nodes=64, matches=4), store, [1, 2]))] == [3, 36, 69, 102]


def test_ends_of_texts_are_no_prefixes():
    rows = np.array([[1, 2, -1], [1, 2, 3], [1, -1, -1], [-1, -1, -1]])
    assert most_frequent(rows, 9) == [((1,), 3), ((1, 2), 2), ((1, 2, 3), 1)]
    assert most_frequent(rows[3:], 9) == []


# ---------------------------------------------------------------- generation


def test_any_datastore_gives_the_plain_tokens():
    plain = generate(lm("llama"), PROMPT, "greedy", max_new_tokens=NEW).tokens
    noise = np.random.default_rng(0).integers(0, VOCABULARY, 5000).tolist()
    calls = {}
    for name, corpus in (("noise", noise), ("text", [*PROMPT, *plain])):
        method = Rest(Datastore.of([corpus], VOCABULARY), nodes=24, shortest=1)
        result = generate(lm("llama"), PROMPT, method, max_new_tokens=NEW)
        assert result.tokens == plain
        assert result.stats.drafted > 0
        calls[name] = result.stats.target_calls
    assert calls["text"] < NEW / 3 < calls["noise"]


def test_acceptance_and_cost_curve_size_the_tree(monkeypatch: pytest.MonkeyPatch):
    curve = CostCurve("step", [1, 3, 4, 160], [1.0, 1.0, 90.0, 90.0])
    monkeypatch.setattr(module, "calibrate", lambda lm: curve)
    plain = generate(lm("llama"), PROMPT, "greedy", max_new_tokens=NEW).tokens
    store = Datastore.of([[*PROMPT, *plain]], VOCABULARY)
    method = Rest(store)
    result = generate(lm("llama"), PROMPT, method, max_new_tokens=NEW)
    assert result.tokens == plain
    assert max(len(draft.tree) for draft, _ in result.steps if draft) == 2
    assert sum(method.memory["size", lm("llama")].accepted.values()) > 0
    monkeypatch.setattr(module, "calibrate", lambda lm: CostCurve("steep", [1, 2, 160], [1.0, 3.0, 480.0]))
    assert generate(lm("llama"), PROMPT, Rest(store), max_new_tokens=NEW).stats.drafted <= 2


def test_the_size_learns_from_what_was_accepted():
    size = PromisedSize(CostCurve("free", [1, 160], [1.0, 1.0]), 64)
    made = Retriever(Rest(), STORE, size)
    tree = made.draft(Context([4, 2, 3], 99, Sampler(), torch.Generator(), 3))
    assert len(tree) == 4
    assert made.promises == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3])
    before = size.accepted[2], size.promised[2]
    made.observe(Outcome(tree.rooted(3), torch.zeros(5, 8), [0, 1], [5, 0]))
    assert (size.accepted[2] - before[0], size.promised[2] - before[1]) == (1, pytest.approx(5 / 3))
    made.observe(Outcome(TokenTree.chain([3]), torch.zeros(1, 8), [0], [5]))  # nothing was drafted
    assert size.accepted[2] == before[0] + 1


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("order", [True, False])
def test_a_datastore_survives_its_file(tmp_path: Path, order: bool):
    made = Datastore.of([text(500, 1), text(300, 2)], VOCABULARY, "abc")
    made.save(tmp_path / "d.safetensors", order=order)
    assert ("order" in load_file(tmp_path / "d.safetensors")) == order
    again = Datastore.load(tmp_path / "d.safetensors")
    assert (again.vocab_size, again.fingerprint, len(again)) == (VOCABULARY, "abc", 802)
    assert (again.tokens == made.tokens).all()
    assert (again.order == made.order).all()


def damaged(name: str, tensors: dict[str, np.ndarray], told: dict[str, str]) -> None:
    if name == "no format":
        told["format"] = "something else"
    elif name == "lacks":
        del tensors["tokens"]
    elif name == "types":
        tensors["tokens"] = tensors["tokens"].astype(np.int32)
    elif name == "vocabulary":
        told["vocab_size"] = "3"
    elif name == "twice":
        tensors["order"][3] = tensors["order"][4]
    else:
        tensors["order"][3] = len(tensors["order"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no format", "is no datastore"),
        ("lacks", "it holds order instead"),
        ("types", "its tokens are no list of ids"),
        ("vocabulary", "not of a vocabulary of 3"),
        ("twice", "no order of its tokens"),
        ("beyond", "no order of its tokens"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, message: str):
    file = tmp_path / "d.safetensors"
    Datastore.of([text(100, 1)], VOCABULARY).save(file)
    tensors, told = load_file(file), {"format": datastore.FORMAT, "vocab_size": str(VOCABULARY), "tokenizer": ""}
    save_file(tensors, file, told)
    assert len(Datastore.load(file)) == 101
    damaged(name, tensors, told)
    save_file(tensors, file, told)
    with pytest.raises(RamifyError, match=message):
        Datastore.load(file)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(RamifyError, match="there is no datastore"):
        Datastore.load(tmp_path / "nothing.safetensors")
    file = tmp_path / "d.safetensors"
    Datastore.of([text(100, 1)], VOCABULARY).save(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RamifyError, match=r"is damaged .*; make it again with ramify train rest"):
        generate(lm("llama"), PROMPT, "rest", options={"datastore": str(file)}, max_new_tokens=4)


def test_a_datastore_must_fit_the_model():
    with pytest.raises(RamifyError, match=r"rest has no datastore for .*; make one for it with ramify train rest"):
        generate(lm("llama"), PROMPT, "rest", max_new_tokens=4)
    with pytest.raises(RamifyError, match="rest has no datastore for"):
        generate(byte_lm(), "abc", "rest", max_new_tokens=4)
    with pytest.raises(RamifyError, match="it was made for 8 tokens, not 96"):
        generate(lm("llama"), PROMPT, Rest(STORE, nodes=4), max_new_tokens=4)
    other = Datastore.of([[1, 2, 3]], byte_lm().vocab_size, "another")
    with pytest.raises(RamifyError, match="its tokenizer has another vocabulary"):
        generate(byte_lm(), "abc", Rest(other, nodes=4), max_new_tokens=4)
    assert generate(byte_lm(), "abc", Rest(replace(other, fingerprint=""), nodes=4), max_new_tokens=4).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": -1}, "nodes must be at least 0"),
        ({"shortest": 0}, "shortest, matches and length must be at least 1, got 0, 5000 and 10"),
        ({"matches": 0}, "got 2, 0 and 10"),
        ({"length": 0}, "got 2, 5000 and 0"),
        ({"longest": 1}, "longest is 1, less than shortest"),
        ({"longest": 30}, "longest and length are 40 together, but a datastore is sorted by 32"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        Rest(**options)


def test_bad_corpora_are_refused():
    with pytest.raises(RamifyError, match="the datastore would be empty"):
        Datastore.of([[], []], 9)
    for document in ([1, 10], [-1, 1]):
        with pytest.raises(RamifyError, match="outside the vocabulary of 9"):
            Datastore.of([document], 9)
    with pytest.raises(RamifyError, match="outside the vocabulary of 9"):
        Datastore.of([[1, 9, 2]], 9)  # the mark itself is no token


# ---------------------------------------------------------------- the recipe, and what is bundled


def test_the_recipe_makes_a_datastore_that_is_used(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for name in "abc":
        (tmp_path / "data" / f"{name}.txt").write_text(f"{name}: the cat sat on the mat")
    options = {"tokens": 60, "order": False}
    *_, last = train(Job(tmp_path / "out", byte_lm(), tmp_path / "data", options=options))
    assert (last.step, last.loss) == (last.steps, None)
    assert last.evaluation == {"texts": 2.0, "tokens": 52.0}  # 25 bytes and a mark each
    made = Datastore.load(tmp_path / "out" / "datastore.safetensors")
    assert len(made.find(list(b": the cat"))) == 2
    assert "-o tokens=60 -o order=False" in (tmp_path / "out" / "README.md").read_text()
    method = Rest(str(tmp_path / "out" / "datastore.safetensors"), nodes=8)
    assert generate(byte_lm(), "the c", method, max_new_tokens=4).stats.drafted > 0
    with pytest.raises(RamifyError, match="takes no --steps"):
        list(train(Job(tmp_path / "out", byte_lm(), tmp_path / "data", steps=3)))
    with pytest.raises(RamifyError, match="did you mean 'tokens'"):
        list(train(Job(tmp_path / "out", byte_lm(), tmp_path / "data", options={"token": 3})))


@pytest.mark.skipif(not module.BUNDLED.exists(), reason="the demo model is not in the package")
def test_the_bundled_datastore_fits_the_demo_model_and_is_small():
    assert module.BUNDLED.stat().st_size <= 2_000_000
    assert bundled().refuses(demo()) == ""
    assert bundled().fingerprint
    result = generate(demo(), "def read(path):\n    with open(", Rest(nodes=16), max_new_tokens=24)
    assert result.stats.accepted > 0


@pytest.mark.skipif(not module.BUNDLED.exists(), reason="the demo model is not in the package")
def test_the_held_out_modules_are_not_in_the_bundled_datastore():
    """Long pieces of a text are found only where the text itself is (or was copied from)."""
    found = []
    for file in library_files()[1][:7]:
        [document] = documents(demo(), file)
        pieces = [document[at : at + 28] for at in range(200, len(document) - 28, 400)]
        found += [len(bundled().find(piece)) > 0 for piece in pieces]
    assert len(found) > 50
    assert sum(found) / len(found) < 0.05
    inside = bundled().tokens[1000:1028].tolist()
    assert len(bundled().find(inside)) > 0
