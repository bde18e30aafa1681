"""Recipe of Token Recycling's calibrated template: which nodes of the k-ary tree earn their place on this model.

Half of the texts are continued greedily, half at temperature 0.7. The bundled template comes from the demo model on
its own training files, so that the held-out modules stay held out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ramify.api import prepare
from ramify.methods.draft.autoregressive import Greedy, Sample
from ramify.methods.draft.token_recycling import Template, TokenRecycling, calibrate_template
from ramify.models.causal import CausalLM
from ramify.train.demo_lm import library_files


def train_template(
    lm: CausalLM,
    out: Path,
    prompts: Sequence[str | list[int]] | None = None,
    *,
    nodes: int = 160,
    max_new_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
) -> Template:
    """Calibrate a template on ``prompts`` (default: excerpts of the standard library) and write it to ``out``.

    Use it with ``TokenRecycling(template=str(out))``.
    """
    texts = prompts or library_excerpts(lm, 24, seed)
    requests = []
    for index, text in enumerate(texts):
        if index % 2:
            requests += prepare(
                lm, [text], Sample(), max_new_tokens=max_new_tokens, seed=seed + index, temperature=temperature
            )
        else:
            requests += prepare(lm, [text], Greedy(), max_new_tokens=max_new_tokens)
    template = calibrate_template(lm, requests, nodes, TokenRecycling(template="paper"))
    template.save(out)
    return template


def library_excerpts(lm: CausalLM, count: int, seed: int, size: int = 700) -> list[str]:
    """``count`` excerpts of ``size`` characters from the standard library's training files."""
    rng = random.Random(seed)
    files = [file for file in library_files()[0] if file.stat().st_size > 10 * size]
    excerpts = []
    for file in rng.sample(files, count):
        text = file.read_text(encoding="utf-8", errors="replace")
        start = text.index("\n", rng.randrange(len(text) - 2 * size)) + 1
        excerpts.append(text[start : start + size])
    return excerpts
