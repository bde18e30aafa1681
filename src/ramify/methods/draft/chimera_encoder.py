"""Chimera's head as it drafts: the same formulas as in ``chimera_head.py``, laid out for a few rows at a time.

In the target's dtype, with matrices packed where the machine has that (``small_layer.py``). A trigram depends on three
tokens alone, so for small vocabularies the products with their embeddings are looked up: W [E(x); E(y); E(z)] is a sum
of three rows of a table (the official code keeps whole vectors in a dictionary, by trigram).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.methods.draft.borrowed import product, quick_head
from ramify.methods.draft.chimera_head import ChimeraHead
from ramify.methods.draft.eagle_pace import relative
from ramify.methods.draft.small_layer import SmallLayer, Text, unit
from ramify.models.causal import CausalLM

TABLE = 1 << 26  # bytes that looked-up products may take
TEXT = 64  # tokens behind which a level is timed


class Encoder:
    """Scores the tokens that may follow draft rows; one for all sequences of a method."""

    def __init__(self, head: ChimeraHead, lm: CausalLM) -> None:
        self.lm, self.sizes, self.fit = lm, head.sizes, head.fit
        self.accuracy = head.accuracy.cpu()
        self.trigrams = _Trigrams(head, lm)
        self.head_layer = layer = head.layer
        self.layer = None
        if layer is not None:
            self.layer = SmallLayer(
                product(lm, layer.qkv, behind=layer.before),
                product(lm, layer.mix),
                product(lm, layer.gate_up, behind=layer.behind),
                product(lm, layer.down),
                layer.heads,
                layer.key_heads,
                layer.turns,
            )
        self.fuse = [product(lm, each) for each in head.heads if isinstance(each, nn.Linear)]
        self.shared = quick_head(lm) if head.sizes.head == "shared" else None

    def text(self) -> Text:
        """An empty text."""
        layer = self.head_layer
        return Text(1, 1, self.lm.device) if layer is None else Text(layer.key_heads, layer.size, self.lm.device)

    def remember(self, text: Text, states: Tensor) -> None:
        """Append the keys and values of verified states [n, D] to ``text``."""
        begin, text.length = text.length, text.length + len(states)
        if self.layer is not None:
            self.layer.attend(text, unit(states), begin, text.length, 0)

    def scores(
        self,
        step: int,
        text: Text,
        state: Tensor,
        newest: Tensor,
        position: int,
        hidden: Tensor | None = None,
        unread: Tensor | None = None,
    ) -> Tensor:
        """What head ``step`` scores [R, V] behind rows with the last three tokens ``newest`` [R, 3] at ``position``.

        ``state`` [1, D]: the last verified one. ``hidden`` [R, rows of the draft so far], added to attention: 0 on a
        row's own branch; None where a row sees all. The rows are cached behind ``text``; before a single row, the
        verified states ``unread`` [n, D] become part of it, in the same product.
        """
        o = self.trigrams(newest)
        if self.layer is not None:
            rows = o if unread is None else torch.cat([unread, o])
            begin = text.length + (0 if hidden is None else hidden.shape[1] - len(o))
            o = self.layer.finish(o, self.layer.attend(text, unit(rows), begin, position, len(o), hidden))
        text.length += 0 if unread is None else len(unread)
        z: Tensor = self.fuse[step](torch.cat([state.expand_as(o), o], dim=1) if self.sizes.residual else o)
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


@torch.inference_mode()
def level_beside_pass(encoder: Encoder) -> float:
    """What a level of four rows costs in units of the target's plain step, each run after the other."""
    lm, text, session = encoder.lm, encoder.text(), Session(encoder.lm)
    states = torch.ones(TEXT, encoder.fit.hidden_size, dtype=lm.dtype, device=lm.device)
    newest = torch.zeros(4, 3, dtype=torch.long, device=lm.device)
    encoder.remember(text, states)
    seen = torch.zeros(4, 4, device=lm.device)
    return relative(
        lambda: encoder.scores(0, text, states[-1:], newest, TEXT, seen).topk(4).indices.tolist(),
        lambda: session.score(TokenTree.chain([0])).logits.argmax(dim=-1).tolist(),
    )
