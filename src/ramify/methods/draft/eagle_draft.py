"""An EAGLE head at work: its layer laid out for few rows, a cache of its own, one pass for each level of a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.tree import TokenTree
from ramify.methods.draft.borrowed import product, quick_head
from ramify.methods.draft.eagle_head import EagleHead
from ramify.methods.draft.eagle_pace import Pace
from ramify.methods.draft.eagle_tree import Growth
from ramify.methods.draft.small_layer import SmallLayer, Text
from ramify.models.causal import CausalLM

CHUNK = 512  # verified tokens that are read at a time


def as_published(logits: Tensor) -> Tensor:
    """Log-confidences of logits [w, V], at temperature 1 whatever the request's is."""
    return logits.log_softmax(dim=-1, dtype=torch.float32)


class Continuer:
    """The head laid out for few rows, in the target's dtype and on its device."""

    def __init__(self, head: EagleHead, lm: CausalLM) -> None:
        self.lm, self.head = lm, head
        self.ids = None if head.d2t is None else head.ids(torch.arange(len(head.d2t), device=head.d2t.device))
        layer: Any = head.layers[0]
        self.join, own, mlp = layer.join, layer.self_attn, layer.mlp
        self.head_size = layer.head_size
        self.fc = product(lm, head.fc)
        self.lm_head = quick_head(lm) if head.lm_head is None else product(lm, head.lm_head)
        self.layer = SmallLayer(
            product(lm, own.q_proj, own.k_proj, own.v_proj),
            product(lm, own.o_proj),
            product(lm, mlp.gate_proj, mlp.up_proj, behind=layer.post_attention_layernorm),
            product(lm, mlp.down_proj),
            layer.heads,
            layer.key_heads,
            layer.turns,
        )

    def text(self) -> Text:
        """An empty text."""
        return Text(self.layer.key_heads, self.head_size, self.lm.device)

    def read(self, text: Text, tokens: Tensor, states: Tensor) -> Tensor:
        """Take verified tokens [n] into the text, with the target's states before them; out [1, D] of the last one."""
        x, residual = self._enter(tokens, states if self.head.norm is None else self.fc(states))
        begin, text.length = text.length, text.length + len(tokens)
        return self.layer.finish(residual[-1:], self.layer.attend(text, x, begin, text.length - 1, 1))

    def level(self, text: Text, tokens: Tensor, f: Tensor, hidden: Tensor, depth: int) -> Tensor:
        """out [w, D] of w draft tokens behind the outputs f [w, D], ``depth`` levels below the verified text.

        ``hidden`` [w, m]: 0 where a row sees one of the draft's last m rows, these included, minus infinity elsewhere.
        """
        x, residual = self._enter(tokens, f)
        begin = text.length + hidden.shape[1] - len(tokens)
        return self.layer.finish(
            residual, self.layer.attend(text, x, begin, text.length + depth - 1, len(tokens), hidden)
        )

    def guess(
        self, out: Tensor, k: int, confidence: Callable[[Tensor], Tensor] = as_published
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best next tokens [w, k] after outputs [w, D], and their log-confidences."""
        read = out if self.head.norm is None else self.head.norm(out).to(out.dtype)
        found = confidence(self.lm_head(read))
        top = found.topk(min(k, found.shape[1]), dim=-1)
        return self.head.ids(top.indices).cpu().numpy(), top.values.cpu().numpy()

    def _enter(self, tokens: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """x and r, see ``eagle_layer``."""
        e = self.head.embed(self.lm, tokens).to(f.dtype)
        if self.head.norm is None:
            x = self.fc(torch.cat([e, f], dim=1))
            return x, x
        joined, residual = self.join(e, f)
        return joined.to(f.dtype), residual.to(f.dtype)


class TreeDrafter(Drafter):
    """Grows a tree of at most ``depth`` levels and keeps its ``nodes`` best, or what ``pace`` says.

    Up to ``width`` candidates of a level get as many children each. ``coupled``: confidences in view of the noise.
    """

    def __init__(
        self,
        continuer: Continuer,
        depth: int,
        width: int,
        nodes: int,
        pace: Pace | None = None,
        coupled: bool = True,
    ) -> None:
        self.coupled = coupled
        self.continuer, self.depth, self.width, self.nodes, self.pace = continuer, depth, width, nodes, pace
        self.hidden_layers = tuple(dict.fromkeys(continuer.head.reads))
        self.text = continuer.text()
        self.read: list[Tensor] = []  # the target's states that the text holds, kept in case some of it is taken back
        self.waiting: list[Tensor] = []  # those of verified tokens that it does not hold yet
        self.values = np.zeros(0)

    def observe_prompt(self, tokens: list[int], logits: Tensor | None, hidden: Mapping[int, Tensor]) -> None:
        self._wait(hidden, range(len(tokens)))

    def rewind(self, length: int) -> None:
        states = torch.cat([*self.read, *self.waiting])[:length] if self.read or self.waiting else None
        # The last state that stays was read with a token that may have gone: the one behind it.
        self.text.length = max(0, min(self.text.length, length - 1))
        self.read, self.waiting = [], []
        if states is not None and len(states) > 0:
            self.read, self.waiting = [states[: self.text.length]], [states[self.text.length :]]

    @torch.inference_mode()
    def draft(self, context: Context) -> TokenTree:
        self.values = np.zeros(0)
        if self.pace is not None and not self.pace.starts():
            return TokenTree.empty()
        out = self._read(context.tokens)
        if out is None or self.nodes == 0:
            return TokenTree.empty()
        tree, self.values = self._grow(out, min(self.depth, context.levels), context)
        return tree

    def observe(self, outcome: Outcome) -> None:
        # In a union of drafters some nodes may have been left out, and then nobody knows what the rest promised.
        if self.pace is not None and outcome.drafted == len(self.values) > 0:
            self.pace.observe(self.values, outcome.accepted)
        self._wait(outcome.hidden, outcome.path)

    @torch.inference_mode()
    def _wait(self, hidden: Mapping[int, Tensor], rows: Sequence[int]) -> None:
        states = [hidden[layer][list(rows)] for layer in self.continuer.head.reads]
        self.waiting.append(torch.cat(states, dim=-1) if len(states) > 1 else states[0])

    def _read(self, tokens: Sequence[int]) -> Tensor | None:
        """Read what waits of the text ``tokens``; out [1, D] behind the pending one."""
        if not self.waiting:
            return None
        states = torch.cat(self.waiting) if len(self.waiting) > 1 else self.waiting[0]
        self.read.append(states)
        self.waiting.clear()
        following = torch.tensor(tokens[self.text.length + 1 :], device=states.device)
        pieces = zip(torch.split(following, CHUNK), torch.split(states, CHUNK), strict=True)
        return [self.continuer.read(self.text, *piece) for piece in pieces][-1]

    def _guess(self, out: Tensor, context: Context, level: int) -> tuple[np.ndarray, np.ndarray]:
        """The best next tokens after outputs [w, D], ``level`` places behind the pending token's successor."""
        if not self.coupled:
            return self.continuer.guess(out, self.width)
        size, ids = self.continuer.lm.vocab_size, self.continuer.ids
        return self.continuer.guess(out, self.width, lambda logits: context.foreseen(logits, [level], size, ids))

    def _grow(self, out: Tensor, depth: int, context: Context) -> tuple[TokenTree, np.ndarray]:
        growth, nodes = Growth(), self.nodes
        tokens, confidences = self._guess(out, context, 0)
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
            tokens, confidences = self._guess(out, context, level)
            growth.add(tokens, confidences, places)
        if nodes == 0 and self.pace is not None:
            self.pace.plain()
        return growth.kept(nodes)


def _descend(hidden: Tensor | None, parents: Tensor) -> Tensor:
    """What the rows of the next level see: what their parents saw, and themselves."""
    own = torch.full((len(parents), len(parents)), -torch.inf, device=parents.device).fill_diagonal_(0.0)
    return own if hidden is None else torch.cat([hidden[parents], own], dim=1)
