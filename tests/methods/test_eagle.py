"""EAGLE: the layer against transformers' own, training against drafting, the dynamic tree against brute force."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import heads
import numpy as np
import pytest
import torch
from families import lm, text
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import ramify.methods.draft.eagle as place
from ramify.api import generate
from ramify.engine.drafter import Context
from ramify.engine.events import Accepted, Drafted
from ramify.engine.sampling import Sampler
from ramify.engine.tree import TreeShape
from ramify.errors import RamifyError
from ramify.methods.draft import eagle_draft
from ramify.methods.draft.eagle import Eagle
from ramify.methods.draft.eagle_draft import Continuer, TreeDrafter
from ramify.methods.draft.eagle_head import TOKEN_LOSS, EagleHead, EagleSizes, aux_layers
from ramify.methods.draft.eagle_layer import LayerSizes
from ramify.methods.draft.eagle_pace import PRIOR, REST, Pace
from ramify.methods.draft.eagle_tree import Growth
from ramify.methods.head import teach
from ramify.models.calibrate import CostCurve
from ramify.models.causal import CausalLM, load

WINDOW = torch.tensor([text(40, 7), text(40, 8)])
KINDS: list[dict[str, Any]] = [
    {},
    {"heads": 2, "key_heads": 1, "head_size": 16, "width": 20, "fc_bias": True, "attention_bias": True},
    {"draft_vocabulary": 20},
    {"version": 3},
    {"version": 3, "norm_first": True, "draft_vocabulary": 30, "own_embedding": True},
]
FREE = CostCurve("free", [1, 100], [1.0, 1.0])
STEEP = CostCurve("steep", [1, 2, 100], [1.0, 2.0, 100.0])


def context(tokens: Sequence[int], levels: int = 99) -> Context:
    return Context(list(tokens), levels, Sampler(), torch.Generator(), len(tokens))


def states(model: CausalLM, head: EagleHead, tokens: Tensor) -> Tensor:
    taught = teach(model, tokens, head.reads)
    return torch.cat([taught.hidden[layer] for layer in head.reads], dim=-1)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


# ---------------------------------------------------------------- the layer and its unrolling


def transformers_layer(head: EagleHead) -> tuple[LlamaDecoderLayer, LlamaConfig]:
    """transformers' own decoder layer with the head's weights; EAGLE's has no norm before attention."""
    sizes = head.sizes
    config = LlamaConfig(
        hidden_size=head.fit.hidden_size,
        intermediate_size=sizes.width,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        head_dim=sizes.head_size,
        rms_norm_eps=sizes.eps,
        rope_parameters=sizes.rope,
        attn_implementation="eager",
    )
    layer = LlamaDecoderLayer(config, 0)
    own = copy.deepcopy(head.layers[0])
    layer.input_layernorm = nn.Identity()
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(layer.self_attn, name, own.self_attn[name])
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(layer.mlp, name, own.mlp[name])
    layer.post_attention_layernorm.weight.data = own.post_attention_layernorm.weight.data
    return layer, config


@pytest.mark.parametrize("sizes", KINDS, ids=map(str, KINDS))
def test_the_layer_is_transformers_own(sizes: dict[str, Any]):
    model = lm("llama")
    head = heads.eagle(model, **sizes)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if "norm" in name or "bias" in name:
                weight.uniform_(0.5, 1.5)
        f = states(model, head, WINDOW)[:, :-1]
        e = model.model.get_input_embeddings()(WINDOW[:, 1:])
        layer, config = transformers_layer(head)
        if head.sizes.version == 3:
            rms = torch.nn.functional.rms_norm
            f = f @ head.fc.weight.T
            own = head.layers[0]
            normed = rms(f, (32,), own.hidden_norm.weight, head.sizes.eps)
            x = torch.cat([rms(e, (32,), own.input_layernorm.weight, head.sizes.eps), normed], dim=-1)
            residual = normed if head.sizes.norm_first else f
        else:
            x = residual = head.fc(torch.cat([e, f], dim=-1))
        turn = LlamaRotaryEmbedding(config)(x, torch.arange(39)[None])
        mask = torch.full((39, 39), -torch.inf).triu_(1)[None, None]
        y = residual + layer.self_attn(x, position_embeddings=turn, attention_mask=mask)[0]
        expected = y + layer.mlp(layer.post_attention_layernorm(y))
        [found] = head.unroll(model, states(model, head, WINDOW), WINDOW, 1)
    close(found, expected)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("sizes", KINDS, ids=map(str, KINDS))
