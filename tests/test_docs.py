"""The documentation agrees with the code."""

import re
from pathlib import Path

import pytest

from ramify import docs
from ramify.errors import RamifyError
from ramify.methods.registry import catalogue

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_catalogue_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text()
    assert docs.fill(readme) == readme, "run: make docs"


def test_every_method_is_in_the_catalogue() -> None:
    table = docs.table()
    for card in catalogue():
        if card.place.startswith("ramify."):
            assert f"| `{card.name}` |" in table


def test_a_text_without_marks_is_refused() -> None:
    with pytest.raises(RamifyError, match="two lines"):
        docs.fill("no table here")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target and not target.endswith(".png"):  # pictures are made from a report, after the texts
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_names_in_the_readme_exist() -> None:
    import ramify

    for name in set(re.findall(r"\bramify\.([A-Za-z]\w*)\(", (ROOT / "README.md").read_text())):
        assert getattr(ramify, name)
