"""Prompts: file formats, what is said about bad lines, and the built-in prompts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ramify.bench.prompts import Prompt, held_out_prompts, load_prompts
from ramify.errors import RamifyError


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def test_text_gives_one_prompt_per_line(tmp_path: Path) -> None:
    prompts, problems = load_prompts(written(tmp_path, "p.txt", "first\r\n\n  second \n"))
    assert prompts == [Prompt("1", "first"), Prompt("3", "  second ")]
    assert problems == []


def test_text_with_separators_gives_blocks(tmp_path: Path) -> None:
    prompts, _ = load_prompts(written(tmp_path, "p.txt", "def f():\n    pass\n---\n\n---\nx = 1\n"))
    assert prompts == [Prompt("1", "def f():\n    pass"), Prompt("6", "x = 1")]


def test_jsonl_keeps_good_lines_and_names_bad_ones(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "one"}',
        '{"prompt": ',
        '{"text": "two", "id": "b", "group": "code"}',
        "[1, 2]",
        '{"prompt": "  "}',
        '{"question": "what"}',
        '{"prompt": "three", "id": "b"}',
        '{"turns": []}',
    ]
    path = written(tmp_path, "p.jsonl", "\n".join(lines))
    prompts, problems = load_prompts(path)
    assert prompts == [Prompt("1", "one"), Prompt("b", "two", "code")]
    assert [problem.split(":")[0] for problem in problems] == [f"{path}, line {n}" for n in (2, 4, 5, 6, 7, 8)]
    assert "already used in line 3" in problems[4]


def test_spec_bench_questions_take_the_first_turn_and_their_group(tmp_path: Path) -> None:
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {"question_id": 481, "category": "rag", "turns": ["Look it up."]},
    ]
    prompts, problems = load_prompts(written(tmp_path, "q.jsonl", "\n".join(map(json.dumps, questions))))
    assert prompts == [Prompt("81", "Write.", "mt_bench"), Prompt("481", "Look it up.", "rag")]
    assert not problems


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "a", "a .txt or .jsonl file"),
        ("p.txt", " \n", "the file is empty"),
        ("p.jsonl", "{\n{\n", "line 1: not JSON"),
        ("p.jsonl", "[" * 100_000, "nested too deeply"),
    ],
)
def test_useless_file_is_an_error_in_one_sentence(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(RamifyError, match=said) as caught:
        load_prompts(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="cannot read prompts"):
        load_prompts(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(RamifyError, match="line 2: prompts are UTF-8"):
        load_prompts(tmp_path / "latin.txt")


def test_held_out_prompts_are_spread_and_repeatable() -> None:
    prompts = held_out_prompts(20)
    assert len({prompt.id for prompt in prompts}) == 20
    assert prompts[:7] == held_out_prompts(7)
    assert prompts != held_out_prompts(20, seed=1)
    modules = Counter(prompt.id.split(":")[0] for prompt in prompts)
    assert max(modules.values()) - min(modules.values()) <= 1
    groups = Counter(prompt.group for prompt in prompts)
    assert abs(groups["start"] - groups["inside"]) <= 2
    for prompt in prompts:
        assert 900 <= len(prompt.text) <= 1300
        assert prompt.text == prompt.text.rstrip()
