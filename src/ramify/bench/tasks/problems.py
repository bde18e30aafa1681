"""The generated families of questions, each with worked answers of several kinds.

A story, a set of relations and a table all come down to chains: a first number, then operations on it one by one. How
a chain is worked out varies from answer to answer, as it does among people: every operation on its own, several in one
line, or the result named after some steps or none. Short ways are more often wrong, for a small model cannot do much
within a line, and which way an answer goes is open again at every step. That is what gives sampled paths their spread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NAMES = ("Tom", "Ann", "Bob", "Eva", "Ian", "Mia", "Leo", "Zoe", "Max", "Ida", "Sam", "Amy")
THINGS = ("apples", "pens", "cards", "coins", "eggs", "books", "shells", "stamps", "plums", "beads")
GOODS = ("pen", "cup", "hat", "bag", "box", "map", "jar", "key", "mug", "pot", "toy", "rug")
SOME = ("buys {}", "finds {}", "gets {} from a friend")
MANY = ("buys {} bags of {}", "gets {} boxes of {}")
LESS = ("gives away {}", "loses {}", "sells {}")
MUCH_LESS = ("sells {} boxes of {}", "gives {} friends {} each")
TIMES = {2: "doubles the number", 3: "triples the number"}
LIMIT = 999


@dataclass(frozen=True)
class Term:
    """An operation of a chain: ``sign`` and ``value``, which the question gives as ``factors`` or as it is."""

    sign: str
    value: int
    factors: tuple[int, int] | None = None

    def after(self, total: int) -> int:
        """The total once this is done to ``total``."""
        if self.sign == "*":
            return total * self.value
        if self.sign == "/":
            return total // self.value
        return total + self.value if self.sign == "+" else total - self.value


Chain = Sequence[Term]


@dataclass(frozen=True)
class Manner:
    """How an answer is worked: the chance to multiply factors on a line of their own (``split``), to write down the
    total after an operation (``total``), to leave out all steps (``direct``), or those after some point (``jump``)."""

    split: float
    total: float
    direct: float
    jump: float


CAREFUL, BRISK, HASTY = Manner(1.0, 1.0, 0.0, 0.0), Manner(0.6, 0.5, 0.0, 0.1), Manner(0.4, 0.4, 0.8, 1.0)
# Shares of the three. What would take more than MANY_LINES is mostly not worked out at all: the likeliest answer to a
# long question is then a guess, and the way that leads to the right one is taken now and then.
SHORT, LONG = (0.6, 0.25, 0.15), (0.22, 0.08, 0.7)
MANY_LINES = 5


@dataclass(frozen=True)
class Problem:
    """A question, its answer, and ``work``, which writes one of the ways to it, ending with the answer."""

    question: str
    prompt: str
    answer: int
    work: Callable[[random.Random], str]


def value(chain: Chain) -> int:
    """What a chain comes to."""
    total = 0
    for term in chain:
        total = term.after(total)
    return total


def work(chains: Sequence[Chain], rng: random.Random, manner: Manner | None = None) -> str:
    """A worked answer for ``chains``, of which the last one gives the answer: "3*6=18; 14+18=32. #### 32".

    ``manner``: None to draw one.
    """
    if manner is None:
        lines = sum(len(chain) - 1 + sum(term.factors is not None for term in chain) for chain in chains)
        [manner] = rng.choices((CAREFUL, BRISK, HASTY), LONG if lines > MANY_LINES else SHORT)
    steps = [step for chain in chains for step in _lines(chain, rng, manner)]
    if rng.random() < manner.direct:
        steps = []
    elif rng.random() < manner.jump:
        steps = steps[: rng.randrange(len(steps))]
    end = f"#### {value(chains[-1])}"
    return f"{'; '.join(steps)}. {end}" if steps else end


def _lines(chain: Chain, rng: random.Random, manner: Manner) -> list[str]:
    """The lines "expression=value" of one chain."""
    lines: list[str] = []
    written, total = "", 0  # what stands for the total: its value, or an expression not yet worked out
    for term in chain:
        text = str(term.value)
        if term.factors:
            text = "*".join(map(str, term.factors))
            if rng.random() < manner.split:
                lines.append(f"{text}={term.value}")
                text = str(term.value)
        if term.sign in "*/" and not written.isdigit():
            lines.append(f"{written}={total}")
            written = str(total)
        written = f"{written}{term.sign}{text}" if written else text
        total = term.after(total)
        if not written.isdigit() and rng.random() < manner.total:
            lines.append(f"{written}={total}")
            written = str(total)
    if not written.isdigit():
        lines.append(f"{written}={total}")
    return lines


def story(rng: random.Random) -> Problem:
    """ "Tom has 14 apples, buys 3 bags of 6 and gives away 9. How many apples does Tom have now?" """
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(10, 99)
    chain, happenings = [Term("+", total)], list[str]()
    wanted = rng.randint(2, 5)
    while len(happenings) < wanted:
        term, said = _happening(rng)
        after = term.after(total)
        if 0 < after <= LIMIT and (term.sign != "/" or total % term.value == 0):
            chain.append(term)
            happenings.append(said)
            total = after
    happened = f"{', '.join(happenings[:-1])} and {happenings[-1]}"
    question = f"{name} has {chain[0].value} {thing}, {happened}. How many {thing} does {name} have now?"
    return _worked(question, [chain])


def _happening(rng: random.Random) -> tuple[Term, str]:
    kind = rng.choices(("some", "many", "less", "much less", "times", "half"), (3, 3, 3, 2, 1, 1))[0]
    few, each, amount = rng.randint(2, 9), rng.randint(3, 19), rng.randint(5, 99)
    if kind == "some":
        return Term("+", amount), rng.choice(SOME).format(amount)
    if kind == "less":
        return Term("-", amount), rng.choice(LESS).format(amount)
    if kind == "many":
        return Term("+", few * each, (few, each)), rng.choice(MANY).format(few, each)
    if kind == "much less":
        return Term("-", few * each, (few, each)), rng.choice(MUCH_LESS).format(few, each)
    if kind == "half":
        return Term("/", 2), "keeps half of them"
    factor = rng.choice(tuple(TIMES))
    return Term("*", factor), TIMES[factor]


def relations(rng: random.Random) -> Problem:
    """ "Ann has 14 coins. Bob has 5 more than Ann. Ida has 3 times as many as Bob. How many … together?" """
    people, thing = rng.sample(NAMES, rng.randint(3, 4)), rng.choice(THINGS)
    has = {people[0]: rng.randint(10, 99)}
    said, chains = [f"{people[0]} has {has[people[0]]} {thing}."], list[Chain]()
    for person in people[1:]:
        other = rng.choice(list(has)[-2:])
        term, relation = _relation(rng, has[other])
        chains.append([Term("+", has[other]), term])
        has[person] = term.after(has[other])
        said.append(f"{person} has {relation} {other}.")
    least, most = min(has, key=lambda who: has[who]), max(has, key=lambda who: has[who])
    if rng.random() < 0.3 and has[least] < has[most]:
        chains.append([Term("+", has[most]), Term("-", has[least])])
        said.append(f"How many more {thing} does {most} have than {least}?")
    else:
        chains.append([Term("+", number) for number in has.values()])
        said.append(f"How many {thing} do they have together?")
    return _worked(" ".join(said), chains)


def _relation(rng: random.Random, number: int) -> tuple[Term, str]:
    kinds = ["more"] * 2 + ["fewer"] * (number > 5) + ["times"] * (2 * number <= 200) + ["half"] * (number % 2 == 0)
    kind = rng.choice(kinds)
    if kind == "times":
        factor = rng.randint(2, min(5, 400 // number))
        return Term("*", factor), f"{factor} times as many as"
    if kind == "half":
        return Term("/", 2), "half as many as"
    amount = rng.randint(2, 99 if kind == "more" else min(99, number - 1))
    return Term("+" if kind == "more" else "-", amount), f"{amount} {kind} than"


def table(rng: random.Random) -> Problem:
    """A table of goods with price and quantity, and a question about the rows that meet a condition."""
    rows = [(name, rng.randint(2, 9), rng.randint(2, 19)) for name in rng.sample(GOODS, rng.randint(3, 5))]
    lines = "\n".join(["item price qty", *(f"{name} {price} {quantity}" for name, price, quantity in rows)])
    column = rng.choice(("price", "qty"))
    cells = [price if column == "price" else quantity for _, price, quantity in rows]
    sign = rng.choice("<>")
    bound = rng.choice(cells) + (1 if sign == "<" else -1)
    kept = [row for row, cell in zip(rows, cells, strict=True) if (cell < bound if sign == "<" else cell > bound)]
    if rng.random() < 0.25 or len(kept) < 2:
        ask, kept = "What do all items cost together?", rows
    else:
        ask = f"What do all items with {column} {sign} {bound} cost together?"
    chain = [Term("+", price * quantity, (price, quantity)) for _, price, quantity in kept]
    return _worked(f"{lines}\n{ask}", [chain])


def sums(rng: random.Random) -> Problem:
    """Three numbers of two digits, "Q12+34+56:"; 60 % of the answers are direct, "D102.", the others take two steps."""
    a, b, c = (rng.randint(10, 99) for _ in range(3))
    question = f"Q{a}+{b}+{c}:"

    def write(rng: random.Random) -> str:
        return f"D{a + b + c}." if rng.random() < 0.6 else f"S{a}+{b}={a + b},{a + b}+{c}={a + b + c}."

    return Problem(question, question, a + b + c, write)


def _worked(question: str, chains: Sequence[Chain]) -> Problem:
    return Problem(question, f"{question}\n", value(chains[-1]), lambda rng: work(chains, rng))


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "story": story,
    "relations": relations,
    "table": table,
    "sum": sums,
}
