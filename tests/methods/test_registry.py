"""The catalogue: read from source it says what the imported classes say; names are unique; typos are answered."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from families import lm, text

import ramify
from ramify.engine.drafter import Context, Drafter
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError, unknown
from ramify.methods import registry
from ramify.methods.base import DraftMethod, Method
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.registry import Card, catalogue, create, find, register
from ramify.models.causal import CausalLM

BUILT_IN = list(registry._built_in().values())
DECLARED: dict[str, Any] = {
    "name": "parrot", "title": "On Parrots", "paper": "arXiv 0000.00000", "family": "draft", "needs": ("logits",),
    "lossless": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """The catalogue without the test's own method again, after every test."""
    yield
    registry._registered.pop("parrot", None)


@dataclass(frozen=True)
class Parrot(DraftMethod):
    """Repeat the last token.

    Not seriously.
    """

    length: int = 2

    def drafter(self, lm: CausalLM, request: Request) -> Drafter:
        return Repeat(self.length)


class Repeat(Drafter):
    def __init__(self, length: int) -> None:
        self.length = length

    def draft(self, context: Context) -> TokenTree:
        return TokenTree.chain(context.tokens[-1:] * self.length)


# ---------------------------------------------------------------- source and classes agree


@pytest.mark.parametrize("card", BUILT_IN, ids=[card.name for card in BUILT_IN])
def test_the_source_says_what_the_class_says(card: Card):
    cls = find(card.name)
    assert cls.card == card
    assert card.place == f"{cls.__module__}:{cls.__qualname__}"
    assert card.summary == (inspect.getdoc(cls) or "").split("\n")[0] != ""
    source = textwrap.dedent(inspect.getsource(cls))
    [declared] = ast.parse(source).body
    assert isinstance(declared, ast.ClassDef)
    given = {
        keyword.arg: ast.literal_eval(keyword.value)
        for call in declared.decorator_list
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register"
        for keyword in call.keywords
    }
    for name in ("name", "title", "paper", "family", "needs", "lossless"):
        assert getattr(card, name) == given[name]
    assert card.stable is given.get("stable", True)
    assert isinstance(card.needs, tuple)
    assert set(card.needs) <= set(registry.NEEDS)


@pytest.mark.parametrize("card", BUILT_IN, ids=[card.name for card in BUILT_IN])
def test_every_method_is_a_frozen_dataclass_that_is_documented(card: Card):
    cls = find(card.name)
    assert issubclass(cls, Method)
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert card.summary.endswith(".")
    assert len(card.summary) < 100
    assert card.paper
    # Options that a family shares are documented on its base.
    documented = "".join(each.__doc__ or "" for each in cls.__mro__) + (inspect.getdoc(inspect.getmodule(cls)) or "")
    for field in fields(cls):  # type: ignore[arg-type]  # every method is a dataclass
        assert f"``{field.name}``" in documented


def test_every_decorated_class_is_found():
    root = Path(registry.__file__).parent
    decorators = sum(file.read_text().count("\n@register(") for file in root.rglob("*.py"))
    assert decorators == len(BUILT_IN) == len({card.place for card in BUILT_IN})
    assert {"greedy", "sample", "prompt-lookup", "suffix", "assistant", "token-recycling", "hf-greedy"} <= {
        card.name for card in BUILT_IN
    }


def test_the_order_is_by_family_and_name():
    cards = catalogue()
    assert cards == sorted(cards, key=lambda card: (card.family, card.name))
    assert ramify.methods() == cards


# ---------------------------------------------------------------- a user's method


