"""The static forward pass gives what the fused one gives, in shapes that are prepared once each."""

from __future__ import annotations

import functools
import gc
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from families import FUSED, build, lm, model, text
from scenes import FORMS, SCENES, SHAPE, TREE
from torch import Tensor

from ramify.api import generate
from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.cache import RowCache
from ramify.models.causal import CausalLM, load
from ramify.models.forward import Nodes, attention_masks
from ramify.models.probe import Truth
from ramify.models.static import BEGINNING, SIZES, SLOTS, StaticForward, visible

CLOSE = 1e-5


class Counter:
    """A compiler that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@functools.cache
def pair(family: str, attention: str) -> tuple[CausalLM, CausalLM]:
    """The static forward pass and the fused one, over the same model."""
    own = build(family)
    own.set_attn_implementation(attention)
    return load(own, forward="static"), load(own, forward="fused")


def counted(family: str = "llama", **changes: Any) -> tuple[CausalLM, Counter]:
    """A model whose static forward pass goes through a counting compiler."""
    counter = Counter()
    found = load(build(family, **changes), forward="fused")
    found.forward = StaticForward(found.forward, counter)
    return found, counter


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=CLOSE, atol=CLOSE * float(expected.detach().std()))


# ---- the same numbers ----


def trees_of_many_sizes(lm: CausalLM) -> list[Scores]:
    """What one step leaves in the input buffers must not reach the next."""
    session = Session(lm)
    session.prefill([text(7)])
    shapes = [
        SHAPE,
        TreeShape.chain(5),
        TreeShape.of([-1, -1, 0, 0, 1]),
        TreeShape.chain(3),
        SHAPE,
        TreeShape.chain(20),
    ]
    return [session.score(TokenTree(torch.tensor(text(len(shape), 3)), shape), hidden_layers=[1]) for shape in shapes]


def larger_than_any_size(lm: CausalLM) -> list[Scores]:
    session = Session(lm)
    first = session.score(TokenTree.chain(text(SIZES[5] + 1)), hidden_layers=[1])
    session.keep([[0, 1, 2]])
    return [first, session.score(TREE)]


@pytest.mark.parametrize(
    "scene", [*SCENES, trees_of_many_sizes, larger_than_any_size], ids=lambda scene: scene.__name__
)
@pytest.mark.parametrize(("family", "attention"), FORMS)
def test_logits_and_states_are_those_of_the_fused_forward(
    family: str, attention: str, scene: Callable[[CausalLM], list[Scores]]
) -> None:
    static, fused = pair(family, attention)
    for ours, expected in zip(scene(static), scene(fused), strict=True):
        assert ours.logits.shape == expected.logits.shape
        close(ours.logits, expected.logits)
        assert list(ours.hidden) == list(expected.hidden)
        for layer, state in expected.hidden.items():
            assert ours.hidden[layer].shape == state.shape
            close(ours.hidden[layer], state)
    assert isinstance(static.forward, StaticForward)


@pytest.mark.parametrize("window", [None, 1, 6, 40])
def test_masks_are_those_of_the_other_forwards(window: int | None) -> None:
    random = torch.Generator().manual_seed(3)
    for _ in range(20):
        rows, count, capacity = (int(torch.randint(*span, (), generator=random)) for span in ((1, 4), (1, 9), (40, 50)))
        lengths = torch.randint(0, capacity - count + 1, (rows,), generator=random)
        positions = lengths[:, None] + torch.randint(0, count, (rows, count), generator=random)
        ancestors = torch.rand(rows, count, count, generator=random) < 0.5
        found = visible(positions, lengths, ancestors, capacity, window)
        nodes = Nodes(torch.zeros(rows, count, dtype=torch.long), positions, lengths.tolist(), ancestors)
        masks = attention_masks(nodes, torch.float32, window, capacity)
        assert masks is None or all(torch.equal(f, m[:, 0] == 0.0) for f, m in zip(found, masks, strict=True))


def test_blocks_whose_nodes_all_see_each_other() -> None:
    static, fused = pair("llama", "sdpa")
    found = []
    for own in (static, fused):
        cache = RowCache(own.layers, rows=1)
        for count in (8, 5):
            cache.expect(count, own.device)
            block = torch.ones(1, count, count, dtype=torch.bool)
            found.append(own.forward(Nodes(TREE.tokens[None, :count], torch.arange(count)[None], [0], block), cache)[0])
    close(found[0], found[2])
    close(found[1], found[3])


# ---- shapes ----


def test_a_shape_is_compiled_once() -> None:
    lm, counter = counted()
    numbers = torch.Generator().manual_seed(0)
    session = Session(lm)
    session.prefill([text(20)])
    assert counter.graphs == 0
    for step in range(30):
        parents = [-1, *(int(torch.randint(node + 1, (), generator=numbers)) for node in range(4 + step % 4))]
        tree = TokenTree(torch.randint(1, 96, (len(parents),), generator=numbers), TreeShape.of(parents))
        session.score(tree)
        session.keep([tree.shape.path(len(tree) - 1 - step % 2)])
        if session.lengths[0] > 90:
            session.truncate([step])
    assert counter.graphs == lm.forward.prepared == 1
    session.score(TREE, hidden_layers=[1])
    session.score(TokenTree.chain([1]))
    assert counter.graphs == lm.forward.prepared == 3
    pair = Session(lm, 2)
    for length in (3, 5, 7):
        pair.score([TokenTree.chain(text(length)), TREE])
        pair.keep([[0], [0]])
    assert counter.graphs == lm.forward.prepared == 4
    for _ in range(3):  # other sessions, inside and outside inference mode
        Session(lm, capacity=40).score(TREE)
        assert Truth(lm.model).refuses(lm.forward) == ""
    assert counter.graphs == lm.forward.prepared == 4


def test_more_shapes_than_torch_compiles_of_one_function() -> None:
    lm, counter = counted()
    session = Session(lm)
    session.prefill([text(20)])
    sizes = [size for size in SIZES if size <= 64]
    for _ in range(2):
        for size in sizes:
            session.score(TokenTree.chain(text(size)))
    assert counter.graphs == len(sizes) == 9


def test_a_cache_that_grows_is_compiled_for_once_more() -> None:
    lm, counter = counted(max_position_embeddings=1024)
    fused = load(build("llama", max_position_embeddings=1024), forward="fused")
    tokens = text(3 * SLOTS)
    ours, expected = Session(lm, capacity=SLOTS), Session(fused, capacity=SLOTS)
    for session in (ours, expected):
        session.prefill([tokens[: SLOTS - 30]])
    for _ in range(12):
        close(ours.score(TREE).logits, expected.score(TREE).logits)
        for session in (ours, expected):
            session.keep([SHAPE.path(7)])
    assert ours.lengths[0] > SLOTS
    assert counter.graphs == lm.forward.prepared == 2


def test_prompts_prepare_nothing() -> None:
    lm, counter = counted()
    Session(lm).prefill([text(100)])
    Session(lm).prefill([text(60)], observe=lambda row, tokens, logits, hidden: None)
    Session(lm).prefill([text(60)], chunk=BEGINNING + 4)
    assert counter.graphs == 0


# ---- buffers ----


def forward(lm: CausalLM, cache: RowCache, tokens: list[int]) -> Tensor:
    """Logits [n, V] of a chain behind what the cache of one row holds."""
    length, count = cache.lengths[0], len(tokens)
    cache.expect(count, lm.device)
    positions = torch.arange(length, length + count)[None]
    ancestors = torch.ones(1, count, count, dtype=torch.bool).tril()
    return lm.forward(Nodes(torch.tensor([tokens]), positions, [length], ancestors), cache)[0][0]


def test_sessions_at_the_same_time_do_not_share_buffers() -> None:
    lm, _ = counted()
    one, two = RowCache(lm.layers, rows=1), RowCache(lm.layers, rows=1)
    expected = [forward(lm, RowCache(lm.layers, rows=1), text(8, seed)) for seed in (1, 2)]
    for cache, seed in ((one, 1), (two, 2)):
        forward(lm, cache, text(8, seed)[:4])
        cache.keep([range(4)])
    close(forward(lm, one, text(8, 1)[4:]), expected[0][4:])
    close(forward(lm, two, text(8, 2)[4:]), expected[1][4:])
    assert one.joined.data_ptr() != two.joined.data_ptr()


def test_buffers_are_taken_over_once_their_session_is_gone() -> None:
    lm, _ = counted()
    gc.disable()  # the session alone must let go of them
    try:
        places = []
        for _ in range(3):
            cache = RowCache(lm.layers, rows=1)
            forward(lm, cache, text(4))
            places.append(cache.joined.data_ptr())
            del cache
    finally:
        gc.enable()
    assert len(set(places)) == 1


def test_what_an_earlier_session_left_is_gone() -> None:
    lm, _ = counted()
    cache = RowCache(lm.layers, rows=1)
    expected = forward(lm, cache, text(4))
    cache.joined.fill_(float("nan"))
    del cache
    close(forward(lm, RowCache(lm.layers, rows=1), text(4)), expected)


def test_kept_nodes_move_in_all_layers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, _ = counted()
    cache = RowCache(lm.layers, rows=1)
    forward(lm, cache, text(6))
    before = cache.joined.clone()
    cache.keep([[0, 3, 5]])
    assert torch.equal(cache.joined[..., :3, :], before[..., [0, 3, 5], :])
    for layer, keys, values in zip(cache.row_layers, cache.joined[0::2], cache.joined[1::2], strict=True):
        assert layer.keys.data_ptr() == keys.data_ptr()
        assert layer.values.data_ptr() == values.data_ptr()


# ---- in use ----


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "temperature": 0.8, "top_k": 20}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("family", FUSED)
def test_text_is_that_of_plain_decoding(family: str, settings: dict[str, Any]) -> None:
    own = build(family)
    if family == "gemma2":
        own.set_attn_implementation("eager")
    static, fused = load(own, forward="static"), load(own, forward="fused")
    prompts = [text(30, 1, period=6), text(5, 2), text(17, 3, period=4)]
    plain = [
        r.tokens for r in generate(fused, prompts, "sample" if settings else "greedy", max_new_tokens=24, **settings)
    ]
    for method in ("sample" if settings else "greedy", "prompt-lookup", TokenRecycling(nodes=20)):
        assert [r.tokens for r in generate(static, prompts, method, max_new_tokens=24, **settings)] == plain


def test_it_is_taken_only_by_name() -> None:
    assert lm("llama").forward.name == "fused"
    found = load(model("llama"), forward="static")
    assert (found.how, found.notes) == ("static, plain weights", [])
    assert load("demo", forward="static").forward.weights == "plain"


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(RamifyError, match="takes plain weights, not packed; leave out weights"):
        load(build("llama"), forward="static", weights="packed")
    with pytest.raises(RamifyError, match=r"cannot run the static forward pass: .* none of the families"):
        load(build("gpt2"), forward="static")


def test_a_forward_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = visible

    def shifted(positions: Tensor, lengths: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return right(positions, (lengths - 1).clamp(min=0), *rest)

    monkeypatch.setattr("ramify.models.static.visible", shifted)
    with pytest.raises(RamifyError, match="cannot run the static forward pass: its logits differ"):
        load(build("llama"), forward="static")


def test_a_changed_model_is_read_again() -> None:
    found = load(build("llama"), forward="static")
    found.model.double()
    session = Session(found)
    assert (found.forward.name, found.forward.dtype) == ("static", torch.float64)
    assert session.score(TREE).logits.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_by_inductor(family: str) -> None:
    from torch._inductor.utils import run_and_get_code

    own = build(family)
    if family == "gemma2":
        own.set_attn_implementation("eager")
    fused = load(own, forward="fused")
    compiled = CausalLM(own, None, "compiled", StaticForward(fused.forward, "inductor"), trees=True)
    ours, expected = Session(compiled), Session(fused)
    for session in (ours, expected):
        session.prefill([text(20)])
    (found, *_), codes = run_and_get_code(lambda: [ours.score(TREE)])
    close(found.logits, expected.score(TREE).logits)
    for session in (ours, expected):
        session.keep([SHAPE.path(6)])
    close(ours.score(TREE).logits, expected.score(TREE).logits)
    # New keys and values are written in place: nothing of a buffer's shape is made.
    assert codes
    assert not any(f"(1, 2, {SLOTS}, 8)" in line for code in codes for line in code.splitlines() if "empty_str" in line)
