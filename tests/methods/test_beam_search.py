"""Beam search is transformers' own, token for token and score for score; and what the textbook promises holds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from families import VOCABULARY, lm, model, text
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.api import generate
from ramify.bench.table_model import table_lm
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.methods.search.beam_search import BeamSearch
from ramify.methods.search.beams import best_of

NEW = 14
STOPPING = [True, False, "never"]


def theirs(family: str, prompt: list[int], **given: Any) -> tuple[list[list[int]], list[float]]:
    """transformers' beams behind the prompt, without their padding, and their scores."""
    ids = torch.tensor([prompt])
    output = model(family).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_return_sequences=given["num_beams"],
        return_dict_in_generate=True,
        output_scores=True,
        max_new_tokens=NEW,
        **given,
    )
    rows = []
    for row in output.sequences[:, len(prompt) :].tolist():
        ends = [place for place, token in enumerate(row) if token in given["eos_token_id"]]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows, output.sequences_scores.tolist()


@pytest.mark.parametrize("early_stopping", STOPPING)
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5, 2.0])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_it_is_transformers_beam_search(early_stopping: Any, length_penalty: float, num_beams: int) -> None:
    ends = set()
    for family, seed, settings_ in [("llama", 1, {}), ("gpt2", 2, {"repetition_penalty": 1.4}), ("gemma3", 3, {})]:
        prompt = text(7, seed)
        given: dict[str, Any] = {"eos_token_id": list(range(1, 40, 3)), **settings_}
        options = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
        tokens, scores = theirs(family, prompt, **given, **options)
        method = BeamSearch(**options)
        result = generate(lm(family), prompt, method, max_new_tokens=NEW, **given)
        beams = result.paths[:num_beams]
        assert [path.tokens for path in beams] == tokens
        assert [path.score for path in beams] == pytest.approx(scores, abs=1e-4)
        assert result.tokens == tokens[0]
        ends.update(path.finish for path in result.paths)
    assert "stop" in ends


def test_without_end_tokens_and_with_processors() -> None:
    prompt = text(6, 5)
    given: dict[str, Any] = {"eos_token_id": [VOCABULARY - 1], "no_repeat_ngram_size": 2, "bad_words_ids": [[7], [9]]}
    tokens, scores = theirs("qwen3", prompt, **given, num_beams=4)
    result = generate(lm("qwen3"), prompt, BeamSearch(4), max_new_tokens=NEW, **given)
    assert [path.tokens for path in result.paths[:4]] == tokens
    assert [path.score for path in result.paths[:4]] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("early_stopping", STOPPING)
def test_one_beam_is_greedy(early_stopping: Any) -> None:
    given: dict[str, Any] = {"eos_token_id": list(range(1, 40, 3)), "max_new_tokens": NEW}
    for seed in range(6):
        prompt = text(5, seed)
        beam = BeamSearch(1, length_penalty=0.0, early_stopping=early_stopping)
        assert generate(lm("llama"), prompt, beam, **given).tokens == generate(lm("llama"), prompt, **given).tokens


# ---------------------------------------------------------------- exact models


def table(seed: int, vocabulary: int = 3) -> tuple[Any, Any]:
    """A law of random rows by prefix, and the model of it."""

    def law(prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, prefix)) % (1 << 31))
        return torch.softmax(2 * torch.randn(vocabulary, generator=generator, dtype=torch.float64), dim=0)

    return law, table_lm(vocabulary, law)


def run(model_: Any, method: BeamSearch, depth: int, stop: tuple[int, ...] = ()) -> Result:
    return method.complete(model_, [Request([0], 1 + depth, stop_tokens=frozenset(stop))])[0]


def every_text(vocabulary: int, depth: int, stop: int) -> set[tuple[int, ...]]:
    """All texts of at most ``depth`` tokens that end with ``stop`` or at that length."""
    found = set()
    for tokens in itertools.product(range(vocabulary), repeat=depth):
        end = tokens.index(stop) + 1 if stop in tokens else depth
        found.add(tokens[:end])
    return found


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(0, 1000))
def test_enough_beams_find_the_likeliest_text(seed: int) -> None:
    law, model_ = table(seed)

    def log_prob(tokens: tuple[int, ...]) -> float:
        return sum(math.log(law((0, *tokens[:place]))[token]) for place, token in enumerate(tokens))

    result = run(model_, BeamSearch(81, length_penalty=0.0, early_stopping="never"), 4, (2,))
    best = max(every_text(3, 4, 2), key=log_prob)
    assert tuple(result.tokens) == best
    assert result.paths[0].score == pytest.approx(log_prob(best), abs=1e-5)
    for path in result.paths:
        if path.complete:
            assert sum(path.log_probs) == pytest.approx(log_prob(tuple(path.tokens)), abs=1e-5)


def test_the_sum_is_given_by_length() -> None:
    _, model_ = table(3)
    for path in run(model_, BeamSearch(4, length_penalty=0.7), 6, (2,)).paths[:4]:
        assert path.score == pytest.approx(sum(path.log_probs) / len(path) ** 0.7, abs=1e-5)


def test_rows_of_a_step_are_the_beams() -> None:
    _, model_ = table(1, 16)
    result = run(model_, BeamSearch(5), 9)
    assert result.cost.row_steps == 5 * 8  # the first step reads the prompt's pass, the last needs none
    assert result.cost.generated_tokens == 5 * 9
    assert result.cost.prompt_tokens == 1


def test_siblings_pay_by_rank() -> None:
    # Behind 1 the two best texts, behind 2 the next: with one child each, both parents stay.
    laws = {(0,): (0.0, 0.6, 0.4, 0.0), (0, 1): (0.5, 0.5, 0.0, 0.0), (0, 2): (0.7, 0.3, 0.0, 0.0)}
    model_ = table_lm(4, lambda prefix: torch.tensor(laws[prefix], dtype=torch.float64))
    plain = run(model_, BeamSearch(2, length_penalty=0.0), 2)
    assert [path.tokens for path in plain.paths[:2]] == [[1, 0], [1, 1]]
    apart = run(model_, BeamSearch(2, length_penalty=0.0, gamma=0.5), 2)
    assert [path.tokens for path in apart.paths[:2]] == [[1, 0], [2, 0]]
    assert [path.score for path in apart.paths[:2]] == pytest.approx([math.log(0.3), math.log(0.28)])


def test_ties_go_to_the_earlier_beam_and_the_lower_token() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [3.0, -torch.inf, 2.0]])
    assert best_of(scores, 3) == [(0, 1), (0, 2), (1, 0)]
    assert best_of(scores, 2) == [(0, 1), (0, 2)]
    assert best_of(scores, 99) == [(0, 1), (0, 2), (1, 0), (1, 2), (0, 0)]


def test_nothing_possible_is_said() -> None:
    from transformers import SuppressTokensLogitsProcessor

    def nothing(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        every = SuppressTokensLogitsProcessor(range(VOCABULARY))
        return every(ids, scores) if ids.shape[1] > 5 else scores

    with pytest.raises(RamifyError, match="no token is possible behind any beam"):
        generate(lm("llama"), [1, 2, 3], BeamSearch(2), max_new_tokens=6, logits_processor=[nothing])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"gamma": -1.0}, "gamma is -1"),
        ({"early_stopping": "sometimes"}, "True, False or 'never'"),
        ({"length_penalty": math.inf}, "length_penalty is inf"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        BeamSearch(**options)
