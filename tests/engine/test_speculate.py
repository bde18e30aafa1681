"""The draft–verify loop under drafters that are hostile or omniscient: the same tokens as without, counted right."""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from families import CONTEXT, VOCABULARY, WINDOW, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.engine.drafter import Context, Drafter, Outcome
from ramify.engine.events import Accepted, Drafted, Event, Finished, Prefilled, Scored
from ramify.engine.request import Request
from ramify.engine.result import Result, Stats
from ramify.engine.sampling import Noise, Sampler
from ramify.engine.speculate import speculate
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError

PROMPTS = [text(4, 1), text(13, 2, period=4), text(1, 3)]
NEW = 26
SOME = ["llama", "mistral", "gemma3", "gpt2"]


def sampler(greedy: bool, row: int = 0) -> Sampler:
    if greedy:
        return Sampler()
    from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

    warpers = [RepetitionPenaltyLogitsProcessor(1.2), TemperatureLogitsWarper(0.6), TopPLogitsWarper(0.95)]
    return Sampler(warpers, greedy=False, noise=Noise(40 + row))


def requests(greedy: bool = True, new: int = NEW, **more: Any) -> list[Request]:
    return [Request(p, len(p) + new, sampler(greedy, row), **more) for row, p in enumerate(PROMPTS)]


def continuation(events: Sequence[Event], row: int) -> list[int]:
    return [token for event in events if isinstance(event, Accepted) and event.row == row for token in event.tokens]


@functools.cache
def plain(family: str, greedy: bool) -> list[list[int]]:
    """Every prompt alone, without drafts."""
    return [continuation(list(speculate(lm(family), [request])), 0) for request in requests(greedy)]


class Scripted(Drafter):
    """Proposes what a function of the committed tokens says; knows the plain continuation."""

    def __init__(self, truth: Sequence[int], propose: Callable[[Scripted, Context], TokenTree]) -> None:
        self.truth, self.propose = list(truth), propose
        self.random = random.Random(5)
        self.learnt: list[Outcome] = []

    def start(self, prompt: Sequence[int]) -> None:
        self.prompt = len(prompt)

    def next(self, context: Context, count: int) -> list[int]:
        """The right tokens, as many as there are."""
        place = len(context.tokens) - self.prompt
        assert context.tokens[self.prompt :] == self.truth[:place]
        return self.truth[place : place + count]

    def draft(self, context: Context) -> TokenTree:
        return self.propose(self, context)

    def observe(self, outcome: Outcome) -> None:
        self.learnt.append(outcome)


def a_tree(tokens: Sequence[int], parents: Sequence[int]) -> TokenTree:
    return TokenTree(torch.tensor(tokens, dtype=torch.long), TreeShape.of(parents))


def wrong(token: int, by: int = 1) -> int:
    return (token + by) % VOCABULARY


def random_tree(own: Scripted, context: Context) -> TokenTree:
    size = own.random.randrange(12)
    tokens = [own.random.randrange(VOCABULARY) for _ in range(size)]
    return a_tree(tokens, [own.random.randrange(-1, node) for node in range(size)])


def planted(own: Scripted, context: Context) -> TokenTree:
    """The right tokens somewhere in a random tree."""
    noise = random_tree(own, context)
    tokens, parents = noise.tokens.tolist(), list(noise.shape.parents)
    node = -1
    for token in own.next(context, own.random.randrange(5)):
        parents.append(node)
        tokens.append(token)
        node = len(tokens) - 1
    return a_tree(tokens, parents)


def all_wrong(own: Scripted, context: Context) -> TokenTree:
    return TokenTree.chain([wrong(token) for token in own.next(context, 6)])


def wrong_first_right_second(own: Scripted, context: Context) -> TokenTree:
    """Siblings out of order; below the wrong one, the right continuation."""
    right = own.next(context, 3)
    if len(right) < 3:
        return TokenTree.empty()
    one, two, three = right
    return a_tree([wrong(one), one, two, wrong(two), three, three, two], [-1, -1, 0, 1, 3, 2, 1])


def twins(own: Scripted, context: Context) -> TokenTree:
    """The same token twice among siblings: the first is followed, the second has the better children."""
    right = own.next(context, 2)
    if len(right) < 2:
        return TokenTree.empty()
    return a_tree([right[0], right[0], right[1], wrong(right[1])], [-1, -1, 1, 0])


