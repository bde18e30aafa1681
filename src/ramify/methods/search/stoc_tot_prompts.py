"""What STOC-TOT's roles are asked, in our own words (the paper's prompts are not public), and how replies are read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ramify.methods.search.stoc_tot_tree import Step

UNKNOWN = 0.5  # the validity of a reply without a number
_BULLET = re.compile(r"^\s*(?:\(?\d+[.):]\s*|[-*•]\s+)?")
_NUMBER = re.compile(r"\d*\.\d+|\d+")
_ANSWER = re.compile(r"(?i)^(?:final )?answer\s*:\s*")


def propose(question: str, path: Sequence[Step], passages: Sequence[str], count: int) -> str:
    """EXPAND: what might be asked next."""
    return (
        f"{listed_passages(passages)}Question: {question}\n{_known(path)}"
        f"List up to {count} different questions that could be asked next, each about a single fact and each on a line "
        "of its own. If the facts known so far are enough to answer the question, write DONE.\nNext questions:\n"
    )


def evidence(question: str, sentences: Sequence[str]) -> str:
    """EVIDENCE: which sentences answer the question."""
    numbered = "".join(f"{number}. {sentence}\n" for number, sentence in enumerate(sentences, 1))
    return f"{numbered}\nQuestion: {question}\nGive the numbers of the sentences that answer the question.\nNumbers:"


def answer(question: str, evidence: Sequence[str], bank: Sequence[str] = ()) -> str:
    """ANSWER: from the evidence; ``bank``: the words to keep to, where they are not enforced."""
    return (
        f"{listed_passages(evidence)}Question: {question}\nAnswer in a few words copied from the sentences."
        f"{_bank(bank)}\nAnswer:"
    )


def valid(question: str, path: Sequence[Step], number: bool) -> str:
    """VALID: of a line of questions; as a ``number``, or as yes or no."""
    asked = (
        "How likely does this line of questions lead to the right answer? Give a number from 0 to 1.\nLikelihood:"
        if number
        else "Is the last step correct and useful for the question? Answer yes or no.\nAnswer:"
    )
    return f"Question: {question}\n{_known(path)}{asked}"


def final(question: str, path: Sequence[Step], evidence: Sequence[str], bank: Sequence[str] = ()) -> str:
    """FINAL: the answer to the question from a whole line."""
    return (
        f"{listed_passages(evidence)}{_known(path)}Question: {question}\nAnswer in a few words, from what is known."
        f"{_bank(bank)}\nAnswer:"
    )


def same(one: str, other: str) -> str:
    """Whether two questions ask for the same."""
    return f"A: {one}\nB: {other}\nDo A and B ask for the same fact? Answer yes or no.\nAnswer:"


def read_questions(reply: str, count: int) -> list[str]:
    """The questions of a reply to EXPAND, one a line, up to DONE."""
    found: list[str] = []
    for line in reply.splitlines():
        text = _BULLET.sub("", line, count=1).strip()
        if text.rstrip(".!").upper() == "DONE":
            break
        if text:
            found.append(text)
    return found[:count]


def read_numbers(reply: str, most: int) -> list[int]:
    """The numbers from 1 to ``most`` in a reply, each once, in order."""
    found = [int(number) for number in re.findall(r"\d+", reply)]
    return list(dict.fromkeys(number for number in found if 1 <= number <= most))


def read_likelihood(reply: str) -> float:
    """The first number in a reply, percentages understood, clipped to [0, 1]; ``UNKNOWN`` without one."""
    number = _NUMBER.search(reply)
    if number is None:
        return UNKNOWN
    value = float(number[0]) / (100 if reply[number.end() :].lstrip().startswith("%") else 1)
    return min(1.0, max(0.0, value)) if math.isfinite(value) else UNKNOWN


def read_answer(reply: str) -> str:
    """The first line of a reply that says something, without a heading or a full stop."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    return _ANSWER.sub("", lines[0]).rstrip(".").strip() if lines else ""


def read_yes(reply: str) -> bool:
    """Whether a reply begins with yes."""
    return read_answer(reply).lower().lstrip("\"'*").startswith("yes")


def listed_passages(passages: Sequence[str]) -> str:
    """``passages``, a line each, and an empty line behind them."""
    return "".join(f"{passage}\n" for passage in passages) + "\n" if passages else ""


def _known(path: Sequence[Step]) -> str:
    facts = "".join(f"- {step.question} {step.answer or 'unknown'}\n" for step in path)
    return f"Known so far:\n{facts}" if facts else ""


def _bank(bank: Sequence[str]) -> str:
    return f" Use only these words: {', '.join(bank)}." if bank else ""
