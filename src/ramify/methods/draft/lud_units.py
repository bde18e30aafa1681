"""Lexical units, and the rows in which [PAD]s learn to predict them.

With p_t = P(x_t | x_<t) of the base model, token t continues the unit before it if p_t >= alpha, else it starts one; a
unit has at most ``longest`` continuing tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def units(p: Sequence[float], alpha: float, longest: int) -> list[list[int]]:
    """The places 0 … T − 1 of a text by unit; the first token always starts one."""
    found: list[list[int]] = []
    for place, probability in enumerate(p):
        if found and probability >= alpha and len(found[-1]) <= longest:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def following(continues: Tensor, longest: int) -> Tensor:
    """How many tokens behind every place continue in a row, at most ``longest``: [B, T] of ``continues`` [B, T].

    Units are taken to start anywhere, for decoding can stop anywhere within one.
    """
    rows, length = continues.shape
    counts = torch.zeros(rows, length, dtype=torch.long, device=continues.device)
    run = torch.ones_like(continues)
    for ahead in range(1, min(longest, length - 1) + 1):
        shifted = torch.zeros_like(continues)
        shifted[:, :-ahead] = continues[:, ahead:]
        run = run & shifted
        counts += run
    return counts


def layout(length: int, starts: Tensor, pads: int) -> tuple[Tensor, Tensor]:
    """Positions [B, N] and ancestors bool [B, N, N] of texts of ``length`` rows with branches behind them.

    ``starts`` [B, M]: the places s >= 1 of M tokens; N = length + M · pads. The [PAD]s q = 1 … ``pads`` of branch s
    stand together. They have the positions s − 1 + q and see the text before s, those of their branch up to
    themselves, and nothing else; no text row sees them. That is what decoding does behind x_{s−1}.
    """
    rows, branches = starts.shape
    device = starts.device
    count = branches * pads
    step = torch.arange(1, pads + 1, device=device).repeat(branches)
    before = starts.repeat_interleave(pads, dim=1) - 1
    text = torch.arange(length, device=device)
    positions = torch.cat([text.expand(rows, -1), before + step], dim=1)
    seen = torch.zeros(rows, length + count, length + count, dtype=torch.bool, device=device)
    seen[:, :length, :length] = text[:, None] >= text
    seen[:, length:, :length] = text <= before[..., None]
    branch = torch.arange(branches, device=device).repeat_interleave(pads)
    seen[:, length:, length:] = (branch[:, None] == branch) & (step[:, None] >= step)
    return positions, seen