@torch.no_grad()
def test_training_sees_what_drafting_sees(family: str, sizes: dict[str, Any]):
    """The unrolled passes of a window are, place by place, a chain drafted behind the verified text up to there."""
    model = lm(family)
    head = heads.eagle(model, **sizes)
    window = WINDOW[:1]
    f = states(model, head, window)
    with torch.no_grad():
        outs = head.unroll(model, f, window, 3)
    continuer = Continuer(head, model)
    for known in (1, 2, 30):
        text_ = continuer.text()
        out = continuer.read(text_, window[0, 1 : known + 1], f[0, :known])
        close(out[0], outs[0][0, known - 1])
        hidden = torch.zeros(1, 0)
        for level in (1, 2):
            hidden = torch.cat([hidden, torch.zeros(1, 1)], dim=1)
            out = continuer.level(text_, window[0, known + level : known + level + 1], out, hidden, level)
            close(out[0], outs[level][0, known - 1])
    tokens, confidences = continuer.guess(out, 5)
    with torch.no_grad():
        logits = head.logits(model, out).log_softmax(dim=-1)[0]
    ids = head.ids(torch.arange(len(logits)))
    order = logits.argsort(descending=True)[:5]
    assert tokens[0].tolist() == ids[order].tolist()
    close(torch.from_numpy(confidences[0]), logits[order])


