"""Generated questions, the frozen parser, files of questions."""

from __future__ import annotations

import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.bench.tasks import (
    FAMILIES,
    REASONING,
    SPLITS,
    Task,
    canonical,
    draws,
    parse_answer,
    read_tasks,
    same_answer,
    split_of,
    tasks,
)
from ramify.bench.tasks.problems import CAREFUL, Manner, Term, value, work
from ramify.errors import RamifyError

CHAIN = [Term("+", 14), Term("+", 18, (3, 6)), Term("-", 9), Term("*", 2)]
MERGED, DIRECT, CUT = Manner(0, 0, 0, 0), Manner(1, 1, 1, 0), Manner(1, 1, 0, 1)

# ---------------------------------------------------------------- parser


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3*6=18; 14+18=32. #### 32", "32"),
        ("#### 1\nno: #### 1,234.50\nand more 7", "2469/2"),
        ("so \\boxed{12} and then \\boxed{3/4}", "3/4"),
        ("The answer is $1,000.", "1000"),
        ("Answer: -5\nnext line 8", "-5"),
        ("The answer is the Red House. Not 7.", "red house"),
        ("S12+88=100,100+56=156.", "156"),
        ("D102.", "102"),
        ("It is 5-3.", "3"),
        ("So it is -3.", "-3"),
        ("42", "42"),
        ("S12+88=100,100+5", None),
        ("S12+88=100,", None),
        ("14+18=32; 32-9", None),
        ("14+18=32. ####", None),
        ("no number here.", None),
        ("", None),
    ],
)
def test_the_parser_is_frozen(text: str, answer: str | None):
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1/2", "0.5", True),
        ("1,000", "1000", True),
        ("42.", "42", True),
        ("$ 42", "42.00", True),
        ("50%", "50", True),
        ("\N{MINUS SIGN}3", "-3", True),
        ("The cat", "cat", True),
        ("Yes.", "yes", True),
        ("1/3", "0.333", False),
        ("1,00", "100", False),
        ("4", "-4", False),
        ("1/0", "1/0", True),  # no number, so compared as words
        ("", "", False),
        (" . ", "", False),
    ],
)
def test_answers_are_equal_as_numbers(one: str, other: str, equal: bool):
    assert same_answer(one, other) is equal
    assert same_answer(other, one) is equal


@given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1000))
def test_every_spelling_of_a_number_is_the_number(number: Fraction):
    above, below = number.numerator, number.denominator
    spellings = [f"{above}/{below}", f"{2 * above}/{2 * below}", f" {above} / {below}."]
    if below == 1:
        spellings += [f"{above:,}", f"${above}", f"{above}.0"] if above >= 0 else [f"{above:,}", f"{above}.0"]
    assert {canonical(spelling) for spelling in spellings} == {str(number)}
    assert parse_answer(f"1+1=2. #### {above}/{below}") == str(number)


@given(st.text(max_size=40))
def test_any_text_has_an_answer_or_none(text: str):
    answer = parse_answer(text)
    assert answer is None or canonical(answer) == answer


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("family", FAMILIES)
def test_worked_answers_are_right_line_by_line(family: str):
    for task in tasks(150, "train", 3, [family]):
        assert task.family == family
        assert task.prompt.startswith(task.question)
        assert task.right(task.worked)
        assert not task.right(task.worked.replace(task.answer, task.answer + "1"))
        for expression, result in re.findall(r"([\d+*/-]+)=(\d+)", task.worked):
            assert eval(expression) == int(result), task.worked
        if family != "sum":
            assert task.worked.endswith(f"#### {task.answer}")


def test_a_chain_can_be_worked_in_several_ways():
    rng = random.Random(0)
    assert value(CHAIN) == 46
    assert work([CHAIN], rng, CAREFUL) == "3*6=18; 14+18=32; 32-9=23; 23*2=46. #### 46"
    assert work([CHAIN], rng, MERGED) == "14+3*6-9=23; 23*2=46. #### 46"
    assert work([CHAIN], rng, DIRECT) == "#### 46"
    cut = {work([CHAIN], rng, CUT) for _ in range(99)}
    assert "#### 46" in cut
    assert "3*6=18; 14+18=32; 32-9=23. #### 46" in cut
    assert len(cut) == 4  # no, one, two or three of the four lines


