"""Diverse beam search's claims: more different texts, and a better best one, than beam search of equal width

On the exact model of captions (``ramify.bench.captions``) nothing but the search decides; then the same methods on a
language model, where what the text really goes on with is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramify.api import generate
from ramify.bench.captions import END, START, bleu2, caption_model, captions, grams, vocabulary, worth
from ramify.bench.prompts import held_out_prompts
from ramify.bench.recipes import Outcome, Table
from ramify.engine.path import Path, mean
from ramify.engine.request import Request
from ramify.engine.sampling import Noise, Sampler
from ramify.methods.base import SearchMethod
from ramify.methods.search.beam_search import BeamSearch
from ramify.methods.search.best_of_n import BestOfN
from ramify.methods.search.diverse_beam_search import DiverseBeamSearch
from ramify.models.causal import CausalLM, load

BEAMS = 12
LONGEST = max(map(len, captions())) + 1
# What a reference implementation of the same steps gave: distinct-1, -2, -4, coverage, oracle, duplicates.
REFERENCE = {
    "beam search": (0.155, 0.190, 0.274, 0.167, 0.639, 0.0),
    "DBS, G = 4, λ = 0.5": (0.161, 0.241, 0.356, 0.500, 0.632, 0.0),
    "DBS, G = 12, λ = 0.2": (0.173, 0.333, 0.296, 0.333, 0.693, 0.33),
    "DBS, G = 12, λ = 0.5": (0.247, 0.494, 0.518, 0.833, 0.774, 0.0),
    "DBS, G = 12, λ = 0.8": (0.241, 0.483, 0.506, 0.833, 0.730, 0.08),
    "DBS, G = 12, λ = 0.5, cumulative": (0.235, 0.435, 0.506, 0.833, 0.769, 0.0),
    "DBS, G = 12, λ = 0.5, bigrams": (0.247, 0.459, 0.482, 0.833, 0.735, 0.17),
}


def searches(beams: int) -> dict[str, SearchMethod]:
    """The rows of both tables, each of ``beams`` texts."""
    third = max(each for each in range(1, beams + 1) if beams % each == 0 and each <= max(1, beams // 3))
    return {
        "beam search": BeamSearch(beams, length_penalty=0.0, early_stopping=True),
        "beam search, siblings pay 0.5": BeamSearch(beams, length_penalty=0.0, early_stopping=True, gamma=0.5),
        f"DBS, G = {third}, λ = 0.5": DiverseBeamSearch(beams, third),
        f"DBS, G = {beams}, λ = 0.2": DiverseBeamSearch(beams, diversity_penalty=0.2),
        f"DBS, G = {beams}, λ = 0.5": DiverseBeamSearch(beams),
        f"DBS, G = {beams}, λ = 0.8": DiverseBeamSearch(beams, diversity_penalty=0.8),
        f"DBS, G = {beams}, λ = 2": DiverseBeamSearch(beams, diversity_penalty=2.0),
        f"DBS, G = {beams}, λ = 0.5, cumulative": DiverseBeamSearch(beams, diversity="cumulative"),
        f"DBS, G = {beams}, λ = 0.5, bigrams": DiverseBeamSearch(beams, diversity="ngram"),
        f"DBS, G = {beams}, λ = 0.5, embeddings": DiverseBeamSearch(beams, diversity="embedding"),
    }


def run(
    *,
    seed: int = 0,
    model: str = "demo",
    prompts: int = 40,
    beams: int = BEAMS,
    max_new_tokens: int = 16,
    draws: int = 20,
) -> Outcome:
    """Both tables. ``draws``: sets of samples that the sampling row is the mean of; ``prompts``: held-out texts."""
    exact = on_captions(draws, seed)
    plain, diverse = exact[0], exact[4]
    claims = [
        _claim("coverage, G = B and λ = 0.5 over beam search", diverse["coverage"] / plain["coverage"], 4),
        _claim("oracle, the same, difference", diverse["oracle"] - plain["oracle"], 0.08),
        _claim("distinct-4, the same", diverse["distinct-4"] / plain["distinct-4"], 1.6),
        _claim("greatest difference from the reference, negative", -max(row["off by"] or 0.0 for row in exact), -0.02),
    ]
    tables = [
        Table(f"Captions, the exact model: {BEAMS} texts each", exact),
        Table("What must show there", claims),
        Table(
            f"{model}: {beams} continuations of {max_new_tokens} tokens, {prompts} held-out prompts",
            on_text(load(model, dtype="float32"), prompts, beams, max_new_tokens, seed),
        ),
    ]
    notes = [
        "distinct-n: different n-grams over all tokens. oracle: BLEU-2 of the best text of a set with the reference, "
        "for captions its expectation over all of them, for the demo model with the text's own continuation. "
        "off by: greatest difference from a reference implementation's figures.",
        "Sampling draws from the model's own law. log p: of the likeliest text of a set, and the mean of the set.",
    ]
    return Outcome(tables, notes)


def on_captions(draws: int, seed: int) -> list[dict[str, Any]]:
    """The exact model's rows; sampling is the mean of ``draws`` sets."""
    lm, words = caption_model(), vocabulary()

    def spoken(method: SearchMethod, draw: int = 0) -> dict[str, float]:
        sampler = Sampler(greedy=not isinstance(method, BestOfN), noise=Noise(seed + draw))
        request = Request([START], 1 + LONGEST, sampler, frozenset([END]))
        paths = method.complete(lm, [request])[0].paths[:BEAMS]
        return worth([tuple(words[token] for token in path.tokens if token != END) for path in paths])

    rows = []
    for name, method in searches(BEAMS).items():
        if isinstance(method, DiverseBeamSearch) and method.diversity == "embedding":
            continue  # the words of a table have no embeddings
        found = spoken(method)
        known = REFERENCE.get(name)
        off = max(abs(a - b) for a, b in zip(found.values(), known, strict=True)) if known else None
        rows.append({"method": name, **found, "off by": off})
    sampled = [spoken(BestOfN(BEAMS), draw) for draw in range(draws)]
    means = {name: mean([each[name] for each in sampled]) for name in sampled[0]}
    return [*rows, {"method": "sampling", **means, "off by": None}]


