"""S2D: segments that fill in what left early, exits by confidence, training, and one draft for many targets."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONTEXT, build, lm, text
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from ramify.api import generate
from ramify.engine.drafter import Context
from ramify.engine.sampling import Sampler
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.methods.draft import s2d
from ramify.methods.draft.s2d import S2D, SortedDrafter
from ramify.methods.draft.s2d_draft import FEW, Segments
from ramify.methods.draft.s2d_head import SortedHead, SortedSizes, exit_logits, proportions, sorted_loss
from ramify.methods.draft.schedule import Schedule
from ramify.methods.head import load_head
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load

EXITS = [1, 2, 4]
PROMPT = text(17, 2, period=6)
NEW = 24


@functools.cache
def nested(family: str = "llama", how: str = "") -> CausalLM:
    """A draft model of four layers with the targets' vocabulary."""
    return load(build(family, seed=3, num_hidden_layers=4), forward=how or None)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5 * float(expected.std()), rtol=3e-5)


def entries(session: Session, layer: int, length: int) -> Tensor:
    """Keys and values [2, heads, length, size] that ``layer`` (from 1) holds."""
    held = session._cache.row_layers[layer - 1]
    return torch.stack([held.keys[0, :, :length], held.values[0, :, :length]])


def check(segments: Segments) -> None:
    """The invariants of the queues, and that every segment holds what a pass over the whole text leaves there."""
    lengths = segments.lengths
    assert lengths[0] == len(segments.tokens)
    assert lengths == sorted(lengths, reverse=True)
    for place, queue in enumerate(segments.waiting):
        assert queue.shape[1] == lengths[place] - lengths[place + 1]
    if not segments.tokens:
        return
    whole = Session(segments.sessions[0].lm)
    scores = whole.score(TokenTree.chain(segments.tokens), hidden_layers=segments.exits[:-1])
    for place, (first, last) in enumerate(itertools.pairwise((0, *segments.exits))):
        for layer in range(first + 1, last + 1):
            if lengths[place]:
                expected = entries(whole, layer, lengths[place])
                close(entries(segments.sessions[place], layer, lengths[place]), expected)
        if place < len(segments.waiting) and segments.waiting[place].shape[1]:
            states = scores.hidden[last][0, lengths[place + 1] : lengths[place]]
            close(segments.waiting[place][0], states)


# ---------------------------------------------------------------- segments

STEPS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 6)).map(
        lambda step: {"tokens": step[0], "exit": step[1], "back": step[2]}
    ),
    min_size=1,
    max_size=10,
)


def play(segments: Segments, steps: list[dict[str, int]], seed: int) -> None:
    """Enter tokens, let them leave at an exit, roll back; again and again."""
    numbers = iter(text(100, seed))
    for step in steps:
        segments.enter([next(numbers) for _ in range(step["tokens"])])
        for place in range(1, step["exit"] + 1):
            segments.deepen(place)
        segments.truncate(max(0, len(segments.tokens) - max(0, step["back"] - 3)))


@given(STEPS, st.integers(0, 1000))
@settings(max_examples=20)
def test_what_was_skipped_is_filled_in(steps: list[dict[str, int]], seed: int):
    segments = Segments(nested(), EXITS)
    play(segments, steps, seed)
    check(segments)


@pytest.mark.parametrize("name", ["llama transformers", "mistral", "gemma3", "gpt2", "mixtral", "phi3"])
def test_every_family_fills_in(name: str):
    family, _, how = name.partition(" ")
    if family == "gpt2":
        draft = load(build(family, seed=3, n_layer=4))
    else:
        types = {"layer_types": ["sliding_attention", "full_attention"] * 2} if family == "gemma3" else {}
        draft = load(build(family, seed=3, num_hidden_layers=4, **types), forward=how or None)
    segments = Segments(draft, EXITS)
    moves = [(3, 0, 0), (2, 1, 0), (4, 0, 5), (3, 2, 0), (2, 0, 6), (1, 1, 5), (2, 2, 4), (4, 0, 0), (1, 1, 0)]
    play(segments, [dict(zip(("tokens", "exit", "back"), move, strict=True)) for move in moves], 1)
    check(segments)
    assert len(segments.tokens) > 12  # beyond the sliding windows
    assert segments.lengths[0] > segments.lengths[1] > segments.lengths[2] or segments.waiting[1].shape[1]


