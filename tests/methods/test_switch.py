"""The off switch: by made-up clocks it goes off where drafting is slower, rests, tries again; the drafter goes on
learning; nothing depends on the machine's own clock here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import lm, text

from ramify.api import generate
from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft import switch as module
from ramify.methods.draft.switch import LONGEST, REST, SPIKE, TRIAL, WINDOW, Speed, Switch, Switched
from ramify.methods.registry import create

CONTEXT = Context([1], 9, Sampler(), torch.Generator(), 1)


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


class Three(Drafter):
    """Proposes three tokens, and remembers what it saw."""

    hidden_layers = (1,)
    wants_prompt_logits = True

    def __init__(self) -> None:
        self.seen: list[Outcome] = []
        self.others: list[Any] = []

    def start(self, prompt: Sequence[int]) -> None:
        self.others.append(("start", list(prompt)))

    def observe_prompt(self, tokens: list[int], logits: Any, hidden: Any) -> None:
        self.others.append(("prompt", tokens))

    def rewind(self, length: int) -> None:
        self.others.append(("rewind", length))

    def draft(self, context: Context) -> TokenTree:
        return TokenTree.chain([1, 2, 3])

    def observe(self, outcome: Outcome) -> None:
        self.seen.append(outcome)


class Play:
    """Steps of a switched drafter: with a draft they take ``slow`` seconds and give ``tokens``, plain ones 1 and 1."""

    def __init__(self, slow: float, tokens: int, expected: float = 1.0, **more: Any) -> None:
        self.slow, self.tokens, self.plain_seconds = slow, tokens, 1.0
        self.clock, self.inner = Clock(), Three()
        self.switch = Switch(self.inner, Speed(expected), clock=self.clock, **more)

    def steps(self, count: int) -> str:
        """ "d" for a step with a draft, "." for a plain one."""
        kinds = ""
        for _ in range(count):
            tree = self.switch.draft(CONTEXT)
            self.clock.now += self.slow if len(tree) else self.plain_seconds
            rooted = tree.rooted(9)
            tokens = [4] * (self.tokens if len(tree) else 1)
            self.switch.observe(Outcome(rooted, torch.zeros(len(rooted), 10), [0], tokens))
            self.clock.now += 7.0  # what happens between the steps is not the step's
            kinds += "d" if len(tree) else "."
        return kinds


def test_it_stays_on_where_drafting_pays() -> None:
    assert Play(slow=1.5, tokens=2).steps(400) == "d" * 400


def test_it_goes_off_rests_and_tries_again_ever_more_seldom() -> None:
    play = Play(slow=3.0, tokens=2)
    expected = ""
    rest = REST
    while len(expected) < 1600:
        expected += "d" * TRIAL + "." * rest
        rest = min(2 * rest, LONGEST)
    assert play.steps(1600) == expected[:1600]


def test_a_small_loss_is_borne() -> None:
    assert Play(slow=2.03, tokens=2, margin=0.02).steps(100) == "d" * 100
    assert "." in Play(slow=2.05, tokens=2, margin=0.02).steps(100)


def test_plain_steps_that_are_slower_than_the_curve_said_bring_it_back() -> None:
    play = Play(slow=1.5, tokens=2, expected=0.5)
    assert play.steps(60) == "d" * TRIAL + "." * TRIAL + "d" * (60 - 2 * TRIAL)
    assert play.switch.plain.rate() == pytest.approx(1.0)


def test_steps_without_a_draft_tell_that_the_machine_has_become_slower() -> None:
    class Seldom(Three):
        def draft(self, context: Context) -> TokenTree:
            self.others.append("asked")
            return super().draft(context) if len(self.others) % 4 == 0 else TokenTree.empty()

    play = Play(slow=1.2, tokens=3, expected=0.5)  # plain steps were twice as fast once
    play.switch.drafter = play.inner = Seldom()
    assert play.steps(40) == "...d" * 10
    assert play.switch.on
    assert play.switch.plain.rate() == pytest.approx(1.0)


def test_it_comes_back_when_the_text_changes() -> None:
    play = Play(slow=3.0, tokens=2)
    play.steps(TRIAL + 3)
    play.tokens = 6
    after = play.steps(200)
    assert after == "." * (REST - 3) + "d" * (200 - REST + 3)
    assert play.switch.rest == REST  # having paid for a while, the next rest is short again


def test_every_trial_is_judged_by_itself() -> None:
    play = Play(slow=3.0, tokens=2)
    play.steps(3 * TRIAL + REST + 2 * REST + 1)  # three trials that failed
    play.tokens = 4  # pays, though not together with what was before
    assert play.steps(700).endswith("d" * 300)


def test_it_goes_off_when_the_text_changes() -> None:
    play = Play(slow=1.5, tokens=4)
    assert play.steps(100) == "d" * 100
    play.tokens = 1
    assert 0 < play.steps(WINDOW).count("d") < WINDOW


def test_one_long_step_means_nothing() -> None:
    speed = Speed(1.0)
    for _ in range(9):
        speed.add(1.0, 2)
    speed.add(100.0, 2)
    assert speed.rate() == pytest.approx(20 / (9 + SPIKE))
    play = Play(slow=1.5, tokens=2)
    play.steps(20)
    play.slow = 40.0
    play.steps(1)
    play.slow = 1.5
    assert play.steps(100) == "d" * 100


def test_before_any_step_the_expected_one_counts() -> None:
    assert Speed(0.25).rate() == 4.0


def test_a_known_speed_up_stands_for_the_first_steps() -> None:
    plain = Play(slow=1.5, tokens=1)
    assert plain.steps(TRIAL + 1) == "d" * TRIAL + "."
    known = Play(slow=1.5, tokens=1)
    known.switch.expected = 2.0
    # After n steps: (2 w + n / 1.5) / (w + n) with w = 8 (1 - n / 32), 0.99 for n = 14 and 0.96 for n = 15.
    assert known.steps(16) == "d" * 15 + "."
    wrong = Play(slow=1.5, tokens=1)
    wrong.switch.expected = 100.0
    assert wrong.steps(WINDOW + 1) == "d" * WINDOW + "."


def test_the_drafter_sees_every_step_and_everything_else() -> None:
    play = Play(slow=3.0, tokens=2)
    play.steps(100)
    assert len(play.inner.seen) == 100
    assert {len(outcome.tree) for outcome in play.inner.seen} == {1, 4}
    play.switch.start([1, 2])
    play.switch.observe_prompt([1], None, {})
    play.switch.rewind(1)
    assert play.inner.others == [("start", [1, 2]), ("prompt", [1]), ("rewind", 1)]
    assert play.switch.wants_prompt_logits
    assert play.switch.hidden_layers == (1,)


def test_text_that_is_only_read_is_not_timed() -> None:
    play = Play(slow=3.0, tokens=2)
    play.steps(1)
    play.clock.now += 1000.0
    rooted = TokenTree.empty().rooted(9)
    play.switch.observe(Outcome(rooted, torch.zeros(1, 10), [0], [4, 4, 4], mine=[0]))
    assert play.switch.steps == 1
    assert len(play.switch.drafting.steps) == 1


def test_statistics_tell_the_share_of_steps_without_a_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIAL", 2)
    monkeypatch.setattr(module, "REST", 10**6)
    never, always = (
        generate(lm("llama"), text(9), Switched("token-recycling:nodes=5", margin=margin), max_new_tokens=30).stats
        for margin in (-1.0, float("inf"))
    )
    assert never.draft_calls == 2
    assert never.off_share == pytest.approx(1 - 2 / never.target_calls)
    assert always.off_share < never.off_share


def test_plain_steps_are_remembered_from_request_to_request() -> None:
    method = Switched("suffix:length=4", margin=-1.0)
    generate(lm("llama"), text(9), method, max_new_tokens=40)
    measured = method.memory["plain", lm("llama")]
    assert len(measured.steps) > 0
    generate(lm("llama"), text(9), method, max_new_tokens=40)
    assert method.memory["plain", lm("llama")] is measured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "greedy"}, "greedy makes no drafts, so it cannot be part of a switch"),
        ({"inner": "suffix,aded"}, "a switch needs one method, not 2; put several into a union"),
        ({"inner": ""}, "a switch needs one method, not 0"),
        ({"margin": -1.5}, "margin must be at least -1"),
        ({"margin": float("nan")}, "margin must be at least -1"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RamifyError, match=message):
        create("switched", **options)


def test_the_rule_is_that_of_the_method_inside() -> None:
    assert Switched("suffix").rule.function.__name__ == "match"
    assert Switched("assistant:model=demo").rule.function.__name__ == "speculative_sampling"
