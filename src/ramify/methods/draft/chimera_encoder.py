"""Chimera's head as it drafts: the same formulas as in ``chimera_head.py``, laid out for a few rows at a time.

In the target's dtype, with matrices packed where the machine has that, and the norms' weights multiplied into the
matrices behind them. A trigram depends on three tokens alone, so for small vocabularies the products with their
embeddings are looked up: W [E(x); E(y); E(z)] is a sum of three rows of a table (the official code keeps whole vectors
in a dictionary, by trigram).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.methods.draft.borrowed import lm_head, product
from ramify.methods.draft.chimera_head import ChimeraHead
from ramify.methods.draft.chimera_layer import ContextLayer
from ramify.methods.draft.eagle_pace import relative
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM
from ramify.models.fused import SLOTS, rotate

TABLE = 1 << 26  # bytes that looked-up products may take
TEXT = 64  # tokens behind which a level is timed


class Encoder:
    """Scores the tokens that may follow draft rows; one for all sequences of a method."""

    def __init__(self, head: ChimeraHead, lm: CausalLM) -> None:
        self.lm, self.sizes, self.fit = lm, head.sizes, head.fit
        self.accuracy = head.accuracy.cpu()
        self.trigrams = _Trigrams(head, lm)
        self.layer = None if head.layer is None else _Layer(head.layer, lm)
        self.fuse = [product(lm, each) for each in head.heads if isinstance(each, nn.Linear)]
        self.shared = lm_head(lm) if head.sizes.head == "shared" else None

    def remember(self, cache: RowCache, states: Tensor) -> None:
        """Append the keys and values of verified states [n, D] to ``cache``."""
        begin, count = cache.lengths[0], len(states)
        if self.layer is not None:
            _, keys, values = self.layer.project(states, begin, count, 0)
            cache.expect(count, states.device)
            cache.row_layers[0].update(keys, values)
        cache.lengths[0] = begin + count

    def scores(
        self,
        step: int,
        cache: RowCache,
        state: Tensor,
        newest: Tensor,
        position: int,
        own: Tensor,
        text: Tensor | None = None,
    ) -> Tensor:
        """What head ``step`` scores [R, V] behind rows with the last three tokens ``newest`` [R, 3] at ``position``.

        ``state`` [1, D]: the last verified one. ``own`` [R, rows of the draft so far], added to attention: 0 on a row's
        own branch. The rows enter ``cache``, behind what is there; before a single row, so do the verified states
        ``text`` [n, D], in the same product.
        """
        o = self.trigrams(newest)
        if self.layer is not None:
            rows = o if text is None else torch.cat([text, o])
            read = len(rows) - len(o)
            queries, keys, values = self.layer.project(rows, position - read, read + 1, len(o))
            end = cache.expect(len(rows), o.device)
            cache.seen = min(-(-end // SLOTS) * SLOTS, cache.capacity)
            keys, values = cache.row_layers[0].update(keys, values)
            mask = own.new_full((len(o), cache.seen), torch.finfo(own.dtype).min)
            mask[:, : end - own.shape[1]] = 0.0
            mask[:, end - own.shape[1] : end] = own
            o = self.layer.finish(o, queries, keys, values, mask)
        cache.lengths[0] += len(o) + (0 if text is None else len(text))
        state = state.expand_as(o)
        z: Tensor = self.fuse[step](torch.cat([state, o], dim=1) if self.sizes.residual else o)
        return z if self.shared is None else self.shared(z)


class _Trigrams:
    """t [R, D] of three tokens [R, 3] each."""

    def __init__(self, head: ChimeraHead, lm: CausalLM) -> None:
        self.embed = lm.forward.embed
        self.reduce = product(lm, head.reduce)
        self.enrich = None if head.enrich is None else product(lm, head.enrich)
        self.table: Tensor | None = None
        size, vocabulary = head.fit.hidden_size, head.fit.vocab_size
        if head.enrich is not None and 12 * vocabulary * size * lm.dtype.itemsize <= TABLE:
            embedded = lm.forward.embed(torch.arange(vocabulary, device=lm.device)).detach().float()
            both = torch.cat([head.enrich.weight, head.reduce.weight])
            parts = [embedded @ both[:, place * size : (place + 1) * size].T for place in range(3)]
            parts[2][:, : 3 * size] += head.enrich.bias
            self.table = torch.cat(parts).to(lm.dtype)
            self.first = vocabulary * torch.arange(3, device=lm.device)
            self.inner = 3 * size

    def __call__(self, newest: Tensor) -> Tensor:
        if self.table is not None:
            both = functional.embedding_bag(newest + self.first, self.table, mode="sum")
            return both[:, self.inner :] + self.reduce(functional.silu(both[:, : self.inner]))
        embedded = self.embed(newest)
        if self.enrich is None:
            return self.reduce(embedded[:, -1])
        g = embedded.flatten(1)
        return self.reduce(g + functional.silu(self.enrich(g)))


class _Layer:
    """The full-context encoder over rows of one sequence; its norms divide by the plain length of a row."""

    def __init__(self, layer: ContextLayer, lm: CausalLM) -> None:
        self.lm, self.layer = lm, layer
        self.qkv = product(lm, _behind(layer.before, layer.qkv))
        self.gate_up = product(lm, _behind(layer.behind, layer.gate_up))
        self.mix, self.down = product(lm, layer.mix), product(lm, layer.down)
        self.tables: tuple[Tensor, Tensor] | None = None

    def project(self, x: Tensor, first: int, count: int, asking: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [1, K, G · ``asking``, size] of the last rows, keys and values [1, K, N, size] of all rows x [N, D].

        The rows are at the ``count`` positions from ``first`` on, or all at ``first`` if that is 1. The G queries that
        share a key head stand below each other.
        """
        heads, groups = self.layer.heads, self.layer.key_heads
        qkv = self.qkv(functional.normalize(x, dim=1)).view(len(x), -1, self.layer.size)
        turned, values = torch.split(qkv, [heads + groups, groups], dim=1)
        queries, keys = torch.split(rotate(turned, *self._turns(first, count)), [heads, groups], dim=1)
        queries = queries[len(x) - asking :].transpose(0, 1).reshape(1, groups, -1, self.layer.size)
        return queries, keys.transpose(0, 1)[None], values.transpose(0, 1)[None]

    def finish(self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What leaves the layer, of rows x [N, D] that attend to a cache of S slots; ``mask`` [N, S] is added."""
        mask = mask.repeat(self.layer.heads // self.layer.key_heads, 1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        mixed = mixed.view(self.layer.heads, len(x), -1).transpose(0, 1).reshape(len(x), -1)
        x = x + self.mix(mixed)
        gate, up = self.gate_up(functional.normalize(x, dim=1)).chunk(2, dim=1)
        return x + self.down(functional.silu(gate) * up)

    def _turns(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Rotation tables [count, 1, size] for positions from ``first`` on."""
        end = first + count
        if self.tables is None or end > len(self.tables[0]):
            places = torch.arange(max(256, 1 << (end - 1).bit_length()), device=self.lm.device)
            cos, sin = self.layer.turns(places)
            self.tables = cos.to(self.lm.dtype), sin.to(self.lm.dtype)
        cos, sin = self.tables
        return cos[first:end], sin[first:end]


def _behind(norm: nn.RMSNorm, layer: nn.Linear) -> nn.Linear:
    """``layer`` with the norm's weight in its own, for rows of length 1 instead of a mean square of 1."""
    folded = nn.Linear(layer.in_features, layer.out_features, bias=False)
    folded.weight = nn.Parameter(layer.weight * norm.weight * layer.in_features**0.5, requires_grad=False)
    return folded


@torch.inference_mode()
def level_beside_pass(encoder: Encoder) -> float:
    """What a level of four rows costs in units of the target's plain step, each run after the other."""
    lm, cache, session = encoder.lm, RowCache(1, rows=1), Session(encoder.lm)
    states = torch.ones(TEXT, encoder.fit.hidden_size, dtype=lm.dtype, device=lm.device)
    newest = torch.zeros(4, 3, dtype=torch.long, device=lm.device)
    encoder.remember(cache, states)

    def level() -> None:
        encoder.scores(0, cache, states[-1:], newest, TEXT, states.new_zeros(4, 4)).topk(4).indices.tolist()
        cache.lengths[0] = TEXT

    return relative(level, lambda: session.score(TokenTree.chain([0])).logits.argmax(dim=-1).tolist())
