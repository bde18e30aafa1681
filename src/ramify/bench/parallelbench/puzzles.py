"""Latin squares and sudokus of 4 × 4 cells, written as lines of values with commas between."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from ramify.bench.parallelbench.family import Family, Problem, Score
from ramify.errors import RamifyError

SIDE, BOX = 4, 2
BLANK = "_"
SYMBOLS = string.ascii_uppercase + string.digits
GIVENS = 12  # of the 16 cells of a sudoku

Grid = list[list[str]]


def printed(grid: Grid) -> str:
    return "\n".join(",".join(row) for row in grid)


def read(text: str) -> Grid:
    """The lines with a comma, without blanks."""
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if "," in line]


def read_strictly(text: str) -> Grid:
    """All lines as they are."""
    return [line.split(",") for line in text.strip("\n").split("\n")]


def is_latin(grid: Grid, symbols: str) -> bool:
    """Whether every row and every column has each of the symbols once."""
    wanted = sorted(symbols)
    whole = len(grid) == len(wanted) and all(sorted(row) == wanted for row in grid)
    return whole and all(sorted(column) == wanted for column in zip(*grid, strict=True))


def completions(grid: Grid, symbols: str, boxes: bool) -> Iterator[Grid]:
    """All ways to fill the blanks with ``symbols``, tried in their order; ``boxes``: each box has them all as well."""
    empty = [(row, column) for row in range(SIDE) for column in range(SIDE) if grid[row][column] == BLANK]
    if not empty:
        yield [list(line) for line in grid]
        return
    row, column = empty[0]
    taken = {*grid[row], *(line[column] for line in grid)}
    if boxes:
        top, left = row - row % BOX, column - column % BOX
        taken |= {cell for line in grid[top : top + BOX] for cell in line[left : left + BOX]}
    for symbol in symbols:
        if symbol not in taken:
            grid[row][column] = symbol
            yield from completions(grid, symbols, boxes)
    grid[row][column] = BLANK


def _filled(rng: random.Random, symbols: str, boxes: bool) -> Grid:
    """A random grid: the first row at random, the rest one of its completions, each as likely."""
    first = rng.sample(symbols, SIDE)
    return rng.choice(list(completions([first, *[[BLANK] * SIDE for _ in range(SIDE - 1)]], symbols, boxes)))


def _slots(grid: Grid) -> tuple[str, ...]:
    ends = ([","] * (SIDE - 1) + ["\n"]) * SIDE
    cells = [cell for row in grid for cell in row]
    pieces = [piece for cell, end in zip(cells, ends, strict=True) for piece in (cell, end)]
    return ("", *pieces[:-1], "")


def _draw_latin(rng: random.Random, size: int) -> Problem:
    _checked(size)
    symbols = "".join(rng.sample(SYMBOLS, SIDE))
    grid = _filled(rng, symbols, boxes=False)
    question = f"symbols: {', '.join(symbols)}"
    return Problem("latin-square", question, printed(grid), size, tuple(symbols), slots=_slots(grid))


def _score_latin(problem: Problem, text: str) -> Score:
    symbols = "".join(problem.items)
    return Score(float(is_latin(read(text), symbols)), float(is_latin(read_strictly(text), symbols)))


def sudoku(rng: random.Random, givens: int = GIVENS) -> tuple[Grid, Grid]:
    """A puzzle with so many cells given and its only completion."""
    if not BOX * BOX <= givens <= SIDE * SIDE:
        raise RamifyError(f"a sudoku of 4 × 4 cells with one completion has 4 to 16 cells given, not {givens}")
    symbols = "1234"
    while True:
        full = _filled(rng, symbols, boxes=True)
        puzzle = [list(row) for row in full]
        left = SIDE * SIDE
        for cell in rng.sample(range(SIDE * SIDE), SIDE * SIDE):
            if left == givens:
                return puzzle, full
            row, column = divmod(cell, SIDE)
            puzzle[row][column] = BLANK
            if len(list(completions(puzzle, symbols, boxes=True))) > 1:
                puzzle[row][column] = full[row][column]
            else:
                left -= 1
        if left == givens:
            return puzzle, full


def _draw_sudoku(rng: random.Random, size: int) -> Problem:
    _checked(size)
    puzzle, full = sudoku(rng)
    return Problem("sudoku", printed(puzzle), printed(full), size, slots=_slots(full))


def _score_sudoku(problem: Problem, text: str) -> Score:
    wanted = read_strictly(problem.label)
    return Score(float(read(text) == wanted), float(read_strictly(text) == wanted))


def _checked(size: int) -> None:
    if size != SIDE:
        raise RamifyError(f"the puzzles have a side of {SIDE} cells, not {size}")


FAMILIES = {
    "latin-square": Family(
        "latin-square",
        "Write a latin square: 4 lines of the 4 symbols with commas between, each symbol once in every line and every "
        "column.",
        (SIDE,),
        _draw_latin,
        _score_latin,
    ),
    "sudoku": Family(
        "sudoku",
        "Solve the sudoku: each of 1, 2, 3, 4 once in every line, every column and every box of 2 × 2 cells. Write the "
        f"4 lines with commas between and no {BLANK}.",
        (SIDE,),
        _draw_sudoku,
        _score_sudoku,
    ),
}
