"""The assistant: full acceptance of oneself, the exact law under rejection, schedules and refusals."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import VOCABULARY, build, lm, text
from scipy.stats import chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper

from ramify.api import generate
from ramify.engine.drafter import Outcome
from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft.assistant import Assistant
from ramify.methods.registry import create
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM, load
from ramify.models.forward import Nodes

PROMPT = text(11, 6, period=4)
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 4}


def run(method: Assistant, new: int, **settings: Any) -> Result:
    result: Result = generate(lm("llama"), PROMPT, method, max_new_tokens=new, **settings)
    return result


@functools.cache
def blurred() -> CausalLM:
    """The target with some noise in its weights: right often, not always."""
    model = build("llama")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=generator))
    return load(model)


# ---------------------------------------------------------------- greedy


@pytest.mark.parametrize(("length", "new"), [(1, 12), (3, 16), (3, 17), (5, 30), (40, 30)])
@pytest.mark.parametrize("verifier", ["speculative", "block", "match"])
def test_of_itself_everything_is_accepted(verifier: Any, length: int, new: int):
    method = Assistant(model=lm("llama"), length=length, schedule="constant", verifier=verifier)
    result = run(method, new)
    assert result.tokens == run(method, new).tokens == plain(new)
    assert result.stats.target_calls == math.ceil(new / (length + 1))
    assert result.stats.accepted == result.stats.drafted == new - result.stats.target_calls


def plain(new: int) -> list[int]:
    tokens: list[int] = generate(lm("llama"), PROMPT, "greedy", max_new_tokens=new).tokens
    return tokens


def test_of_itself_sampled_drafts_are_accepted_by_every_rule():
    for verifier in ("speculative", "block", "match"):
        result = run(Assistant(model=lm("llama"), length=3, schedule="constant", verifier=verifier), 24, **SAMPLED)
        assert result.stats.target_calls == 6  # p = q: a ratio of one


def test_the_heuristic_schedule_adds_two_or_takes_one():
    drafter: Any = Assistant(model=lm("llama"), length=3).drafter(lm("llama"), Request(PROMPT, 40))
    lengths = []
    for drafted, accepted in [(3, 3), (5, 5), (7, 6), (6, 0), (5, 5), (7, 0)] + [(2, 1)] * 8:
        drafter.observe(Outcome(TokenTree.chain([0] * (drafted + 1)), torch.zeros(1), range(accepted + 1), ()))
        lengths.append(drafter.schedule.length)
    assert lengths == [5, 7, 6, 5, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1]
    constant: Any = Assistant(model=lm("llama"), length=3, schedule="constant").drafter(lm("llama"), Request([1], 9))
    constant.observe(Outcome(TokenTree.chain([0] * 4), torch.zeros(1), range(4), ()))
    assert constant.schedule.length == 3


def test_the_schedule_shows_in_the_drafts():
    result = run(Assistant(model=lm("llama")), 40)
    assert [len(draft.tree) for draft, _ in result.steps if draft] == [5, 7, 9, 11, 3]  # 6 + 8 + 10 + 12 + 4 tokens
    result = run(Assistant(model=blurred()), 40)
    drafts = [(len(draft.tree), len(accepted.path)) for draft, accepted in result.steps if draft]
    assert any(full < size for size, full in drafts)
    for (size, accepted), (following, _) in list(itertools.pairwise(drafts))[:-1]:
        assert following == (size + 2 if accepted == size else max(1, size - 1))


def test_an_assistant_of_shorter_context_stops_helping_when_it_is_full():
    short = load(build("llama", max_position_embeddings=24))
    result = run(Assistant(model=short, length=4, schedule="constant"), 40)
    assert result.tokens == plain(40)
    assert result.stats.accepted > 0
    assert [len(draft.tree) for draft, _ in result.steps if draft][-5:] == [0] * 5


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("other", [lm, lambda _: blurred()], ids=["itself", "blurred"])
def test_matching_keeps_the_sampled_tokens(other: Any):
    plain = generate(lm("llama"), PROMPT, "sample", max_new_tokens=30, **SAMPLED)
    result = run(Assistant(model=other("llama"), verifier="match"), 30, **SAMPLED)
    assert result.tokens == plain.tokens
    assert result.stats.accepted > 0


class Table:
    """A forward pass in no time: logits by the token and by its position modulo 3."""

    name = "table"
    weights = "plain"
    dtype = torch.float32

    def current(self) -> bool:
        return True

    def __init__(self, vocabulary: int, seed: int, spread: float) -> None:
        self.logits = spread * torch.randn(3, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))

    def __call__(self, nodes: Nodes, cache: RowCache) -> tuple[Tensor, dict[int, Tensor]]:
        entries = torch.zeros(len(nodes.tokens), 1, nodes.tokens.shape[1], 1)
        cache.row_layers[0].update(entries, entries)
        logits = self.logits[nodes.positions % 3, nodes.tokens]
        return (logits if nodes.logits_at is None else logits[:, list(nodes.logits_at)]), {}


def table_lm(vocabulary: int, seed: int, tokenizer: Any = None, spread: float = 1.0) -> CausalLM:
    config = SimpleNamespace(vocab_size=vocabulary, num_hidden_layers=1, max_position_embeddings=64)
    config.get_text_config = lambda decoder: config
    embeddings = SimpleNamespace(weight=torch.zeros(1))
    model = SimpleNamespace(config=config, dtype=torch.float32, get_input_embeddings=lambda: embeddings)
    forward: Any = Table(vocabulary, seed, spread)
    return CausalLM(model, tokenizer, f"table {seed}", forward, trees=True)


@pytest.mark.parametrize(
    ("verifier", "size"), [("speculative", 4), ("block", 4), ("match", 4), ("speculative", 3), ("block", 6)]
)
def test_the_first_two_tokens_follow_the_targets_law(verifier: Any, size: int):
    vocabulary, samples = 4, 1500
    target, assistant = table_lm(vocabulary, 1, Shared()), table_lm(size, 2, Shared())
    processors: Any = [TemperatureLogitsWarper(0.8), TopKLogitsWarper(3)]
    requests = [Request([2], 4, Sampler(processors, greedy=False, noise=Noise(seed))) for seed in range(samples)]
    method = Assistant(model=assistant, length=2, schedule="constant", verifier=verifier)
    tokens: dict[int, list[int]] = {row: [] for row in range(samples)}
    lengths: Counter[int] = Counter()
    for event in method.run(target, requests):
        if isinstance(event, Accepted):
            tokens[event.row].extend(event.tokens)
            lengths[len(event.path)] += 1
    counts = Counter((row[0], row[1]) for row in tokens.values())

    def law(position: int, token: int) -> Tensor:
        prefix = torch.full((position + 1,), token)
        return requests[0].sampler.law(prefix, target.forward.logits[position % 3, token]).double()  # type: ignore[attr-defined]

    exact = {
        (first, second): float(law(0, 2)[first] * law(1, first)[second])
        for first in range(vocabulary)
        for second in range(vocabulary)
    }
    assert set(counts) <= {pair for pair, p in exact.items() if p > 0}
    pairs = [pair for pair, p in exact.items() if p > 0]
    expected = [samples * exact[pair] / sum(exact.values()) for pair in pairs]
    assert chisquare([counts[pair] for pair in pairs], expected).pvalue > 1e-3
    assert set(lengths) == {0, 1, 2}  # some drafts were accepted whole, some in part, some not at all
    if size != vocabulary:
        return
    own = Counter((row[0], row[1]) for row in sampled(assistant, requests[:500]))
    mine = [500 * exact[pair] for pair in pairs if own[pair]]
    seen = [own[pair] for pair in pairs if own[pair]]
    assert sum((s - m) ** 2 / m for s, m in zip(seen, mine, strict=True)) > 60  # the test would notice q for p


def sampled(model: CausalLM, requests: list[Request]) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in requests]
    for event in create("sample").run(model, requests):
        if isinstance(event, Accepted):
            tokens[event.row].extend(event.tokens)
    return tokens


# ---------------------------------------------------------------- ids in reserve


class Shared:
    """A tokenizer of which only counts that two models share it."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}

    def decode(self, tokens: list[int], **_: Any) -> str:
        return ""