def test_logits_behind_every_exit_are_those_of_a_shorter_model():
    segments = Segments(nested(), EXITS)
    tokens = text(12, 4)
    for count in range(1, 13):
        found = [segments.enter(tokens[count - 1 : count])]
        if count % 3 == 0:
            found += [segments.deepen(1), segments.deepen(2)]
        for layer, logits in zip(EXITS, found, strict=False):
            close(logits, Session(nested(), last=layer).score(TokenTree.chain(tokens[:count])).logits[0, -1])


def test_no_row_enters_a_segment_twice(monkeypatch: pytest.MonkeyPatch):
    rows = [0, 0, 0]
    score = Session.score

    def counted(self: Session, tree: TokenTree, **how: Any) -> Any:
        rows[[1, 2, 4].index(self.last)] += len(tree)
        return score(self, tree, **how)

    monkeypatch.setattr(Session, "score", counted)
    segments = Segments(nested(), EXITS)
    play(segments, [{"tokens": n, "exit": e, "back": 0} for n, e in ((3, 0), (1, 1), (2, 0), (1, 2), (4, 1))], 2)
    assert rows == segments.lengths == [11, 11, 7]


def test_following_a_text_forgets_what_it_left():
    segments = Segments(nested(), EXITS)
    first = text(14, 5)
    assert segments.follow(first) == first[-1:]
    assert segments.lengths == [13, 13, 13]  # a prompt is read by all segments
    segments.enter(first[-1:])
    segments.enter([5])
    segments.enter([6])
    assert segments.follow([*first, 5, 7]) == [7]
    check(segments)
    assert segments.follow([*first, 5, 7, 8, 9]) == [7, 8, 9]
    assert segments.lengths == [15, 13, 13]
    assert segments.follow([*first[:4], 3]) == [3]
    assert segments.lengths == [4, 4, 4]
    check(segments)
    assert segments.follow([*first[:4], 3, *text(FEW, 1)]) == text(FEW, 1)[-1:]
    check(segments)
    assert Segments(nested(), EXITS).follow([3]) == [3]


# ---------------------------------------------------------------- exits


class Given:
    """Segments that say what is given, by exit."""

    def __init__(self, exits: list[int], logits: list[list[float]]) -> None:
        self.exits, self.logits, self.seen = exits, [torch.tensor(each) for each in logits], [0] * len(exits)

    def enter(self, tokens: list[int]) -> Tensor:
        self.seen[0] += 1
        return self.logits[0]

    def deepen(self, place: int) -> Tensor:
        self.seen[place] += 1
        return self.logits[place]


@pytest.mark.parametrize(
    ("thresholds", "place"),
    [([0.0, 0.0, 0.0], 0), ([0.49, 0.0, 0.0], 0), ([0.5, 0.0, 0.0], 1), ([0.5, 0.9, 0.0], 2), ([1.0, 1.0, 0.0], 2)],
)
def test_a_token_leaves_at_the_first_exit_that_is_surer_than_its_threshold(thresholds: list[float], place: int):
    """The comparison is strict: 0.5 is not surer than 0.5, and nothing is surer than 1."""
    given_ = Given(EXITS, [[0.0, 0.0], [0.0, 1.0], [99.0, 0.0]])
    drafter = SortedDrafter(nested(), EXITS, thresholds, Schedule(5), frozenset(), False)
    drafter.segments = given_  # type: ignore[assignment]
    assert torch.equal(drafter._leave([1]), given_.logits[place])
    assert drafter.left == [place]
    assert given_.seen == [1] * (place + 1) + [0] * (2 - place)