def test_the_losses_are_the_papers():
    model = lm("qwen3")
    taught = teach(model, WINDOW, [-1])
    head = heads.eagle(model, noise=0.0, distances=2)
    expected = 0.0
    with torch.no_grad():
        for step, out in enumerate(head.unroll(model, taught.hidden[-1], WINDOW, 2), 1):
            for row in range(2):
                for t in range(38):
                    gap = (out[row, t] - taught.hidden[-1][row, t + step]).abs()
                    near = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
                    law = taught.logits[row, t + step].softmax(-1)
                    far = -(law * model.model.lm_head(out[row, t]).log_softmax(-1)).sum()
                    expected += float(near + TOKEN_LOSS * far) / 76
    assert head.loss(model, WINDOW).item() == pytest.approx(expected, rel=1e-4)
    # A draft vocabulary: the share of the law that it holds, against its own softmax; EAGLE-3 has no feature loss.
    third = heads.eagle(model, version=3, draft_vocabulary=40)
    third.read(model, [list(range(0, 80, 2))])
    [out] = third.unroll(model, states(model, third, WINDOW), WINDOW, 1)
    law = taught.logits[:, 1:].softmax(-1)[..., third.ids(torch.arange(40))]
    expected = -(law * third.lm_head(third.norm(out)).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(third.loss(model, WINDOW), expected)


def test_noise_is_a_function_of_the_text():
    model = lm("llama")
    head = heads.eagle(model, noise=0.5)
    first, again, other = (head.loss(model, tokens).item() for tokens in (WINDOW, WINDOW, WINDOW.flip(1) % 90))
    assert first == again != other
    assert first != heads.eagle(model, noise=0.0).loss(model, WINDOW).item()


@pytest.mark.parametrize("sizes", [{}, {"distances": 3, "draft_vocabulary": 60}, {"version": 3, "distances": 2}])
def test_it_learns_and_moves_nothing_else(sizes: dict[str, Any]):
    model = lm("llama")
    torch.manual_seed(0)
    head = EagleHead.new(model, **sizes)
    head.read(model, WINDOW.tolist())
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    frozen = None if head.lm_head is None else head.lm_head.weight.clone()
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = head.loss(model, WINDOW)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    if frozen is not None:
        assert torch.equal(frozen, head.lm_head.weight) == (head.sizes.version == 1)


def test_a_new_head_takes_the_targets_sizes():
    sizes = EagleHead.new(lm("qwen3")).sizes
    assert (sizes.heads, sizes.key_heads, sizes.head_size, sizes.width) == (4, 2, 8, 48)
    assert sizes.rope == {"rope_type": "default", "rope_theta": 10000.0}
    other = EagleHead.new(lm("gpt2"), heads=2, width=16).sizes
    assert (other.heads, other.key_heads, other.head_size, other.width) == (2, 2, 16, 16)
    assert aux_layers(32) == {"low": 2, "middle": 16, "high": 29}  # of Llama-3.1-8B, as published
    assert EagleHead.new(lm("llama"), version=3, low=1).reads == (1, 1, 1)


def test_the_draft_vocabulary_is_what_the_texts_use_most():
    model = lm("llama")
    head = EagleHead.new(model, draft_vocabulary=4)
    assert head.ids(torch.arange(4)).tolist() == [0, 1, 2, 3]
    head.read(model, [[9, 9, 9, 50, 50, 7], [7, 7, 50, 95, 95, 3]])
    assert head.ids(torch.arange(4)).tolist() == [7, 9, 50, 95]
    assert torch.equal(head.lm_head.weight, model.model.lm_head.weight[[7, 9, 50, 95]])
    assert head.ids(torch.tensor([[3, 0], [1, 1]])).tolist() == [[95, 7], [9, 9]]


def test_agreement_is_counted_by_distance():
    model = lm("llama")
    head = heads.eagle(model)
    taught = teach(model, WINDOW, [-1])
    outs = head.unroll(model, taught.hidden[-1], WINDOW, 4)
    expected = {}
    for step, out in enumerate(outs, 1):
        best = model.model.lm_head(out).argmax(-1)
        expected[f"agreement at +{step + 1}"] = (
            (best == taught.logits.argmax(-1)[:, step : step + 36]).float().mean().item()
        )
    assert head.measure(model, WINDOW) == pytest.approx(expected)
    assert expected["agreement at +2"] > 0.05


# ---------------------------------------------------------------- the dynamic tree


def grown(levels: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> Growth:
    """A growth from given tokens and log-confidences of levels [w, k]."""
    growth = Growth()
    growth.add(*levels[0])
    for tokens, confidences in levels[1:]:
        front = growth.frontier(width)
        growth.add(tokens[: len(front)], confidences[: len(front)], front)
    return growth


def brute(growth: Growth, nodes: int) -> set[int]:
    """One node after the other: the most valuable whose parent is in; of equals the shallower, then the earlier."""
    values, parents = np.concatenate(growth.values), np.concatenate(growth.parents)
    depth = np.concatenate([np.full(len(level), number) for number, level in enumerate(growth.values)])
    chosen: set[int] = set()
    while len(chosen) < min(nodes, len(values)):
        free = [i for i in range(len(values)) if i not in chosen and (parents[i] < 0 or int(parents[i]) in chosen)]
        chosen.add(min(free, key=lambda i: (-values[i], depth[i], i)))
    return chosen


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 40),
    st.lists(st.sampled_from([0.0, -0.25, -0.5, -1.0, -3.0]), min_size=64, max_size=64),
)
def test_what_is_kept_is_what_brute_force_keeps(k: int, width: int, depth: int, nodes: int, numbers: list[float]):
    confidences = np.array(numbers, dtype=np.float32).reshape(-1)
    levels = []
    for level in range(depth):
        rows = 1 if level == 0 else width
        part = np.resize(np.roll(confidences, 7 * level), (rows, k))
        levels.append((np.arange(rows * k).reshape(rows, k) + 100 * level, -np.sort(-part, axis=1)))
    growth = grown(levels, width)
    tree, values = growth.kept(nodes)
    expected = sorted(brute(growth, nodes))
    tokens, parents = np.concatenate(growth.tokens), np.concatenate(growth.parents)
    assert tree.tokens.tolist() == tokens[expected].tolist()
    np.testing.assert_array_equal(values, np.concatenate(growth.values)[expected])
    position = {node: index for index, node in enumerate(expected)} | {-1: -1}
    assert tree.shape.parents == tuple(position[int(parents[node])] for node in expected)


