"""Methods written as texts: options as ``name=value``, read by the types of the method's fields.

``token-recycling:nodes=40`` is a method with an option. Parentheses keep together what belongs to an inner one:
``union:methods=(token-recycling:nodes=40,suffix):nodes=24``.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.errors import RamifyError

if TYPE_CHECKING:
    from ramify.methods.base import Method

_UNREADABLE = object()
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def build(name: str, pairs: Sequence[str]) -> Method:
    """The method ``name`` with options ``name=value``; raises ``RamifyError`` for any that it cannot take."""
    from ramify.methods import registry

    types_of = option_types(registry.find(name))
    options: dict[str, Any] = {}
    for option, text in split(pairs).items():
        if option in types_of:
            options[option] = read(text, types_of[option], f"option {option!r} of {name!r}")
        else:
            options[option] = text  # refused by create, which quotes the nearest name
    return registry.create(name, **options)


def build_spec(spec: str) -> Method:
    """A method written as ``name`` or ``name:option=value:option=value``."""
    name, *pairs = outside(bare(spec), ":")
    return build(name, pairs)


def build_specs(text: str) -> list[Method]:
    """Methods separated by commas or plus signs, each as ``build_spec`` takes it."""
    return [build_spec(spec) for spec in outside(bare(text), ",+") if spec.strip()]


def outside(text: str, separators: str) -> list[str]:
    """``text`` cut at those of ``separators`` that stand outside all parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter in separators and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise RamifyError(f"the parentheses in {text!r} do not close each other; write name:option=(…)")
    return parts


def bare(text: str) -> str:
    """``text`` without spaces around it, nor parentheses around all of it."""
    text = text.strip()
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return bare(text[1:-1]) if 0 < place == len(text) - 1 else text
    return text


def split(pairs: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a dictionary of texts."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise RamifyError(f"an option is written name=value, not {pair!r}")
        found[name.strip().replace("-", "_")] = text.strip()
    return found


def guess(text: str) -> Any:
    """A Python literal where ``text`` is one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _WORDS.get(text.lower(), text)


def option_types(cls: Any) -> dict[str, Any]:
    """The type of every option of a method; names that only a type checker knows become ``object``."""
    names = _Names(vars(builtins) | vars(typing) | vars(sys.modules[cls.__module__]))
    return {
        field.name: eval(field.type, {}, names) if isinstance(field.type, str) else field.type
        for field in fields(cls)
        if field.init
    }


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return object


def read(text: str, annotation: Any, what: str) -> Any:
    """``text`` as a value of ``annotation``; raises ``RamifyError`` naming ``what`` when it is none."""
    members = _members(annotation)
    for member in members:
        value = _read_as(text, member, int in members, what)
        if value is not _UNREADABLE:
            return value
    wanted = " or ".join(dict.fromkeys(_describe(member) for member in members))
    raise RamifyError(f"{what} takes {wanted}, not {text!r}")


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, the narrower first."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [part for member in typing.get_args(annotation) for part in _members(member)]
    else:
        members = [annotation]
    order = [type(None), bool, int, float]
    return sorted(members, key=lambda m: order.index(m) if m in order else len(order) + (m in (str, Path)))


def _read_as(text: str, kind: Any, is_integer_too: bool, what: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is type(None):
        return None if text.lower() == "none" else _UNREADABLE
    if kind is bool:
        digits = {} if is_integer_too else {"1": True, "0": False}
        return (_WORDS | digits).get(text.lower(), _UNREADABLE)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return _UNREADABLE
    if kind is Any:
        return text
    if kind in (str, Path):
        return kind(text)
    if origin is typing.Literal:
        return next((value for value in typing.get_args(kind) if str(value) == text), _UNREADABLE)
    if origin in (tuple, list):
        inner = typing.get_args(kind)[0]
        return origin(read(part.strip(), inner, what) for part in text.strip("()[]").split(",") if part.strip())
    return _UNREADABLE


def _describe(kind: Any) -> str:
    plain = {bool: "true or false", int: "a whole number", float: "a number", type(None): "none", str: "a text"}
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) in (tuple, list):
        return "values separated by commas"
    return "an object, which only Python can give"
