"""Greedy decoding of one prompt on every configuration, held against transformers' own generate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ramify.api import generate
from ramify.bench.configurations import Configuration
from ramify.bench.rows import Spread
from ramify.bench.table import DASH, spread

HF = "hf-greedy"


@dataclass
class Decoded:
    """Greedy decoding of one prompt: its tokens, and the seconds a token took in each repeat, by who decoded."""

    tokens: dict[str, list[int]]
    seconds: dict[str, list[float]]
    run: dict[str, int | str]
    rounded: list[str]

    def ratio(self, label: str) -> Spread | None:
        pairs = zip(self.seconds[HF], self.seconds[label], strict=True)
        return Spread.of(reference / own for reference, own in pairs)

    def equal(self, label: str) -> int | None:
        """How many tokens are those of hf-greedy before the first other one; None where all are."""
        expected, own = self.tokens[HF], self.tokens[label]
        pairs = enumerate(zip(expected, own, strict=False))
        return None if own == expected else next((at for at, (a, b) in pairs if a != b), min(len(own), len(expected)))

    def rows(self) -> list[dict[str, Any]]:
        """What a table of them shows."""
        rows = []
        for label, tokens in self.tokens.items():
            equal = self.equal(label)
            rows.append(
                {
                    "decoding": label,
                    "ms per token": 1e3 * statistics.median(self.seconds[label]),
                    "speed-up over hf-greedy": spread(self.ratio(label)),
                    "tokens": len(tokens),
                    "equal to hf-greedy": "all" if equal is None else f"the first {equal}",
                    "rows run for one": self.run[label],
                }
            )
        return rows

    def notes(self, dtype: str, random: bool) -> Iterator[str]:
        """Sentences about them; ``random``: whether the weights are."""
        own = [label for label in self.tokens if label != HF]
        yield (
            f"{HF} is transformers' own generate on the same prompt, the others are greedy decoding here; in turn, "
            f"the reading of the prompt included; median [lowest, highest] of {len(self.seconds[HF])}."
        )
        best = min(own, key=lambda label: statistics.median(self.seconds[label]))
        yield f"The least time per token is that of {best}, {spread(self.ratio(best))} the speed of {HF}."
        parted = [f"{label} after {self.equal(label)}" for label in own if self.equal(label) is not None]
        if parted:
            yield f"Tokens part from those of {HF}: {', '.join(parted)}."
        if random and dtype != "float32":
            yield (
                f"The weights are random, so the best logits nearly tie, and in {dtype} the rounding of another "
                "kernel may choose another token."
            )
        if self.rounded:
            yield f"Rounded weights make another model, whose tokens need not be equal: {', '.join(self.rounded)}."


def decode(
    clock: str, found: Sequence[Configuration], prompt: list[int], new_tokens: int, repeats: int, seed: int
) -> Decoded:
    """hf-greedy, then our greedy on every configuration, in turn; the first turn is not timed."""
    ways = [(HF, found[0].lm, HF), *((one.label, one.lm, "greedy") for one in found)]
    run: dict[str, int | str] = {HF: DASH} | {one.label: one.lm.padding.get(1, 1) for one in found}
    rounded = [one.label for one in found if one.rounded]
    decoded = Decoded({}, {label: [] for label, *_ in ways}, run, rounded)
    for repeat in range(-1, repeats):
        for label, lm, method in ways:
            wall, cpu = time.perf_counter(), time.process_time()
            result = generate(lm, prompt, method, max_new_tokens=new_tokens, seed=seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if method == HF:  # transformers prepares the settings a second time: charge it for one
                wall, cpu = result.stats.wall_seconds, result.stats.cpu_seconds
            decoded.tokens[label] = result.tokens
            if repeat >= 0:
                decoded.seconds[label].append((cpu if clock == "CPU time" else wall) / len(result.tokens))
    return decoded
