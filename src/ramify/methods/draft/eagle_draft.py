"""An EAGLE head at work: its matrices laid out for few rows, a cache of its own, one pass for each level of a tree."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.tree import TokenTree
from ramify.methods.draft.borrowed import lay_out
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.eagle_layer import EagleLayer
from ramify.methods.draft.eagle_pace import Pace
from ramify.methods.draft.eagle_tree import Growth
from ramify.models.causal import CausalLM
from ramify.models.projection import Projection

KEPT = torch.float32  # keys and values: products of few rows cost a CPU least so


class Text:
    """Keys and values [1, K, slots, size] of one sequence: its verified text, and behind it the draft under way."""

    def __init__(self, key_heads: int, size: int, device: torch.device) -> None:
        self.keys = torch.zeros(1, key_heads, 256, size, dtype=KEPT, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def write(self, begin: int, keys: Tensor, values: Tensor) -> int:
        """Put rows into the slots from ``begin`` on; returns where they end."""
        end = begin + keys.shape[2]
        if end > self.keys.shape[2]:
            space = self.keys.new_zeros(*self.keys.shape[:2], end, self.keys.shape[3])
            self.keys, self.values = (torch.cat([kept, space], dim=2) for kept in (self.keys, self.values))
        self.keys[:, :, begin:end] = keys
        self.values[:, :, begin:end] = values
        return end


class Continuer:
    """The head in the target's dtype, on its device, in the weight format that few rows are fastest in."""

    def __init__(self, head: EagleHead, lm: CausalLM) -> None:
        self.lm = lm
        self.head = copy.deepcopy(head).to(lm.device, lm.dtype).requires_grad_(False)
        layer: Any = self.head.layers[0]
        self.layer: EagleLayer = layer
        outer = ["fc"] if self.head.lm_head is None else ["fc", "lm_head"]
        lay_out(lm, [*self.layer.projections, *(Projection(self.head, name) for name in outer)])

    def text(self) -> Text:
        """An empty text."""
        return Text(self.layer.key_heads, self.layer.head_size, self.lm.device)

    def read(self, text: Text, tokens: Tensor, states: Tensor) -> Tensor:
        """Take verified tokens [n] into the text, with the target's states before them; out [1, D] of the last one."""
        x, residual = self.head.enter(self.head.embed(self.lm, tokens), self.head.fuse(states))
        places = torch.arange(text.length, text.length + len(tokens), device=tokens.device)
        queries, keys, values = self.layer.project(x[None], places, text.length + len(tokens), KEPT)
        text.length = text.write(text.length, keys, values)
        out: Tensor = self.layer.finish(residual[None, -1:], _attend(queries[..., -1:, :], text, text.length))[0]
        return out

    def level(self, text: Text, tokens: Tensor, f: Tensor, hidden: Tensor, depth: int) -> Tensor:
        """out [w, D] of w draft tokens behind the outputs f [w, D], ``depth`` levels below the verified text.

        ``hidden`` [w, m]: 0 where a row sees one of the draft's last m rows, these included, minus infinity elsewhere.
        """
        x, residual = self.head.enter(self.head.embed(self.lm, tokens), f)
        places = torch.full((len(tokens),), text.length + depth - 1, device=tokens.device)
        queries, keys, values = self.layer.project(x[None], places, text.length + depth, KEPT)
        end = text.write(text.length + hidden.shape[1] - len(tokens), keys, values)
        out: Tensor = self.layer.finish(residual[None], _attend(queries, text, end, hidden))[0]
        return out

    def guess(self, out: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best next tokens [w, k] after outputs [w, D], and their log-confidences."""
        logits = self.head.logits(self.lm, out).float()
        top = logits.topk(min(k, logits.shape[1]), dim=-1)
        confidences = top.values - logits.logsumexp(dim=-1, keepdim=True)
        return self.head.ids(top.indices).cpu().numpy(), confidences.cpu().numpy()


def _attend(queries: Tensor, text: Text, end: int, hidden: Tensor | None = None) -> Tensor:
    """Attention [1, K, G, N, size] of queries over the first ``end`` slots; ``hidden`` as in ``Continuer.level``."""
    scores = torch.matmul(queries.flatten(2, 3), text.keys[:, :, :end].transpose(2, 3))
    if hidden is not None:
        scores.view(*queries.shape[:4], end)[..., -hidden.shape[1] :] += hidden
    mixed = torch.matmul(torch.softmax(scores, dim=-1), text.values[:, :, :end])
    return mixed.view(queries.shape)


class TreeDrafter(Drafter):
    """Grows a tree of at most ``depth`` levels and keeps its ``nodes`` best, or what ``pace`` says.

    Up to ``width`` candidates of a level get as many children each.
    """

    def __init__(self, continuer: Continuer, depth: int, width: int, nodes: int, pace: Pace | None = None) -> None:
        self.continuer, self.depth, self.width, self.nodes, self.pace = continuer, depth, width, nodes, pace
        self.hidden_layers = tuple(dict.fromkeys(continuer.head.reads))
        self.text = continuer.text()
        self.prompt: list[int] = []
        self.waiting: list[tuple[Tensor, Tensor]] = []  # verified tokens with the states before them, not yet read
        self.values = np.zeros(0)

    def start(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt[1:])

    @torch.inference_mode()
    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        self._read()
        following, self.prompt = self.prompt[: len(tokens)], self.prompt[len(tokens) :]
        self._wait(following, hidden, range(len(tokens)))

    @torch.inference_mode()
    def draft(self, context: Context) -> TokenTree:
        self.values = np.zeros(0)
        if self.pace is not None and not self.pace.starts():
            return TokenTree.empty()
        out = self._read()
        if out is None or self.nodes == 0:
            return TokenTree.empty()
        tree, self.values = self._grow(out, min(self.depth, context.levels))
        return tree

    def observe(self, outcome: Outcome) -> None:
        # In a union of drafters some nodes may have been left out, and then nobody knows what the rest promised.
        if self.pace is not None and outcome.drafted == len(self.values) > 0:
            self.pace.observe(self.values, outcome.accepted)
        self._wait(outcome.tokens, outcome.hidden, outcome.path)

    def _wait(self, tokens: Sequence[int], hidden: Mapping[int, Tensor], rows: Sequence[int]) -> None:
        states = torch.cat([hidden[layer][list(rows)] for layer in self.continuer.head.reads], dim=-1)
        self.waiting.append((torch.tensor(tokens, device=states.device), states))

    def _read(self) -> Tensor | None:
        """Read what waits; out [1, D] behind the pending token."""
        if not self.waiting:
            return None
        tokens, states = (torch.cat(part) for part in zip(*self.waiting, strict=True))
        self.waiting.clear()
        return self.continuer.read(self.text, tokens, states)

    def _grow(self, out: Tensor, depth: int) -> tuple[TokenTree, np.ndarray]:
        growth, nodes = Growth(), self.nodes
        tokens, confidences = self.continuer.guess(out, self.width)
        growth.add(tokens, confidences)
        hidden: Tensor | None = None
        for level in range(1, depth + 1):
            least, more = -np.inf, True
            if self.pace is not None:
                nodes, least, more = self.pace.choose(growth)
            places = growth.frontier(self.width, least)
            if level == depth or not more or not len(places):
                break
            parents = torch.from_numpy(places // tokens.shape[1]).to(out.device)
            hidden = _descend(hidden, parents)
            chosen = torch.from_numpy(growth.tokens[-1][places]).to(out.device)
            out = self.continuer.level(self.text, chosen, out[parents], hidden, level)
            tokens, confidences = self.continuer.guess(out, self.width)
            growth.add(tokens, confidences, places)
        if nodes == 0 and self.pace is not None:
            self.pace.plain()
        return growth.kept(nodes)


def _descend(hidden: Tensor | None, parents: Tensor) -> Tensor:
    """What the rows of the next level see: what their parents saw, and themselves."""
    own = torch.full((len(parents), len(parents)), -torch.inf, device=parents.device).fill_diagonal_(0.0)
    return own if hidden is None else torch.cat([hidden[parents], own], dim=1)