def test_a_users_method_is_like_any_other():
    assert "parrot" not in [card.name for card in catalogue()]
    assert register(**DECLARED, stable=False)(Parrot) is Parrot
    [card] = [card for card in catalogue() if card.name == "parrot"]
    assert card == Parrot.card
    assert card.summary == "Repeat the last token."
    assert card.place.endswith(":Parrot")
    assert not card.stable
    assert find("parrot") is Parrot
    assert create("parrot", length=5) == Parrot(5)
    prompt = text(9, 2, period=3)
    plain = ramify.generate(lm("llama"), prompt, "greedy", max_new_tokens=12)
    ours = ramify.generate(lm("llama"), prompt, "parrot", max_new_tokens=12, options={"length": 3})
    assert ours.tokens == plain.tokens
    assert ours.stats.drafted > 0


def test_it_is_gone_after_the_test():
    with pytest.raises(RamifyError, match="unknown method 'parrot'"):
        find("parrot")


def test_registering_the_same_class_again_is_no_clash():
    register(**DECLARED)(Parrot)
    register(**DECLARED)(Parrot)  # as a reloaded notebook cell does
    assert [card.name for card in catalogue()].count("parrot") == 1


def test_two_methods_of_one_name_are_an_error():
    register(**DECLARED)(Parrot)

    @dataclass(frozen=True)
    class Other(Parrot):
        """Another."""

    with pytest.raises(RamifyError, match=r"two methods are called 'parrot': .*:Parrot and .*Other; rename one"):
        register(**DECLARED)(Other)
    assert find("parrot") is Parrot
    for taken in ("suffix", "greedy"):
        with pytest.raises(RamifyError, match=f"two methods are called {taken!r}: ramify.methods"):
            register(**DECLARED | {"name": taken})(Other)
        assert find(taken) is not Other


def test_two_built_in_methods_of_one_name_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    declaration = "".join(f"{name}={value!r}, " for name, value in DECLARED.items())
    for file in ("one", "two"):
        (tmp_path / f"{file}.py").write_text(f'@register({declaration})\nclass {file.title()}:\n    """{file}."""\n')
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    with pytest.raises(RamifyError, match=r"two methods are called 'parrot': ramify.methods.one:One and .*two:Two"):
        registry._built_in.__wrapped__()


def test_a_need_that_does_not_exist_is_an_error():
    with pytest.raises(RamifyError, match="unknown need 'logit'; did you mean 'logits'"):
        register(**DECLARED | {"needs": ("logit",)})


# ---------------------------------------------------------------- typos


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [("sufix", "suffix"), ("tokenrecycling", "token-recycling"), ("prompt_lookup", "prompt-lookup")],
)
def test_an_unknown_method_suggests_the_nearest(typo: str, nearest: str):
    for ask in (find, create, lambda name: ramify.generate(lm("llama"), [1], name)):
        with pytest.raises(RamifyError, match=f"unknown method {typo!r}; did you mean {nearest!r}?"):
            ask(typo)


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(RamifyError, match=r"unknown method 'zzz'; there are: aded, assistant, .*token-recycling"):
        find("zzz")


@pytest.mark.parametrize(
    ("method", "typo", "nearest"),
    [("token-recycling", "node", "nodes"), ("prompt-lookup", "n_gram", "ngram"), ("suffix", "minmatch", "min_match")],
)
def test_an_unknown_option_suggests_the_nearest(method: str, typo: str, nearest: str):
    with pytest.raises(RamifyError, match=f"unknown option of {method!r}: {typo!r}; did you mean {nearest!r}?"):
        create(method, **{typo: 3})


def test_methods_without_options_say_so():
    with pytest.raises(RamifyError, match="there are: none"):
        create("greedy", length=3)


def test_options_go_with_names():
    method = PromptLookup(length=3)
    assert create(method) is method
    with pytest.raises(RamifyError, match="options go with a method's name"):
        create(method, length=4)


def test_suggestions():
    known: Sequence[str] = ["alpha", "beta"]
    assert str(unknown("letter", "alpa", known)) == "unknown letter 'alpa'; did you mean 'alpha'?"
    assert str(unknown("letter", "xi", known)) == "unknown letter 'xi'; there are: alpha, beta"
    assert str(unknown("letter", "x", [])) == "unknown letter 'x'; there are: none"
