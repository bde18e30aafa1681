"""Constraints: every output is in the language, whatever decodes it, and no string of the language is shut out."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import VOCABULARY, byte_lm, byte_tokenizer, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ramify.api import generate
from ramify.constrain import Constrained, Constraint, Graph, Vocabulary, bag, phrases, span, trie, words
from ramify.constrain.bag import Bag
from ramify.constrain.constraint import ENDED, OUTSIDE
from ramify.constrain.graph import Branches
from ramify.constrain.vocabulary import pieces
from ramify.errors import RamifyError
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.methods.search.self_consistency import SelfConsistency
from ramify.models.causal import DEMO

EVIDENCE = ["Ada Lovelace was born in London in 1815.", "Byron, her father, left London for Greece."]
NAMES = ["Paris", "Parisian", "New York", "York", "Lyon"]
END = 257


@functools.cache
def bytes_of() -> Vocabulary:
    return Vocabulary(258, 258, frozenset([END]), byte_tokenizer())


@functools.cache
def demo() -> Vocabulary:
    """The bundled tokenizer, whose tokens are pieces of words with blanks before them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    return Vocabulary(4224, len(tokenizer), frozenset([0]), tokenizer)


VOCABULARIES = {"bytes": bytes_of, "pieces": demo}


def paths(vocabulary: Vocabulary, answers: Sequence[Sequence[int]]) -> Graph:
    """The answer set ``answers``, as ids."""
    branches = Branches()
    return Graph(vocabulary, branches.steps, [branches.add(answer) for answer in answers])