def too_deep(own: Scripted, context: Context) -> TokenTree:
    return TokenTree.chain(own.next(context, 100) + [7] * 100)


def too_wide(own: Scripted, context: Context) -> TokenTree:
    right = own.next(context, 1)
    return a_tree([t for t in range(VOCABULARY) if t not in right] + right, [-1] * VOCABULARY)


def nothing(own: Scripted, context: Context) -> TokenTree:
    return TokenTree.empty()


def sometimes(own: Scripted, context: Context) -> TokenTree:
    return planted(own, context) if len(context.tokens) % 3 else TokenTree.empty()


HOSTILE = [random_tree, planted, all_wrong, wrong_first_right_second, twins, too_deep, too_wide, nothing, sometimes]


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("propose", HOSTILE)
@pytest.mark.parametrize("family", SOME)
def test_no_drafter_changes_the_tokens(family: str, propose: Any, greedy: bool):
    truth = plain(family, greedy)
    for row, request in enumerate(requests(greedy)):
        events = list(speculate(lm(family), [request], [Scripted(truth[row], propose)]))
        assert continuation(events, 0) == truth[row]
    drafters = [Scripted(each, propose) for each in truth]
    events = list(speculate(lm(family), requests(greedy), drafters))
    assert [continuation(events, row) for row in range(3)] == truth


@pytest.mark.parametrize("family", SOME)
def test_rows_may_draft_differently(family: str):
    truth = plain(family, True)
    drafters = [Scripted(truth[0], too_wide), Scripted(truth[1], nothing), Scripted(truth[2], planted)]
    events = list(speculate(lm(family), requests(), drafters))
    assert [continuation(events, row) for row in range(3)] == truth


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.data(), st.sampled_from(["llama", "phi3"]), st.booleans())
def test_no_tree_changes_the_tokens(data: st.DataObject, family: str, greedy: bool):
    def propose(own: Scripted, context: Context) -> TokenTree:
        right = own.next(context, 4)
        token = st.sampled_from([*right, 1, 2]) if right else st.just(3)
        paths = data.draw(st.lists(st.lists(token, max_size=6), max_size=4), "paths")
        return TokenTree.from_paths(paths)

    truth = plain(family, greedy)
    events = list(speculate(lm(family), requests(greedy)[:2], [Scripted(truth[row], propose) for row in range(2)]))
    assert [continuation(events, row) for row in range(2)] == truth[:2]


def test_the_samples_do_not_collapse():
    """The matrix would prove nothing if the text were the same token over and over, or the same under every seed."""
    for family in SOME:
        sampled = plain(family, False)
        assert all(len(set(row)) >= 6 for row in sampled)
        assert sampled != plain(family, True)
        again = Request(PROMPTS[0], len(PROMPTS[0]) + NEW, Sampler(greedy=False, noise=Noise(99)))
        assert continuation(list(speculate(lm(family), [again])), 0) != sampled[0]


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("depth", [1, 2, 5, 9, NEW, 60])
def test_an_oracle_needs_few_steps(depth: int, greedy: bool):
    """A chain of ``depth`` right tokens each time: tokens / (depth + 1) passes, rounded up."""

    def oracle(own: Scripted, context: Context) -> TokenTree:
        return TokenTree.chain(own.next(context, depth))

    for family in ("llama", "mistral"):
        [truth, *_], [request, *_] = plain(family, greedy), requests(greedy)
        events = list(speculate(lm(family), [request], [Scripted(truth, oracle)]))
        stats = Stats.of(events, 0)
        assert continuation(events, 0) == truth
        assert stats.target_calls == math.ceil(NEW / (depth + 1))
        assert stats.accepted == NEW - stats.target_calls


def test_an_oracle_in_a_batch_that_thins_out():
    truth = plain("gemma3", True)
    lengths = [5, 26, 14]

    def oracle(own: Scripted, context: Context) -> TokenTree:
        return TokenTree.chain(own.next(context, 3))

    batch = [Request(p, len(p) + n) for p, n in zip(PROMPTS, lengths, strict=True)]
    events = list(speculate(lm("gemma3"), batch, [Scripted(each, oracle) for each in truth]))
    for row, new in enumerate(lengths):
        assert continuation(events, row) == truth[row][:new]
        assert Stats.of(events, row).target_calls == math.ceil(new / 4)
    sizes = [len(event.rows) for event in events if isinstance(event, Scored)]
    assert sizes == [3] * 2 + [2] * 2 + [1] * 3


