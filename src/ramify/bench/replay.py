"""Drafters measured on texts that are known: what they would have drafted, and how much of it would have been right.

Under verification by matching, with noise that depends on the position alone, every drafter leads to the text of plain
decoding. It need therefore be computed once only, and many drafters can be compared without another pass of the model.
That leaves out drafters that read its logits or states.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.request import Request
from ramify.engine.tree import TokenTree


@dataclass(frozen=True)
class Replay:
    """``tokens`` committed in ``calls`` passes, ``nodes`` drafted for them, and the drafter's CPU time, ``seconds``."""

    tokens: int = 0
    calls: int = 0
    nodes: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.calls if self.calls else 0.0

    @staticmethod
    def sum(parts: Iterable[Replay]) -> Replay:
        """All of ``parts`` together."""
        total = Replay()
        for part in parts:
            total = Replay(
                total.tokens + part.tokens,
                total.calls + part.calls,
                total.nodes + part.nodes,
                total.seconds + part.seconds,
            )
        return total


def replay(drafter: Drafter, request: Request, text: Sequence[int]) -> Replay:
    """Let ``drafter`` draft along ``text``, which is how plain decoding continued ``request``."""
    generator = torch.Generator().manual_seed(2 * request.sampler.noise.seed + 1_000_000_007)
    tokens, whole = list(request.prompt), [*request.prompt, *text]
    drafter.start(tokens)
    calls = nodes = 0
    seconds = 0.0
    while len(tokens) < len(whole):
        known, levels = len(tokens), request.max_length - len(tokens) - 1
        began = time.process_time()
        draft = TokenTree.empty()
        if levels > 0:
            position = len(request.padding) + known
            draft = drafter.draft(Context(tokens, levels, request.sampler, generator, position)).cut(levels)
        seconds += time.process_time() - began
        tree = draft.rooted(tokens[-1])
        path, carried = [0], tree.tokens.tolist()
        for token in whole[known:]:
            child = next((child for child in tree.shape.children[path[-1]] if carried[child] == token), None)
            if child is None:
                break
            path.append(child)
        tokens.extend(whole[known : known + len(path)])
        began = time.process_time()
        if len(tokens) < len(whole):
            drafter.observe(Outcome(tree, torch.empty(len(tree), 0), path, tokens[known:]))
        seconds += time.process_time() - began
        calls += 1
        nodes += len(draft)
    return Replay(len(text), calls, nodes, seconds)
