"""Generators, scorers, prompts and the infill mode of the text families."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.bench.parallelbench import lists, puzzles, sentences, texts
from ramify.bench.parallelbench.grammar import grammatical
from ramify.bench.parallelbench.names import FIRST, LAST, NAMES
from ramify.bench.parallelbench.prompts import TEMPLATES, infill, prompt
from ramify.bench.parallelbench.tasks import FAMILIES, GENERATED, problems, seed_of
from ramify.bench.parallelbench.words import LEXICON
from ramify.errors import RamifyError

NAME = st.sampled_from(GENERATED)
LISTS = tuple(lists.OPERATIONS)
EXACT = tuple(name for name, operation in lists.OPERATIONS.items() if operation.right is None)


def draw(name: str, seed: int, size: int | None = None):
    family = FAMILIES[name]
    return family, family.draw(random.Random(seed), size or family.sizes[seed % len(family.sizes)])


def encode(text: str) -> list[int]:
    return list(text.encode())


# ---- sets of problems ----


def test_there_are_92_times_192_names():
    assert (len(set(FIRST)), len(set(LAST)), len(set(NAMES))) == (92, 192, 92 * 192)


def test_families():
    assert len(LISTS) == 11
    assert len(GENERATED) == 16
    assert set(FAMILIES) - set(GENERATED) == {"paraphrase", "summarize"}


@pytest.mark.parametrize("name", GENERATED)
def test_buckets_are_full_and_drawing_is_repeatable(name: str):
    found = problems(name, 40)
    sizes = collections.Counter(problem.size for problem in found.problems)
    assert set(sizes) == set(found.family.sizes)
    assert set(sizes.values()) == {40 // len(sizes)}
    assert problems(name, 40) == found
    assert problems(name, 40, seed=1).problems != found.problems
    assert all(
        score.lenient == score.strict == score.whole == 1 for score in found.score([p.label for p in found.problems])
    )


def test_sizes_of_the_variants():
    assert {problem.size for problem in problems("copy", 8, sizes=[15]).problems} == {15}
    wide = problems("words-to-sentence-easy", 8, sizes=range(1, 8)).problems
    assert sorted(len(problem.items) for problem in wide) == [1, 1, 2, 3, 4, 5, 6, 7]
    assert [len(problem.items) for problem in problems("words-to-sentence-hard", 3).problems] == [4, 4, 4]


def test_the_seed_of_a_task():
    import hashlib

    assert seed_of("replace-index") == (int(hashlib.sha256(b"replace_index").hexdigest(), 16) + 42) % 65535
    assert seed_of("copy") != seed_of("reverse")


def test_bad_requests():
    with pytest.raises(RamifyError, match="unknown task 'coppy'; did you mean 'copy'"):
        problems("coppy")
    with pytest.raises(RamifyError, match="unknown pool of items 'digits'"):
        problems("copy", items="digits")
    with pytest.raises(RamifyError, match="at least 1"):
        problems("copy", 0)
    with pytest.raises(RamifyError, match="between 2 and 25 items, not 26"):
        problems("copy", sizes=[26], items="letters")
    with pytest.raises(RamifyError, match="1 to 7 words, not 8"):
        problems("words-to-sentence-easy", sizes=[8])
    with pytest.raises(RamifyError, match="4 cells, not 9"):
        problems("sudoku", sizes=[9])
    with pytest.raises(RamifyError, match="paraphrase has no texts of its own"):
        problems("paraphrase")


# ---- lists ----


def test_targets():
    names = ["Bea Ames", "Al Young", "Cy Best"]

    def label(name: str, word: str = "", index: int = -1) -> list[str]:
        return lists.OPERATIONS[name].target(random.Random(0), names, word, index)

    assert label("copy") == names
    assert label("reverse") == ["Cy Best", "Al Young", "Bea Ames"]
    # The published labels sort by the full name although their prompt asks for the last name.
    assert label("sort") == ["Al Young", "Bea Ames", "Cy Best"]
    assert label("sort-lastname") == ["Bea Ames", "Cy Best", "Al Young"]
    assert label("replace-index", word="Di Fox", index=1) == ["Bea Ames", "Di Fox", "Cy Best"]
    assert label("insert-index", word="Di Fox", index=3) == ["Bea Ames", "Al Young", "Cy Best", "Di Fox"]
    assert label("remove-index", index=0) == ["Al Young", "Cy Best"]


@given(st.sampled_from(EXACT), st.integers(0, 9999), st.data())
def test_any_swap_scores_zero(name: str, seed: int, data: st.DataObject):
    family, problem = draw(name, seed)
    items = lists.read(problem.label)
    assert items
    one, other = data.draw(st.permutations(range(len(items))))[:2]
    items[one], items[other] = items[other], items[one]
    assert family.score(problem, lists.printed(items)).lenient == 0


@given(st.sampled_from(sorted(set(LISTS) - set(EXACT))), st.integers(0, 9999))
def test_free_operations_are_free_only_where_they_should_be(name: str, seed: int):
    family, problem = draw(name, seed)
    items, label = list(problem.items), lists.read(problem.label)
    assert label is not None

    def right(given: list[str]) -> bool:
        return bool(family.score(problem, lists.printed(given)).lenient)

    assert not right(items)
    assert not right([*label, label[0]])
    assert not right(["Nobody Nowhere", *label[1:]]) or label[0] == problem.word
    places = range(len(items))
    if name == "shuffle":
        assert right(items[::-1])
        assert not right([items[0], *items[:-1]])
    elif name == "replace-random":
        assert all(right([*items[:i], problem.word, *items[i + 1 :]]) for i in places)
        assert not right([problem.word] * 2 + items[2:])
        assert not right([problem.word, *items])
    elif name == "insert-random":
        assert all(right([*items[:i], problem.word, *items[i:]]) for i in range(len(items) + 1))
        assert not right([problem.word, *items[::-1]])
    else:
        assert all(right(items[:i] + items[i + 1 :]) for i in places)
        assert not right(items[2:])
        assert not right(items[:0:-1])


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ('["A B", "C D"]', 1, 1),
        (' ["A B", "C D"]\n', 1, 1),
        ('["A B","C D"]', 1, 0),
        ("[A B, 'C D']", 1, 0),
        ('Sure: ["A B", "C D"]', 1, 0),
        ('["x"] no: ["A B", "C D"', 1, 0),
        ('["A B", "C D"] done', 1, 0),
        ('"A B", "C D"', 0, 0),
        ('["A B" "C D"]', 0, 0),
        ("[]", 0, 0),
        ("", 0, 0),
    ],
)
def test_both_scorers(text: str, lenient: int, strict: int):
    family, problem = draw("copy", 0, 2)
    given = text.replace("A B", problem.items[0]).replace("C D", problem.items[1])
    score = family.score(problem, given)
    assert (score.lenient, score.strict) == (lenient, strict)
    assert lists.read_strictly("[]") == lists.read("[ ]") == []


@given(st.lists(st.sampled_from(NAMES), max_size=6))
def test_what_is_printed_is_read(items: list[str]):
    assert lists.read(lists.printed(items)) == lists.read_strictly(lists.printed(items)) == items


# ---- puzzles ----


@given(st.integers(0, 999))
def test_sudokus_have_one_completion(seed: int):
    _, problem = draw("sudoku", seed)
    puzzle = puzzles.read(problem.question)
    assert sum(cell != "_" for row in puzzle for cell in row) == 12
    assert [puzzles.printed(grid) for grid in puzzles.completions(puzzle, "1234", boxes=True)] == [problem.label]


def test_few_givens():
    puzzle, full = puzzles.sudoku(random.Random(0), 5)
    assert sum(cell != "_" for row in puzzle for cell in row) == 5
    assert list(puzzles.completions(puzzle, "1234", boxes=True)) == [full]
    with pytest.raises(RamifyError, match="4 to 16 cells given, not 3"):
        puzzles.sudoku(random.Random(0), 3)


def test_how_many_grids_there_are():
    def empty() -> puzzles.Grid:
        return [["_"] * 4 for _ in range(4)]

    assert sum(1 for _ in puzzles.completions(empty(), "1234", boxes=False)) == 576
    assert sum(1 for _ in puzzles.completions(empty(), "1234", boxes=True)) == 288


def test_latin_squares_are_whole():
    assert puzzles.is_latin([list("abcd"), list("badc"), list("cdab"), list("dcba")], "abcd")
    # A fifth cell that repeats one passes where rows are compared as sets.
    assert not puzzles.is_latin([list("abcda"), list("badcb"), list("cdabc"), list("dcbad")], "abcd")
    assert not puzzles.is_latin([list("abcd"), list("badc"), list("cdab")], "abcd")
    assert not puzzles.is_latin([list("abcd")] * 4, "abcd")
    family, problem = draw("latin-square", 3)
    spaced = problem.label.replace(",", ", ")
    assert (family.score(problem, spaced).lenient, family.score(problem, spaced).strict) == (1, 0)


@given(st.sampled_from(["sudoku", "latin-square"]), st.integers(0, 999), st.integers(0, 15), st.integers(0, 15))
def test_a_swap_of_two_values_scores_zero(name: str, seed: int, one: int, other: int):
    family, problem = draw(name, seed)
    cells = problem.label.replace("\n", ",").split(",")
    cells[one], cells[other] = cells[other], cells[one]
    text = "\n".join(",".join(cells[start : start + 4]) for start in range(0, 16, 4))
    assert family.score(problem, text).lenient == (text == problem.label)


# ---- sentences ----


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("The old dog slept.", 1, 1),
        ("An apple fell and the happy child laughed!", 0, 1),  # "happy" is not in the lexicon
        ("She saw the tree near the river, and he waited quietly.", 1, 1),
        ("It looked calm and it became dark because the storm arrived.", 1, 1),
        ("The farmer and the teacher watched her horse.", 1, 1),
        ("I saw them.", 1, 1),
        ("Berlin was cold when the train arrived.", 0, 1),
        ("dog the slept.", 0, 0),
        ("The dog slept", 0, 0),
        ("the dog slept.", 0, 0),
        ("A apple fell.", 0, 0),
        ("An dog fell.", 0, 0),
        ("He saw she.", 0, 0),
        ("The the dog slept.", 0, 0),
        ("The dog slept and.", 0, 0),
        ("The dog; slept.", 0, 0),
        ("...", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_acceptor(text: str, strict: int, lenient: int):
    assert (grammatical(text), grammatical(text, unknown=True)) == (strict, lenient)


@given(st.sampled_from(["easy", "medium", "hard"]), st.integers(1, 7), st.integers(0, 9999))
def test_sentences_of_all_sizes(level: str, size: int, seed: int):
    family, problem = draw(f"words-to-sentence-{level}", seed, size)
    assert len(set(problem.items)) == size
    score = family.score(problem, problem.label)
    assert score.lenient == score.strict == score.inclusion == 1
    without = " ".join(word for word in problem.label.split() if word.strip(".").lower() != problem.items[0])
    assert family.score(problem, without).inclusion == (problem.items[0] in without.lower())
    assert family.score(problem, "It fell.").whole == all(word in "it fell." for word in problem.items)


def test_easy_words_stand_in_the_order_of_a_sentence():
    _, problem = draw("words-to-sentence-easy", 0)
    kinds = [LEXICON[word] for word in problem.items]
    assert [kind in found for kind, found in zip(sentences.PATTERNS[3], kinds, strict=True)] == [True] * 4


# ---- texts of others ----


def test_texts_come_from_a_file(tmp_path: Path):
    lines = [
        {"family": "paraphrase", "text": "The cat sat on the mat."},
        {"family": "summarize", "text": "A long story.", "reference": "A story."},
        {"family": "summarize", "text": "No reference."},
        {"family": "translate", "text": "Hello."},
        {"family": "paraphrase"},
        [],
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    found, left_out = texts.read_texts(file)
    assert [problem.family for problem in found] == ["paraphrase", "summarize"]
    assert [line.split(": ", 1)[0].rsplit(" ", 1)[1] for line in left_out] == ["3", "4", "5", "6", "7"]
    assert texts.FAMILIES["summarize"].score(found[1], "A story.").lenient == 1
    paraphrase = texts.FAMILIES["paraphrase"]
    assert paraphrase.score(found[0], found[0].question).lenient == pytest.approx(0)
    assert paraphrase.score(found[0], "").lenient == 0
    assert paraphrase.score(found[0], "Upon that rug a feline rested").lenient == 1
    (tmp_path / "none.jsonl").write_text("{}\n")
    with pytest.raises(RamifyError, match=r"no text in .*none.jsonl: .*line 1: needs a family"):
        texts.read_texts(tmp_path / "none.jsonl")
    with pytest.raises(RamifyError, match=r"from a \.jsonl file"):
        texts.read_texts(tmp_path / "own.txt")


def test_overlap_scores():
    # Runs shared: 5 of 6 words, (3+1)/(5+1), (2+1)/(4+1), (1+1)/(3+1).
    assert texts.bleu("the cat sat on a mat", "the cat sat on the mat") == pytest.approx(
        (5 / 6 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25
    )
    assert texts.bleu("the cat", "the cat sat on the mat") < texts.bleu("the cat sat", "the cat sat on the mat")
    assert texts.rouge_l("the cat on mat", "the cat sat on the mat") == pytest.approx(2 * 4 / 10)
    assert texts.rouge_l("", "a") == texts.bleu("", "a") == 0


# ---- prompts and infilling ----


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", GENERATED)
def test_prompts_have_one_example_and_hide_the_label(name: str, template: str):
    found = problems(name, 4)
    for problem in found.problems:
        text = prompt(found, problem, template)
        assert found.family.instruction in text
        assert text.index(found.example.label) < text.rindex(problem.question)
        assert text.rpartition(problem.question)[2] in {"\nOutput:\n", "\n=>\n", "\nAssistant:\n"}


def test_there_are_three_templates():
    assert len(TEMPLATES) >= 3
    found = problems("copy", 1)
    assert len({prompt(found, found.problems[0], template) for template in TEMPLATES}) == len(TEMPLATES)
    with pytest.raises(RamifyError, match="unknown template 'chat'"):
        prompt(found, found.problems[0], "chat")


@given(st.sampled_from([*LISTS, "sudoku", "latin-square"]), st.integers(0, 999))
def test_infilling_leaves_the_items_open(name: str, seed: int):
    family = (FAMILIES | lists.families("letters"))[name]
    problem = family.draw(random.Random(seed), family.sizes[0])
    found = infill(problem, encode)
    assert bytes(found.ids).decode() == problem.label
    asked = bytes(token for token, open in zip(found.ids, found.open, strict=True) if open).decode()
    assert asked == "".join(problem.slots[1::2])
    assert set(asked).isdisjoint('[]", \n')


def test_slots_do_not_tell_the_items():
    _, problem = draw("copy", 0)
    with pytest.raises(RamifyError, match=r"tokens, so slots would tell .* items='letters'"):
        infill(problem, encode)
    _, problem = draw("words-to-sentence-easy", 0)
    with pytest.raises(RamifyError, match="words-to-sentence-easy has no fixed form"):
        infill(problem, encode)
