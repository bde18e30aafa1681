"""Options given as texts become values of the types that a method declares."""

from pathlib import Path
from typing import Any, Literal

import pytest

from ramify.cli.generate import sampling
from ramify.errors import RamifyError
from ramify.methods.options import bare, build, build_spec, build_specs, guess, outside, read, split


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("-1", int | None, -1),
        ("none", int | None, None),
        ("None", str | None, None),
        ("0.5", float, 0.5),
        ("3", int | float, 3),
        ("3.5", int | float, 3.5),
        ("true", bool, True),
        ("off", bool, False),
        ("1", bool, True),
        ("1", bool | int, 1),
        ("all", Literal["all", "accepted"], "all"),
        ("2", Literal[1, 2], 2),
        ("1,2, 3", tuple[int, ...], (1, 2, 3)),
        ("[1, 2]", list[float], [1.0, 2.0]),
        ("", tuple[int, ...], ()),
        ("a/b", Path, Path("a/b")),
        ("7", str, "7"),
        ("7", int | str, 7),
        ("seven", int | str, "seven"),
        ("some/model", Any, "some/model"),
        ("some/model", str | object, "some/model"),
    ],
)
def test_read(text: str, kind: Any, value: Any) -> None:
    got = read(text, kind, "option 'x'")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("three", int, "a whole number"),
        ("3.5", int, "a whole number"),
        ("x", float | None, "none or a number"),
        ("maybe", bool, "true or false"),
        ("some", Literal["all", "accepted"], "'all' or 'accepted'"),
        ("1,x", tuple[int, ...], "a whole number"),
        ("x", object, "which only Python can give"),
    ],
)
def test_refused(text: str, kind: Any, wanted: str) -> None:
    with pytest.raises(RamifyError, match=wanted):
        read(text, kind, "option 'x'")


def test_split() -> None:
    assert split(["a=1", "long-name=x=y", " b = 2 "]) == {"a": "1", "long_name": "x=y", "b": "2"}
    for wrong in ("a", "=1", ""):
        with pytest.raises(RamifyError, match="name=value"):
            split([wrong])


def test_guess() -> None:
    assert [guess(text) for text in ("3", "0.5", "true", "(1, 2)", "name")] == [3, 0.5, True, (1, 2), "name"]


def test_build() -> None:
    method: Any = build("prompt-lookup", ["ngram=2", "match=recent"])
    assert (method.ngram, method.match) == (2, "recent")
    spec: Any = build_spec("token-recycling:nodes=40:seed_from_prompt=no")
    assert (spec.nodes, spec.seed_from_prompt) == (40, False)
    assert build_spec("greedy").card.name == "greedy"
    with pytest.raises(RamifyError, match="at least 1"):
        build("prompt-lookup", ["ngram=0"])


def test_sampling() -> None:
    assert sampling(None, None, None) == {}
    assert sampling(0.0, None, None) == {"do_sample": False}
    assert sampling(0.7, None, 5) == {"do_sample": True, "temperature": 0.7, "top_k": 5}
    assert sampling(None, 0.9, None) == {"do_sample": True, "top_p": 0.9}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b+c", ["a", "b", "c"]),
        ("a", ["a"]),
        ("", [""]),
        ("a:n=(b,c:m=(d+e)),f", ["a:n=(b,c:m=(d+e))", "f"]),
    ],
)
def test_separators_count_outside_parentheses(text: str, parts: list[str]) -> None:
    assert outside(text, ",+") == parts


@pytest.mark.parametrize("text", ["(a", "a)", "a)(b", "((a)"])
def test_parentheses_have_to_close(text: str) -> None:
    with pytest.raises(RamifyError, match="do not close each other"):
        outside(text, ",")


@pytest.mark.parametrize(
    ("text", "without"), [("(a)", "a"), (" ( (a,b) ) ", "a,b"), ("(a)(b)", "(a)(b)"), ("a", "a"), ("()", ""), ("", "")]
)
def test_parentheses_around_everything_are_dropped(text: str, without: str) -> None:
    assert bare(text) == without


def test_methods_in_methods() -> None:
    assert build_spec("(suffix:length=7)").length == 7
    first, second = build_specs("suffix:length=7, token-recycling:nodes=9:k=2")
    assert (first.length, second.nodes, second.k) == (7, 9, 2)
    assert [method.card.name for method in build_specs("greedy+suffix,")] == ["greedy", "suffix"]
    with pytest.raises(RamifyError, match="did you mean 'suffix'"):
        build_specs("sufix")
