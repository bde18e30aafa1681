"""Regular expressions and JSON schemas through llguidance: what is said, judged by ``re`` and ``json``."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import torch
from families import byte_lm, byte_tokenizer

pytest.importorskip("llguidance")

from ramify.api import generate
from ramify.constrain import Constrained, Constraint, Vocabulary, json_schema, regex
from ramify.constrain.constraint import ENDED, OUTSIDE
from ramify.errors import RamifyError
from ramify.methods.draft.suffix import Suffix

WIDE = Vocabulary(300, 258, frozenset([256]), byte_tokenizer())
DATE = r"(19|20)[0-9]{2}-[01][0-9](-[0-3][0-9])?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def vocabulary() -> Vocabulary:
    return Vocabulary.of(byte_lm())


def sampled(constraint: Constraint, rows: int, new: int) -> list[str]:
    prompt = torch.tensor([list(b"Say: ")] * rows)
    torch.manual_seed(0)
    end = min(constraint.vocabulary.ends)
    ids = byte_lm().model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=new, eos_token_id=end,
        pad_token_id=257, logits_processor=[Constrained(constraint, 5)],
    )  # fmt: skip
    rests = [row[5:] for row in ids.tolist()]
    return [bytes(row[: row.index(end)]).decode() for row in rests if end in row]


def test_a_thousand_samples_match_the_expression():
    said = sampled(regex(vocabulary(), DATE), 1000, 11)
    assert len(said) == 1000
    assert all(re.fullmatch(DATE, each) for each in said)
    assert len(set(said)) > 100
    assert {len(each) for each in said} == {7, 10}


def test_samples_fit_the_schema():
    said = sampled(json_schema(vocabulary(), SCHEMA), 200, 40)
    assert len(said) == 200
    for each in said:
        found = json.loads(each)
        assert found.keys() == {"name", "age"}
        assert found["name"] in ("Ada", "Bob")
        assert 0 <= found["age"] <= 99
        assert " " not in each
    assert json_schema(vocabulary(), SCHEMA, blanks=True).accepts(b'{ "name": "Ada",\n "age": 3}')


def test_states_are_never_changed():
    constraint = regex(vocabulary(), r"a[bc]+d?")
    start = constraint.start()
    once, other = constraint.read(b"ab"), constraint.read(b"ac")
    assert constraint.accepts(b"abcd")
    assert not constraint.accepts(b"a")
    assert not constraint.accepts(b"bd")
    assert list(start.allowed()) == [ord("a")]
    assert not start.accepting
    assert list(once.allowed()) == list(other.allowed()) == [*b"bcd"]
    assert once.accepting


def test_what_cannot_go_on_may_only_end():
    constraint = regex(vocabulary(), "ab")
    [end] = constraint.vocabulary.ends
    state = constraint.read(b"ab")
    assert constraint.mask([state])[0].nonzero().flatten().tolist() == [end]
    assert constraint.read([*b"ab", end]) is ENDED
    assert constraint.read(b"ax") is OUTSIDE


def test_ids_beyond_the_tokenizer_are_never_allowed():
    constraint = regex(WIDE, "(.|\n)*")
    mask = constraint.mask([constraint.start()])
    assert mask.shape == (1, 300)
    assert mask[0, 97]
    assert not mask[0, 258:].any()


def test_drafts_change_nothing_under_a_grammar():
    constraint = regex(vocabulary(), r"(ab|ba){1,12}c")
    prompt = list(b"abababab: ")
    given: dict[str, Any] = {"max_new_tokens": 26, "eos_token_id": 256, "pad_token_id": 257}
    given["logits_processor"] = [Constrained(constraint, len(prompt))]
    plain = generate(byte_lm(), prompt, **given)
    assert constraint.read(plain.tokens) is not OUTSIDE
    drafted = generate(byte_lm(), prompt, Suffix(length=40), **given)
    assert drafted.tokens == plain.tokens


def test_bad_grammars(monkeypatch):
    with pytest.raises(RamifyError, match=r"no grammar.*unclosed group"):
        regex(vocabulary(), "a(")
    with pytest.raises(RamifyError, match=r"no grammar.*whatever"):
        json_schema(vocabulary(), {"type": "whatever"})
    with pytest.raises(RamifyError, match="need a tokenizer"):
        regex(Vocabulary(10, 10, frozenset([1])), "a")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RamifyError, match=r"ramify\[grammar\]"):
        regex(vocabulary(), "a")
