"""``ramify solve`` in real processes: the answer on standard output, the vote beside it, one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import ramify, sentence_of

from ramify.models.causal import BUNDLED

QUESTION = "Bob has 90 shells, gets 9 boxes of 12 and gives away 87. How many shells does Bob have now?"
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        not (Path(BUNDLED["demo-reasoner"]) / "model.safetensors").exists(),
        reason="the demo reasoner is not in the package",
    ),
]


def test_the_answer_and_the_page(tmp_path: Path) -> None:
    page = tmp_path / "paths.html"
    done = ramify("solve", QUESTION, "-o", "paths=4", "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    assert "votes: " in done.stderr
    assert "tokens drawn in" in done.stderr
    assert "The paths over time" in page.read_text(encoding="utf-8")


def test_json_tells_every_path() -> None:
    done = ramify("solve", "-", "-o", "paths=3", "--json", "--seed", "2", stdin=QUESTION)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["answer"] in {path["answer"] for path in told["paths"]}
    assert sorted(path["number"] for path in told["paths"]) == [0, 1, 2]
    assert told["cost"]["generated_tokens"] == sum(path["tokens"] for path in told["paths"])


@pytest.mark.parametrize("method", ["stoc-tot", "tree-of-thoughts"])
def test_trees_over_passages(tmp_path: Path, method: str) -> None:
    page, file = tmp_path / "paths.html", tmp_path / "hotpot.json"
    entry = {"question": "Who won?", "context": [["Ada", ["Ada won.", " She was first."]], ["Bob", ["Bob lost."]]]}
    file.write_text(json.dumps(entry))
    small = ("-o", "proposals=2", "-o", "depth=1", "--max-new-tokens", "8")
    done = ramify("solve", "--passages", str(file), "--method", method, *small, "--html", str(page), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["question"] == "Who won?"
    assert told["cost"]["prompt_tokens"] > 100
    assert all(path["answer"] in told["votes"] for path in told["paths"] if path["score"] > 0 and path["answer"])
    assert "Who won?" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["solve", " "], "the question is empty"),
        (["solve", QUESTION, "-o", "paths=0"], "paths and batch must be at least 1"),
        (["solve", QUESTION, "--template", "Q:"], "a template is a text with {question} in it"),
        (["solve", QUESTION, "--method", "self-consistancy"], "self-consistency"),
        (["solve", QUESTION, "--html", "/nowhere/page.html"], "cannot write to /nowhere/page.html"),
        (["solve", QUESTION, "--server", "localhost:1"], "base_url is 'localhost:1'"),
        (["solve", QUESTION, "--passages", "/nowhere.txt"], "cannot read passages from /nowhere.txt"),
    ],
)
def test_bad_input(arguments: list[str], said: str) -> None:
    done = ramify(*arguments)
    assert said in sentence_of(done.returncode, done.stdout, done.stderr)