def drafted(thresholds: list[float], exits: list[int], prompt: list[int], count: int) -> tuple[list[int], Segments]:
    drafter = SortedDrafter(nested(), exits, thresholds, Schedule(count), frozenset(), False)
    draft = drafter.draft(Context(prompt, count, Sampler(), torch.Generator(), len(prompt)))
    return draft.tokens.tolist(), drafter.segments


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:3]])
def test_thresholds_at_their_ends_are_fixed_exits(prompt: list[int], count: int):
    """The same tokens and the same cache entries."""
    lowest, first = drafted([0.0, 0.0, 0.0], EXITS, prompt, count)
    expected, fixed = drafted([0.0], [1], prompt, count)
    assert lowest == expected
    close(entries(first.sessions[0], 1, first.lengths[0]), entries(fixed.sessions[0], 1, fixed.lengths[0]))
    highest, last = drafted([1.0, 1.0, 0.0], EXITS, prompt, count)
    expected, fixed = drafted([0.0], [4], prompt, count)
    assert highest == expected
    assert last.lengths == [fixed.lengths[0]] * 3
    for place, layer in ((0, 1), (1, 2), (2, 3), (2, 4)):
        close(entries(last.sessions[place], layer, last.lengths[0]), entries(fixed.sessions[0], layer, last.lengths[0]))
    assert expected == generate(nested(), prompt, "greedy", max_new_tokens=count).tokens


@given(st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0, 2.0]), min_size=2, max_size=2), st.integers(0, 5))
@settings(max_examples=15)
def test_any_thresholds_give_the_targets_own_text(thresholds: list[float], seed: int):
    prompt = text(6 + seed, seed, period=4)
    plain = generate(lm("llama"), prompt, "greedy", max_new_tokens=16)
    method = S2D(draft=nested(), exits=(1, 2, 4), thresholds=tuple(thresholds))
    assert generate(lm("llama"), prompt, method, max_new_tokens=16).tokens == plain.tokens


def test_sampled_text_follows_the_targets_law():
    """The joint law of two tokens over a vocabulary of five, under the likeliest drafts of another model."""
    target = load(build("llama", vocab_size=5))
    method = S2D(draft=load(build("llama", seed=4, vocab_size=5, num_hidden_layers=3)))
    runs = 500
    found = torch.zeros(5, 5)
    accepted = 0
    for seed in range(runs):
        result = generate(target, [1, 2, 3], method, max_new_tokens=2, seed=seed, do_sample=True, top_k=0)
        found[tuple(result.tokens)] += 1
        accepted += result.stats.accepted
    paths = Session(target, rows=5)
    paths.prefill([[1, 2, 3]] * 5)
    second = torch.softmax(paths.score([TokenTree.chain([token]) for token in range(5)]).logits[:, 0], dim=-1)
    alone = Session(target)
    first = torch.softmax(alone.score(TokenTree.chain([1, 2, 3])).logits[0, -1], dim=-1)
    expected = (first[:, None] * second * runs).flatten().double()
    likely = expected > 5
    counts = torch.stack([found.flatten().double()[likely], expected[likely]])
    counts = torch.cat([counts, torch.tensor([[runs], [runs]]) - counts.sum(dim=1, keepdim=True)], dim=1)
    statistic = float(((counts[0] - counts[1]) ** 2 / counts[1].clamp(min=1e-9)).sum())
    assert stats.chi2.sf(statistic, int(likely.sum())) > 1e-4
    assert 0.2 * runs < accepted < runs


