"""Contrastive search gives what transformers' gave, and what the formula says on fresh forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import fresh, lm, model, text

from ramify.api import generate
from ramify.engine.events import Scored
from ramify.engine.pool import Pool
from ramify.engine.request import Request
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.methods.search.contrastive_search import ContrastiveSearch

NEW = 14
ENDS = list(range(1, 40, 3))

# ``model.generate(penalty_alpha=…, top_k=…)`` of transformers 4.44.2 over the weights of families.lm("llama").
GOLDEN: list[tuple[list[int], tuple[float, int], dict[str, Any], list[int]]] = [
    (text(7, 1), (0.6, 4), {}, [71, 64, 49, 40, 66, 26, 9, 77, 20, 46, 94, 4, 62, 92]),
    (
        text(9, 3, 3),
        (0.4, 8),
        {"repetition_penalty": 1.2},
        [90, 47, 46, 17, 22, 11, 43, 27, 92, 30, 87, 83, 54, 60],
    ),
    (text(7, 1), (0.6, 4), {"eos_token_id": ENDS}, [71, 64, 49, 40, 66, 26, 9, 77, 20, 46, 94, 4]),
]


@pytest.mark.parametrize(("prompt", "options", "given", "tokens"), GOLDEN)
def test_what_transformers_had(prompt: list[int], options: Any, given: dict[str, Any], tokens: list[int]) -> None:
    for how in ("", "transformers"):
        result = generate(lm("llama", how), prompt, ContrastiveSearch(*options), max_new_tokens=NEW, **given)
        assert result.tokens == tokens
        assert result.finish == ("stop" if len(tokens) < NEW else "length")
    # One pass a step, over the candidates; the token that is chosen is not read again.
    assert result.cost.row_steps == options[1] * len(tokens)
    assert result.stats.target_calls == len(tokens)
    assert result.cost.generated_tokens == len(tokens)


@torch.no_grad()
def by_hand(family: str, tokens: list[int], alpha: float, k: int) -> int:
    """The next token by the formula, every candidate in a pass of its own."""
    likely = fresh(family, tokens)[-1].softmax(dim=-1).topk(k)
    scores = []
    for probability, token in zip(likely.values, likely.indices.tolist(), strict=True):
        ids = torch.tensor([[*tokens, token]])
        states = model(family)(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1][0]
        alike = max(float(torch.cosine_similarity(states[-1], state, dim=0)) for state in states[:-1])
        scores.append((1 - alpha) * float(probability) - alpha * alike)
    return int(likely.indices[max(range(k), key=scores.__getitem__)])


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt2", "qwen3_moe"])
def test_the_formula(family: str) -> None:
    prompt = text(6, 2)
    tokens = generate(lm(family), prompt, ContrastiveSearch(0.7, 5), max_new_tokens=8).tokens
    for place, token in enumerate(tokens):
        assert token == by_hand(family, [*prompt, *tokens[:place]], 0.7, 5)


@pytest.mark.parametrize("options", [(0.0, 5), (0.6, 1)])
def test_without_penalty_or_choice_it_is_greedy(options: Any) -> None:
    prompt = text(6, 2)
    expected = generate(lm("llama"), prompt, max_new_tokens=NEW).tokens
    assert generate(lm("llama"), prompt, ContrastiveSearch(*options), max_new_tokens=NEW).tokens == expected


def test_inside_transformers() -> None:
    prompt, options, given, tokens = GOLDEN[1]
    ids = torch.tensor([prompt])
    output = model("llama").generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=ContrastiveSearch(*options),
        max_new_tokens=NEW,
        **given,
    )
    assert output[0, len(prompt) :].tolist() == tokens


# ---------------------------------------------------------------- a look ahead


def test_a_look_changes_nothing_and_spares_a_pass() -> None:
    def grow(look: bool) -> tuple[list[list[int]], list[float], int]:
        pool = Pool(lm("llama"), Request(text(5, 1), 40), layers=(-1, 1))
        first, second = pool.start(2)
        for step in range(6):
            ahead = [*range(10 + step, 14 + step)]
            if look:
                states = pool.look(second, ahead, 1)
                assert states.shape == (4, 32)
                if step == 4:
                    pool.look(first, [7, 8], 1)  # another look, and nothing comes of it
            pool.advance([Choice(second, ahead[2])])
            if look and step != 4:
                assert torch.allclose(pool.states([second], 1)[0], states[2], atol=1e-5)
            if step % 2:
                pool.advance([Choice(first, 50 + step), Choice(second, 60 + step)])
        passes = sum(isinstance(event, Scored) for event in pool.events)
        tokens = [path.tokens for path in (first, second)]
        return tokens, [*pool.log_probs([first, second]).flatten().tolist()], passes

    plain, looked = grow(False), grow(True)
    assert looked[0] == plain[0]
    assert looked[1] == pytest.approx(plain[1], abs=1e-4)
    assert looked[2] == plain[2] + 2  # the looks that nothing came of


def test_states_are_those_of_fresh_passes() -> None:
    prompt = text(5, 1)
    pool = Pool(lm("gemma3"), Request(prompt, 40), layers=(-1, 1))
    one, other = pool.start(2)
    pool.advance([Choice(one, 4), Choice(other, 5)])
    pool.advance([Choice(other, 6)])
    for layer in (-1, 1):
        with torch.no_grad():
            states = model("gemma3")(input_ids=torch.tensor([[*prompt, 5, 6]]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(pool.prompt_states(layer), states[layer][0, :5], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pool.states([other], layer)[0], states[layer][0, -1], atol=1e-4, rtol=1e-4)


def test_a_model_that_cannot_score_trees_is_refused() -> None:
    with pytest.raises(RamifyError, match="cannot run a look at several tokens"):
        generate(lm("mamba"), [1, 2, 3], ContrastiveSearch(), max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"penalty_alpha": 1.1}, "penalty_alpha is 1.1"), ({"top_k": 0}, "top_k must be at least 1")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        ContrastiveSearch(**options)
