"""A model whose next-token law is a function of the text so far: exact searches, without weights or training.

Its key–value cache holds the tokens themselves, so paths fork, wait and roll back as they do over any model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes

Law = Callable[[tuple[int, ...]], Tensor]  # from the tokens so far, the prompt's included, to probabilities [V]


def table_lm(vocabulary: int, law: Law, name: str = "table", context: int = 4096) -> CausalLM:
    """A ``CausalLM`` over token ids 0 … ``vocabulary`` − 1 that says exactly what ``law`` says."""
    return CausalLM(_Shape(vocabulary, context), None, name, _Look(vocabulary, law), trees=True)


class _Shape(nn.Module):
    """What the engine asks a transformers model about itself."""

    dtype = torch.float32

    def __init__(self, vocabulary: int, context: int) -> None:
        from transformers import LlamaConfig

        super().__init__()
        self.config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, max_position_embeddings=context)
        self.embeddings = nn.Embedding(1, 1)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings


class _Look:
    """The forward pass: looks every node's text up."""

    name = "table"
    weights = "plain"
    dtype = torch.float32

    def __init__(self, vocabulary: int, law: Law) -> None:
        self.vocabulary, self.law = vocabulary, law

    def current(self) -> bool:
        return True

    def embed(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, self.vocabulary).float()

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        entries = nodes.tokens[:, None, :, None].double()
        cached, _ = cache.row_layers[0].update(entries, entries)
        ancestors = nodes.ancestors.expand(len(nodes.tokens), -1, -1)
        wanted = range(nodes.tokens.shape[1]) if nodes.logits_at is None else nodes.logits_at
        rows = []
        for row, length in enumerate(nodes.lengths):
            before: list[Any] = cached[row, 0, :length, 0].long().tolist()
            for node in wanted:
                own = nodes.tokens[row, ancestors[row, node]].tolist()
                rows.append(self.law((*before, *own)).log())
        return torch.stack(rows).view(len(nodes.lengths), len(wanted), self.vocabulary).float(), {}