# ---- stopping ----


@pytest.mark.parametrize("propose", [too_deep, planted, nothing])
@pytest.mark.parametrize("place", [0, 1, 7, NEW - 1])
def test_a_stop_token_inside_an_accepted_path(propose: Any, place: int):
    truth = plain("gemma2", True)[0]
    stop = truth[place]
    cut = truth[: truth.index(stop) + 1]
    request = Request(PROMPTS[0], len(PROMPTS[0]) + NEW, stop_tokens=frozenset({stop, -1}))
    drafter = Scripted(truth, propose)
    events = list(speculate(lm("gemma2"), [request], [drafter]))
    assert continuation(events, 0) == cut
    assert events[-1] == Finished(0, Stats.of(events, 0).target_calls - 1, "stop")
    assert Result.finish_reason(events) == "stop"


@pytest.mark.parametrize("propose", [too_deep, nothing])
def test_criteria_see_every_prefix_once(propose: Any):
    truth = plain("llama", True)[1]
    seen: list[list[int]] = []

    def criterion(ids: torch.Tensor, scores: None) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return torch.tensor([ids.shape[1] == 2 + 13 + 9])

    request = Request(PROMPTS[1], 13 + NEW, criteria=[criterion], padding=[0, 0])
    events = list(speculate(lm("llama"), [request], [Scripted(truth, propose)]))
    assert continuation(events, 0) == truth[:9]
    assert seen == [[0, 0, *PROMPTS[1], *truth[:size]] for size in range(1, 10)]
    assert Result.finish_reason(events) == "stop"


@pytest.mark.parametrize("new", [1, 2, 3])
def test_hardly_any_room(new: int):
    truth = plain("llama", True)
    drafters = [Scripted(each[:new] + [1] * 9, too_deep) for each in truth]
    events = list(speculate(lm("llama"), requests(new=new), drafters))
    assert [continuation(events, row) for row in range(3)] == [each[:new] for each in truth]
    assert all(event.reason == "length" for event in events if isinstance(event, Finished))
    # A draft must leave room for the target's own token.
    drafted = [event for event in events if isinstance(event, Drafted)]
    assert all(max((*event.tree.shape.depth, -1)) + 1 <= new - 1 for event in drafted)


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_up_to_the_last_token_of_the_context(family: str):
    prompt = text(CONTEXT - 12, 8, period=7)
    request = Request(prompt, CONTEXT)
    truth = continuation(list(speculate(lm(family), [request])), 0)
    assert len(truth) == 12
    events = list(speculate(lm(family), [request], [Scripted(truth, too_deep)]))
    assert continuation(events, 0) == truth
    # Beside a short row, the long one's padding reaches beyond the context.
    both = [request, Request(PROMPTS[0], len(PROMPTS[0]) + NEW)]
    drafters = [Scripted(truth, too_deep), Scripted(plain(family, True)[0], too_wide)]
    events = list(speculate(lm(family), both, drafters))
    assert continuation(events, 0) == truth
    assert continuation(events, 1) == plain(family, True)[0]


# ---- counters ----


def test_counters_by_hand():
    """Three steps of four nodes: a chain of three right tokens, then one right of three, then no draft at all.

    Tokens: 3 + 1, then 1 + 1, then 1: seven of seven.
    """
    truth = plain("llama", True)[0][:7]

    def propose(own: Scripted, context: Context) -> TokenTree:
        match len(context.tokens) - own.prompt:
            case 0:
                return TokenTree.chain(own.next(context, 3))
            case 4:
                one, two = own.next(context, 2)
                return a_tree([wrong(one), one, wrong(two)], [-1, -1, 1])
            case _:
                return TokenTree.empty()

    drafter = Scripted(truth, propose)
    events = list(speculate(lm("llama"), [Request(PROMPTS[0], len(PROMPTS[0]) + 7)], [drafter]))
    stats = Stats.of(events, 0)
    assert stats.prompt_tokens == 4
    assert stats.prefill_calls == 1
    assert stats.generated_tokens == 7
    assert stats.target_calls == 3
    assert stats.row_steps == 4 + 4 + 1
    assert stats.drafted == 3 + 3 + 0
    assert stats.accepted == 3 + 1
    assert stats.accepted_lengths == Counter({4: 1, 2: 1, 1: 1})
    assert stats.tokens_per_call == pytest.approx(7 / 3)
    assert [type(event) for event in events] == [
        Prefilled, *[Drafted, Scored, Accepted] * 3, Finished
    ]  # fmt: skip
    assert [event.path for event in events if isinstance(event, Accepted)] == [(0, 1, 2), (1,), ()]
    first, second = drafter.learnt  # the last step ended the sequence
    assert first.tree.tokens.tolist() == [PROMPTS[0][-1], *truth[:3]]
    assert list(first.path) == [0, 1, 2, 3]
    assert list(second.path) == [0, 2]
    assert list(second.tokens) == truth[4:6]
    assert second.logits.shape == (4, VOCABULARY)
    assert int(second.logits[2].argmax()) == truth[5]


