"""The catalogue of methods, filled by the ``@register`` decorator on each method's class.

``catalogue`` reads the declarations from the method files without importing them (so that listing needs no torch);
``find`` imports the one file that is asked for. A declaration therefore consists of literals only.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ramify.errors import RamifyError, unknown

if TYPE_CHECKING:
    from ramify.methods.base import Method

M = TypeVar("M", bound="type[Method]")
NEEDS = ("text", "log-probs", "logits", "hidden states", "routing", "training")


@dataclass(frozen=True)
class Card:
    """A method's declaration.

    ``name``: how people call it. ``title``, ``paper``: the publication and where it is (arXiv id or address).
    ``family``: which loop runs it. ``needs``: what it asks of the model, from ``NEEDS``. ``lossless``: in float32
    exactly the model's own greedy tokens, and under sampling its own law. ``stable``: interface and figures settled.
    ``summary`` and ``place`` (module and class) are read from the file.
    """

    name: str
    title: str
    paper: str
    family: str
    needs: tuple[str, ...]
    lossless: bool
    stable: bool = True
    summary: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        for need in self.needs:
            if need not in NEEDS:
                raise unknown("need", need, NEEDS)


_registered: dict[str, type[Method]] = {}


def register(
    *, name: str, title: str, paper: str, family: str, needs: tuple[str, ...], lossless: bool, stable: bool = True
) -> Callable[[M], M]:
    """Class decorator that declares a method; see ``Card`` for the fields, which must be literals."""
    card = Card(name, title, paper, family, needs, lossless, stable)

    def enter(cls: M) -> M:
        place = f"{cls.__module__}:{cls.__qualname__}"
        known = _registered.get(name)
        taken = f"{known.__module__}:{known.__qualname__}" if known else _built_in().get(name, card).place
        if taken and taken != place:
            raise RamifyError(f"two methods are called {name!r}: {taken} and {place}; rename one of them")
        cls.card = replace(card, summary=_first_line(cls.__doc__), place=place)
        _registered[name] = cls
        return cls

    return enter


def catalogue() -> list[Card]:
    """Every built-in method and every method registered by user code, by family and name."""
    cards = dict(_built_in()) | {name: cls.card for name, cls in _registered.items()}
    return sorted(cards.values(), key=lambda card: (card.family, card.name))


def find(name: str) -> type[Method]:
    """The class of method ``name``; raises ``RamifyError`` with the nearest name when there is none."""
    if name not in _registered:
        card = _built_in().get(name)
        if card is None:
            raise unknown("method", name, [card.name for card in catalogue()])
        importlib.import_module(card.place.split(":")[0])
    return _registered[name]


def create(method: str | Method, **options: Any) -> Method:
    """A method from its name and options (or as it is); an unknown option is an error that quotes the nearest."""
    if not isinstance(method, str):
        if options:
            raise RamifyError("options go with a method's name; a method object already has its own")
        return method
    cls = find(method)
    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]  # every method is a dataclass
    for option in options:
        if option not in known:
            raise unknown(f"option of {method!r}:", option, known)
    return cls(**options)


@functools.cache
def _built_in() -> dict[str, Card]:
    root = Path(__file__).parent
    cards: dict[str, Card] = {}
    for file in sorted(root.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if "@register(" not in source:
            continue
        module = ".".join(("ramify.methods", *file.relative_to(root).with_suffix("").parts))
        for node in ast.parse(source).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
                    given: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
                    summary = _first_line(ast.get_docstring(node))
                    card = Card(**given, summary=summary, place=f"{module}:{node.name}")
                    if card.name in cards:
                        first = cards[card.name].place
                        raise RamifyError(f"two methods are called {card.name!r}: {first} and {card.place}")
                    cards[card.name] = card
    return cards


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]
