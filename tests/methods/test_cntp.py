"""Cautious decoding: how many trials, which one stays, and what it is the same as where nothing branches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import byte_lm
from torch import Tensor

from ramify.api import generate, prepare
from ramify.engine.events import Ended
from ramify.engine.path import Path
from ramify.engine.pool import Pool
from ramify.engine.result import Result
from ramify.engine.search import search
from ramify.engine.step_pool import Choice
from ramify.errors import RamifyError
from ramify.methods.registry import create
from ramify.methods.search.cntp import CLAUSE, CNTP, _Cautious

PROMPT = "once upon"
EOS = 257
SETTINGS: dict[str, Any] = {"temperature": 1.2, "top_p": 0.9, "eos_token_id": EOS}


def run(method: CNTP | str = "cntp", prompt: str = PROMPT, seed: int = 3, new: int = 30, **settings: Any) -> Result:
    if not isinstance(method, str):
        settings = SETTINGS | settings
    return generate(byte_lm(), prompt, method, max_new_tokens=new, seed=seed, **settings)


class Script:
    """A logits processor that makes the law behind every text what ``law`` says: {character: probability}."""

    def __init__(self, law: Any, shift: float = 0.0) -> None:
        self.law, self.shift = law, shift

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        found = torch.full_like(scores, -torch.inf)
        for row, text in enumerate(ids[:, len(PROMPT) :].tolist()):
            for letter, chance in self.law("".join(map(chr, text))).items():
                found[row, EOS if letter == "end" else ord(letter)] = math.log(chance) + self.shift
        return found


def fork(text: str) -> dict[str, float]:
    """A (0.6) and three tokens of 0.5, or B (0.4) and six of 0.95; the last one of either is a mark."""
    if not text:
        return {"A": 0.6, "B": 0.4}
    if text[0] == "A" and len(text) < 4:
        return {",": 0.5, ";": 0.5} if len(text) == 3 else {"x": 0.5, "y": 0.5}
    if text[0] == "B" and len(text) < 7:
        return {".": 0.95, "!": 0.05} if len(text) == 6 else {"b": 0.95, "c": 0.05}
    return {"end": 1.0}


@pytest.mark.parametrize(
    ("entropy", "code", "paper"),
    [
        (0.10, 1, 1), (0.17, 1, 1), (0.30, 2, 1), (0.31, 2, 2), (0.43, 3, 2), (0.67301, 5, 4), (0.92, 6, 6),
        (1.20, 8, 7), (1.49, 9, 9), (1.5, 10, 10), (4.0, 10, 10), (0.0, 1, 1),
    ],
)  # fmt: skip
def test_how_many_trials(entropy: float, code: int, paper: int) -> None:
    assert CNTP().trials(entropy) == code
    assert CNTP(schedule="paper").trials(entropy) == paper
    assert CNTP(schedule="fixed").trials(entropy) == 6
    exact = 1 + 9 * min(max((entropy - 0.01) / 1.49, 0), 1)
    assert CNTP(schedule="negative").trials(entropy) == math.floor(11 - exact)


def test_uncertainties() -> None:
    laws = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]])
    entropy = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    assert CNTP().unsure(laws).tolist() == pytest.approx([entropy, 0.0])
    assert CNTP(uncertainty="probability").unsure(laws).tolist() == pytest.approx([0.4, 0.0])
    assert CNTP(uncertainty="margin").unsure(laws).tolist() == pytest.approx([0.7, 0.0])


@pytest.mark.parametrize(("schedule", "expected"), [("code", 0.92224), ("paper", 0.8704)])
def test_the_likelier_way_wins_though_its_first_token_is_the_less_likely(schedule: str, expected: float) -> None:
    chains = 300
    method = CNTP(schedule=schedule, chains=chains)
    result = generate(byte_lm(), PROMPT, method, max_new_tokens=12, eos_token_id=EOS, logits_processor=[Script(fork)])
    kept = [path for path in result.paths if path.complete]
    assert len(kept) == chains
    assert len(result.paths) == chains * (5 if schedule == "code" else 4)
    scores = {path.text: path.score for path in result.paths}
    assert next(score for text, score in scores.items() if text[0] == "A") == pytest.approx(1.91089, abs=1e-4)
    assert scores["Bbbbbb."] == pytest.approx(1.19108, abs=1e-4)
    share = sum(path.text[0] == "B" for path in kept) / chains
    assert abs(share - expected) < 0.05


# ---- what it is where nothing branches ----


def test_one_trial_at_most_is_plain_sampling() -> None:
    for seed in range(3):
        plain = run("sample", seed=seed, **SETTINGS)
        assert run(CNTP(max_trials=1), seed=seed).tokens == plain.tokens
        assert run(CNTP(low=90.0, high=91.0), seed=seed).tokens == plain.tokens


@pytest.mark.parametrize("sharp", [{"temperature": 1e-4}, {"top_p": 1e-6}])
def test_a_sharp_law_never_branches(sharp: dict[str, float]) -> None:
    result = run(CNTP(), **sharp)
    assert result.tokens == run("greedy", eos_token_id=EOS).tokens
    assert len(result.paths) == 1


def test_chains_without_trials_are_self_consistency() -> None:
    voted = run("self-consistency", options={"paths": 5}, do_sample=True, **SETTINGS)
    chains = run(CNTP(max_trials=1, chains=5))
    assert sorted(path.tokens for path in chains.paths) == sorted(path.tokens for path in voted.paths)
    assert chains.votes == voted.votes


# ---- trials ----


def perplexity(path: Path, start: int, *, raw: bool) -> float:
    """That of ``path`` from its token ``start`` on, from one fresh forward pass."""
    [request] = prepare(byte_lm(), [PROMPT], create("cntp"), max_new_tokens=30, **SETTINGS)
    text = torch.tensor([[*request.prompt, *path.tokens]])
    logits = fresh(text)
    total = 0.0
    for place in range(start, len(path)):
        end = len(request.prompt) + place
        law = logits[end - 1].softmax(-1) if raw else request.sampler.law(text[0, :end], logits[end - 1])
        total += math.log(float(law[path.tokens[place]]))
    return math.exp(-total / (len(path) - start))


@torch.no_grad()
def fresh(text: Tensor) -> Tensor:
    logits: Tensor = byte_lm().model(input_ids=text, use_cache=False).logits[0]
    return logits


class Watched(_Cautious):
    """Checks at every adoption where the trials ended, their perplexities, and the cache of the one that stays."""

    adopted = 0

    def _adopt(self, pool: Pool, chain: Any) -> None:
        start, branch = chain.start, list(chain.trials)
        before = branch[0].tokens[:start]
        super()._adopt(pool, chain)
        self.adopted += 1
        raw = self.options.score_law == "raw"
        found = [perplexity(path, start, raw=raw) for path in branch]
        assert [path.score for path in branch] == pytest.approx(found, rel=1e-3)
        assert chain.path is branch[min(range(len(branch)), key=lambda place: branch[place].score)]
        for path in branch:
            assert path.tokens[:start] == before
            self.ended_rightly(path.tokens[start:], len(path) == 30)
            assert (path.finish == "perplexity") is (path is not chain.path)
        if chain.path.finish is None:
            logits = fresh(torch.tensor([[*pool.request.prompt, *chain.path.tokens]]))[-1]
            torch.testing.assert_close(pool.log_probs([chain.path])[0], logits.log_softmax(-1), atol=1e-4, rtol=1e-4)

    def ended_rightly(self, trial: list[int], limit: bool) -> None:
        *inner, last = trial
        if self.options.stop == "token":
            assert not inner
            return
        ends = {*map(ord, {"clause": CLAUSE, "sentence": ".?!\n", "answer": ""}[self.options.stop]), EOS}
        assert last in ends or limit
        assert not set(inner) & ends


class OneByOne(_Cautious):
    """Trials after one another instead of side by side."""

    def expand(self, pool: Pool) -> list[Choice]:
        growing = [path for chain in self.chains for path in self._growing(pool, chain)]
        return pool.sample(growing[:1])


def drive(kind: type[_Cautious], options: CNTP, seed: int = 5) -> tuple[_Cautious, list[Any]]:
    lm = byte_lm()
    [request] = prepare(lm, [PROMPT], options, max_new_tokens=30, seed=seed, **SETTINGS)
    policy = kind(options)
    return policy, list(search(lm, request, policy))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": "token"},
        {"stop": "sentence"},
        {"stop": "answer"},
        {"score_law": "raw"},
        {"uncertainty": "margin", "high": None},
    ],
)
def test_the_trial_of_the_lowest_perplexity_stays(options: dict[str, Any]) -> None:
    policy, _ = drive(Watched, CNTP(**{"high": 6.0, "max_trials": 5} | options))
    assert isinstance(policy, Watched)
    assert policy.adopted > 0


def test_side_by_side_is_one_by_one() -> None:
    options = CNTP(high=6.0, max_trials=5)
    batched, _ = drive(_Cautious, options)
    sequential, _ = drive(OneByOne, options)
    assert sequential.chains[0].path.tokens == batched.chains[0].path.tokens
    assert sequential.chains[0].path.number == batched.chains[0].path.number


@pytest.mark.parametrize("options", [{"max_trials": 1}, {"high": 6.0}, {"schedule": "fixed", "stop": "token"}])
def test_what_it_costs(options: dict[str, Any]) -> None:
    result = run(CNTP(**options))
    branched = len(result.paths) > 1
    assert result.cost.kept_tokens == len(result.tokens)
    assert (result.cost.generated_tokens > result.cost.kept_tokens) is branched
    assert result.cost.generated_tokens >= result.cost.kept_tokens
    assert branched is (options != {"max_trials": 1})


def test_a_constant_on_all_logits_changes_nothing() -> None:
    def shifted(shift: float) -> list[int]:
        found = generate(
            byte_lm(), PROMPT, CNTP(), max_new_tokens=12, eos_token_id=EOS, logits_processor=[Script(fork, shift)]
        )
        return found.tokens

    assert shifted(0.0) == shifted(64.0)


def test_a_token_that_only_ends_with_a_mark() -> None:
    assert [CNTP().ends(text) for text in (",", " .)", ", ", ".\n", ",a", "a")] == [True] * 4 + [False] * 2
    exact = CNTP(exact_ids=True)
    assert [exact.ends(text) for text in (*CLAUSE, " .)", ", ", ".\n")] == [True] * len(CLAUSE) + [False] * 3
    assert CNTP(stop="token").ends("a")
    assert not CNTP(stop="answer").ends(".")


def test_trials_may_be_kept_from_ending_at_once() -> None:
    def law(text: str) -> dict[str, float]:
        return {",": 0.5, "a": 0.3, "b": 0.2} if len(text) < 8 else {"end": 1.0}

    def first_trials(least: int) -> set[int]:
        method = CNTP(min_trial_tokens=least, chains=40)
        found = generate(byte_lm(), PROMPT, method, max_new_tokens=12, eos_token_id=EOS, logits_processor=[Script(law)])
        return {len(path) for path in found.paths if path.parent is not None and path.start == 0 and not path.complete}

    assert 1 in first_trials(1)
    assert min(first_trials(3)) == 3


def test_a_budget_within_trials() -> None:
    """What was given out early is the beginning of what is kept, though a lost trial is longer than what was kept."""

    def law(text: str) -> dict[str, float]:
        if text[:1] == "B":
            return {"x": 0.5, "y": 0.5} if len(text) < 16 else {".": 1.0}
        return {"": {"A": 0.5, "B": 0.5}, "A": {".": 1.0}}.get(text, {"c": 0.5, "d": 0.5})

    longer = 0
    for budget in (60, 80, 100):
        found = generate(byte_lm(), PROMPT, CNTP(budget=budget), max_new_tokens=40, logits_processor=[Script(law)])
        assert any("came to its end" in note for note in found.notes)
        ended = [event for event in found.events if isinstance(event, Ended)]
        assert len({event.path for event in ended}) == len(found.paths)
        assert found.tokens == found.paths[0].tokens
        longer += found.text.startswith("A") and max(map(len, found.paths)) > len(found.tokens)
    assert longer > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_trials": 0}, "max_trials must be at least 1"),
        ({"min_trials": 4, "max_trials": 3}, "swap them"),
        ({"low": 2.0}, "0 ≤ low < high"),
        ({"low": -1.0}, "0 ≤ low < high"),
        ({"schedule": "negativ"}, "did you mean 'negative'"),
        ({"score_law": "row"}, "did you mean 'raw'"),
        ({"stop": "claus"}, "did you mean 'clause'"),
        ({"uncertainty": "entrpy"}, "did you mean 'entropy'"),
        ({"chains": 0}, "chains must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        CNTP(**options)


def test_marks_need_a_tokenizer() -> None:
    from families import lm

    with pytest.raises(RamifyError, match="without a tokenizer"):
        generate(lm("llama"), [3, 14, 15], "cntp", max_new_tokens=4)
    found = generate(lm("llama"), [3, 14, 15], "cntp", options={"stop": "token"}, max_new_tokens=4)
    assert len(found.tokens) == 4
