"""Importing ramify and listing methods is cheap: neither torch nor transformers is loaded."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import ramify
from ramify.methods.registry import catalogue

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "numpy", "jinja2")


def loaded_after(code: str) -> list[str]:
    """The heavy modules that are loaded in a new process after ``code``."""
    script = f"import json, sys\n{code}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import ramify",
        "import ramify; ramify.methods(); dir(ramify); ramify.RamifyError; ramify.register",
        "from ramify.cli.shell import run\nfrom ramify.cli import app\nassert run(app, ['methods']) == 0",
        "from ramify.cli.shell import run\nfrom ramify.cli import app\nassert run(app, ['generate', '--help']) == 0",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded_after(code) == []


def seconds_of(*arguments: str) -> float:
    """CPU time of a new process, the better of two: unlike wall time, it is not that of other processes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    spent = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def test_import_is_quick() -> None:
    assert seconds_of("-c", "import ramify") - seconds_of("-c", "pass") <= 0.3


def test_listing_the_methods_is_quick() -> None:
    assert seconds_of("-m", "ramify", "methods") <= 1.0


@pytest.mark.parametrize("name", ramify.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(ramify, name) is not None


@pytest.mark.parametrize("card", catalogue(), ids=lambda card: card.name)
def test_every_method_class_is_an_attribute(card: ramify.methods.registry.Card) -> None:
    cls = getattr(ramify, card.place.partition(":")[2])
    assert cls.card.name == card.name
    assert cls.__name__ in dir(ramify)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TokenRecyclin'"):
        _ = ramify.TokenRecyclin


def test_methods_is_a_folder_and_a_function() -> None:
    assert ramify.methods() == catalogue()
    assert ramify.methods.registry.catalogue is catalogue