def test_a_tree_by_hand():
    """Values are products: .6 and .4; below .6 its children .54, .06; below .4: .2, .2. Five of six nodes are kept."""
    growth = Growth()
    growth.add(np.array([[1, 2]]), np.log(np.array([[0.6, 0.4]])))
    assert growth.frontier(2).tolist() == [0, 1]
    growth.add(np.array([[3, 4], [5, 6]]), np.log(np.array([[0.9, 0.1], [0.5, 0.5]])), growth.frontier(2))
    tree, values = growth.kept(5)
    assert tree.tokens.tolist() == [1, 2, 3, 5, 6]
    assert tree.shape.parents == (-1, -1, 0, 1, 1)
    np.testing.assert_allclose(np.exp(values), [0.6, 0.4, 0.54, 0.2, 0.2])
    assert growth.kept(3)[0].tokens.tolist() == [1, 2, 3]
    assert growth.frontier(3).tolist() == [0, 2, 3]
    assert growth.frontier(3, least=np.log(0.3)).tolist() == [0]
    assert growth.kept(99)[0].tokens.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("sizes", [{}, {"version": 3, "draft_vocabulary": 50}])
@torch.no_grad()
def test_every_branch_is_continued_alone(sizes: dict[str, Any]):
    """Rows of a level see their own branch only: each node's value is what a chain along its path gives."""
    model = lm("llama")
    head = heads.eagle(model, **sizes)
    continuer = Continuer(head, model)
    window = WINDOW[0]
    f = states(model, head, window[None])[0]
    drafter = TreeDrafter(continuer, depth=4, width=5, nodes=60)
    drafter.observe_prompt(window[:-1].tolist(), None, dict(zip(head.reads, f[:-1].split(32, dim=-1), strict=False)))
    tree = drafter.draft(context(window.tolist()))
    assert len(tree) == 60
    assert max(tree.shape.depth) == 3
    for node in (59, 50, 31, 12, 4):
        path = list(tree.shape.path(node))
        alone = continuer.text()
        out = continuer.read(alone, window[1:], f[:-1])
        total = 0.0
        for level, step in enumerate(path):
            tokens, confidences = continuer.guess(out, 5)
            place_ = tokens[0].tolist().index(int(tree.tokens[step]))
            total += float(confidences[0, place_])
            out = continuer.level(alone, tree.tokens[[step]], out, torch.zeros(1, level + 1), level + 1)
        assert float(drafter.values[node]) == pytest.approx(total, abs=1e-4)
    assert len(drafter.draft(context([1]))) == 0  # nothing new is known
    assert len(TreeDrafter(continuer, 4, 5, 60).draft(context([1]))) == 0  # one token: no state at all


