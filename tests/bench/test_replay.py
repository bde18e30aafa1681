"""Replays give what the loop itself counts, and the ADED recipe compares what its labels say."""

from __future__ import annotations

from typing import Any

import pytest
from families import VOCABULARY, byte_lm, lm, text

import ramify.bench.recipes.aded as recipe
from ramify.api import generate, prepare
from ramify.bench.prompts import Prompt
from ramify.bench.replay import Replay, replay
from ramify.errors import RamifyError
from ramify.methods.base import DraftMethod
from ramify.methods.draft.aded import Aded
from ramify.methods.draft.datastore import Datastore
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.rest import Rest
from ramify.methods.draft.suffix import Suffix

PROMPTS = [text(17, 2, period=6), text(9, 3, period=3), text(5, 1)]
SAMPLED = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "method",
    [
        PromptLookup(length=10),
        Suffix(length=40),
        Aded("empty", nodes=24),
        Rest(Datastore.of([PROMPTS[0] * 3], VOCABULARY), nodes=16, shortest=1),
    ],
    ids=lambda method: method.card.name,
)
def test_a_replay_is_what_the_loop_counts(method: DraftMethod, settings: dict[str, Any]):
    for row, prompt in enumerate(PROMPTS):
        how = {"max_new_tokens": 32, "seed": 5 + row, **settings}
        method.memory.clear()
        run = generate(lm("llama"), prompt, method, **how)
        method.memory.clear()
        [request] = prepare(lm("llama"), [prompt], method, **how)
        drafter = method.drafter(lm("llama"), request)
        assert drafter is not None
        found = replay(drafter, request, run.tokens)
        assert (found.tokens, found.calls) == (run.stats.generated_tokens, run.stats.target_calls)
        assert found.nodes == run.stats.drafted
        assert found.seconds > 0


def test_an_early_end_is_the_loops_too():
    method = Aded("empty", nodes=24)
    plain = generate(lm("llama"), PROMPTS[1], "greedy", max_new_tokens=40).tokens
    stop = plain[-1]
    run = generate(lm("llama"), PROMPTS[1], method, max_new_tokens=40, eos_token_id=stop)
    assert len(run.tokens) == plain.index(stop) + 1 < 40
    method.memory.clear()
    [request] = prepare(lm("llama"), [PROMPTS[1]], method, max_new_tokens=40, eos_token_id=stop)
    drafter = method.drafter(lm("llama"), request)
    assert drafter is not None
    assert replay(drafter, request, run.tokens).calls == run.stats.target_calls


def test_sums():
    assert Replay.sum([Replay(6, 2, 10, 0.5), Replay(3, 1, 2, 0.25)]) == Replay(9, 3, 12, 0.75)
    assert Replay(6, 4).tokens_per_call == 1.5
    assert Replay.sum([]).tokens_per_call == 0.0


def test_the_recipe_compares_what_it_says(monkeypatch: pytest.MonkeyPatch):
    corpus = [text(400, 1), text(400, 2, period=40)]
    monkeypatch.setattr(recipe, "documents", lambda lm: corpus)
    for label, method in recipe.variants(lm("llama")).items():
        wanted = int(label.rsplit(" ", 2)[-2]) if label.endswith(" nodes") else 64
        if isinstance(method, Aded):
            assert method.nodes == wanted
            assert (method.c1 == 1.814) == ("C1" in label)
            assert method.adapt == (label != "adaptation off")
            assert (method.table == "empty") == (label == "empty corpus")
            assert (method.reward == "constant") == ("constant" in label)
            assert (method.scope == "request") == ("afresh" in label)
            assert method.seed_from_prompt == ("seeded" in label)
            assert (method.search == "mcts") == ("search" not in label)
            assert method.search in (label.split()[0], "mcts")
            assert method.iterations == (int(label.split()[0]) if "iterations" in label else None)
        elif isinstance(method, Rest):
            assert method.nodes == wanted
            assert len(method._datastore(lm("llama"))) == 802


def test_the_recipe_replays_plain_decoding(monkeypatch: pytest.MonkeyPatch):
    prompts = [Prompt(letter, letter * 5) for letter in "abcd"]
    monkeypatch.setattr(recipe, "held_out_prompts", lambda count: prompts[:count])
    monkeypatch.setattr(recipe, "load", lambda *_, **__: byte_lm())
    texts = recipe.written(byte_lm(), 4, 12, 3, **SAMPLED)
    for index, each in enumerate(texts):
        plain = generate(byte_lm(), prompts[index].text, "sample", max_new_tokens=12, seed=3000 + index, **SAMPLED)
        assert (bytes(each.request.prompt).decode(), each.text) == (prompts[index].text, plain.tokens)
    orders = [[text.request.prompt[0] for text in turned] for turned in recipe.turns(texts)]
    assert list(map(bytes, orders)) == [b"abcd", b"bcda", b"cdab", b"dabc"]

    found: dict[str, DraftMethod] = {"copies": PromptLookup(length=4), "adapts": Aded("empty", nodes=8)}
    monkeypatch.setattr(recipe, "variants", lambda lm: found)
    [table] = recipe.run(prompts=4, seeds=2, max_new_tokens=12).tables
    assert [row["variant"] for row in table.rows] == list(found)
    for row in table.rows:
        assert 1.0 <= row["lowest"] <= row["T = 0.7, mean"] <= row["highest"]
        assert row["greedy"] > 1.0
        assert 0 < row["nodes a call"] <= 8
    [short] = recipe.run(prompts=2, seeds=1, max_new_tokens=4, only="adapt").tables
    assert [row["variant"] for row in short.rows] == ["adapts"]
    with pytest.raises(RamifyError, match="did you mean 'copies'"):
        recipe.run(only="copise")
    copies = table.rows[0]
    assert copies["first quarter"] == copies["last quarter"] == pytest.approx(copies["T = 0.7, mean"], rel=0.05)
    greedy = [replay(found["copies"].drafter(byte_lm(), t.request), t.request, t.text)  # type: ignore[arg-type]
              for t in recipe.written(byte_lm(), 4, 12, 0)]  # fmt: skip
    assert copies["greedy"] == Replay.sum(greedy).tokens_per_call
