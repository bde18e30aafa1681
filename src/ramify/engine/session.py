"""The session: B rows of cached text, and one forward pass over new nodes of each. Nothing else touches a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.models.cache import RowCache, send
from ramify.models.causal import CausalLM
from ramify.models.forward import Nodes, nodes_at


@dataclass(frozen=True)
class Scores:
    """What one forward pass gave.

    ``logits``: [B, K, V] in the model's dtype, for the K nodes in ``nodes`` (all N by default). ``hidden``: by layer,
    [B, N, D]. ``ghosts``: logits [B, G, V] of the trees' ghost nodes, None where they have none. Rows with fewer nodes
    or ghosts than others are padded at the end; their last entries mean nothing. ``rows_run``: nodes that the pass
    evaluated in every row, ghosts and padding included.
    """

    logits: Tensor
    nodes: Sequence[int]
    hidden: dict[int, Tensor]
    ghosts: Tensor | None
    rows_run: int


class Session:
    """B rows, each with its own cached text of ``lengths[r]`` tokens.

    ``score`` evaluates new nodes of every row, ``keep`` commits some of them to the cache and forgets the others,
    ``select`` forks, drops or reorders rows. A plain step is a tree of one node.

    A model that cannot score trees (``lm.trees`` is False) gets a session of one row over transformers' own cache,
    where only chains can be scored and all their nodes must be kept.

    ``first``, ``last``: a session over the layers behind layer ``first`` up to layer ``last`` only. With ``first``
    above 0 it reads the states that leave layer ``first`` instead of tokens; its head, behind the final norm, reads
    what leaves ``last``. Sessions over consecutive ranges are together the whole model, each with a length of its own:
    what left early enters the deeper ones when it is needed there.

    Passes run in inference mode: to train on logits or hidden states, clone them first.
    """

    def __init__(
        self, lm: CausalLM, rows: int = 1, capacity: int = 256, *, first: int = 0, last: int | None = None
    ) -> None:
        if rows < 1:
            raise RamifyError(f"a session needs at least one row, got {rows}")
        if not 0 <= first < (lm.layers if last is None else last) <= lm.layers:
            raise RamifyError(f"layers {first} to {last} are no range of the {lm.layers} layers of {lm.name}")
        lm.refresh()
        if not lm.trees and rows > 1:
            lm.require_trees("several rows at once")
        if first > 0 or last is not None:
            lm.require_trees("some of its layers only")
        self.lm = lm
        self.first, self.last = first, last
        self._cache = RowCache(lm.layers, rows, capacity)
        self._plain: _PlainCache | None = None if lm.trees else _PlainCache(lm)
        self._pending: list[int] | None = None

    @property
    def lengths(self) -> list[int]:
        """Cached tokens of every row."""
        return list(self._cache.lengths)

    @property
    def rows(self) -> int:
        return len(self._cache.lengths)

    @torch.inference_mode()
    def score(
        self,
        trees: TokenTree | Sequence[TokenTree],
        *,
        logits_at: Sequence[int] | None = None,
        hidden_layers: Sequence[int] = (),
        states: Tensor | None = None,
    ) -> Scores:
        """One forward pass over the nodes of ``trees`` (one for each row, or one for a single row).

        With fewer trees than rows, the first rows take part and the others wait, at no cost.
        Each node sees its row's cached text and its own ancestors. ``logits_at``: the nodes whose logits are wanted
        (default all). ``hidden_layers``: layers whose hidden states are wanted; 0 = embeddings, −1 = before the head.
        ``states``: [B, N, D], what enters a session that does not begin with the first layer; tokens mean nothing then.
        Raises ``RamifyError`` for tokens outside the vocabulary and for text beyond the model's context.
        """
        rows = [trees] if isinstance(trees, TokenTree) else list(trees)
        if not 0 < len(rows) <= self.rows:
            raise RamifyError(f"the session has {self.rows} rows, but {len(rows)} trees were given")
        if any(len(tree) == 0 for tree in rows):
            raise RamifyError("an empty tree cannot be scored; plain decoding scores the pending token alone")
        for tree, length in zip(rows, self._cache.lengths, strict=False):
            self._check(tree, length)
        if (states is None) != (self.first == 0):
            raise RamifyError("states enter a session that begins behind the first layer, and no other")
        count = max(map(len, rows))
        nodes_named = range(count) if logits_at is None else logits_at
        if any(tree.ghosts is not None for tree in rows):
            self._pending = None
            scores = self._score_ghosts(rows, count, nodes_named, hidden_layers)
            self._pending = [len(tree) for tree in rows]
            return scores
        padded = count if states is not None else self._padded(len(rows), count)
        wanted = range(count) if logits_at is None and padded > count else logits_at
        nodes = self._gather(rows, padded, wanted, hidden_layers)
        if states is not None:
            nodes = replace(nodes, embeddings=states)
        if self._plain is not None and self._pending is not None:
            self.lm.require_trees("a rollback")
        if self._plain is not None:
            logits, hidden = self._plain(nodes, rows[0].shape)
        else:
            self._cache.expect(nodes.tokens.shape[1], nodes.tokens.device, len(rows))
            logits, hidden = self.lm.forward(nodes, self._cache)
        self._pending = [len(tree) for tree in rows]
        hidden = {layer: state[:, :count] for layer, state in hidden.items()}
        return Scores(logits, nodes_named, hidden, None, padded)

    @torch.inference_mode()
    def keep(self, nodes: Sequence[Sequence[int]]) -> None:
        """Commit ``nodes[r]`` of what was scored last, a path from the top in each row, and forget the rest."""
        if self._pending is None:
            raise RamifyError("there is nothing to keep: score a tree first")
        if len(nodes) != len(self._pending):
            raise RamifyError(f"{len(self._pending)} rows were scored, but nodes of {len(nodes)} are to be kept")
        for row, (kept, available) in enumerate(zip(nodes, self._pending, strict=True)):
            if any(not 0 <= node < available for node in kept):
                raise RamifyError(f"row {row} has {available} scored nodes, but {list(kept)} are to be kept")
        if self._plain is not None and len(nodes[0]) != self._pending[0]:
            self.lm.require_trees("a rollback")
        self._pending = None
        self._cache.keep(nodes)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget the newest tokens of every row, down to ``lengths[r]`` cached ones."""
        if len(lengths) != self.rows or any(not 0 <= n <= m for n, m in zip(lengths, self.lengths, strict=True)):
            raise RamifyError(f"rows of {self.lengths} tokens cannot be cut to {list(lengths)}")
        if list(lengths) != self.lengths or self._pending is not None:
            self.lm.require_trees("a rollback")
        self._pending = None
        self._cache.lengths = list(lengths)

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Make row i of the session what row ``rows[i]`` was: fork by naming a row twice, drop by leaving it out."""
        if list(rows) == list(range(self.rows)):
            return
        if not rows or any(not 0 <= row < self.rows for row in rows):
            raise RamifyError(f"the session has rows 0 to {self.rows - 1}, cannot select {list(rows)}")
        self.lm.require_trees("several rows at once")
        self._pending = None
        self._cache.select(rows)

    def prefill(
        self,
        texts: Sequence[Sequence[int]],
        *,
        chunk: int = 512,
        observe: Callable[[int, list[int], Tensor | None, dict[int, Tensor]], None] | None = None,
        logits: bool = True,
        hidden_layers: Sequence[int] = (),
    ) -> int:
        """Append the tokens ``texts[r]`` to every row, ``chunk`` at a time; returns the number of forward passes.

        ``observe(row, tokens, logits, hidden)`` receives every token with the logits [n, V] that follow it, if
        ``logits``, and the states [n, D] of ``hidden_layers``; without it no logits beyond one row are computed.
        """
        calls = 0
        for start in range(0, max(map(len, texts)), chunk):
            parts = [list(text[start : start + chunk]) for text in texts]
            # A finished row repeats a token that is then not kept: every row needs a node.
            trees = [TokenTree.chain(part or [0]) for part in parts]
            scores = self.score(trees, logits_at=None if observe and logits else [0], hidden_layers=hidden_layers)
            if observe:
                for row, part in enumerate(parts):
                    if part:
                        hidden = {layer: state[row, : len(part)] for layer, state in scores.hidden.items()}
                        observe(row, part, scores.logits[row, : len(part)] if logits else None, hidden)
            self.keep([range(len(part)) for part in parts])
            calls += 1
        return calls

    def _check(self, tree: TokenTree, length: int) -> None:
        depth = max(tree.shape.depth) + 1
        if length + depth > self.lm.context:
            raise RamifyError(
                f"{length + depth} tokens do not fit the context of {self.lm.context} tokens of {self.lm.name}; "
                "shorten the prompt or max_new_tokens"
            )
        low, high = (int(bound) for bound in tree.tokens.aminmax())
        if low < 0 or high >= self.lm.vocab_size:
            outside = low if low < 0 else high
            raise RamifyError(
                f"token {outside} is outside the vocabulary of {self.lm.name} ({self.lm.vocab_size} tokens); "
                "prompt and drafts must come from the model's own tokenizer"
            )

    def _padded(self, rows: int, count: int) -> int:
        """How many nodes to run in each of ``rows`` rows for ``count`` wanted, by the machine's cost curve."""
        wanted = rows * count
        return max(count, -(-self.lm.padding.get(wanted, wanted) // rows))

    def _gather(
        self, trees: list[TokenTree], count: int, logits_at: Sequence[int] | None, hidden_layers: Sequence[int]
    ) -> Nodes:
        """Put the rows' trees side by side, padded to ``count`` nodes each with nodes that see only themselves."""
        device = self.lm.device
        cached = self._cache.lengths[: len(trees)]
        lengths = torch.tensor(cached)[:, None]
        if count == len(trees[0]) and all(tree.shape is trees[0].shape for tree in trees):
            tokens = torch.stack([tree.tokens for tree in trees])
            positions = lengths + trees[0].shape.depth_tensor
            ancestors = trees[0].shape.ancestors[None]
        else:
            tokens = torch.zeros(len(trees), count, dtype=torch.long, device=trees[0].tokens.device)
            positions = lengths.repeat(1, count)
            ancestors = torch.eye(count, dtype=torch.bool).repeat(len(trees), 1, 1)
            for row, tree in enumerate(trees):
                size = len(tree)
                tokens[row, :size] = tree.tokens
                positions[row, :size] += tree.shape.depth_tensor
                ancestors[row, :size, :size] = tree.shape.ancestors
        tokens = send(tokens, device)
        return Nodes(
            tokens,
            send(positions, device),
            cached,
            send(ancestors, device),
            self._embeddings(trees, tokens) if self.first == 0 else None,
            logits_at,
            hidden_layers,
            self.first,
            self.last,
        )

    def _score_ghosts(
        self, trees: list[TokenTree], count: int, logits_at: Sequence[int], hidden_layers: Sequence[int]
    ) -> Scores:
        """Score the trees' own nodes up to the layer where their ghosts join, and from there all of them together.

        Ghosts stand behind the tree's nodes, so the entries of the nodes lie in the same slots in every layer.
        """
        self.lm.require_trees("ghost nodes")
        if self.first > 0 or self.last is not None:
            raise RamifyError("ghost nodes need a session over all layers")
        layers = {tree.ghosts.layer for tree in trees if tree.ghosts is not None}
        if len(layers) > 1:
            raise RamifyError(f"the ghosts of one pass must join at the same layer, not at {sorted(layers)}")
        [layer] = layers
        early = self._gather(trees, count, (), [layer, *(each for each in hidden_layers if 0 <= each < layer)])
        hidden: dict[int, Tensor] = {}
        if layer > 0:
            self._cache.expect(count, early.tokens.device, len(trees))
            _, hidden = self.lm.forward(replace(early, last=layer), self._cache)
            entering = hidden[layer]
        else:
            entering = early.embeddings if early.embeddings is not None else self.lm.forward.embed(early.tokens)
        nodes = self._with_ghosts(trees, early, entering)
        total = nodes.tokens.shape[1]
        later = [each for each in hidden_layers if each not in hidden]
        nodes = replace(nodes, logits_at=[*logits_at, *range(count, total)], hidden_layers=later, first=layer)
        self._cache.expect(total, nodes.tokens.device, len(trees))
        logits, rest = self.lm.forward(nodes, self._cache)
        hidden |= {each: state[:, :count] for each, state in rest.items()}
        hidden = {each: hidden[each] for each in hidden_layers}
        return Scores(logits[:, : len(logits_at)], logits_at, hidden, logits[:, len(logits_at) :], total)

    def _with_ghosts(self, trees: list[TokenTree], early: Nodes, entering: Tensor) -> Nodes:
        """``early`` with the trees' ghosts behind its nodes, and the states [B, N + G, D] that all of them have."""
        rows, count = early.tokens.shape
        most = max(len(tree.ghosts) for tree in trees if tree.ghosts is not None)
        total = count + most
        ancestors = torch.eye(total, dtype=torch.bool).repeat(rows, 1, 1)
        ancestors[:, :count, :count] = early.ancestors.cpu()
        positions = torch.zeros(rows, most, dtype=torch.long)
        states = torch.cat([entering, entering.new_zeros(rows, most, entering.shape[-1])], dim=1)
        for row, (tree, length) in enumerate(zip(trees, self._cache.lengths, strict=False)):
            positions[row] = length
            if tree.ghosts is None:
                continue
            where, size, ghosts = tree.ghosts.on(tree.shape), len(tree), len(tree.ghosts)
            positions[row, :ghosts] += where.depth
            ancestors[row, count : count + ghosts, :size] = where.ancestors[:, :size]
            ancestors[row, count : count + ghosts, count : count + ghosts] = where.ancestors[:, size:]
            sources = entering[row, send(where.sources, entering.device)]
            given = tree.ghosts.states(sources, send(where.kinds, entering.device))
            states[row, count : count + ghosts] = send(given, entering.device).to(entering.dtype)
        device = early.tokens.device
        return replace(
            early,
            tokens=torch.cat([early.tokens, early.tokens.new_zeros(rows, most)], dim=1),
            positions=torch.cat([early.positions.expand(rows, -1), send(positions, device)], dim=1),
            ancestors=send(ancestors, device),
            embeddings=states,
        )

    def _embeddings(self, trees: Iterable[TokenTree], tokens: Tensor) -> Tensor | None:
        if all(tree.embeddings is None for tree in trees):
            return None
        embedded = self.lm.forward.embed(tokens).clone()
        for row, tree in enumerate(trees):
            if tree.embeddings is not None and tree.soft is not None:
                soft = tree.soft.nonzero()[:, 0]
                given = tree.embeddings[send(soft, tree.embeddings.device)].to(embedded.dtype)
                embedded[row, send(soft, embedded.device)] = send(given, embedded.device)
        return embedded


class _PlainCache:
    """Chains on a model whose state cannot be rolled back: transformers' own cache, one row, everything kept."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        self.state: Any = None

    def __call__(self, nodes: Nodes, shape: TreeShape) -> tuple[Tensor, dict[int, Tensor]]:
        if not shape.is_chain:
            self.lm.require_trees("a token tree")
        if nodes.embeddings is not None:
            self.lm.require_trees("soft inputs")
        # Fed one at a time once there is a state: recurrent kernels take longer inputs only from the start.
        parts = [nodes.tokens] if self.state is None else list(torch.split(nodes.tokens, 1, dim=1))
        outputs = [self._step(part, bool(nodes.hidden_layers)) for part in parts]
        logits = torch.cat([output.logits for output in outputs], dim=1)
        if nodes.logits_at is not None:
            logits = nodes_at(logits, nodes.logits_at)
        hidden = {
            layer: torch.cat([output.hidden_states[layer] for output in outputs], dim=1)
            for layer in nodes.hidden_layers
        }
        return logits, hidden

    def _step(self, tokens: Tensor, hidden: bool) -> Any:
        state = {} if self.state is None else {self.state[0]: self.state[1]}
        output = self.lm.model(input_ids=tokens, use_cache=True, output_hidden_states=hidden, **state)
        name = next(n for n in ("past_key_values", "cache_params", "state") if getattr(output, n, None) is not None)
        self.state = (name, getattr(output, name))
        return output
