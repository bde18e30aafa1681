"""Diverse beam search: its worked numbers, its properties, its measured table, and the groups that transformers had."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import lm, text
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.api import generate
from ramify.bench.captions import END, START, caption_model, vocabulary, worth
from ramify.bench.table_model import table_lm
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.methods.search.beam_search import BeamSearch
from ramify.methods.search.dissimilarity import DIVERSITIES
from ramify.methods.search.diverse_beam_search import DiverseBeamSearch
from ramify.models.causal import CausalLM

MEMORYLESS = table_lm(3, lambda prefix: torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
A, B = 0, 1
ENDS = list(range(1, 40, 3))
FORMER: dict[str, Any] = {"rank_by": "augmented", "length_penalty": 1.0}


def run(model: CausalLM, method: Any, new: int, stop: tuple[int, ...] = ()) -> Result:
    return method.complete(model, [Request([0], 1 + new, stop_tokens=frozenset(stop))])[0]


def found(result: Result, count: int) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(path.tokens), round(path.score, 4)) for path in result.paths[:count]]


def random_table(seed: int, vocabulary_: int = 6) -> CausalLM:
    def law(prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, prefix)) % (1 << 31))
        return torch.softmax(2 * torch.randn(vocabulary_, generator=generator, dtype=torch.float64), dim=0)

    return table_lm(vocabulary_, law)


# ---------------------------------------------------------------- worked numbers


def test_the_worked_numbers() -> None:
    result = run(MEMORYLESS, DiverseBeamSearch(3, diversity_penalty=0.6), 2)
    by_group = sorted(result.paths, key=lambda path: path.number)
    assert [path.tokens for path in by_group] == [[A, A], [B, B], [A, A]]
    assert [path.score for path in by_group] == pytest.approx([-1.386, -2.408, -2.586], abs=1e-3)
    assert [sum(path.log_probs) for path in by_group] == pytest.approx([-1.386, -2.408, -1.386], abs=1e-3)
    # Ranked by the sum without penalties: the third group's text is as good as the first's.
    assert [path.number for path in result.paths] == [0, 2, 1]
    augmented = run(MEMORYLESS, DiverseBeamSearch(3, diversity_penalty=0.6, rank_by="augmented"), 2)
    assert [path.number for path in augmented.paths] == [0, 1, 2]


@pytest.mark.parametrize(("penalty", "second"), [(0.51, A), (0.512, B)])
def test_the_second_group_turns_where_the_penalty_exceeds_the_gap(penalty: float, second: int) -> None:
    assert math.log(0.5 / 0.3) == pytest.approx(0.5108, abs=1e-4)
    result = run(MEMORYLESS, DiverseBeamSearch(2, diversity_penalty=penalty), 1)
    assert {path.number: path.tokens[0] for path in result.paths} == {0: A, 1: second}


def test_what_each_function_counts() -> None:
    def path(*tokens: int) -> Path:
        return Path(tokens=list(tokens))

    like = torch.zeros(2, 5)
    beams = [path(0, 1), path(2, 1)]
    earlier = [Choice(path(0, 1, 4), 3), Choice(path(0, 3), 3), Choice(path(2, 1), 1)]

    def count(name: str, temperature: float = 1.0, n: int = 2) -> list[list[float]]:
        return DIVERSITIES[name](MEMORYLESS, temperature, n)(beams, earlier, 2, like).tolist()

    assert count("hamming") == [[0, 1, 0, 2, 0]] * 2
    assert torch.allclose(
        torch.tensor(count("cumulative", 2.0)),
        torch.tensor([[0, math.exp(-0.5), 0, 1 + math.exp(-0.5), 0], [0, 1, 0, math.exp(-0.5) + math.exp(-1), 0]]),
    )
    # After 1 came 3 in the first choice, and 1 in the last; what followed later does not count.
    assert count("ngram") == [[0, 1, 0, 1, 0]] * 2
    assert count("ngram", n=3) == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert count("ngram", n=1) == [[2, 3, 1, 3, 0]] * 2
    start = DIVERSITIES["ngram"](MEMORYLESS, 1.0, 3)([path()], [Choice(path(), 4), Choice(path(), 4)], 0, like[:1])
    assert start.tolist() == [[0, 0, 0, 0, 2]]


def test_near_words_are_avoided_by_their_embeddings() -> None:
    model = table_lm(3, lambda prefix: torch.full((3,), 1 / 3))
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.2]])
    model.forward.embed = lambda tokens: vectors[tokens]  # type: ignore[method-assign]
    penalty = DIVERSITIES["embedding"](model, 1.0, 2)
    choice = Choice(Path(), 0)
    counted = penalty([Path()], [choice, choice], 0, torch.zeros(1, 3))[0]
    centred = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
    assert counted.tolist() == pytest.approx([2.0, 2 * float(centred[0] @ centred[1]), 0.0], abs=1e-6)


# ---------------------------------------------------------------- properties


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.integers(0, 99), st.floats(0, 3), st.sampled_from(sorted(DIVERSITIES)), st.sampled_from([True, False]))
def test_properties(seed: int, penalty: float, diversity: str, early_stopping: bool) -> None:
    model = random_table(seed)
    options: dict[str, Any] = {"diversity_penalty": penalty, "diversity": diversity, "early_stopping": early_stopping}
    alike: dict[str, Any] = {"length_penalty": 0.0, "early_stopping": early_stopping}

    # One group is beam search.
    one = run(model, DiverseBeamSearch(4, 1, **options), 7, (5,))
    assert found(one, 4) == found(run(model, BeamSearch(4, **alike), 7, (5,)), 4)

    # The first of several is beam search of its own width; without a penalty all are.
    narrow = found(run(model, BeamSearch(2, **alike), 7, (5,)), 2)
    whole = run(model, DiverseBeamSearch(6, 3, **options), 7, (5,))
    assert set(narrow) <= set(found(whole, 6))
    free = found(run(model, DiverseBeamSearch(6, 3, **options | {"diversity_penalty": 0.0}), 7, (5,)), 6)
    assert sorted(free) == sorted(narrow * 3)

    # The sums: raw ones are what the model says, penalised ones no greater.
    for path in whole.paths[:6]:
        assert sum(path.sampled_log_probs) == pytest.approx(sum(path.log_probs), abs=1e-5)
        assert path.score <= sum(path.log_probs) + 1e-5
        if diversity in ("hamming", "ngram") and penalty > 0.01:
            met = (sum(path.log_probs) - path.score) / penalty
            assert met == pytest.approx(round(met), abs=1e-2)
    raw = [sum(path.log_probs) for path in whole.paths[:6]]
    assert raw == pytest.approx(sorted(raw, reverse=True), abs=1e-6)

    # Both schedules give the same.
    staggered = run(model, DiverseBeamSearch(6, 3, schedule="staggered", **options), 7, (5,))
    assert found(staggered, 6) == found(whole, 6)


def test_a_great_penalty_keeps_groups_apart() -> None:
    result = run(random_table(3, 8), DiverseBeamSearch(8, diversity_penalty=1e4), 6)
    for step in range(6):
        assert len({path.tokens[step] for path in result.paths[:8]}) == 8


def test_groups_begin_one_after_the_other_when_staggered() -> None:
    model = random_table(2)
    sequential = run(model, DiverseBeamSearch(6, 3), 7).cost
    staggered = run(model, DiverseBeamSearch(6, 3, schedule="staggered"), 7).cost
    assert (sequential.forward_calls, staggered.forward_calls) == (7, 9)
    assert sequential.row_steps == staggered.row_steps == 6 * 6


def test_requests_of_a_batch_do_not_see_each_other() -> None:
    prompts = [text(5, 1), text(9, 2), text(4, 3)]
    method = DiverseBeamSearch(4, diversity_penalty=1.0)
    together = generate(lm("llama"), prompts, method, max_new_tokens=8)
    alone = [generate(lm("llama"), prompt, method, max_new_tokens=8) for prompt in prompts]
    assert [found(result, 4) for result in together] == [found(result, 4) for result in alone]


def test_banned_tokens_stay_banned() -> None:
    method = DiverseBeamSearch(4, diversity_penalty=50.0)
    result = generate(lm("llama"), text(5, 1), method, max_new_tokens=8, suppress_tokens=list(range(8, 96)))
    assert all(token < 8 for path in result.paths[:4] for token in path.tokens)


def test_distinct_drops_repetitions_and_fills_up() -> None:
    model = caption_model()
    request = [Request([START], 15, stop_tokens=frozenset([END]))]
    plain = DiverseBeamSearch(12, 4, 0.0).complete(model, request)[0]
    distinct = DiverseBeamSearch(12, 4, 0.0, distinct=True).complete(model, request)[0]
    assert len({tuple(path.tokens) for path in plain.paths[:12]}) == 3
    texts = [tuple(path.tokens) for path in distinct.paths]
    assert len(set(texts[:3])) == 3
    assert set(texts[:3]) == {tuple(path.tokens) for path in plain.paths[:12]}
    answers = run(MEMORYLESS, DiverseBeamSearch(3, diversity_penalty=0.6, distinct=True), 2)
    assert [path.tokens for path in answers.paths[:2]] == [[A, A], [B, B]]


# ---------------------------------------------------------------- the measured table

TABLE = [
    ({"num_beam_groups": 1}, (0.155, 0.190, 0.274, 0.167, 0.639, 0.0)),
    ({"num_beam_groups": 4}, (0.161, 0.241, 0.356, 0.500, 0.632, 0.0)),
    ({"diversity_penalty": 0.2}, (0.173, 0.333, 0.296, 0.333, 0.693, 0.33)),
    ({}, (0.247, 0.494, 0.518, 0.833, 0.774, 0.0)),
    ({"diversity_penalty": 0.8}, (0.241, 0.483, 0.506, 0.833, 0.730, 0.08)),
    ({"diversity": "cumulative"}, (0.235, 0.435, 0.506, 0.833, 0.769, 0.0)),
    ({"diversity": "ngram"}, (0.247, 0.459, 0.482, 0.833, 0.735, 0.17)),
]


@pytest.mark.parametrize(("options", "expected"), TABLE)
def test_the_measured_table(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    method = DiverseBeamSearch(**{"num_beams": 12} | options)
    result = method.complete(caption_model(), [Request([START], 15, stop_tokens=frozenset([END]))])[0]
    words = vocabulary()
    captions = [tuple(words[token] for token in path.tokens if token != END) for path in result.paths[:12]]
    assert list(worth(captions).values()) == pytest.approx(expected, abs=0.02)


# ---------------------------------------------------------------- the groups that transformers had

# Tokens and scores of ``model.generate`` of transformers 4.44.2 over the same weights: families.lm("llama"), 14 tokens.
GOLDEN: list[tuple[tuple[int, int], dict[str, Any], dict[str, Any], list[list[int]], list[float]]] = [
    (
        (7, 1),
        {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "early_stopping": False},
        {},
        [
            [71, 64, 49, 40, 64, 49, 40, 64, 64, 49, 40, 64, 49, 40],
            [71, 64, 49, 40, 64, 49, 40, 48, 31, 57, 11, 17, 46, 94],
            [85, 73, 54, 57, 11, 17, 46, 94, 90, 83, 76, 78, 66, 26],
            [85, 73, 54, 57, 11, 17, 46, 94, 90, 83, 76, 78, 66, 53],
            [49, 40, 64, 49, 40, 48, 47, 31, 57, 17, 66, 94, 4, 79],
            [49, 40, 64, 49, 40, 48, 47, 31, 57, 17, 66, 94, 4, 62],
        ],
        [-1.04424, -1.06235, -1.34692, -1.38800, -1.42875, -1.47636],
    ),
    (
        (7, 4),
        {"num_beams": 6, "num_beam_groups": 6, "diversity_penalty": 1.2, "early_stopping": False},
        {},
        [
            [11, 17, 22, 56, 87, 80, 60, 17, 46, 94, 46, 94, 46, 94],
            [22, 56, 87, 31, 57, 17, 22, 70, 66, 63, 17, 22, 70, 66],
            [66, 63, 92, 17, 22, 70, 66, 63, 17, 46, 94, 46, 94, 46],
            [22, 70, 66, 63, 32, 57, 17, 46, 94, 4, 66, 92, 62, 92],
            [11, 17, 22, 70, 4, 66, 92, 28, 77, 51, 70, 66, 63, 32],
            [66, 63, 32, 57, 17, 22, 56, 87, 4, 66, 63, 17, 22, 70],
        ],
        [-1.12540, -1.18093, -1.36511, -1.48614, -1.49706, -1.62262],
    ),
    # It wrote the first of the end tokens, 1, in the place of whichever came.
    (
        (7, 1),
        {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "early_stopping": True},
        {"eos_token_id": ENDS},
        [
            [71, 64, 49, 40, 64, 49, 40, 48, 1],
            [49, 40, 64, 49, 40, 64, 49, 40, 64, 49, 40, 64, 49, 40],
            [49, 40, 64, 49, 40, 64, 49, 40, 64, 49, 40, 64, 64, 64],
            [85, 73, 54, 57, 11, 17, 46, 94, 90, 83, 76, 1],
            [85, 73, 54, 57, 11, 17, 46, 17, 1],
            [71, 64, 49, 40, 1],
        ],
        [-1.09871, -1.17532, -1.22898, -1.33922, -1.34894, -1.37472],
    ),
]


@pytest.mark.parametrize(("prompt", "options", "given", "tokens", "scores"), GOLDEN)
def test_the_groups_that_transformers_had(
    prompt: tuple[int, int],
    options: dict[str, Any],
    given: dict[str, Any],
    tokens: list[list[int]],
    scores: list[float],
) -> None:
    method = DiverseBeamSearch(**options, **FORMER)
    result = generate(lm("llama"), text(*prompt), method, max_new_tokens=14, **given)
    beams = result.paths[:6]
    assert [[*path.tokens[:-1], 1] if path.finish == "stop" else path.tokens for path in beams] == tokens
    assert [path.score for path in beams] == pytest.approx(scores, abs=1e-4)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 6, "num_beam_groups": 4}, "multiple of num_beam_groups"),
        ({"num_beams": 0}, "0 beams cannot be shared"),
        ({"diversity_penalty": -0.1}, "diversity_penalty is -0.1"),
        ({"diversity": "haming"}, "did you mean 'hamming'"),
        ({"schedule": "stagered"}, "did you mean 'staggered'"),
        ({"rank_by": "rwa"}, "unknown ranking"),
        ({"temperature": 0.0}, "above 0"),
        ({"n": 0}, "at least 1"),
        ({"early_stopping": "maybe"}, "early_stopping is 'maybe'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        DiverseBeamSearch(**options)