def on_text(lm: CausalLM, count: int, beams: int, length: int, seed: int) -> list[dict[str, Any]]:
    """The same methods on a language model, by the mean over prompts."""
    asked = []
    for prompt in held_out_prompts(count, seed=seed):
        ids = lm.encode(prompt.text)
        asked.append((ids[:-length], ids[-length:]))
    rows = []
    for name, method in [*searches(beams).items(), ("sampling", BestOfN(beams))]:
        found = []
        for ids, reference in asked:
            sampled = isinstance(method, BestOfN)
            result = generate(lm, ids, method, max_new_tokens=length, seed=seed, do_sample=sampled, eos_token_id=None)
            found.append(_text_worth(result.paths[:beams], reference))
        rows.append({"method": name, **{key: mean([each[key] for each in found]) for key in found[0]}})
    return rows


def _text_worth(paths: Sequence[Path], reference: Sequence[int]) -> dict[str, float]:
    texts = [tuple(map(str, path.tokens)) for path in paths]
    total = sum(map(len, texts))
    sums = [sum(path.log_probs) for path in paths]
    return {
        **{f"distinct-{n}": len({gram for text in texts for gram in grams(text, n)}) / total for n in (1, 2, 4)},
        "oracle": max(bleu2(text, tuple(map(str, reference))) for text in texts),
        "best by log p": bleu2(texts[sums.index(max(sums))], tuple(map(str, reference))),
        "duplicates": 1 - len(set(texts)) / len(texts),
        "greatest log p": max(sums),
        "mean log p": mean(sums),
    }


def _claim(claim: str, found: float, bar: float) -> dict[str, Any]:
    return {"claim": claim, "found": found, "bar": f"≥ {bar:g}", "holds": "yes" if found >= bar else "no"}