def test_counters_when_the_text_ends_inside_a_path():
    truth = plain("gemma2", True)[0]
    stop = truth[2]
    assert stop not in truth[:2]
    request = Request(PROMPTS[0], len(PROMPTS[0]) + NEW, stop_tokens=frozenset({stop}))

    def propose(own: Scripted, context: Context) -> TokenTree:
        return TokenTree.chain(own.next(context, 5))

    stats = Stats.of(list(speculate(lm("gemma2"), [request], [Scripted(truth, propose)])), 0)
    assert (stats.generated_tokens, stats.target_calls, stats.drafted, stats.accepted) == (3, 1, 5, 3)
    assert stats.accepted_lengths == Counter({3: 1})


def test_counters_of_a_batch_count_padding():
    truth = plain("llama", True)

    def propose(own: Scripted, context: Context) -> TokenTree:
        return TokenTree.chain([wrong(token) for token in own.next(context, 4 if own.prompt == 1 else 1)])

    drafters = [Scripted(each, propose) for each in truth]
    events = list(speculate(lm("llama"), requests(new=3), drafters))
    for row in range(3):
        stats = Stats.of(events, row)
        assert stats.target_calls == 3
        # Nodes of the widest row: with 2, 1 and 0 levels left, the draft of at most 4 is cut to them.
        assert stats.row_steps == 3 + 2 + 1
        assert stats.drafted == (2 + 1 if row == 2 else 1 + 1)
        assert stats.accepted == 0


# ---- refusals ----


@pytest.mark.parametrize("token", [VOCABULARY, -1, 1 << 40])
def test_a_draft_outside_the_vocabulary(token: int):
    def propose(own: Scripted, context: Context) -> TokenTree:
        return TokenTree.chain([token])

    with pytest.raises(RamifyError, match=f"token {token} is outside the vocabulary of .*96 tokens.*own tokenizer"):
        list(speculate(lm("llama"), requests()[:1], [Scripted([], propose)]))


@pytest.mark.parametrize(
    ("prompt", "length", "message"),
    [
        ([], 5, "the prompt is empty"),
        ([1, 2, 3], 3, "nothing is left to generate; raise max_new_tokens to at least 1"),
        ([1] * 120, CONTEXT + 1, "120 prompt tokens and 9 new ones do not fit the context of 128 tokens"),
        ([1] * 200, 201, "do not fit the context"),
        ([1, VOCABULARY, 1], 8, f"token {VOCABULARY} is outside the vocabulary"),
    ],
)
def test_bad_requests(prompt: list[int], length: int, message: str):
    with pytest.raises(RamifyError, match=message) as error:
        list(speculate(lm("llama"), [Request([1, 2], 9), Request(prompt, length)]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["bloom", "mamba", "qwen3_next"])
def test_drafts_need_trees_and_plain_decoding_does_not(family: str):
    with pytest.raises(RamifyError, match=r"cannot run drafts: it.*use method='greedy' or 'sample'"):
        list(speculate(lm(family), requests(), [Drafter()] * 3))
    events = list(speculate(lm(family), requests(new=6)))
    for row, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([prompt])
        for token in continuation(events, row):
            with torch.no_grad():
                assert token == int(lm(family).model(input_ids=tokens, use_cache=False).logits[0, -1].argmax())
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        assert tokens.shape[1] == len(prompt) + 6


def test_texts_cross_the_window():
    assert min(len(prompt) for prompt in PROMPTS) < WINDOW < min(len(prompt) for prompt in PROMPTS) + NEW
