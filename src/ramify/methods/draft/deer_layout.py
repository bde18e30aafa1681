"""Where the blocks of a drafter stand in a pass: which nodes there are, who sees whom, and which one says what.

A block is a cut of the text and a size: the tokens [cut, cut + size) are guessed from those before the cut. Its nodes
are one for every token, masked or not, and a separator behind them. With ``sight="causal"`` the text's nodes see those
before them, and a block the text before its cut and all of itself: what is cached of the text holds for every block, so
one pass has many of them. With ``sight="full"`` all nodes see each other, so there is one block in a pass and no text
behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.errors import RamifyError

SIGHTS = ("causal", "full")


@dataclass(frozen=True, eq=False)
class Layout:
    """N nodes, of which the first ``text`` are the text's; behind them those of all blocks, n tokens in all.

    ``positions`` [N]. ``sees`` bool [N, N]. ``tokens`` [n]: the nodes of the blocks' tokens, in order; ``separators``:
    the nodes that bound them. ``targets`` [n]: their places in the text. ``ranks`` [n]: their places in their blocks.
    ``sources`` [n]: whose logits are about them.
    """

    text: int
    positions: Tensor
    sees: Tensor
    tokens: Tensor
    separators: Tensor
    targets: Tensor
    ranks: Tensor
    sources: list[int]


def layout(blocks: Sequence[tuple[int, int]], sight: str, shift: bool, separated: bool = True) -> Layout:
    """The layout of ``blocks`` (cut, size). ``shift``: what stands at i is guessed at i − 1. ``separated``: False
    leaves the separators out."""
    if sight == "full" and len(blocks) != 1:
        raise RamifyError(f"where all nodes see each other a pass has one block, not {len(blocks)}")
    if not blocks or any(cut < 1 or size < 1 for cut, size in blocks):
        raise RamifyError(f"a block has a token before its cut and at least one behind it, unlike {list(blocks)}")
    text = max(cut for cut, _ in blocks)
    total = text + sum(size + separated for _, size in blocks)
    positions = torch.arange(total)
    sees = torch.ones(total, total, dtype=torch.bool).tril_() if sight == "causal" else torch.ones(total, total) > 0
    sees[:, text:] &= sight == "full"
    tokens, separators, targets, ranks, sources = (list[int]() for _ in range(5))
    begin = text
    for cut, size in blocks:
        end = begin + size + separated
        positions[begin:end] = torch.arange(cut, cut + size + separated)
        sees[begin:end, cut:text] = False
        sees[begin:end, begin:end] = True
        own = list(range(begin, begin + size))
        tokens += own
        separators += range(begin + size, end)
        targets += range(cut, cut + size)
        ranks += range(size)
        sources += [cut - 1, *own[:-1]] if shift else own
        begin = end

    def index(nodes: list[int]) -> Tensor:
        return torch.tensor(nodes, dtype=torch.long)

    return Layout(text, positions, sees, index(tokens), index(separators), index(targets), index(ranks), sources)


def scattered(count: int, first: int, length: int, sizes: Tensor, generator: torch.Generator) -> list[tuple[int, int]]:
    """``count`` blocks of the ``sizes`` [count] at random cuts from ``first`` on, within ``length`` tokens of text."""
    room = length - first + 1 - sizes
    if count < 1 or first < 1 or int(room.min()) < 1:
        raise RamifyError(
            f"texts of {length} tokens, {first} of them given, have no room for blocks of {int(sizes.max())}; "
            "give longer ones, or smaller blocks"
        )
    cuts = first + (torch.rand(count, generator=generator) * room).long()
    return list(zip(cuts.tolist(), sizes.tolist(), strict=True))
