"""The canvas: B rows of positions, fixed or open, and the passes of a masked denoiser over them.

One mechanism serves every kind of cache. A pass is fed some positions of each row, in any order, with their true
position numbers; ``hold`` keeps the keys and values of some of them for the passes to come, in which those positions
are seen and not fed. What is held is as old as the pass that computed it: exact only where nothing that it depends on
has changed since, which under full attention is nothing but an approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.models.cache import RowCache, send
from ramify.models.forward import Nodes
from ramify.models.masked import MaskedLM


@dataclass
class Canvas:
    """One canvas. ``tokens``: [L], what stands at every position, the mask token where it is open. ``open``: bool [L].

    ``start``: the first position behind the prompt. ``index``: which request it belongs to.
    """

    index: int
    tokens: Tensor
    open: Tensor
    start: int

    def __len__(self) -> int:
        return len(self.tokens)

    def fix(self, positions: Tensor, tokens: Tensor) -> None:
        """Write ``tokens`` [n] at ``positions`` [n], which are open no more."""
        self.tokens.index_copy_(0, positions, tokens)
        self.open.index_fill_(0, positions, False)

    def reopen(self, positions: Tensor, mask: int) -> None:
        """Make ``positions`` [n] open again."""
        self.tokens[positions] = mask
        self.open[positions] = True

    def cut(self, length: int) -> None:
        """Drop everything from position ``length`` on."""
        self.tokens, self.open = self.tokens[:length], self.open[:length]


class CanvasSession:
    """Passes over the rows of a canvas, and the keys and values that are held between them.

    ``guidance``: the weight w of a second pass over the same canvas without its prompt, whose logits u make
    u + (w + 1)(l − u) of the logits l (LLaDA's form of classifier-free guidance); 0 for none. It may
    be changed between passes, but not from or to none.
    """

    def __init__(self, lm: MaskedLM, rows: Sequence[Canvas], guidance: float = 0.0) -> None:
        lm.refresh()
        self.lm, self.device = lm, lm.device
        self.rows = list(rows)
        self.guidance = guidance
        longest = max(map(len, rows))
        self._caches = [RowCache(lm.layers, len(rows), longest) for _ in range(2 if guidance else 1)]
        self._fed: list[list[int]] = []
        self._layout: Layout | None = None
        self._held: list[set[int]] = [set() for _ in rows]

    def held(self, place: int) -> set[int]:
        """The positions of row ``place`` whose keys and values are held."""
        return self._held[place]

    @torch.inference_mode()
    def score(self, wanted: Sequence[Sequence[int]], fed: Sequence[Sequence[int]] | None = None) -> tuple[Tensor, int]:
        """One pass; logits [B, n, V] at the positions ``wanted[r]`` of every row, n the most of any, the others padded.

        ``fed[r]``: the positions that the pass evaluates, ``wanted`` among them; None for all that are not held.
        The mask token's logit is −inf. Also returns how many positions the pass evaluated in each row, padding
        included, that of guidance too.
        """
        if fed is None:
            both = zip(self.rows, self._held, strict=True)
            fed = [[place for place in range(len(row)) if place not in held] for row, held in both]
        shift = int(self.lm.facts.shift)
        sources = [[max(p - shift, 0) for p in row] for row in wanted] if shift else wanted
        # What is wanted stands first, so that the head reads the same nodes of every row and no others.
        self._fed = [list(dict.fromkeys([*first, *rest])) for first, rest in zip(sources, fed, strict=True)]
        for own, held in zip(self._fed, self._held, strict=True):
            if not held.isdisjoint(own):
                raise RamifyError("a position that is held cannot be fed; forget the row first")
        # Within a block most passes are fed what the one before was.
        if self._layout is None or self._fed != self._layout.fed:
            self._layout = Layout(self._fed, self.lm.facts.block, self.device)
        nodes = self._nodes(self._layout, max(map(len, sources)))
        logits = self._run(nodes, self._caches[0])
        if len(self._caches) > 1:  # also where the weight is 0 for once: what is held must be complete
            free = self._run(self._without_prompt(nodes), self._caches[1])
            logits = free + (self.guidance + 1.0) * (logits - free)
        if shift:  # positions 0 and 1 share a source
            index = _pad([[row.index(p) for p in first] for row, first in zip(self._fed, sources, strict=True)])
            logits = logits.gather(1, send(index, logits.device)[..., None].expand(-1, -1, logits.shape[-1]))
        logits = logits.float()
        logits.select(-1, self.lm.mask_id).fill_(-torch.inf)
        return logits, self._layout.count * len(self._caches)

    @torch.inference_mode()
    def hold(self, positions: Sequence[Sequence[int]]) -> None:
        """Keep the keys and values of ``positions[r]``, all of which were fed to the last pass."""
        nodes = []
        for wanted, fed, held in zip(positions, self._fed, self._held, strict=True):
            places = {position: node for node, position in enumerate(fed)}
            nodes.append([places[position] for position in wanted])
            held.update(wanted)
        for cache in self._caches:
            cache.keep(nodes)

    def forget(self, place: int) -> None:
        """Hold nothing of row ``place`` any more."""
        self._held[place] = set()
        for cache in self._caches:
            cache.lengths[place] = 0

    @torch.inference_mode()
    def select(self, places: Sequence[int]) -> None:
        """Go on with the rows at ``places`` only."""
        self.rows = [self.rows[place] for place in places]
        self._held = [self._held[place] for place in places]
        self._fed = []
        for cache in self._caches:
            if max(cache.lengths, default=0) > 0:
                cache.select(places)
            else:
                cache.lengths = [0] * len(places)

    def _nodes(self, layout: Layout, wanted: int) -> Nodes:
        """The pass over the positions of ``layout``, with logits at the first ``wanted`` of each row."""
        tokens = [row.tokens.index_select(0, place) for row, place in zip(self.rows, layout.places, strict=True)]
        return Nodes(
            send(torch.stack(tokens), self.device),
            layout.positions,
            list(self._caches[0].lengths),
            layout.sees,
            logits_at=range(wanted),
            reach=max(map(len, self.rows)),
        )

    def _without_prompt(self, nodes: Nodes) -> Nodes:
        null = self.lm.facts.null_token_id
        starts = torch.tensor([row.start for row in self.rows], device=nodes.tokens.device)[:, None]
        absent = self.lm.mask_id if null is None else null
        return replace(nodes, tokens=nodes.tokens.masked_fill(nodes.positions < starts, absent))

    def _run(self, nodes: Nodes, cache: RowCache) -> Tensor:
        cache.expect(nodes.tokens.shape[1], nodes.tokens.device)
        logits, _ = self.lm.forward(nodes, cache)
        return logits


class Layout:
    """Where the nodes of a pass stand that is fed the positions ``fed`` of each row, n of the longest.

    ``places``: int64 [B, n], padded with zeros, where the canvases are. ``positions``: the same on ``device``.
    ``sees``: bool [B or 1, n, n] there, which nodes each node sees: all, or those of its block of ``block`` positions
    and before. ``count``: n.
    """

    def __init__(self, fed: Sequence[list[int]], block: int | None, device: torch.device) -> None:
        self.fed = fed
        self.count = max(map(len, fed), default=0)
        self.places = _pad(fed)
        sees = torch.ones(1, self.count, self.count, dtype=torch.bool)
        if block is not None:
            blocks = self.places // block
            sees = blocks[:, None, :] <= blocks[:, :, None]
        if any(len(row) < self.count for row in fed):  # padding is seen by nobody but itself
            lengths = torch.tensor([len(row) for row in fed])[:, None]
            valid = torch.arange(self.count) < lengths
            sees = sees & valid[:, None, :] | torch.eye(self.count, dtype=torch.bool)
        self.positions, self.sees = send(self.places, device), send(sees, device)


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """``rows`` as int64 [B, n] with zeros behind the shorter ones."""
    count = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[0] * (count - len(row))] for row in rows], dtype=torch.long)
