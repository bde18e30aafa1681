"""SAM-Decoding: the static automaton against brute force, its file, who drafts when, and what the auxiliary sees."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY, byte_lm, lm, text
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ramify.methods.draft.sam as module
from ramify.api import generate
from ramify.engine.automaton import SuffixAutomaton
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.sam import SAMDecoding
from ramify.methods.draft.sizing import PRIOR
from ramify.methods.draft.static_automaton import Reader, StaticAutomaton
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.calibrate import CostCurve
from ramify.train.job import Job, trainer

FREE = CostCurve("free", [1, 100], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 100], [1.0, 2.0, 100.0])
corpora = st.lists(st.lists(st.integers(0, 2), max_size=14), min_size=1, max_size=4).filter(any)
texts = st.lists(st.integers(0, 3), max_size=24)
MODEL: Any = SimpleNamespace(name="mock", vocab_size=300, tokenizer=None)


def letters(string: str) -> list[int]:
    return [ord(letter) for letter in string]


def static(*documents: str) -> StaticAutomaton:
    return StaticAutomaton.build(map(letters, documents), 300)


def drafter(method: SAMDecoding, model: Any = MODEL) -> Any:
    return method.drafter(model, SimpleNamespace())  # type: ignore[arg-type]


def context(tokens: Sequence[int], levels: int = 99) -> Context:
    return Context(list(tokens), levels, Sampler(), torch.Generator(), len(tokens))


def draft(made: Drafter, tokens: Sequence[int]) -> list[int]:
    tree = made.draft(context(tokens))
    assert tree.shape.is_chain
    found: list[int] = tree.tokens.tolist()
    return found


def outcome(drafted: int, accepted: int, mine: Sequence[int] | None = None) -> Outcome:
    tree = TokenTree.chain([0] * (drafted + 1))
    return Outcome(tree, torch.zeros(drafted + 1, 300), range(accepted + 1), (), mine=mine)


# ---------------------------------------------------------------- the static automaton


def ends(documents: Sequence[Sequence[int]], string: Sequence[int]) -> list[tuple[int, int]]:
    """Every document and position at which ``string`` ends."""
    return [
        (number, end)
        for number, document in enumerate(documents)
        for end in range(len(string), len(document) + 1)
        if list(document[end - len(string) : end]) == list(string)
    ]


def longest_suffix(documents: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[int]:
    return next(list(tokens[start:]) for start in range(len(tokens) + 1) if ends(documents, tokens[start:]))


@given(corpora, texts)
def test_a_reader_finds_what_a_search_finds(documents: list[list[int]], tokens: list[int]):
    automaton = StaticAutomaton.build(documents, 4)
    reader = Reader(automaton)
    for end, token in enumerate(tokens, 1):
        reader.extend([token])
        suffix = longest_suffix(documents, tokens[:end])
        assert reader.matched == len(suffix)
        places = ends(documents, suffix)
        assert automaton.count[reader.state] == (len(places) if suffix else sum(map(len, documents)))
        if suffix:
            number, after = places[0]
            assert automaton.chain(reader.state, 5) == documents[number][after : after + 5]
    at_once = Reader(automaton)
    at_once.extend(tokens)
    assert (at_once.state, at_once.matched) == (reader.state, reader.matched)
    assert automaton._fits()


@given(corpora)
def test_every_substring_and_no_other_leads_somewhere(documents: list[list[int]]):
    automaton = StaticAutomaton.build(documents, 3)
    strings = {
        tuple(document[start:end])
        for document in documents
        for start in range(len(document))
        for end in range(start + 1, len(document) + 1)
    }
    reached, frontier = dict[tuple[int, ...], int](), [((), 0)]
    while frontier:
        string, state = frontier.pop()
        for token in range(3):
            following = automaton.step(state, token)
            if following is not None:
                reached[*string, token] = following
                frontier.append(((*string, token), following))
    assert reached.keys() == strings
    assert all(automaton.count[state] == len(ends(documents, string)) for string, state in reached.items())


def best_first(
    documents: Sequence[Sequence[int]], string: list[int], nodes: int, levels: int, width: int
) -> list[tuple[tuple[int, ...], float]]:
    """The paths behind ``string`` by their share of its occurrences, by definition."""
    total, found, open_ = len(ends(documents, string)), list[tuple[tuple[int, ...], float]](), {()}
    depths = Counter[int]()
    while open_ and len(found) < nodes:
        ranked = []
        for path in open_:
            following = Counter(
                documents[number][end]
                for number, end in ends(documents, [*string, *path])
                if end < len(documents[number])
            )
            for token, count in following.items():
                if (*path, token) not in dict(found) and depths[len(path)] < width and len(path) < levels:
                    ranked.append((-count / total, len(path), token, (*path, token)))
        if not ranked:
            break
        share, depth, _, path = min(ranked)
        found.append((path, -share))
        depths[depth] += 1
        open_.add(path)
    return found


@given(corpora, texts, st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_the_tree_holds_the_likeliest_continuations(
    documents: list[list[int]], tokens: list[int], nodes: int, levels: int, width: int
):
    automaton = StaticAutomaton.build(documents, 4)
    reader = Reader(automaton)
    reader.extend(tokens)
    found, parents, shares = automaton.tree(reader.state, nodes, levels, width)
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(found, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert shares == sorted(shares, reverse=True)
    suffix = longest_suffix(documents, tokens)
    if suffix:
        wanted = best_first(documents, suffix, nodes, levels, width)
        assert shares == pytest.approx([share for _, share in wanted])
        if len({share for _, share in wanted}) == len(wanted):  # no ties that may be broken either way
            assert paths == [path for path, _ in wanted]
        assert max(Counter(map(len, paths)).values(), default=0) <= width
        assert max(map(len, paths), default=0) <= levels


def test_the_tree_by_hand():
    automaton = static("abX", "abY", "abY", "abYZ")
    reader = Reader(automaton)
    reader.extend(letters("ab"))
    tokens, parents, shares = automaton.tree(reader.state, 9, 9, 8)
    assert (tokens, parents, shares) == (letters("YXZ"), [-1, -1, 0], [0.75, 0.25, 0.25])
    assert automaton.tree(reader.state, 2, 9, 8)[0] == letters("YX")
    assert automaton.tree(reader.state, 9, 9, 1)[0] == letters("YZ")
    assert automaton.tree(reader.state, 9, 1, 8)[0] == letters("YX")
    assert automaton.chain(reader.state, 9) == letters("X")  # the earliest end, and no further than its document


# ---------------------------------------------------------------- its file


def test_it_is_kept_in_a_file(tmp_path: Path):
    automaton = dataclasses.replace(static("abracadabra", "cadenza"), tokenizer="abc")
    automaton.save(tmp_path / "a.safetensors")
    again = StaticAutomaton.load(tmp_path / "a.safetensors")
    assert (again.vocab_size, again.tokenizer) == (300, "abc")
    for field in module.StaticAutomaton.__dataclass_fields__:
        assert np.array_equal(getattr(again, field), getattr(automaton, field))


@pytest.mark.parametrize("broken", ["link", "targets", "offsets", "text", "count", "first_end", "longest", "tokens"])
def test_damaged_files_are_refused(broken: str, tmp_path: Path):
    file = tmp_path / "a.safetensors"
    static("abracadabra").save(file)
    arrays = load_file(file)
    told = {"format": "ramify suffix automaton 1", "vocab_size": "300", "tokenizer": ""}
    arrays[broken] = arrays[broken] + 500 * (-1 if broken == "count" else 1)
    save_file(arrays, file, told)
    with pytest.raises(RamifyError, match="is damaged"):
        StaticAutomaton.load(file)
    arrays[broken] = arrays[broken][:-1]
    save_file(arrays, file, told)
    with pytest.raises(RamifyError, match="is damaged"):
        StaticAutomaton.load(file)
    del arrays[broken]
    save_file(arrays, file, told)
    with pytest.raises(RamifyError, match="holds no suffix automaton"):
        StaticAutomaton.load(file)


def test_what_is_wrong_with_a_corpus_is_said(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(RamifyError, match="there is no automaton"):
        StaticAutomaton.load(file)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(RamifyError, match="is damaged"):
        StaticAutomaton.load(file)
    save_file({"text": np.zeros(3, dtype=np.int32)}, file)
    with pytest.raises(RamifyError, match="holds no suffix automaton"):
        StaticAutomaton.load(file)
    with pytest.raises(RamifyError, match="the corpus is empty"):
        StaticAutomaton.build([[], []], 9)
    for wrong in ([1, 9], [-1, 2]):
        with pytest.raises(RamifyError, match="outside the vocabulary of 9"):
            StaticAutomaton.build([wrong], 9)
    with pytest.raises(RamifyError, match="another vocabulary than that of mock"):
        drafter(SAMDecoding(corpus=static("ab"), length=3), SimpleNamespace(**vars(MODEL) | {"vocab_size": 299}))
    other = dataclasses.replace(static("ab"), tokenizer="another", vocab_size=byte_lm().vocab_size)
    with pytest.raises(RamifyError, match="another vocabulary"):
        drafter(SAMDecoding(corpus=other, length=3), byte_lm())


# ---------------------------------------------------------------- who drafts


class Auxiliary(Drafter):
    """Drafts one token 7 and keeps all it is told."""

    wants_prompt_logits = True
    hidden_layers = (2,)

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, prompt: Sequence[int]) -> None:
        self.told.append(list(prompt))

    def observe_prompt(self, tokens: list[int], logits: Any, hidden: Any) -> None:
        self.told.append((tokens, logits, hidden))

    def rewind(self, length: int) -> None:
        self.told.append(f"rewind to {length}")

    def draft(self, context: Context) -> TokenTree:
        return TokenTree.chain([7])

    def observe(self, outcome: Outcome) -> None:
        self.told.append(outcome)


@dataclasses.dataclass(frozen=True)
class Asked(DraftMethod):
    """A method whose drafter is ``memory["made"]``."""

    card = TokenRecycling.card

    def drafter(self, lm: Any, request: Any) -> Drafter:
        return self.memory.setdefault("made", Auxiliary())


@pytest.mark.parametrize(
    ("string", "options", "expected"),
    [
        ("abcdeXYZabcde", {}, "XYZabcde"),  # five tokens of the text's own
        ("abcdXYZabcd", {}, "\7"),  # four are too few
        ("abcdXYZabcd", {"threshold": 4}, "XYZabcd"),
        ("abcdeXYZabcde", {"length": 3}, "XYZ"),
        ("_0123456789", {}, "QRS"),  # ten in the corpus, less five
        ("_123456789", {}, "\7"),
        ("_123456789", {"bias": 4}, "QRS"),
        ("_123456789", {"threshold": 4}, "QRS"),
        ("56789XY0123456789", {}, "XY0123456789"),  # five against ten less five: the text's own among equals
        ("6789XY0123456789", {}, "QRS"),
        ("56789XY0123456789", {"bias": 4}, "QRS"),
        ("01234567890123456789QRS", {}, "\7"),  # all of the corpus is matched: no text behind it, the auxiliary's turn
    ],
)
def test_the_longer_match_drafts_and_else_the_auxiliary(string: str, options: dict[str, Any], expected: str):
    given_ = {"length": 40, "auxiliary": Asked(), "corpus": static("0123456789QRS")} | options
    assert draft(drafter(SAMDecoding(**given_)), letters(string)) == letters(expected)


@pytest.mark.parametrize(
    ("string", "options", "expected"),
    [
        ("abcXYZUVWKLMNOPQabc", {}, "XYZUVWKLMNOPQ"),  # 1 + 4 · 3
        ("abcXYZUVWKLMNOPQabc", {"factor": 1}, "XYZU"),
        ("abcXYZUVWKLMNOPQabc", {"length": 2}, "XY"),
        ("XabcY", {}, ""),
        ("_123456", {}, "7"),  # six in the corpus, less five: 1 + 4 tokens, but it branches
        ("_123456", {"factor": 0}, "7"),
        ("_12345", {}, ""),
    ],
)
def test_without_auxiliary_the_match_sets_the_length(string: str, options: dict[str, Any], expected: str):
    given_ = {"length": 40, "auxiliary": None, "corpus": static("1234567", "1234567")} | options
    assert draft(drafter(SAMDecoding(**given_)), letters(string)) == letters(expected)


def test_without_auxiliary_the_corpus_gives_trees():
    corpus = static("123456ab", "123456ac", "123456ac", "123456d")
    made = drafter(SAMDecoding(length=40, auxiliary=None, corpus=corpus))
    tree = made.draft(context(letters("_123456")))
    assert tree.tokens.tolist() == letters("acdb")  # b and d are equally likely: the shallower first
    assert tree.shape.parents == (-1, 0, -1, 0)
    narrow = drafter(SAMDecoding(length=40, auxiliary=None, corpus=corpus, width=1))
    assert draft(narrow, letters("_123456")) == letters("ac")
    assert draft(drafter(SAMDecoding(length=40, auxiliary=None, corpus=corpus, factor=1)), letters("_123456")) == (
        letters("ac")
    )


def test_the_auxiliary_sees_everything():
    method = SAMDecoding(length=3, auxiliary=Asked())
    made = drafter(method)
    auxiliary = method.memory["auxiliary"].memory["made"]
    assert (made.wants_prompt_logits, list(made.hidden_layers)) == (True, [2])
    made.start([1, 2])
    made.observe_prompt([1], None, {})
    assert auxiliary.told == [[1, 2], ([1], None, {})]

    made.draft(context(letters("abcdef")))
    first = outcome(1, 1)
    made.observe(first)
    assert auxiliary.told[-1] is first  # its own draft: as it is

    made.draft(context(letters("abcdefabcdef")))
    second = outcome(3, 2)
    made.observe(second)
    seen = auxiliary.told[-1]  # somebody else's: all the logits, no node of its own
    assert (seen.tree, seen.path, seen.drafted, seen.accepted) == (second.tree, second.path, 0, 0)
    assert seen.logits is second.logits

    plain = drafter(SAMDecoding(length=3, auxiliary=None))
    assert (plain.wants_prompt_logits, list(plain.hidden_layers)) == (False, [])
    plain.start([1, 2])
    plain.observe_prompt([1], None, {})


@given(corpora, texts, st.integers(0, 24), texts.filter(len))
def test_it_goes_back_to_where_it_was(documents: list[list[int]], tokens: list[int], length: int, others: list[int]):
    method = SAMDecoding(length=9, auxiliary=None, bias=0, corpus=StaticAutomaton.build(documents, 300))
    made, fresh = drafter(method), drafter(method)
    made.draft(context(tokens))
    made.rewind(length)
    known = [*tokens[:length], *others]
    assert made.draft(context(known)).tokens.tolist() == fresh.draft(context(known)).tokens.tolist()
    assert (made.corpus.state, made.corpus.matched) == (fresh.corpus.state, fresh.corpus.matched)


def test_the_auxiliary_goes_back_too():
    method = SAMDecoding(length=3, auxiliary=Asked())
    made = drafter(method)
    made.rewind(7)
    assert method.memory["auxiliary"].memory["made"].told == ["rewind to 7"]


def test_the_auxiliary_keeps_its_memory_from_request_to_request():
    method = SAMDecoding(length=40, auxiliary=TokenRecycling(template="paper", nodes=12))
    prompt = text(14, 2, period=6)
    first, second = (generate(lm("llama"), prompt, method, max_new_tokens=30) for _ in range(2))
    assert first.tokens == second.tokens == generate(lm("llama"), prompt, "greedy", max_new_tokens=30).tokens
    assert second.stats.target_calls <= first.stats.target_calls
    trees = [draft.tree for draft, _ in second.steps if draft]
    assert any(len(tree) == 12 and not tree.shape.is_chain for tree in trees)  # Token Recycling's
    assert any(len(tree) > 1 and tree.shape.is_chain for tree in trees)  # its own
    assert ("matrix", lm("llama")) in method.memory["auxiliary"].memory


# ---------------------------------------------------------------- sizes


def test_chains_are_sized_by_their_kind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "calibrate", lambda _: FREE)
    made = drafter(SAMDecoding(auxiliary=Asked(), corpus=static("0123456789QRS")))
    assert draft(made, letters("abcdeXYZabcde")) == letters("XYZabcde")
    assert made.kind == (False, 3)
    made.observe(outcome(4, 1))
    assert made.chains.accepted[False, 3] == PRIOR[0] + 1
    assert made.chains.tried[False, 3] == PRIOR[1] + 2
    assert draft(made, letters("abcdeXYZabcde0123456789")) == letters("QRS")
    made.observe(outcome(9, 2, mine=(0, 1, 2, 5)))  # in a union: three nodes, two of them accepted
    assert made.chains.accepted[True, 3] == PRIOR[0] + 2
    assert draft(made, letters("abcdeXYZabcde0123456789_")) == [7]
    before = dict(made.chains.tried)
    made.observe(outcome(1, 0))  # the auxiliary's draft tells nothing of chains
    assert made.chains.tried == before

    monkeypatch.setattr(module, "calibrate", lambda _: STEEP)
    made = drafter(SAMDecoding(auxiliary=Asked()))
    assert draft(made, letters("abcdeXYZabcde")) == [7]  # a match that does not pay is left to the auxiliary


def test_trees_are_sized_by_what_they_promise(monkeypatch: pytest.MonkeyPatch):
    corpus = static("123456ab", "123456ac", "123456ac", "123456d")
    method = SAMDecoding(auxiliary=None, corpus=corpus)
    monkeypatch.setattr(module, "calibrate", lambda _: FREE)
    made = drafter(method)
    assert len(made.draft(context(letters("_123456")))) == 4
    made.observe(outcome(2, 1))
    assert made.trees.promised[True, 1] == pytest.approx(PRIOR[1] + 0.75 + 0.5)
    assert made.trees.accepted[True, 1] == PRIOR[0] + 1
    monkeypatch.setattr(module, "calibrate", lambda _: CostCurve("some", [1, 2, 3, 4], [1.0, 1.3, 1.6, 9.0]))
    assert len(drafter(method).draft(context(letters("_123456")))) == 2
    monkeypatch.setattr(module, "calibrate", lambda _: STEEP)
    assert len(drafter(method).draft(context(letters("_123456")))) == 0


def test_what_is_wrong_with_the_options_is_said():
    for options, message in [
        ({"length": 0}, "length, threshold and width must be at least 1, got 0, 5 and 8"),
        ({"threshold": 0}, "got None, 0 and 8"),
        ({"width": 0}, "got None, 5 and 0"),
        ({"bias": -1}, "bias and factor must be at least 0, got -1 and 4"),
        ({"factor": -1}, "got 5 and -1"),
        ({"auxiliary": "token-recyclin"}, "did you mean 'token-recycling'"),
        ({"auxiliary": "hf-greedy"}, "hf-greedy makes no drafts"),
        ({"auxiliary": "suffix,prompt-lookup"}, "one method is the auxiliary, not 2; join several in a union"),
    ]:
        with pytest.raises(RamifyError, match=message):
            SAMDecoding(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the recipe


def test_the_recipe_builds_the_automaton(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text('{"text": "abracadabra"}\n{"text": "cadenza"}\n{"text": "never read"}\n')
    job = Job(tmp_path / "out", byte_lm(), tmp_path / "data.jsonl", options={"tokens": 17})
    [*_, last] = trainer("sam")(job)
    assert last.step == last.steps == 17
    automaton = StaticAutomaton.load(tmp_path / "out" / "automaton.safetensors")
    assert last.evaluation is not None
    assert last.evaluation["states"] == len(automaton.link)
    end = byte_lm().tokenizer.eos_token_id
    assert automaton.text.tolist() == [*letters("abracadabra"), end, -1, *letters("caden")]
    assert "17 tokens" in (tmp_path / "out" / "README.md").read_text()

    method = SAMDecoding(corpus=str(tmp_path / "out" / "automaton.safetensors"), length=8, bias=0, auxiliary=None)
    assert generate(byte_lm(), "abrac", method, max_new_tokens=12).stats.drafted > 0
    with pytest.raises(RamifyError, match="another vocabulary"):
        generate(lm("llama"), text(5), method, max_new_tokens=2)
    assert byte_lm().vocab_size != VOCABULARY


def test_what_the_recipe_does_not_take_is_said(tmp_path: Path):
    for changes, message in [
        ({"steps": 3}, "reads its corpus once"),
        ({"dry": True}, "reads its corpus once"),
        ({"options": {"tokens": 0}}, "tokens is 0; read at least 1"),
        ({"options": {"token": 5}}, "did you mean 'tokens'"),
    ]:
        with pytest.raises(RamifyError, match=message):
            list(trainer("sam")(Job(tmp_path / "out", byte_lm(), **changes)))


def test_documents_do_not_run_into_each_other():
    grown = SuffixAutomaton()
    for document in ("ab", "", "ab", "abc"):
        grown.add(letters(document))
    assert grown.text == [*letters("ab"), -1, *letters("ab"), -1, *letters("abc")]
    assert len(grown.link) == 4  # "a", "ab", "abc" and the empty string: what is known already adds no state