def test_drafting_with_the_targets_noise_agrees_more_often():
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0}
    one = load(build("llama"))  # the target's own weights
    found = {}
    for coupled in (True, False):
        method = S2D(draft=one, exits=(2,), coupled=coupled, schedule="constant", length=4)
        result = generate(lm("llama"), PROMPT, method, max_new_tokens=NEW, seed=5, **sampled)
        assert result.tokens == generate(lm("llama"), PROMPT, "sample", max_new_tokens=NEW, seed=5, **sampled).tokens
        found[coupled] = result.stats
    assert found[True].accepted == found[True].drafted
    assert found[False].accepted < found[False].drafted


def test_penalties_reach_the_draft():
    """The draft is the target itself, so under the same processors all of it is accepted."""
    method = S2D(draft=load(build("llama")), exits=(2,), schedule="constant", length=4)
    given_: dict[str, Any] = {"max_new_tokens": NEW, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    result = generate(lm("llama"), PROMPT, method, **given_)
    assert result.stats.accepted == result.stats.drafted > 0
    assert result.tokens == generate(lm("llama"), PROMPT, "greedy", **given_).tokens


# ---------------------------------------------------------------- how much is drafted


def test_the_chain_grows_after_success_and_shrinks_after_failure():
    own = S2D(draft=load(build("llama")), exits=(2,))
    result = generate(lm("llama"), PROMPT, own, max_new_tokens=40)
    lengths = [len(event.tree) for event in result.events if type(event).__name__ == "Drafted"]
    assert lengths[:4] == [5, 7, 9, 11]
    other = load(build("llama", seed=9))  # never right
    result = generate(lm("llama"), PROMPT, S2D(draft=other, exits=(2,)), max_new_tokens=8)
    lengths = [len(event.tree) for event in result.events if type(event).__name__ == "Drafted"]
    assert lengths[:3] == [5, 4, 3]


def test_auto_weighs_both_curves(monkeypatch: pytest.MonkeyPatch):
    draft = load(build("llama"))
    for own, expected in ((0.01, 11), (0.1, 5), (50.0, 0)):
        curves = {draft: CostCurve("", [1, 2], [own, own]), lm("llama"): CostCurve("", [1, 64], [1.0, 1.0])}
        monkeypatch.setattr(s2d, "calibrate", lambda model, known=curves: known[model])
        result = generate(lm("llama"), PROMPT, S2D(draft=draft, exits=(1, 2), schedule="auto"), max_new_tokens=60)
        lengths = [len(event.tree) for event in result.events if type(event).__name__ == "Drafted"]
        assert lengths[0] == expected


def test_the_schedule_hears_of_whole_passes():
    told: list[int] = []

    class Heard(Schedule):
        def ran(self, rows: int) -> None:
            told.append(rows)

    drafter = SortedDrafter(nested(), EXITS, [0.5, 0.5, 0.0], Heard(5), frozenset(), False)
    drafter._tell([0, 0, 1])  # 1 + 1 + 2 layers of four
    assert told == [1]
    drafter._tell([0, 0, 0])
    assert told == [1]
    drafter._tell([2, 2, 1, 1])
    assert told == [1] * 4


def test_a_stop_token_ends_the_chain():
    draft = load(build("llama"))
    whole = generate(draft, PROMPT, "greedy", max_new_tokens=5).tokens
    drafter = SortedDrafter(draft, [2], [0.0], Schedule(5), frozenset({whole[2]}), False)
    found = drafter.draft(Context(PROMPT, 9, Sampler(), torch.Generator(), len(PROMPT)))
    assert found.tokens.tolist() == whole[: whole.index(whole[2]) + 1]


def test_a_text_beyond_the_drafts_context_goes_on_without():
    draft = load(build("llama", max_position_embeddings=32))
    result = generate(lm("llama"), PROMPT, S2D(draft=draft, exits=(1, 2)), max_new_tokens=CONTEXT - len(PROMPT) - 1)
    assert len(result.tokens) == CONTEXT - len(PROMPT) - 1
    beyond = [event for event in result.events if type(event).__name__ == "Drafted"][-3:]
    assert all(len(event.tree) == 0 for event in beyond)


# ---------------------------------------------------------------- one draft for many targets


def test_one_draft_serves_several_targets(tmp_path: Path):
    head = SortedHead.new(lm("llama"), exits=(1, 2))
    folder = tmp_path / "draft"
    head.draft(lm("llama"), weights="plain").model.save_pretrained(folder)
    method = S2D(draft=str(folder), exits=(1, 2))
    targets = [lm("llama"), load(build("qwen3", hidden_size=64, num_hidden_layers=3)), lm("gpt2")]
    for target in targets:
        plain = generate(target, PROMPT, "greedy", max_new_tokens=NEW)
        found = generate(target, PROMPT, method, max_new_tokens=NEW)
        assert found.tokens == plain.tokens
        assert found.stats.drafted > 0
    assert len({id(method.memory["draft", target][0]) for target in targets}) == 1
    assert found.stats.accepted < found.stats.drafted
    assert generate(lm("llama"), PROMPT, method, max_new_tokens=NEW).stats.accepted > NEW / 3


@pytest.mark.parametrize(("depth", "expected"), [(12, [6, 9, 12]), (3, [1, 2, 3]), (2, [1, 2]), (1, [1])])
def test_exits_by_the_papers_proportions(depth: int, expected: list[int]):
    assert proportions(depth) == expected


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "phi3", "mixtral", "gpt_neox"])
def test_an_untrained_head_is_the_targets_first_layers(family: str):
    model = lm(family)
    head = SortedHead.new(model, exits=(1, 2)).eval()
    tokens = torch.tensor([text(20, 3), text(20, 4)])
    with torch.no_grad():
        trained = exit_logits(head.as_lm(model), tokens, [1, 2])
    draft = head.draft(model)
    for row in range(2):
        for layer, logits in zip((1, 2), trained, strict=True):
            expected = Session(model, last=layer).score(TokenTree.chain(tokens[row])).logits[0]
            close(logits[row], expected)
            close(Session(draft, last=layer).score(TokenTree.chain(tokens[row])).logits[0], expected)


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_exits():
    model = lm("llama")
    tokens = torch.tensor([text(12, 3)])
    losses = []
    for layer in (1, 2):
        logits = Session(model, last=layer).score(TokenTree.chain(tokens[0, :-1])).logits[0]
        losses.append(float(functional.cross_entropy(logits, tokens[0, 1:])))
    assert float(SortedHead.new(model, exits=(1, 2)).loss(model, tokens)) == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert float(SortedHead.new(model, exits=2).loss(model, tokens)) == pytest.approx(losses[1], rel=1e-4)


