"""Who may import whom: views → bench, train → methods → engine → models, never the other way."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ramify"
RANKS = {
    "models": 0, "engine": 1, "constrain": 1, "methods": 2, "train": 3, "bench": 3, "report": 4, "cli": 5, "serve": 5,
}  # fmt: skip
# The small top-level modules: the interface stands above methods, errors and the documentation's tables on their own.
TOP = {"errors": -1, "api": 3, "solving": 3, "unmasking": 3, "docs": 5, "__init__": 5, "__main__": 6}
# A view that the layer below offers by name: imported only when it is asked for.
LATE = {("bench.comparison", "report.html")}
FILES = sorted(file for file in SOURCE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[0]


def rank(module: str) -> int:
    return TOP.get(room(module), RANKS.get(room(module), 99))


def name_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(file: Path) -> set[str]:
    """Modules of ramify that ``file`` imports anywhere, without the package's name; for types alone does not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else str(node.module) for name in names}
    return {module.removeprefix("ramify.") for module in found if module.startswith("ramify.")}


def test_every_room_is_known() -> None:
    rooms = {room(name_of(file)) for file in FILES}
    assert rooms <= RANKS.keys() | TOP.keys(), f"say where {rooms - RANKS.keys() - TOP.keys()} stands"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_downwards(file: Path) -> None:
    own = name_of(file)
    wrong = {
        module
        for module in imports(file)
        if rank(module) > rank(own) and room(module) != room(own) and (own, module) not in LATE
    }
    assert not wrong, f"{own} must not import {wrong}"


def test_models_know_nothing_of_what_runs_them() -> None:
    for file in FILES:
        if room(name_of(file)) == "models":
            assert {room(module) for module in imports(file)} <= {"models", "errors"}
