"""What a result cost: one meter for every method, read off its events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ramify.engine.events import Accepted, Event, Grown, Prefilled, Refined, Scored


@dataclass(frozen=True)
class Cost:
    """The bill of one request.

    ``prompt_tokens``: each token of the prompt once, for it is read once and forked. ``generated_tokens``: every token
    drawn for any path, those of pruned and lost paths included. ``kept_tokens``: those of the text that was given out.
    ``forward_calls``: passes of the target, the prompt's included. ``row_steps``: rows that they evaluated while
    decoding; a step of n paths counts n, a tree its nodes, a token that is routed K ways K times.
    ``recomputed_tokens``: tokens that were read again though they had been in a cache. ``peak_cache_tokens``: the most
    cache entries at a time. ``wall_seconds``: of the whole call.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    kept_tokens: int = 0
    forward_calls: int = 0
    row_steps: int = 0
    recomputed_tokens: int = 0
    peak_cache_tokens: int = 0
    wall_seconds: float = 0.0

    @staticmethod
    def of(events: Iterable[Event], row: int, wall: float = 0.0) -> Cost:
        """The bill of ``row``, from a stream of events."""
        prompt = drawn = kept = calls = rows = again = peak = 0
        searched = False
        for event in events:
            match event:
                case Prefilled() if event.row == row:
                    prompt += event.tokens
                    calls += event.calls
                case Scored() if row in event.rows:
                    calls += 1
                    rows += event.nodes
                case Grown() if event.row == row:
                    searched = True
                    drawn += len(event.tokens)
                    peak = max(peak, event.cached)
                case Refined() if event.row == row:
                    again += len(event.paths)
                case Accepted() if event.row == row:
                    kept += len(event.tokens)
                case _:
                    pass
        if not searched:
            drawn, peak = kept, prompt + kept
        return Cost(prompt, drawn, kept, calls, rows, again, max(peak, prompt), wall)