def test_long_questions_are_mostly_answered_outright():
    rng = random.Random(1)
    longer = [*CHAIN, Term("+", 8), Term("-", 5)]  # six lines in place of four
    ways = {len(chain): [work([chain], rng) for _ in range(1000)] for chain in (CHAIN, longer)}
    outright = [sum(way.startswith("####") for way in found) / 1000 for found in ways.values()]
    assert outright[0] < 0.2
    assert outright[1] > 0.5


def test_stories_say_what_is_worked_out():
    for task in tasks(200, "train", 1, ["story", "table"]):
        asked = set(re.findall(r"\d+", task.question))
        given = set(re.findall(r"\d+", task.worked.split(";")[0].split("=")[0]))
        # The factors of "doubles", "triples" and "half" are words.
        assert given <= asked | {"2", "3"} or task.worked.startswith("####")


def test_the_sum_task_has_its_two_ways():
    answers = [task.worked for task in itertools.islice(draws("train", 0, ["sum"]), 1000)]
    assert 0.56 < sum(answer[0] == "D" for answer in answers) / 1000 < 0.64
    assert all(re.fullmatch(r"D\d+\.|S\d+\+\d+=\d+,\d+\+\d+=\d+\.", answer) for answer in answers)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_question(family: str):
    questions = {split: {t.question for t in itertools.islice(draws(split, 5, [family]), 300)} for split in SPLITS}
    for split, other in itertools.combinations(SPLITS, 2):
        assert not questions[split] & questions[other]
    for split, found in questions.items():
        assert {split_of(question) for question in found} == {split}


def test_splits_cover_everything_once():
    assert sorted(place for places in SPLITS.values() for place in places) == list(range(100))


def test_questions_depend_on_their_arguments_alone():
    assert tasks(30) == tasks(30)
    assert tasks(30) == tasks(60)[:30]
    assert tasks(30, seed=1) != tasks(30)
    assert len({task.question for task in tasks(500)}) == len({task.id for task in tasks(500)}) == 500
    assert [task.family for task in tasks(6)] == [*REASONING, *REASONING]
    # Pinned: a change of the generator changes every published accuracy.
    assert split_of("Q12+34+56:") == "train"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "0 questions were asked for"),
        ({"split": "tests"}, r"unknown split 'tests'; did you mean 'test'\?"),
        ({"families": ["storey"]}, r"unknown family of questions 'storey'; did you mean 'story'\?"),
        ({"families": []}, "no family of questions is given"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(RamifyError, match=message):
        tasks(**arguments)


# ---------------------------------------------------------------- files


def test_gsm8k_is_read(tmp_path: Path):
    file = tmp_path / "gsm8k.jsonl"
    lines = [
        {"question": "Natalia sold clips. How many?", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\n#### 1,072"},
        {"problem": "Half of one?", "solution": "It is \\boxed{1/2}", "id": "h", "family": "math"},
        {"prompt": "What is it?", "target": "a cat"},
        {"question": "A number?", "answer": 7},
    ]
    bad = ["", "{", "[1]", '{"question": " ", "answer": 1}', '{"question": "?", "answer": null}']
    bad += ['{"question": "?", "answer": "####"}', '{"question": "?", "answer": true}', json.dumps(lines[1])]
    file.write_text("\n".join([*map(json.dumps, lines), *bad]) + "\n")
    found, problems = read_tasks(file)
    assert [task.answer for task in found] == ["1072", "1/2", "cat", "7"]
    assert found[0].worked.startswith("She sold")
    assert (found[1].id, found[1].family, found[3].worked) == ("h", "math", "")
    assert found[0].right("48+1024=1072. #### 1072.00")
    assert not found[0].right("48+1024=1072; 1072")
    assert [re.search(r"line (\d+)", problem)[1] for problem in problems] == ["6", "7", "8", "9", "10", "11", "12"]


def test_a_question_ends_with_a_line_break(tmp_path: Path):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "3"}))
    assert read_tasks(file)[0] == [Task("1", "How many?", "How many?\n", "3")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", r"come from a \.jsonl file"),
        ("missing.jsonl", None, "cannot read questions"),
        ("a.jsonl", b"\n", "the file is empty"),
        ("a.jsonl", b'{"question": "x"}', "needs an answer"),
        ("a.jsonl", b'{"question": "x", "answer": "1"}\n\xff', "line 2: questions are UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RamifyError, match=message):
        read_tasks(tmp_path / name)