def draw(constraint: Constraint, seed: int, most: int = 40) -> list[int]:
    """A random walk, which ends where it can with probability ¼ and anywhere after ``most`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    state, tokens = constraint.start(), []
    while len(tokens) < most:
        if state.accepting and (not len(state.allowed()) or float(torch.rand(1, generator=generator)) < 0.25):
            break
        allowed = state.allowed()
        tokens.append(int(allowed[int(torch.randint(len(allowed), (1,), generator=generator))]))
        state = constraint.advance(state, tokens[-1])
    return constraint.cut(tokens)


def are_words(said: str, bank: Sequence[str]) -> bool:
    return bool(
        re.fullmatch(rf" ?(?:{'|'.join(map(re.escape, bank))})(?: (?:{'|'.join(map(re.escape, bank))}))*", said)
    )


def spans() -> set[str]:
    """Every run of pieces of the evidence."""
    found = set()
    for sentence in EVIDENCE:
        parts = pieces(sentence)
        for begin in range(len(parts)):
            found |= {"".join(parts[begin:end]).strip() for end in range(begin + 1, len(parts) + 1)}
    return found


# ---- words ----


def test_words_keep_inner_marks_and_order():
    assert words("The well-known O'Neil paid 1,000.50, said O'Neil.") == [
        "The", "well-known", "O'Neil", "paid", "1,000.50", "said",
    ]  # fmt: skip
    assert pieces("a, b") == ["a", ",", " b"]
    assert words(" … ") == []


# ---- languages ----


@pytest.mark.parametrize("kind", VOCABULARIES)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=60)
def test_tries_say_words_of_the_bank_only(kind: str, seed: int):
    vocabulary = VOCABULARIES[kind]()
    said = vocabulary.decode(draw(trie(vocabulary, NAMES), seed))
    assert said == "" or are_words(said, NAMES)


@pytest.mark.parametrize("kind", VOCABULARIES)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=60)
def test_phrases_say_one_of_them(kind: str, seed: int):
    vocabulary = VOCABULARIES[kind]()
    assert vocabulary.decode(draw(phrases(vocabulary, NAMES), seed)).strip() in NAMES


@pytest.mark.parametrize("kind", VOCABULARIES)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=60)
def test_spans_stand_in_a_text_just_so(kind: str, seed: int):
    vocabulary = VOCABULARIES[kind]()
    said = vocabulary.decode(draw(span(vocabulary, EVIDENCE, ["yes", "no"]), seed)).strip()
    assert said in spans() | {"yes", "no", ""}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_nothing_of_the_language_is_shut_out(kind: str):
    vocabulary = VOCABULARIES[kind]()
    spanned, banked = span(vocabulary, EVIDENCE, ["yes"]), trie(vocabulary, NAMES)
    for said in [*sorted(spans()), "yes"]:
        assert spanned.accepts(vocabulary.encode(" " + said)), said
        assert spanned.accepts(vocabulary.encode(said)), said
    for said in ("Paris", " Lyon", "New York Parisian", "York York"):
        assert banked.accepts(vocabulary.encode(said)), said
    for wrong in ("born London", "her father left", "ondon", "Lond", "yes yes", "1815. Byron"):
        assert not spanned.accepts(vocabulary.encode(wrong)), wrong
    for wrong in ("Pari", "ParisLyon", "Paris ", "Rome", "Paris Rome"):
        assert not banked.accepts(vocabulary.encode(wrong)), wrong


def test_the_bag_is_looser_than_the_trie():
    vocabulary = bytes_of()
    loose, tight = bag(vocabulary, ["abc"]), trie(vocabulary, ["abc"])
    assert loose.accepts(b"cab")
    assert not tight.accepts(b"cab")
    assert loose.accepts(b"abc abc")
    assert tight.accepts(b"abc abc")
    assert not loose.accepts(b"")
    assert not tight.accepts(b"")
    assert not loose.accepts(b"abd")


def test_a_phrase_that_begins_another_competes_with_it():
    """Section 8: behind "Paris", allowed = {end, "i"}."""
    constraint = phrases(bytes_of(), ["Paris", "Parisian"])
    state = constraint.read(b"Paris")
    assert constraint.mask([state])[0].nonzero().flatten().tolist() == [ord("i"), END]
    assert constraint.mask([constraint.start()])[0].nonzero().flatten().tolist() == [ord(" "), ord("P")]


def test_case_variants():
    constraint = trie(bytes_of(), ["Yes", "LSE"], any_case=True)
    assert all(constraint.accepts(said) for said in (b"yes", b"Yes", b"lse Yes", b"LSE"))
    assert not constraint.accepts(b"yEs")


def test_texts_that_begin_alike_are_read_at_once():
    """One word begins another, and the next word begins like the rest of it: two readings stay open."""
    branches = Branches()
    root = branches.node()
    ends = {branches.add(path, place) for path in ([1], [1, 2, 3]) for place in (0,)}
    later = {branches.add([2, 4], root)}
    constraint = Graph(Vocabulary(9, 9, frozenset([0])), branches.steps, ends | later, dict.fromkeys(ends, (root,)))
    assert [constraint.accepts(path) for path in ([1], [1, 2], [1, 2, 3], [1, 2, 4], [2, 4])] == [
        True, False, True, True, False,
    ]  # fmt: skip


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=3), st.integers(1, 3))
def test_spans_of_ids_are_those_of_brute_force(texts: list[list[int]], size: int):
    """Over words of one letter, so that tokens are words."""
    vocabulary = bytes_of()
    constraint = span(vocabulary, [" ".join("abc"[token - 1] for token in each) for each in texts])
    found = {tuple(each[begin : begin + size]) for each in texts for begin in range(len(each) - size + 1)}
    for code in range(3**size):
        tokens = tuple(code // 3**place % 3 + 1 for place in range(size))
        said = " ".join("abc"[token - 1] for token in tokens)
        assert constraint.accepts(said.encode()) == (tokens in found)


def test_what_follows_the_end_and_what_lies_outside():
    constraint = phrases(bytes_of(), ["ab"])
    assert constraint.read([*b"ab", END]) is ENDED
    assert constraint.read([*b"ab", END, END]) is ENDED
    assert constraint.read(b"ax") is OUTSIDE
    assert not constraint.accepts(b"ax")
    assert not constraint.accepts([*b"ax", END - 1])
    assert constraint.read([*b"a", END]) is OUTSIDE
    masks = constraint.mask([ENDED, OUTSIDE])
    assert masks.nonzero()[:, 1].tolist() == [END, END]
    assert constraint.cut([*b"ab", END]) == [*b"ab"]
    assert constraint.cut(b"ax") == []


# ---- decoding under them ----


def sampled(constraint: Constraint, rows: int = 250, new: int = 24) -> list[list[int]]:
    """Samples of a random-weight model by transformers itself, cut to whole sequences."""
    model = byte_lm().model
    prompt = torch.tensor([list(b"Where? ")] * rows)
    torch.manual_seed(0)
    ids = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=new, eos_token_id=END,
        logits_processor=[Constrained(constraint, prompt.shape[1])],
    )  # fmt: skip
    return [row[prompt.shape[1] :] for row in ids.tolist()]


def test_a_thousand_samples_are_in_the_language():
    vocabulary = bytes_of()
    bank = words(" ".join(EVIDENCE))
    kinds = {
        "phrases": (phrases(vocabulary, NAMES), lambda said: said.strip() in NAMES),
        "trie": (trie(vocabulary, bank), lambda said: are_words(said, bank)),
        "span": (span(vocabulary, EVIDENCE), lambda said: said.strip() in spans()),
        "bag": (bag(vocabulary, bank), lambda said: set(said) <= set(" " + "".join(bank))),
    }
    for name, (constraint, fits) in kinds.items():
        whole = 0
        for tokens in sampled(constraint):
            kept = constraint.cut(tokens)
            state = constraint.read(tokens[:24] if END not in tokens else tokens[: tokens.index(END) + 1])
            assert state is not OUTSIDE, name
            if kept:
                whole += 1
                assert fits(vocabulary.decode(kept)), (name, vocabulary.decode(kept))
        assert whole > 150, name


METHODS: list[Any] = ["greedy", PromptLookup(length=10), Suffix(length=40), TokenRecycling(nodes=16)]


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["trie", "span", "bag"])
def test_drafts_change_nothing_under_a_constraint(kind: str, sampling: dict[str, Any]):
    vocabulary = bytes_of()
    constraint = {
        "trie": lambda: trie(vocabulary, NAMES),
        "span": lambda: span(vocabulary, EVIDENCE * 2),
        "bag": lambda: bag(vocabulary, ["abab"]),
    }[kind]()
    prompt = list(b"York Paris York Paris Ada Lovelace was abababa ")
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": END, "pad_token_id": 256, **sampling}
    processors = [Constrained(constraint, len(prompt))]
    plain = generate(byte_lm(), prompt, "sample" if sampling else "greedy", logits_processor=processors, **settings)
    assert constraint.read(plain.tokens) is not OUTSIDE
    for method in METHODS[1:]:
        drafted = generate(byte_lm(), prompt, method, logits_processor=processors, **settings)
        assert drafted.tokens == plain.tokens, method
    if not sampling:
        ids = byte_lm().model.generate(torch.tensor([prompt]), logits_processor=processors, **settings)
        assert ids[0, len(prompt) :].tolist() == plain.tokens


def test_every_path_of_a_pool_is_held_to_it():
    constraint = phrases(bytes_of(), NAMES)
    prompt = list(b"Where? ")
    result = generate(
        byte_lm(), prompt, SelfConsistency(paths=12), do_sample=True, temperature=4.0, max_new_tokens=12,
        eos_token_id=END, pad_token_id=256, logits_processor=[Constrained(constraint, len(prompt))],
    )  # fmt: skip
    assert len(result.paths) == 12
    assert {path.text.strip() for path in result.paths} <= set(NAMES)


@pytest.mark.parametrize("beams", [1, 4])
def test_it_is_transformers_prefix_function(beams: int):
    """The same generations as ``prefix_allowed_tokens_fn``, beams that change places included."""
    vocabulary = Vocabulary(VOCABULARY, VOCABULARY, frozenset([1]))
    constraint = paths(vocabulary, [[5, 6, 7], [5, 6], [8], [9, 10, 11, 12], [5, 13], [8, 14, 15]])
    prompts = torch.tensor([text(6, seed) for seed in range(5)])
    given: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams, "eos_token_id": 1, "length_penalty": 0.0}
    model = lm("llama").model

    def allowed(_: int, ids: Tensor) -> list[int]:
        return constraint.mask([constraint.read(ids[6:].tolist())])[0].nonzero().flatten().tolist()

    mine = model.generate(prompts, logits_processor=[Constrained(constraint, 6)], **given)
    theirs = model.generate(prompts, prefix_allowed_tokens_fn=allowed, **given)
    assert mine.tolist() == theirs.tolist()
    assert all(constraint.accepts(row[: row.index(1) if 1 in row else 9]) for row in mine[:, 6:].tolist())


def test_states_are_remembered_and_forgotten(monkeypatch):
    import ramify.constrain.processor as module

    monkeypatch.setattr(module, "REMEMBERED", 6)
    constraint = bag(bytes_of(), ["ab"])
    processor = Constrained(constraint, 1)
    for said in (b"abab", b"ba", b"bax", b"abab", b""):
        assert processor.state(tuple(said)) is constraint.read(said)
        assert len(processor._known) <= 6


def test_everything_allowed_is_no_constraint():
    vocabulary = Vocabulary(VOCABULARY, VOCABULARY, frozenset([1]))
    everything = Bag(vocabulary, range(VOCABULARY))
    scores = torch.randn(2, VOCABULARY)
    assert torch.equal(Constrained(everything, 2)(torch.tensor([[2, 3, 4], [5, 6, 1]]), scores)[0], scores[0])
    prompt = text(8, 1)
    given: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": 1}
    free = generate(lm("llama"), prompt, **given)
    bound = generate(lm("llama"), prompt, logits_processor=[Constrained(everything, len(prompt))], **given)
    assert bound.tokens == free.tokens


def test_the_masked_argmax_is_the_argmax_whenever_that_is_allowed():
    constraint = bag(bytes_of(), ["abcdefgh"])
    generator = torch.Generator().manual_seed(0)
    kept = 0
    for _ in range(200):
        scores = torch.randn(1, 258, generator=generator)
        best = int(scores.argmax())
        masked = Constrained(constraint, 1)(torch.tensor([[1]]), scores)
        if best in constraint.start().allowed():
            kept += 1
            assert int(masked.argmax()) == best
        assert int(masked.argmax()) in constraint.start().allowed()
    assert 0 < kept < 200


# ---- bad input ----


def test_ids_beyond_the_tokenizer_are_never_allowed():
    wide = Vocabulary(300, 258, frozenset([END]), byte_tokenizer())
    constraint = trie(wide, NAMES)
    assert constraint.mask([constraint.start()]).shape == (1, 300)
    assert not constraint.mask([constraint.start(), constraint.read(b"Lyon")])[:, 258:].any()
    with pytest.raises(RamifyError, match="token 260 is outside the 258"):
        Bag(wide, [97, 260])
    with pytest.raises(RamifyError, match="258 logits, but the model has 300"):
        Constrained(trie(bytes_of(), NAMES), 1)(torch.tensor([[1]]), torch.zeros(1, 300))


def test_empty_banks_and_answers_are_refused():
    vocabulary = bytes_of()
    for empty in (lambda: trie(vocabulary, []), lambda: bag(vocabulary, [])):
        with pytest.raises(RamifyError, match="bank is empty"):
            empty()
    with pytest.raises(RamifyError, match="set of answers is empty"):
        phrases(vocabulary, [])
    for nothing in ("", "  "):
        with pytest.raises(RamifyError, match="makes nothing of the answer"):
            phrases(vocabulary, ["Paris", nothing])
    with pytest.raises(RamifyError, match="no word"):
        span(vocabulary, ["", " "])


def test_what_a_vocabulary_needs():
    with pytest.raises(RamifyError, match="needs a token that ends the text"):
        Vocabulary.of(lm("llama"))
    assert Vocabulary.of(lm("llama"), ends=[1]).ends == {1}
    assert Vocabulary.of(byte_lm()).ends == {byte_tokenizer().eos_token_id}
    with pytest.raises(RamifyError, match="do not belong together"):
        Vocabulary(10, 11, frozenset([1]))
    with pytest.raises(RamifyError, match="need a tokenizer"):
        trie(Vocabulary(10, 10, frozenset([1])), ["a"])
    with pytest.raises(RamifyError, match="token 1 ends the text"):
        paths(Vocabulary(10, 10, frozenset([1])), [[2, 1, 3]])


def test_settings_that_leave_nothing_are_refused():
    constraint = phrases(bytes_of(), ["ab"])
    prompt = list(b"say ")
    with pytest.raises(RamifyError, match="drop min_new_tokens"):
        generate(
            byte_lm(), prompt, logits_processor=[Constrained(constraint, 4)], min_new_tokens=6, max_new_tokens=8,
            eos_token_id=END,
        )  # fmt: skip
    with pytest.raises(RamifyError, match="prompt_length is 9, but the text has 4"):
        generate(byte_lm(), prompt, logits_processor=[Constrained(constraint, 9)], max_new_tokens=8, eos_token_id=END)
    with pytest.raises(RamifyError, match="prompt_length is 0"):
        Constrained(constraint, 0)
