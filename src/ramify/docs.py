"""Writes the generated parts of the documentation: ``python -m ramify.docs [README.md]``.

The catalogue in the README stands between two ``<!-- catalogue -->`` lines and comes from the registry alone.
"""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

from ramify.errors import RamifyError
from ramify.methods.registry import Card, catalogue

MARK = "<!-- catalogue -->"


def table() -> str:
    """The built-in methods as a Markdown table."""
    lines = ["| method | what it does | paper | needs | lossless | stable |", "|---|---|---|---|:-:|:-:|"]
    built_in = [card for card in catalogue() if card.place.startswith("ramify.")]
    for family, cards in groupby(built_in, key=lambda card: card.family):
        lines.append(f"| *{family}* | | | | | |")
        for card in cards:
            lossless, stable = "yes" if card.lossless else "no", "yes" if card.stable else "not yet"
            summary, needs = card.summary.replace("``", "`"), ", ".join(card.needs)
            lines.append(f"| `{card.name}` | {summary} | {_link(card)} | {needs} | {lossless} | {stable} |")
    return "\n".join(lines)


def _link(card: Card) -> str:
    arxiv = re.fullmatch(r"(?:arXiv:?\s*)?(\d{4}\.\d{4,5})", card.paper)
    if arxiv:
        return f"[{card.title}](https://arxiv.org/abs/{arxiv[1]})"
    if "/" in card.paper:
        return f"[{card.title}](https://{card.paper.removeprefix('https://')})"
    return card.title


def fill(text: str) -> str:
    """``text`` with the catalogue between its two marks; raises ``RamifyError`` where there are not two."""
    parts = text.split(MARK)
    if len(parts) != 3:
        raise RamifyError(f"the text needs two lines {MARK}, not {len(parts) - 1}")
    return f"{parts[0]}{MARK}\n{table()}\n{MARK}{parts[2]}"


def main(arguments: list[str]) -> None:
    """Fill every file that is named, by default the README in the current folder."""
    for name in arguments or ["README.md"]:
        file = Path(name)
        file.write_text(fill(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
