"""HyPER: the controller's scores, what its actions do to the pool, and what it is without them."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
from families import build, byte_tokenizer, lm, text
from hypothesis import given
from hypothesis import strategies as st

from ramify.api import generate, prepare
from ramify.engine.events import Event, Forked, Grown, Refined
from ramify.engine.path import Path, mean
from ramify.engine.pool import Pool
from ramify.engine.result import Result
from ramify.engine.search import search
from ramify.errors import RamifyError
from ramify.methods.search.hyper import HyPER
from ramify.methods.search.hyper_controller import (
    ACTIONS,
    BRANCH,
    MULTI,
    NONE,
    SINGLE,
    HyperRec,
    Scale,
    Standing,
    State,
    choose,
    scaled,
    scores,
)
from ramify.methods.search.hyper_policy import Controlled, Hypothesis
from ramify.models.causal import CausalLM, load

PROMPT = "once upon"
ENDS = list(range(40, 52))
NEVER = HyperRec(agree=2.0, start=6)
SMALL: dict[str, Any] = {"length_sign": 1, "interval": 4, "warmup": 4, "limit": 14, "rec": NEVER}


@functools.cache
def mixture() -> CausalLM:
    return load(build("qwen3_moe", vocab_size=258, pad_token_id=256), tokenizer=byte_tokenizer())


def run(method: HyPER | str, seed: int = 1, new: int = 24, on: CausalLM | None = None, **settings: Any) -> Result:
    found: Result = generate(
        on or mixture(), PROMPT, method, max_new_tokens=new, seed=seed, eos_token_id=ENDS,
        answer=lambda text: text[-1:] or None, **settings,
    )  # fmt: skip
    return found


def drive(kind: type[Controlled] = Controlled, seed: int = 1, **options: Any) -> tuple[Controlled, list[Event]]:
    method = HyPER(**SMALL | options)
    [request] = prepare(mixture(), [PROMPT], method, max_new_tokens=24, seed=seed, eos_token_id=ENDS)
    known = method.policy(mixture(), request)
    assert isinstance(known, Controlled)
    policy = kind(method, known.routes, known.note)
    return policy, list(search(mixture(), request, policy, budget=method.budget))


# ---- the controller ----


def test_scores() -> None:
    found = scores(State(0.2, 0.5, 20, 80), Standing(0.1, 0.6), HyperRec())
    assert found[BRANCH] == pytest.approx(0.4 * 0.8 + 0.3 * 0.5 + 0.2 * 0.75 + 0.1 * 0.6)
    assert found[SINGLE] == pytest.approx(0.5 * 0.9 + 0.3 * 0.2 + 0.2 * 0.5)
    assert found[MULTI] == pytest.approx(0.6 * 0.6 + 0.4 * 0.2 - 0.2)
    assert found[NONE] == 0.45
    full = scores(State(0.2, 0.5, 80, 80), Standing(0.1, 0.6), HyperRec())
    assert full[BRANCH] == scores(State(0, 0, 1, 80), Standing(0.1, 0.6, False), HyperRec())[BRANCH] == float("-inf")
    assert scores(State(0.2, 0.5, 20, 80), Standing(0.9, 0), HyperRec())[MULTI] == pytest.approx(0.4 * 0.2 - 0.2)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_multi_token_never_wins_where_tokens_can_be_refined(progress: float, apart: float, confidence: float) -> None:
    found = scores(State(progress, apart, 5, 80), Standing(confidence, 0.5), HyperRec())
    assert found[SINGLE] >= found[MULTI] - 1e-12
    alone = scores(State(1.0, 0.0, 5, 80), Standing(0.0, 0.5), HyperRec())
    assert alone[MULTI] > alone[NONE]


def test_phases() -> None:
    assert [State(p, 0, 1, 2).phase for p in (0.0, 0.34, 0.7, 1.0)] == ["explore", "balance", "exploit", "exploit"]


def test_few_paths_branch_at_once_the_best_first() -> None:
    state = State(0.0, 0.0, 16, 80)
    paths = [Standing(1.0, entropy) for entropy in (0.1, 0.9, 0.5, 0.7)]
    assert choose(state, paths, ACTIONS, HyperRec()) == [NONE, BRANCH, NONE, BRANCH]
    assert choose(State(0.0, 0.0, 79, 80), paths, ACTIONS, HyperRec()).count(BRANCH) == 1
    assert choose(state, paths, (NONE,), HyperRec()) == [NONE] * 4
    assert choose(state, [Standing(0.0, 0.0, False)], (NONE, BRANCH, SINGLE), HyperRec()) == [SINGLE]


def test_a_tie_goes_to_none() -> None:
    level = HyperRec(single=(0.0, 0.0, 0.0), branch=(0.0, 0.0, 0.0, 0.0), multi=(0.0, 0.0, 0.45), none=0.45)
    assert choose(State(0.5, 0.5, 5, 80), [Standing(0.5, 0.5)], ACTIONS, level) == [NONE]


def test_what_the_warm_up_says() -> None:
    scores_of = (12, 11, 9, 8, 8, 7)
    paths = [
        Path(tokens=[1] * n, confidences=[float(c)] * n, entropies=[c / 10] * n) for n, c in enumerate(scores_of, 3)
    ]
    scale = Scale.of(paths, 4, 10.0, HyperRec())
    assert scale.bar == 11.5
    assert Scale.of(paths, 4, 90.0, HyperRec()).bar == 7.5
    assert scale.length == 5.5
    assert scaled(scale.confidence[0], scale.confidence) == 0.0
    assert scaled(99.0, scale.confidence) == 1.0
    assert scaled(1.0, (1.0, 1.0)) == 0.0
    assert scaled(1.1, (1.0, 1.0)) == 1.0


# ---- without actions ----


def test_without_actions_and_pruning_it_samples_like_self_consistency() -> None:
    plain = run("self-consistency", options={"paths": 10}, do_sample=True)
    found = run(HyPER(**SMALL, actions=(NONE,), prune=False))
    assert [path.tokens for path in by_number(found)] == [path.tokens for path in by_number(plain)]
    assert len(found.paths) == 4 + 6
    assert found.cost.generated_tokens == plain.cost.generated_tokens


@pytest.mark.parametrize("options", [{"routes": 0}, {"noise": 0.0, "reuse": 0.0}])
def test_refinement_without_other_routes_is_plain_sampling(options: dict[str, Any]) -> None:
    eager = HyperRec(agree=2.0, start=6, refine_above=-1.0)
    plain = run(HyPER(**SMALL, actions=(NONE,), prune=False))
    found = run(HyPER(**SMALL | {"rec": eager}, prune=False, random=(0, 1, 0, 0), **options))
    assert [path.tokens for path in by_number(found)] == [path.tokens for path in by_number(plain)]
    assert any(isinstance(event, Refined) for event in found.events) is ("noise" in options)


def by_number(result: Result) -> list[Path]:
    return sorted(result.paths, key=lambda path: path.number)


# ---- actions ----


def test_refined_tokens_are_few_and_unsure_and_paid_for() -> None:
    policy, events = drive(prune=False, random=(0, 1, 0, 0), noise=3.0)
    refined = [event for event in events if isinstance(event, Refined)]
    grown = sum(len(event.tokens) for event in events if isinstance(event, Grown))
    again = sum(len(event.paths) for event in refined)
    assert {event.routes for event in refined} == {2}
    assert 0 < again < grown / 2
    assert policy.routes is not None
    assert policy.routes.read == again
    assert 0 < policy.routes.changed <= 1
    assert {path for event in refined for path in event.paths} <= set(range(4, 10))


def test_children_share_exactly_the_prefix() -> None:
    policy, events = drive(prune=False, random=(0.5, 0, 0.5, 0))
    paths = {member.path.number: member.path for member in policy.members}
    forks = [event for event in events if isinstance(event, Forked) and event.parent is not None]
    assert forks
    for fork in forks:
        parent, child = paths[fork.parent], paths[fork.path]
        assert child.tokens[: fork.length] == parent.tokens[: fork.length]
        assert child.tokens[fork.length] != parent.tokens[fork.length]


class Counted(Controlled):
    most = 0

    def reduce(self, pool: Pool) -> None:
        super().reduce(pool)
        self.most = max(self.most, self.size)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"random": (0.1, 0.1, 0.7, 0.1)}])
def test_the_pool_stays_within_its_limit(seed: int, options: dict[str, Any]) -> None:
    policy, _ = drive(Counted, seed, **options)
    assert isinstance(policy, Counted)
    assert 4 < policy.most <= 14
    assert sum(policy.taken.values()) > 0


class Watched(Controlled):
    """Checks that the most confident trial is adopted."""

    adopted = 0

    def _adopt(self, pool: Pool, member: Hypothesis) -> None:
        trials, start, before = member.trials, member.start, self.size
        assert len({tuple(path.tokens[:start]) for path in trials}) == 1
        super()._adopt(pool, member)
        self.adopted += 1
        found = [mean(path.confidences[start:]) for path in trials]
        assert mean(member.path.confidences[start : start + 4]) == pytest.approx(max(found))
        assert self.size == before
        assert all(path.finish == "less confident" for path in trials if path is not member.path)


def test_multi_token_keeps_the_most_confident_stretch() -> None:
    policy, _ = drive(Watched, prune=False, random=(0, 0, 0, 1), rec=HyperRec(agree=2.0, start=6, stretch=2))
    assert isinstance(policy, Watched)
    assert policy.adopted > 10
    assert len(policy.members) == 10


def test_pruning_takes_the_unsure_and_leaves_some() -> None:
    policy, _ = drive(actions=(NONE,))
    pruned = [member.path for member in policy.members if member.path.finish == "confidence"]
    assert pruned
    assert policy.scale is not None
    for path in pruned:
        assert mean(path.confidences[-8:]) < policy.scale.bar
    cut = []
    for least in (2, 9):
        harsh, _ = drive(actions=(NONE,), eta=1e-9, rec=HyperRec(agree=2.0, start=6, least=least))
        cut.append(sum(member.path.finish == "confidence" for member in harsh.members))
    assert cut[0] > cut[1] == 1
    result = run(HyPER(**SMALL, actions=(NONE,)))
    assert all(path.answer is None for path in result.paths if path.finish == "confidence")


def test_it_ends_when_answers_agree() -> None:
    method = HyPER(**SMALL | {"rec": HyperRec(agreeing=4)})
    found: Result = generate(mixture(), PROMPT, method, max_new_tokens=9, seed=1, answer=lambda text: "same")
    assert len(found.paths) == 4
    assert found.answer == "same"


def test_the_budget_holds() -> None:
    for budget in (30, 150):
        _, events = drive(budget=budget, noise=2.0)
        spent = sum(len(event.tokens) for event in events if isinstance(event, Grown))
        spent += sum(len(event.paths) * (1 + event.routes) for event in events if isinstance(event, Refined))
        assert spent <= budget + 4 * 14


def test_the_same_seed_gives_the_same_paths() -> None:
    first, second = run(HyPER(**SMALL)), run(HyPER(**SMALL))
    assert [path.tokens for path in first.paths] == [path.tokens for path in second.paths]
    assert first.answer == second.answer


def test_a_random_controller_draws_by_its_chances() -> None:
    taken: Counter[str] = Counter()
    for seed in range(4):
        policy, _ = drive(seed=seed, random=(0.5, 0.5, 0, 0), prune=False)
        for (_, action), count in policy.taken.items():
            taken[action] += count
    assert set(taken) == {NONE, SINGLE}
    assert abs(taken[SINGLE] / taken.total() - 0.5) < 0.15


# ---- what it refuses or drops ----


def test_a_dense_model_goes_without_refinement_and_says_so() -> None:
    dense = lm("llama")
    found: Result = generate(dense, text(5), HyPER(**SMALL), max_new_tokens=12)
    assert any("single-token refinement is left out" in note and "mixture of experts" in note for note in found.notes)
    assert not any(isinstance(event, Refined) for event in found.events)
    quiet: Result = generate(dense, text(5), HyPER(**SMALL, actions=(NONE, BRANCH)), max_new_tokens=12)
    assert not any("refinement" in note for note in quiet.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "length_sign is None; give 1 if longer"),
        ({"length_sign": 0}, "by calibrate_length"),
        ({"length_sign": 1, "warmup": 0}, "must be at least 1"),
        ({"length_sign": 1, "limit": 16}, "no room beside 16 warm-up paths"),
        ({"length_sign": 1, "eta": 0.0}, "percentage of the warm-up"),
        ({"length_sign": 1, "noise": -0.1}, "must not be negative"),
        ({"length_sign": 1, "actions": ("none", "brnch")}, "did you mean 'branch'"),
        ({"length_sign": 1, "random": (1.0, 0.0)}, "a chance for each of none, single-token"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        HyPER(**options)
