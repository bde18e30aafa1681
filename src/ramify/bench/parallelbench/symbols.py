"""List tasks of one token per item: what the shared list model learns, and what the closed forms are tested with.

A sequence has 22 tokens. The prompt has 10: the task, up to six items filled with PAD, NONE, the new word of
replace-random or NONE, SEP. The answer has 12: the items, then EOS to the end. Items are distinct symbols out of 16,
for cumsum digits out of 10.

Targets: copy, reverse; replace-random puts the new word into one slot, each as likely; shuffle is a uniform permutation
(the identity too, as in the closed forms; the text task excludes it); cumsum the sums modulo 10 of the first 1, 2, … n
items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ramify.errors import RamifyError, unknown

SYMBOLS, DIGITS, MOST = 16, 10, 6
PAD, EOS, SEP, MASK, NONE = range(SYMBOLS, SYMBOLS + 5)
TASKS = {
    name: SYMBOLS + 5 + place for place, name in enumerate(("copy", "reverse", "replace-random", "shuffle", "cumsum"))
}
NAMES = {number: name for name, number in TASKS.items()}
VOCABULARY = SYMBOLS + 5 + len(TASKS)
PROMPT, ANSWER = 10, 12
LENGTH = PROMPT + ANSWER
LENGTHS = (3, 4, 5, 6)
NEW = PROMPT - 2  # the place of the new word


def sample(task: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One example with ``n`` items: prompt [10] and a correct answer [12], both int64."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if not 1 <= n <= MOST:
        raise RamifyError(f"a list has between 1 and {MOST} items, not {n}")
    drawn: list[int] = torch.randperm(DIGITS if task == "cumsum" else SYMBOLS, generator=generator)[: n + 1].tolist()
    items, word = drawn[:n], drawn[n] if task == "replace-random" else NONE
    prompt = [TASKS[task], *items, *[PAD] * (MOST - n), NONE, word, SEP]
    answer = _target(task, items, word, generator)
    return torch.tensor(prompt), torch.tensor(answer + [EOS] * (ANSWER - n))


def samples(
    count: int, generator: torch.Generator, tasks: Sequence[str] = tuple(TASKS), lengths: Sequence[int] = LENGTHS
) -> tuple[Tensor, Tensor]:
    """``count`` examples, tasks and lengths drawn evenly: prompts [count, 10], answers [count, 12]."""
    kinds = torch.randint(len(tasks), (count,), generator=generator).tolist()
    sizes = torch.randint(len(lengths), (count,), generator=generator).tolist()
    pairs = [sample(tasks[kind], lengths[size], generator) for kind, size in zip(kinds, sizes, strict=True)]
    return torch.stack([prompt for prompt, _ in pairs]), torch.stack([answer for _, answer in pairs])


def items_of(prompt: Tensor) -> list[int]:
    """The items of a prompt [10]."""
    return [token for token in prompt[1 : 1 + MOST].tolist() if token != PAD]


def given_in(answer: Tensor) -> list[int]:
    """The tokens of an answer [12] up to its first EOS."""
    tokens: list[int] = answer.tolist()
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens


def right(prompt: Tensor, answer: Tensor) -> bool:
    """Whether ``answer`` [12] solves ``prompt`` [10]; what stands behind its first EOS does not matter."""
    items, given = items_of(prompt), given_in(answer)
    task, word = NAMES[int(prompt[0])], int(prompt[NEW])
    if task == "shuffle":
        return sorted(given) == sorted(items)
    if task == "replace-random":
        return len(given) == len(items) and any(
            given == [*items[:place], word, *items[place + 1 :]] for place in range(len(items))
        )
    return given == _target(task, items, word, None)


def infill(prompts: Tensor) -> Tensor:
    """The canvas of the infill test: open [B, 22] is true at the item slots of the answer, whose EOS are given."""
    count = (prompts[:, 1 : 1 + MOST] != PAD).sum(1, keepdim=True)
    place = torch.arange(LENGTH, device=prompts.device) - PROMPT
    return (place >= 0) & (place < count)


def _target(task: str, items: list[int], word: int, generator: torch.Generator | None) -> list[int]:
    n = len(items)
    if task == "reverse":
        return items[::-1]
    if task == "replace-random":
        place = int(torch.randint(n, (), generator=generator))
        return [*items[:place], word, *items[place + 1 :]]
    if task == "shuffle":
        return [items[place] for place in torch.randperm(n, generator=generator).tolist()]
    if task == "cumsum":
        return [sum(items[: end + 1]) % DIGITS for end in range(n)]
    return list(items)