def test_sorted_training_makes_every_exit_a_model():
    """SoFT lowers the loss of every exit, SFT only that of the last: its first exit stays behind."""
    model = lm("llama")
    windows = torch.tensor([text(24, seed, period=7) for seed in range(16)])
    found = {}
    for exits in ((1, 2), (2,)):
        head = SortedHead.new(model, exits=exits)
        before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
        optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
        for _ in range(30):
            head.loss(model, windows).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            found[exits] = [float(sorted_loss(head.as_lm(model), windows, [layer])) for layer in (1, 2)]
        assert all(torch.equal(before[name], weight) for name, weight in model.model.state_dict().items())
    with torch.no_grad():
        untrained = [float(sorted_loss(model, windows, [layer])) for layer in (1, 2)]
    assert found[1, 2][0] < 0.6 * untrained[0]
    assert found[1, 2][1] < 0.6 * untrained[1]
    assert found[(2,)][0] > 1.3 * found[1, 2][0]


def test_a_head_measures_agreement_with_the_target():
    model = lm("qwen3")
    head = SortedHead.new(model, exits=(1, 2))
    tokens = torch.tensor([text(20, seed) for seed in range(6)])
    figures = head.measure(model, tokens)
    assert figures["agreement at exit 2"] == pytest.approx(1.0)
    right = 0.0
    for row in tokens:
        early, whole = (Session(model, last=layer).score(TokenTree.chain(row)).logits[0] for layer in (1, None))
        right += float((early.argmax(-1) == whole.argmax(-1)).float().mean())
    assert figures["agreement at exit 1"] == pytest.approx(right / 6)


