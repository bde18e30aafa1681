"""Recipe of Token Recycling's calibrated templates: which nodes of the k-ary tree earn their place on this model.

Greedy and sampled text get a template each. The bundled ones come from the demo model on its own training files, so
that the held-out modules stay held out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ramify.api import prepare
from ramify.methods.draft.autoregressive import Greedy, Sample
from ramify.methods.draft.template import Template
from ramify.methods.draft.token_recycling import calibrate_template
from ramify.models.causal import CausalLM
from ramify.train.data import library_files


def train_template(
    lm: CausalLM,
    prompts: Sequence[str | list[int]] | None = None,
    *,
    greedy: bool,
    nodes: int = 160,
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    seed: int = 0,
) -> Template:
    """A template for continuing ``prompts`` (default: excerpts of the standard library), greedily or sampled.

    Write it with ``save`` and use it with ``TokenRecycling(template=FILE)``.
    """
    texts = list(prompts or library_excerpts(32, seed))
    if greedy:
        requests = prepare(lm, texts, Greedy(), max_new_tokens=max_new_tokens)
    else:
        requests = prepare(lm, texts, Sample(), max_new_tokens=max_new_tokens, seed=seed, temperature=temperature)
    return calibrate_template(lm, requests, nodes)


def library_excerpts(count: int, seed: int, size: int = 700) -> list[str]:
    """``count`` excerpts of ``size`` characters from the standard library's training files."""
    rng = random.Random(seed)
    files = [file for file in library_files()[0] if file.stat().st_size > 10 * size]
    excerpts = []
    for file in rng.sample(files, count):
        text = file.read_text(encoding="utf-8", errors="replace")
        start = text.index("\n", rng.randrange(len(text) - 2 * size)) + 1
        excerpts.append(text[start : start + size])
    return excerpts