@pytest.mark.parametrize("size", [max(PROMPT) + 1, VOCABULARY + 40])
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_ids_that_no_token_has_make_no_other_vocabulary(settings: dict[str, Any], size: int):
    """Sizes are often rounded up, and not to the same multiple."""
    tokenizer = Shared()
    own = lm("llama")
    target = CausalLM(own.model, tokenizer, "target", own.forward, trees=True)
    short: Any = Assistant(model=load(build("llama", vocab_size=size), tokenizer=tokenizer), verifier="match")
    plain = generate(target, PROMPT, "sample" if settings else "greedy", max_new_tokens=40, **settings)
    result = generate(target, PROMPT, short, max_new_tokens=40, **settings)
    assert result.tokens == plain.tokens
    assert result.stats.drafted > 0
    if size < VOCABULARY:  # what the assistant does not know ends its help, not the text
        result = generate(target, [*PROMPT, size], short, max_new_tokens=4, **settings)
        assert result.stats.drafted == 0


# ---------------------------------------------------------------- refusals


def test_another_vocabulary_without_tokenizers_is_refused():
    bigger = load(build("llama", vocab_size=100))
    with pytest.raises(RamifyError, match=r"another vocabulary \(100 tokens\) than LlamaForCausalLM \(96\)"):
        run(Assistant(model=bigger), 4)


def test_an_assistant_that_cannot_roll_back_is_refused():
    with pytest.raises(RamifyError, match="cannot run as an assistant"):
        run(Assistant(model=load(build("mamba"))), 4)


def test_what_is_wrong_with_the_options_is_said():
    with pytest.raises(RamifyError, match="needs a model"):
        Assistant()
    with pytest.raises(RamifyError, match="needs a model"):
        create("assistant", length=3)
    with pytest.raises(RamifyError, match="'typical' is not lossless"):
        Assistant(model="demo", verifier="typical")  # type: ignore[arg-type]
    with pytest.raises(RamifyError, match="unknown verifier 'speculativ'; did you mean 'speculative'"):
        Assistant(model="demo", verifier="speculativ")  # type: ignore[arg-type]
    with pytest.raises(RamifyError, match="length must be at least 1, got 0"):
        Assistant(model="demo", length=0)
    with pytest.raises(RamifyError, match="unknown schedule 'heuristics'; did you mean 'heuristic'"):
        Assistant(model="demo", schedule="heuristics")  # type: ignore[arg-type]
