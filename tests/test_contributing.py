"""The worked example of CONTRIBUTING.md is a method like any other: it runs, drafts, and changes nothing."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from families import lm, text

import ramify
from ramify.methods import registry

ROOT = Path(__file__).parent.parent


@pytest.fixture
def example(tmp_path: Path) -> Iterator[ModuleType]:
    """The code block below the mark, as a module of its own; forgotten afterwards."""
    found = re.search(r"<!-- example -->\n```python\n(.*?)```\n", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert found, "CONTRIBUTING.md has no example"
    file = tmp_path / "last_successor.py"
    file.write_text(found[1])
    spec = importlib.util.spec_from_file_location("last_successor", file)
    assert spec
    assert spec.loader
    module = sys.modules["last_successor"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["last_successor"]
    registry._registered.pop("last-successor")


def test_it_gives_what_greedy_gives(example: ModuleType) -> None:
    prompts = [text(12, period=5), text(30, seed=1), text(7)]
    plain = ramify.generate(lm("llama"), prompts, "greedy", max_new_tokens=40)
    ours = ramify.generate(lm("llama"), prompts, "last-successor", max_new_tokens=40, options={"length": 3})
    assert [result.tokens for result in ours] == [result.tokens for result in plain]
    assert sum(result.stats.accepted for result in ours) > 0
    assert sum(result.stats.target_calls for result in ours) < sum(result.stats.target_calls for result in plain)


def test_it_gives_what_sampling_gives(example: ModuleType) -> None:
    settings = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.7, "seed": 3}
    plain = ramify.generate(lm("llama"), text(12, period=5), "sample", **settings)
    ours = ramify.generate(lm("llama"), text(12, period=5), example.LastSuccessor(length=4), **settings)
    assert ours.tokens == plain.tokens


def test_it_is_in_the_catalogue(example: ModuleType) -> None:
    card = next(card for card in ramify.methods() if card.name == "last-successor")
    assert card.summary == "Follow the latest successor of each token."
    assert ramify.LastSuccessor is example.LastSuccessor


def test_a_wrong_option_is_refused(example: ModuleType) -> None:
    with pytest.raises(ramify.RamifyError, match="did you mean 'length'"):
        registry.create("last-successor", lenght=3)
    with pytest.raises(ramify.RamifyError, match="at least 1"):
        example.LastSuccessor(length=0)