@pytest.mark.parametrize("sizes", [{}, {"version": 3}])
def test_after_any_number_of_steps_the_text_is_as_if_read_at_once(sizes: dict[str, Any]):
    model = lm("llama")
    head = heads.eagle(model, **sizes)
    method = Eagle(head=head, nodes=10, depth=3, k=3)
    result = generate(model, text(17, 2, period=6), method, max_new_tokens=40, do_sample=False)
    assert result.tokens == generate(model, text(17, 2, period=6), "greedy", max_new_tokens=40, do_sample=False).tokens
    assert result.stats.accepted > 1
    drafts = [event.tree for event in result.events if isinstance(event, Drafted)]
    steps = [event.tokens for event in result.events if isinstance(event, Accepted)]
    tokens = list(result.prompt)
    for step, (draft, committed) in enumerate(zip(drafts, steps, strict=False)):
        if step in (0, 1, 7, 20):
            fresh = method.drafter(model, None)  # type: ignore[arg-type]
            f = states(model, head, torch.tensor([tokens[:-1]]))[0].split(32, dim=-1)
            for begin in range(0, len(tokens) - 1, 9):  # in pieces, as long prompts are read
                part = {layer: each[begin : begin + 9] for layer, each in zip(head.reads, f, strict=False)}
                fresh.observe_prompt(tokens[begin : min(begin + 9, len(tokens) - 1)], None, part)
            again = fresh.draft(context(tokens, levels=len(result.prompt) + 40 - len(tokens) - 1))
            assert again.tokens.tolist() == draft.tokens.tolist()
            assert again.shape is draft.shape
        tokens += committed


