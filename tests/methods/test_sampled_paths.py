"""Self-consistency, best-of-N and DeepConf: the same paths, read in different ways."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from families import byte_lm

import ramify
from ramify.engine.aggregate import confidence_bar, lowest
from ramify.engine.events import Ended
from ramify.engine.path import Path, mean
from ramify.engine.result import Result

PROMPT = "one and one is"


def letter(text: str) -> str | None:
    """One of three answers, or none: random text agrees on it now and then."""
    return ("a", "b", "c", None)[sum(map(ord, text)) % 4]


def solve(method: str, seed: int = 4, new: int = 24, **options: Any) -> Result:
    return ramify.generate(
        byte_lm(), PROMPT, method, options=options, answer=letter, seed=seed, max_new_tokens=new, do_sample=True
    )


def by_number(result: Result) -> dict[int, Path]:
    return {path.number: path for path in sorted(result.paths, key=lambda path: path.number)}


def test_self_consistency_counts_heads() -> None:
    result = solve("self-consistency", paths=12)
    answers = [path.answer for path in by_number(result).values()]
    assert result.answer == max(result.votes, key=result.votes.__getitem__)
    assert {answer: answers.count(answer) for answer in set(answers) - {None}} == result.votes
    assert result.paths[0].answer == result.answer
    assert result.text == result.paths[0].text
    assert list(result.votes.values()) == sorted(result.votes.values(), reverse=True)


def test_one_path_is_the_sample() -> None:
    sample = ramify.generate(byte_lm(), PROMPT, "sample", seed=4, max_new_tokens=24, do_sample=True)
    assert solve("self-consistency", paths=1).tokens == sample.tokens
    assert by_number(solve("self-consistency", paths=5))[0].tokens == sample.tokens


def test_pools_of_a_request_are_paired() -> None:
    small, large = by_number(solve("self-consistency", paths=3)), by_number(solve("best-of-n", paths=6))
    online = by_number(solve("deepconf", paths=6, warmup=2, batch=2, window=4, eta=90, agree=None))
    for number, path in small.items():
        assert path.tokens == large[number].tokens
    for number, path in online.items():
        assert path.tokens == large[number].tokens[: len(path)]


def test_the_adaptive_stop() -> None:
    whole = solve("self-consistency", paths=12, seed=3)
    stopped = solve("self-consistency", paths=12, agree=0.01, batch=3, seed=3)
    assert len(stopped.paths) == 3
    assert stopped.cost.generated_tokens < whole.cost.generated_tokens
    never = solve("self-consistency", paths=10, agree=1.0, batch=4, seed=3)
    assert len(never.paths) == 10
    assert {n: path.tokens for n, path in by_number(never).items()}.items() <= {
        n: path.tokens for n, path in by_number(whole).items()
    }.items()


def test_the_best_of_n_is_the_likeliest_by_a_fresh_pass() -> None:
    result = solve("best-of-n", paths=8)
    lm = byte_lm()
    means = {}
    for path in result.paths:
        ids = torch.tensor([[*result.prompt, *path.tokens]])
        with torch.no_grad():
            logp = torch.log_softmax(lm.model(ids).logits[0].float(), dim=-1)
        places = torch.arange(len(result.prompt) - 1, ids.shape[1] - 1)
        means[path.number] = float(logp[places, ids[0, len(result.prompt) :]].mean())
        assert path.mean_log_prob == pytest.approx(means[path.number], abs=1e-4)
    assert result.paths[0].number == max(means, key=means.__getitem__)
    assert result.tokens == result.paths[0].tokens
    total = solve("best-of-n", paths=8, mean=False)
    assert sum(total.paths[0].log_probs) == max(sum(path.log_probs) for path in total.paths)


def test_the_warped_law_is_the_one_that_was_sampled() -> None:
    settings: dict[str, Any] = {"seed": 1, "max_new_tokens": 12, "do_sample": True, "top_k": 3}
    result = ramify.generate(byte_lm(), PROMPT, "best-of-n", options={"paths": 4, "law": "warped"}, **settings)
    best = max(result.paths, key=lambda path: mean(path.sampled_log_probs))
    assert result.paths[0] is best
    for path in result.paths:
        pairs = zip(path.sampled_log_probs, path.log_probs, strict=True)
        assert all(sampled > raw for sampled, raw in pairs)


def test_deepconf_offline_weighs_the_confident() -> None:
    result = solve("deepconf", paths=12, online=False, eta=50, window=6)
    paths = list(by_number(result).values())
    bar = confidence_bar([lowest(path, 6) for path in paths], 50)
    votes: dict[str, float] = {}
    for path in paths:
        if lowest(path, 6) >= bar and path.answer:
            votes[path.answer] = votes.get(path.answer, 0) + lowest(path, 6)
    assert result.votes == pytest.approx(votes)
    for score, of in (("mean", lambda p: p.confidence), ("tail", lambda p: mean(p.confidences[-6:]))):
        every = solve("deepconf", paths=12, online=False, eta=100, window=6, score=score)
        assert sum(every.votes.values()) == pytest.approx(sum(of(path) for path in every.paths if path.answer))


def test_deepconf_online_cuts_what_falls_below_the_bar() -> None:
    result = solve("deepconf", paths=16, warmup=6, batch=5, window=5, eta=60, agree=None)
    paths = by_number(result)
    warm = [paths[number] for number in range(6)]
    bar = confidence_bar([lowest(path, 5) for path in warm], 60)
    assert all(path.complete for path in warm)
    cut = [path for path in paths.values() if path.finish == "confidence"]
    assert cut
    assert len(paths) == 16
    for path in list(paths.values())[6:]:
        low = [mean(path.confidences[end - 5 : end]) < bar for end in range(5, len(path) + 1)]
        if path.finish == "confidence":
            assert low.index(True) == len(low) - 1
        else:
            assert not any(low[:-1])
    voters = [path for path in paths.values() if path.complete and (path.number >= 6 or lowest(path, 5) >= bar)]
    assert sum(result.votes.values()) == pytest.approx(sum(lowest(path, 5) for path in voters if path.answer))
    assert {event.path for event in result.events if isinstance(event, Ended) and event.reason == "confidence"} == {
        path.number for path in cut
    }
    assert result.cost.generated_tokens == sum(map(len, paths.values()))


def test_deepconf_without_a_cut_is_a_weighted_vote() -> None:
    online = solve("deepconf", paths=8, warmup=8, eta=100, window=2048)
    offline = solve("deepconf", paths=8, online=False, eta=100, window=2048)
    assert online.votes == offline.votes
    assert online.answer == offline.answer


def test_deepconf_ends_when_the_votes_agree() -> None:
    assert len(solve("deepconf", paths=30, warmup=4, eta=100, window=5, agree=0.01).paths) == 4


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("self-consistency", {"paths": 0}, "paths and batch must be at least 1, got 0 and 8"),
        ("self-consistency", {"agree": 1.5}, "agree is 1.5; it is a share above 0, and 1 at most"),
        ("best-of-n", {"paths": 0}, "paths must be at least 1, got 0"),
        ("best-of-n", {"law": "rew"}, "raw"),
        ("deepconf", {"eta": 0}, "eta is 0; it is the percentage of paths to trust"),
        ("deepconf", {"warmup": 99}, "99 warm-up paths do not fit 64 paths"),
        ("deepconf", {"score": "tail"}, "score='tail' goes with online=False"),
        ("deepconf", {"window": 0}, "window must be at least 1, got 0"),
        ("deepconf", {"score": "lowst"}, "lowest"),
        ("deepconf", {"agree": 0}, "agree is 0"),
    ],
)
def test_bad_options(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ramify.RamifyError, match=re.escape(message)):
        solve(method, **options)


def test_inside_transformers() -> None:
    lm = byte_lm()
    inputs = torch.tensor([lm.encode(PROMPT)])
    torch.manual_seed(0)
    output = lm.model.generate(
        inputs, custom_generate=ramify.BestOfN(paths=3), max_new_tokens=6, do_sample=True, attention_mask=inputs * 0 + 1
    )
    assert output.shape == (1, inputs.shape[1] + 6)
