"""Passages from a file: plain text, JSON, HotpotQA's own form, and one sentence for what is neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ramify.bench.tasks.passages import read_passages
from ramify.errors import RamifyError


def test_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("One.\r\nStill one.\r\n\r\n\r\nTwo.\n\n", newline="")
    assert read_passages(file) == (None, ["One.\nStill one.", "Two."])


@pytest.mark.parametrize(
    ("entry", "question", "passages"),
    [
        (["One.", "Two."], None, ["One.", "Two."]),
        ({"question": "Who?", "passages": ["One."]}, "Who?", ["One."]),
        ({"question": "Who?", "answer": "no", "context": [["A", ["One.", " Two."]]]}, "Who?", ["A: One. Two."]),
    ],
)
def test_json(tmp_path: Path, entry: Any, question: str | None, passages: list[str]) -> None:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(entry))
    assert read_passages(file) == (question, passages)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON; end its name in .txt"),
        ("{}", 'needs "passages"'),
        ("7", 'needs "passages"'),
        ('["one", 2]', 'needs "passages"'),
        ('{"passages": ["one"], "question": 3}', 'its "question" has to be a text'),
        ("[]", "there is no passage in"),
        ('{"passages": [" "]}', "there is no passage in"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "texts.json"
    file.write_text(content)
    with pytest.raises(RamifyError, match=said):
        read_passages(file)


def test_bad_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(RamifyError, match=r"there is no passage in .*empty\.txt"):
        read_passages(tmp_path / "empty.txt")
    with pytest.raises(RamifyError, match="cannot read passages from"):
        read_passages(tmp_path / "none.txt")