@pytest.mark.parametrize("sizes", [{}, {"version": 3}])
@pytest.mark.parametrize("length", [4, 12, 14])
@pytest.mark.parametrize(("drafts", "chunk"), [(True, 512), (False, 512), (True, 4)])
def test_after_a_rewind_it_drafts_as_if_it_had_never_seen_what_was_refused(
    sizes: dict[str, Any], length: int, drafts: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    """Within the prompt, within a step, and where only the pending token changes; with or without a draft since."""
    monkeypatch.setattr(eagle_draft, "CHUNK", chunk)
    model = lm("llama")
    head = heads.eagle(model, **sizes)
    refused, wanted = text(16, 5), [*text(16, 5)[:length], *text(16 - length, 9)]
    continuer = Continuer(head, model)
    made, fresh = TreeDrafter(continuer, 3, 4, 12), TreeDrafter(continuer, 3, 4, 12)

    def tell(drafter: TreeDrafter, tokens: list[int], begin: int, end: int) -> None:
        told = states(model, head, torch.tensor([tokens]))[0, begin:end].split(32, dim=-1)
        drafter.observe_prompt(tokens[begin:end], None, dict(zip(head.reads, told, strict=False)))

    tell(made, refused, 0, 9)
    made.draft(context(refused[:10]))
    tell(made, refused, 9, 14)
    if drafts:
        made.draft(context(refused[:15]))
    made.rewind(length)
    if length < 14:
        assert made.text.length == min(length - 1, 14 if drafts else 9)
        tell(made, wanted, length, 14)
    tell(fresh, wanted, 0, 14)
    mine, theirs = made.draft(context(wanted[:15])), fresh.draft(context(wanted[:15]))
    assert made.text.length == fresh.text.length == 14
    assert mine.tokens.tolist() == theirs.tokens.tolist()
    assert mine.shape is theirs.shape
    close(made.text.keys[:, :14], fresh.text.keys[:, :14])
    made.rewind(0)
    assert len(made.draft(context([1]))) == 0  # nothing is known any more


def test_k_one_is_a_chain():
    model = lm("llama")
    result = generate(model, text(9), Eagle(head=heads.eagle(model), nodes=4, depth=4, k=1), max_new_tokens=12)
    drafts = [event.tree for event in result.events if isinstance(event, Drafted)]
    assert all(draft.shape is TreeShape.chain(len(draft)) for draft in drafts)
    assert max(map(len, drafts)) == 4


# ---------------------------------------------------------------- how far it pays


def one_level(*probabilities: float) -> Growth:
    growth = Growth()
    growth.add(np.arange(len(probabilities))[None], np.log(np.array([probabilities])))
    return growth


def test_the_pace_keeps_what_gives_most_tokens_a_second():
    curve = CostCurve("some", [1, 2, 3, 4, 20], [1.0, 1.1, 1.2, 1.7, 3.0])
    pace = Pace(curve, level=0.1, largest=10)
    growth = one_level(0.5, 0.3, 0.1, 0.05)
    factor = PRIOR[0] / PRIOR[1]
    expected = [1 + factor * total for total in (0.0, 0.5, 0.8, 0.9, 0.95)]
    speeds = [tokens / (curve.cost(nodes + 1) + 0.1) for nodes, tokens in enumerate(expected)]
    nodes, least, _ = pace.choose(growth)
    assert nodes == speeds.index(max(speeds)) == 2
    assert least == pytest.approx(np.log(0.3))
    # What was accepted changes what a promise is worth.
    pace.observe(np.log(np.array([0.5, 0.5] * 40)), 80)
    assert pace.accepted / pace.promised == pytest.approx((PRIOR[0] + 80) / (PRIOR[1] + 40))
    assert pace.choose(one_level(0.9, 0.3))[0] == 2
    for _ in range(40):
        pace.observe(np.log(np.array([0.5, 0.5] * 40)), 0)
    assert pace.choose(growth)[0] == 0


@pytest.mark.parametrize(("level", "goes_on"), [(0.05, True), (0.2, True), (2.0, False)])
def test_another_level_has_to_earn_its_time(level: float, goes_on: bool):
    pace = Pace(FREE, level=level, largest=10)
    nodes, _, more = pace.choose(one_level(0.9, 0.05))
    assert more == goes_on
    assert nodes == 2  # rows are free, and the level is already paid


@pytest.mark.parametrize(("level", "goes_on"), [(0.110, True), (0.112, False)])
def test_the_pace_of_a_second_level(level: float, goes_on: bool):
    """Levels that hold .8 and .4 promise .2 for the next; 2.2 tokens take 1 + 2 L, so it pays up to L = 1 / 9."""
    pace = Pace(FREE, level=level, largest=10)
    pace.accepted = pace.promised = 1.0
    growth = one_level(0.8)
    growth.add(np.array([[7]]), np.log(np.array([[0.5]])), np.array([0]))
    assert pace.choose(growth) == (2, pytest.approx(np.log(0.4)), goes_on)


def test_what_does_not_pay_rests():
    model = lm("llama")
    pace = Pace(STEEP, level=5.0, largest=8)
    continuer = Continuer(heads.eagle(model), model)
    drafter = TreeDrafter(continuer, 4, 3, 8, pace)
    f = states(model, continuer.head, WINDOW[:1])[0]
    drafter.observe_prompt(WINDOW[0, :-1].tolist(), None, {-1: f[:-1]})
    sizes: list[int] = []
    for _ in range(REST + 2):
        sizes.append(len(drafter.draft(context([*WINDOW[0].tolist(), *[5] * len(sizes)]))))
        drafter._wait({-1: f[-1:]}, [0])
        if len(sizes) == 1:
            pace.costs = [1.0] * len(pace.costs)
            pace.level = 0.0
    assert sizes == [0] * REST + [sizes[REST]] + [sizes[-1]]
    assert sizes[REST] > 0
    assert drafter.text.length == 39 + REST + 1  # what was verified meanwhile was read then


@pytest.mark.parametrize("curve", [FREE, STEEP])
def test_a_tree_that_sizes_itself_changes_no_token(curve: CostCurve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(place, "calibrate", lambda lm: curve)
    monkeypatch.setattr(place, "_level_beside_pass", lambda continuer: 0.1)
    model = lm("llama")
    prompt = text(15, 4, period=5)
    result = generate(model, prompt, Eagle(head=heads.eagle(model)), max_new_tokens=40, do_sample=False)
    assert result.tokens == generate(model, prompt, "greedy", max_new_tokens=40).tokens
    if curve is FREE:
        assert result.stats.accepted > 0
        assert max(len(step.tree) for step, _ in result.steps if step) == place.LARGEST
    else:
        assert result.stats.drafted <= 5


def test_a_level_is_measured_beside_a_step():
    model = lm("llama")
    assert 0.0 < place._level_beside_pass(Continuer(heads.eagle(model), model)) < 100.0


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Eagle(depth=0), "depth and k must be at least 1, got 0 and 10"),
        (lambda: Eagle(nodes=-2), "nodes must be at least 0, got -2"),
        (lambda: EagleSizes(version=2), "version must be 1"),
        (lambda: EagleSizes(distances=0), "distances must be at least 1"),
        (lambda: LayerSizes(width=-1), "width must be at least 0"),
        (lambda: LayerSizes(heads=3, key_heads=2), "cannot share 2 key heads evenly"),
        (lambda: LayerSizes(rope={"rope_type": "dynamic"}), "unknown rotary positions 'dynamic'"),
        (lambda: EagleHead.new(lm("llama"), draft_vocabulary=97), "more than the 96 tokens"),
        (lambda: EagleHead.new(lm("llama"), draft_vocab=9), "did you mean 'draft_vocabulary'"),
        (lambda: heads.eagle(lm("llama"), distances=40).loss(lm("llama"), WINDOW), "too short for 40 distances"),
        (lambda: generate(lm("llama"), text(5), "eagle"), "there is no eagle head for"),
    ],
)
def test_what_is_wrong_is_said(make: Any, message: str):
    with pytest.raises(RamifyError, match=message):
        make()