@pytest.mark.parametrize("shared", [True, False])
def test_a_head_is_saved_without_what_it_shares(shared: bool, tmp_path: Path):
    model = lm("llama")
    head = SortedHead.new(model, exits=(1, 2), shared=shared)
    names = list(head.state_dict())
    assert any("embed_tokens" in name for name in names) != shared
    assert any("lm_head" in name for name in names) != shared
    assert any("layers.1." in name for name in names)
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(1.1)
    head.save(tmp_path, compact=True)
    found = load_head(SortedHead, tmp_path, model)
    assert found.sizes == head.sizes == SortedSizes((1, 2), shared, head.sizes.config)
    tokens = TokenTree.chain(text(12))
    expected = Session(head.draft(model)).score(tokens).logits
    assert float((Session(found.draft(model)).score(tokens).logits - expected).abs().max() / expected.std()) < 0.1
    result = generate(model, PROMPT, S2D(head=str(tmp_path)), max_new_tokens=NEW)
    assert result.tokens == generate(model, PROMPT, "greedy", max_new_tokens=NEW).tokens


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "x", "draft": "y"}, "a head or a draft model, not both"),
        ({"exits": (2, 1)}, r"each behind the one before, not \(2, 1\)"),
        ({"exits": ()}, "exits are layers"),
        ({"exits": (0, 1)}, "counted from 1"),
        ({"thresholds": (0.5, -0.1)}, "thresholds are probabilities"),
        ({"thresholds": ()}, "thresholds are probabilities"),
        ({"length": 0}, "length must be at least 1"),
        ({"schedule": "heurstic"}, "did you mean 'heuristic'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message):
        S2D(**options)


def test_what_does_not_fit_is_refused():
    run = functools.partial(generate, lm("llama"), PROMPT, max_new_tokens=4)
    with pytest.raises(RamifyError, match="4 layers, so there is no exit at 5"):
        run(S2D(draft=nested(), exits=(1, 5)))
    with pytest.raises(RamifyError, match="3 exits take 2 thresholds"):
        run(S2D(draft=nested(), exits=(1, 2, 4), thresholds=(0.5,)))
    with pytest.raises(RamifyError, match=r"3 exits take 2 thresholds, .* got \(0.5, 0.5, 0.5\)"):
        run(S2D(draft=nested(), exits=(1, 2, 4), thresholds=(0.5, 0.5, 0.5)))
    run(S2D(draft=nested(), exits=(1, 2, 4), thresholds=(0.5, 0.5, 0.0)))  # as the paper writes them
    with pytest.raises(RamifyError, match="another vocabulary than"):
        run(S2D(draft=load(build("llama", vocab_size=80))))
    with pytest.raises(RamifyError, match="has 2 layers, so its draft model cannot have an exit at 3"):
        SortedHead.new(lm("llama"), exits=(1, 3))
    with pytest.raises(RamifyError, match="there is no s2d head for"):
        run(S2D())


def test_the_bundled_head_drafts_for_the_demo_model_in_any_precision():
    for how in ({"dtype": "float32"}, {"dtype": "bfloat16", "weights": "plain"}):
        demo = load("demo", **how)
        given_: dict[str, Any] = {"max_new_tokens": 32}
        prompt = "class Queue:\n    def __init__(self, size=100):\n        self.items ="
        found = generate(demo, prompt, S2D(), **given_)
        assert found.tokens == generate(demo, prompt, "greedy", **given_).tokens
        assert found.stats.target_calls < 28
