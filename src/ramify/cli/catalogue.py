"""``ramify methods``: the catalogue, or one method with its options."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramify.cli import shell
from ramify.errors import unknown

if TYPE_CHECKING:
    from ramify.methods.registry import Card


def methods(
    name: Annotated[str | None, typer.Argument(help="A method to describe with its options.")] = None,
    seed: shell.NoSeed = 0,
    json: shell.Json = False,
) -> None:
    """List the methods, or describe one with its options and their defaults."""
    from ramify.methods.registry import catalogue

    cards = catalogue()
    if name is None:
        if json:
            shell.emit([asdict(card) for card in cards])
        else:
            _list(cards)
        return
    card = next((card for card in cards if card.name == name), None)
    if card is None:
        raise unknown("method", name, [card.name for card in cards])
    with shell.waiting("reading its options …"):
        description, options = describe(card)
    if json:
        shell.emit(asdict(card) | {"description": description, "options": options})
    else:
        _show(card, description, options)


def describe(card: Card) -> tuple[str, list[dict[str, Any]]]:
    """A method's documentation and its options: name, type, default, meaning."""
    import inspect
    import re
    import sys

    from ramify.methods.registry import find

    cls: Any = find(card.name)
    documented: dict[str, str] = {}
    for each in reversed(cls.__mro__):  # options that a family shares are documented on its base
        text = " ".join((each.__doc__ or "").split())
        documented |= dict(re.findall(r"``(\w+)``: (.*?)(?=\s*``\w+``: |$)", text))
    options = []
    for field in fields(cls):
        required = field.default is MISSING and field.default_factory is MISSING
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        options.append(
            {
                "name": field.name,
                "type": field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)),
                "default": None if required else default,
                "required": required,
                "doc": documented.get(field.name, ""),
            }
        )
    description = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    return description, options


def _list(cards: list[Card]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("what it does")
    table.add_column("lossless", justify="center")
    table.add_column("stable", justify="center")
    for family, members in groupby(cards, key=lambda card: card.family):
        table.add_section()
        table.add_row(Text(family, style="italic"))
        for card in members:
            what = Text(card.summary.replace("``", ""))
            what.append(f"\n{card.paper} · needs {', '.join(card.needs)}", style="dim")
            lossless, stable = "yes" if card.lossless else "no", "yes" if card.stable else "not yet"
            table.add_row(Text(card.name, style="bold"), what, lossless, stable)
    shell.out.print(table)


def _show(card: Card, description: str, options: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.markdown import Markdown
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    lossless = "lossless: exactly the model's own output" if card.lossless else "changes what the model says"
    stable = "stable" if card.stable else "experimental"
    shell.out.print(f"[bold]{card.name}[/bold]  {escape(card.title)} ({escape(card.paper)})")
    shell.out.print(f"{card.family} · needs {', '.join(card.needs)} · {lossless} · {stable}\n")
    shell.out.print(Markdown(description))
    cls = card.place.partition(":")[2]
    if not options:
        shell.out.print(f"\nNo options. In Python: ramify.{cls}()", highlight=False)
        return
    table = Table("option", "type", "default", "meaning", box=box.SIMPLE_HEAD, pad_edge=False)
    for option in options:
        default = "required" if option["required"] else repr(option["default"])
        meaning = option["doc"].replace("``", "")
        table.add_row(Text(option["name"], style="bold"), Text(str(option["type"])), Text(default), Text(meaning))
    shell.out.print(table)
    shown = next((option for option in options if option["default"] is not None), options[0])
    name, value = shown["name"], shown["default"]
    shell.out.print(f"On the command line: -o {name}={value}", markup=False, highlight=False)
    shell.out.print(f"In Python: ramify.{cls}({name}={value!r})", markup=False, highlight=False)