def test_drafts_in_view_of_the_noise_are_right_more_often_and_change_no_token() -> None:
    calls = [heads.calls_of_sampling(Eagle(nodes=8, coupled=coupled)) for coupled in (False, True)]
    assert calls[1] < 0.95 * calls[0]


def test_what_truncation_rules_out_is_not_drafted() -> None:
    growth = Growth()
    growth.add(np.array([[1, 2, 3]]), np.array([[-0.1, -np.inf, -np.inf]]))
    assert growth.frontier(3).tolist() == [0]
    growth.add(np.array([[4, 5, 6]]), np.array([[-0.5, -0.7, -np.inf]]), growth.frontier(3))
    tree, values = growth.kept(9)
    assert tree.tokens.tolist() == [1, 4, 5]
    assert np.isfinite(values).all()
    model = load("demo", dtype="float32")
    settings: dict[str, Any] = {"max_new_tokens": 24, "do_sample": True, "top_k": 2, "seed": 1}
    steps = generate(model, "def first(", Eagle(nodes=12, depth=2), **settings).steps
    assert max(len(drafted.tree) for step in steps for drafted in step if isinstance(drafted, Drafted)) <= 2 + 4


def test_a_reduced_draft_vocabulary_meets_the_noise_of_its_own_tokens() -> None:
    model = lm("llama")
    head = heads.eagle(model, draft_vocabulary=20)
    prompts, settings = [text(12, 3)], {"max_new_tokens": 24, "do_sample": True, "temperature": 0.8, "seed": 5}
    plain = generate(model, prompts, "sample", **settings)
    found = generate(model, prompts, Eagle(head=head, nodes=6), **settings)
    assert found[0].tokens == plain[0].tokens


@given(st.lists(st.lists(st.floats(-4.0, -0.1), min_size=2, max_size=2), min_size=3, max_size=3))
def test_a_tree_promises_its_own_confidences(confidences: list[list[float]]) -> None:
    growth = Growth()
    growth.add(np.array([[1, 2]]), np.array(confidences[:1]))
    growth.add(np.array([[3, 4], [5, 6]]), np.array(confidences[1:]), np.array([0, 1]))
    tree, values = growth.kept(6)
    assert tree.promises is not None
    given_ = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}
    flat = np.exp(np.array(confidences).ravel())
    for node, token in enumerate(tree.tokens.tolist()):
        assert tree.promises[node] == pytest.approx(flat[given_[token]], rel=1e-6)
        above = tree.shape.parents[node]
        total = values[node] - (values[above] if above >= 0 else 0.0)
        assert math.exp(total) == pytest.approx(tree.promises[node], rel=1e-6)
