"""Sessions: whatever was scored, kept, forgotten or forked, the next logits are those of a fresh forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import CONTEXT, FAMILIES, REFUSED, VOCABULARY, WINDOW, WINDOWED, fresh, lm, model, text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ramify.engine.session import Scores, Session
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.models.forward import Nodes
from ramify.models.weights import unavailable

SHAPE = TreeShape.of([-1, 0, 0, 1, 1, 2, 3, 5])
TREE = TokenTree(torch.tensor(text(8, 5)), SHAPE)
LEAVES = [4, 6, 7]
SOME = ["llama", "mistral", "gemma3", "gpt2", "qwen3_moe"]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def along(tree: TokenTree, node: int) -> list[int]:
    return tree.tokens[list(tree.shape.path(node))].tolist()


def check(family: str, scores: Scores, trees: list[TokenTree], texts: list[list[int]]) -> None:
    """Every node of every row against a fresh forward pass over its path."""
    for row, (tree, before) in enumerate(zip(trees, texts, strict=False)):
        for node in range(len(tree)):
            close(scores.logits[row, node], fresh(family, before + along(tree, node))[-1])


def plain_steps(family: str, session: Session, texts: list[list[int]], steps: int) -> None:
    for step in range(steps):
        tokens = [(7 * step + row) % VOCABULARY for row in range(len(texts))]
        scores = session.score([TokenTree.chain([token]) for token in tokens])
        session.keep([[0]] * len(texts))
        for row, token in enumerate(tokens):
            texts[row] = [*texts[row], token]
            close(scores.logits[row, 0], fresh(family, texts[row])[-1])
    assert session.lengths == list(map(len, texts))


# ---- any history ----


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    size = draw(st.integers(1, 6))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=size, max_size=size))
    return TokenTree(torch.tensor(tokens), TreeShape.of(parents))


# Every family on the forward pass that it gets, some on transformers' own, one over packed weights.
HOW = [
    *((family, "") for family in FAMILIES),
    *((family, "transformers") for family in ("llama", "mistral", "gemma3")),
    pytest.param(
        "mistral",
        "packed",
        marks=pytest.mark.skipif(bool(unavailable("packed", torch.float32, "cpu")), reason="no packed weights here"),
    ),
]


@pytest.mark.parametrize(("family", "how"), HOW)
def test_any_history(family: str, how: str):
    @settings(deadline=None, max_examples=30, derandomize=True)
    @given(st.data())
    def history(data: st.DataObject) -> None:
        rows = data.draw(st.integers(1, 3), "rows")
        session = Session(lm(family, how), rows, capacity=data.draw(st.sampled_from([4, 64]), "capacity"))
        texts = [text(data.draw(st.integers(0, 2 * WINDOW), "length"), row) for row in range(rows)]
        session.prefill(texts, chunk=data.draw(st.sampled_from([3, 512]), "chunk"))
        for _ in range(data.draw(st.integers(1, 5), "steps")):
            action = data.draw(st.sampled_from(["tree", "tree", "step", "select", "truncate"]), "action")
            if action == "select":
                chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6), "select")
                session.select(chosen)
                texts = [texts[row] for row in chosen]
                continue
            if action == "truncate":
                texts = [each[: data.draw(st.integers(0, len(each)), "cut")] for each in texts]
                session.truncate(list(map(len, texts)))
                continue
            taking = texts[: data.draw(st.integers(1, len(texts)), "taking")]
            if action == "step":
                drafts = [TokenTree.chain([data.draw(st.integers(0, VOCABULARY - 1), "token")]) for _ in taking]
            else:
                drafts = [data.draw(trees(), "tree") for _ in taking]
            check(family, session.score(drafts), drafts, texts)
            if data.draw(st.booleans(), "forget"):
                continue
            kept = [draft.shape.path(data.draw(st.integers(-1, len(draft) - 1), "keep")) for draft in drafts]
            session.keep(kept)
            grown = [t + d.tokens[list(k)].tolist() for t, d, k in zip(taking, drafts, kept, strict=True)]
            texts = [*grown, *texts[len(grown) :]]
        assert session.lengths == list(map(len, texts))
        plain_steps(family, session, texts, 1)

    history()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_behind_twenty_tokens(family: str):
    session = Session(lm(family))
    session.prefill([text(20)])
    check(family, session.score(TREE), [TREE], [text(20)])


@pytest.mark.parametrize("family", WINDOWED)
def test_a_tree_deeper_than_the_window(family: str):
    """Two interleaved branches, so that a node's slot says nothing about its position."""
    parents = [-1, -1, *range(2 * WINDOW + 6)]
    deep = TokenTree(torch.tensor(text(len(parents), 9)), TreeShape.of(parents))
    for prefix in (0, 3, WINDOW + 2):
        session = Session(lm(family))
        session.prefill([text(prefix)])
        check(family, session.score(deep), [deep], [text(prefix)])
        session.keep([deep.shape.path(len(deep) - 1)])
        plain_steps(family, session, [text(prefix) + along(deep, len(deep) - 1)], 3)


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("prefix", [WINDOW - 7, WINDOW, 2 * WINDOW])
@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", *WINDOWED])
def test_compaction_leaves_no_trace(family: str, prefix: int, leaf: int):
    session = Session(lm(family))
    session.prefill([text(prefix)])
    session.score(TREE)
    session.keep([SHAPE.path(leaf)])
    plain_steps(family, session, [text(prefix) + along(TREE, leaf)], 10)


def test_ragged_rows_equal_single_rows():
    texts = [text(14, 1), text(3, 2), text(23, 3)]
    for family in SOME:
        together = Session(lm(family), 3)
        together.prefill(texts, chunk=5)
        batch = together.score([TREE, TokenTree.chain([1, 2]), TREE]).logits
        for row, own in enumerate((TREE, TokenTree.chain([1, 2]), TREE)):
            alone = Session(lm(family))
            alone.prefill([texts[row]])
            close(batch[row, : len(own)], alone.score(own).logits[0])


@pytest.mark.parametrize("family", SOME)
def test_a_node_sees_its_ancestors_only(family: str):
    session = Session(lm(family))
    session.prefill([text(15)])
    before = session.score(TREE).logits[0]
    for changed in range(8):
        tokens = TREE.tokens.clone()
        tokens[changed] = (int(tokens[changed]) + 1) % VOCABULARY
        after = session.score(TokenTree(tokens, SHAPE)).logits[0]
        for node in range(8):
            if SHAPE.ancestors[node, changed]:
                assert (after[node] - before[node]).abs().max() > 1e-3
            else:
                torch.testing.assert_close(after[node], before[node], atol=1e-6, rtol=1e-6)


def test_scoring_again_forgets_the_first_tree():
    session = Session(lm("mistral"))
    session.prefill([text(13)])
    first = session.score(TREE).logits
    session.score(TokenTree.chain(text(11, 4)))
    close(session.score(TREE).logits, first)
    session.keep([[]])
    close(session.score(TREE).logits, first)
    assert session.lengths == [13]


# ---- prefill, capacity ----


@pytest.mark.parametrize("family", SOME)
def test_chunks_make_no_difference(family: str):
    texts = [text(17, 1), text(6, 2), []]
    seen = []
    for chunk in (1, 5, 16, 512):
        session = Session(lm(family), 3, capacity=2)
        calls = session.prefill(texts, chunk=chunk)
        assert calls == -(-17 // chunk)
        assert session.lengths == [17, 6, 0]
        seen.append(session.score([TREE] * 3).logits)
    for other in seen[1:]:
        close(other, seen[0])
    check(family, Scores(seen[0], range(8), {}, None, 8), [TREE] * 3, texts)


def test_prefill_shows_every_token_with_the_logits_after_it():
    texts = [text(11, 1), text(4, 2)]
    session = Session(lm("gemma2"), 2)
    tokens: list[list[int]] = [[], []]
    logits: list[list[Tensor]] = [[], []]

    def observe(row: int, part: list[int], after: Tensor | None, hidden: dict[int, Tensor]) -> None:
        assert after is not None
        assert not hidden
        tokens[row] += part
        logits[row] += [after]

    session.prefill(texts, chunk=3, observe=observe)
    assert tokens == texts
    for row in range(2):
        close(torch.cat(logits[row]), fresh("gemma2", texts[row]))


def test_nothing_to_prefill():
    session = Session(lm("llama"), 2)
    assert session.prefill([[], []]) == 0
    plain_steps("llama", session, [[], []], 3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_cache_grows(family: str):
    session = Session(lm(family), 2, capacity=1)
    texts = [text(9), text(2)]
    session.prefill(texts, chunk=4)
    plain_steps(family, session, texts, 30)


# ---- what can be asked for ----


@pytest.mark.parametrize("family", SOME)
def test_logits_of_some_nodes(family: str):
    session = Session(lm(family), 2)
    session.prefill([text(9), text(12)])
    every = session.score([TREE, TREE])
    some = session.score([TREE, TREE], logits_at=[6, 0, 3])
    assert list(every.nodes) == list(range(8))
    assert list(some.nodes) == [6, 0, 3]
    close(some.logits, every.logits[:, [6, 0, 3]])


@pytest.mark.parametrize("family", SOME)
def test_hidden_states(family: str):
    session = Session(lm(family))
    session.prefill([text(14)])
    hidden = session.score(TREE, logits_at=[0], hidden_layers=[0, 1, -1]).hidden
    assert set(hidden) == {0, 1, -1}
    for node in range(8):
        with torch.no_grad():
            alone = model(family)(
                input_ids=torch.tensor([text(14) + along(TREE, node)]), use_cache=False, output_hidden_states=True
            ).hidden_states
        for layer, states in hidden.items():
            close(states[0, node], alone[layer][0, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_inputs(family: str):
    """A token's own embedding changes nothing; any other embedding acts as it does in transformers."""
    before, table = text(14), model(family).get_input_embeddings()
    session = Session(lm(family))
    session.prefill([before])
    hard = session.score(TREE).logits
    soft = torch.tensor([True, False] * 4)
    own = table(TREE.tokens).detach()
    close(session.score(TokenTree(torch.where(soft, 0, TREE.tokens), SHAPE, {}, own, soft)).logits, hard)

    given_ = torch.randn(own.shape, generator=torch.Generator().manual_seed(3)) * own.std()
    scores = session.score(TokenTree(TREE.tokens, SHAPE, {}, given_, soft)).logits[0]
    mixed = torch.where(soft[:, None], given_, own)
    for node in (0, 4, 6):
        inputs = torch.cat([table(torch.tensor(before)), mixed[list(SHAPE.path(node))]])
        with torch.no_grad():
            close(scores[node], model(family)(inputs_embeds=inputs[None], use_cache=False).logits[0, -1])


def test_soft_rows_beside_hard_rows():
    session = Session(lm("qwen2"), 2)
    session.prefill([text(5), text(8)])
    embeddings = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    soft = TokenTree(torch.tensor([0, 0]), TreeShape.chain(2), {}, embeddings, torch.ones(2) > 0)
    scores = session.score([TREE, soft]).logits
    check("qwen2", Scores(scores[:1], range(8), {}, None, 8), [TREE], [text(5)])
    inputs = torch.cat([model("qwen2").get_input_embeddings()(torch.tensor(text(8))), embeddings])
    with torch.no_grad():
        close(scores[1, 1], model("qwen2")(inputs_embeds=inputs[None]).logits[0, -1])


# ---- padding to sizes that take less time ----


class Spy:
    """A forward pass that notes how many nodes it is given in each row."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward
        self.ran: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.forward, name)

    def __call__(self, nodes: Nodes, cache: Any) -> Any:
        self.ran.append(nodes.tokens.shape[1])
        return self.forward(nodes, cache)


PADDING = {1: 4, 2: 4, 3: 4, 5: 8, 6: 8, 7: 8, 9: 12}


@pytest.mark.parametrize(
    ("family", "how"), [("llama", ""), ("gemma3", ""), ("phi3", ""), ("mistral", "transformers"), ("gpt2", "")]
)
def test_padding_changes_nothing(family: str, how: str):
    plain = lm(family, how)

    @settings(deadline=None, max_examples=40, derandomize=True)
    @given(st.data())
    def history(data: st.DataObject) -> None:
        spy: Any = Spy(plain.forward)
        rows = data.draw(st.integers(1, 3), "rows")
        capacity = data.draw(st.sampled_from([4, 64]), "capacity")
        sessions = [
            Session(plain, rows, capacity),
            Session(replace(plain, forward=spy, padding=PADDING), rows, capacity),
        ]
        texts = [text(data.draw(st.integers(0, 2 * WINDOW), "length"), row) for row in range(rows)]
        for session in sessions:
            session.prefill(texts, chunk=data.draw(st.sampled_from([3, 512]), "chunk"))
        for _ in range(data.draw(st.integers(1, 3), "steps")):
            drafts = [data.draw(trees(), "tree") for _ in range(rows)]
            count = max(map(len, drafts))
            at = data.draw(st.none() | st.lists(st.integers(0, count - 1), min_size=1, max_size=3), "logits at")
            layers = data.draw(st.lists(st.sampled_from([0, 1, 2, -1]), unique=True), "hidden layers")
            scores, padded = (session.score(drafts, logits_at=at, hidden_layers=layers) for session in sessions)
            # Enough rows in all, and no more than one node in each row beyond them.
            wanted = PADDING.get(rows * count, rows * count)
            assert spy.ran[-1] == max(count, -(-wanted // rows))
            assert list(padded.nodes) == list(scores.nodes)
            assert padded.logits.shape == scores.logits.shape
            assert list(padded.hidden) == list(scores.hidden)
            for row, draft in enumerate(drafts):
                real = [place for place, node in enumerate(scores.nodes) if node < len(draft)]
                close(padded.logits[row, real], scores.logits[row, real])
                for layer in layers:
                    assert padded.hidden[layer].shape == scores.hidden[layer].shape
                    close(padded.hidden[layer][row, : len(draft)], scores.hidden[layer][row, : len(draft)])
            kept = [draft.shape.path(data.draw(st.integers(-1, len(draft) - 1), "keep")) for draft in drafts]
            for session in sessions:
                session.keep(kept)
            assert sessions[0].lengths == sessions[1].lengths

    history()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_at_the_end_of_the_context(family: str):
    session = Session(replace(lm(family), padding={1: 160}))
    session.prefill([text(CONTEXT - 1)])
    close(session.score(TokenTree.chain([5])).logits[0, 0], fresh(family, [*text(CONTEXT - 1), 5])[-1])


def test_padding_with_soft_inputs():
    embeddings = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    soft = TokenTree(torch.tensor([0, 0]), TreeShape.chain(2), {}, embeddings, torch.ones(2) > 0)
    found = []
    for padding in ({}, {2: 7}):
        session = Session(replace(lm("qwen2"), padding=padding))
        session.prefill([text(8)])
        found.append(session.score(soft).logits)
    close(found[1], found[0])


# ---- refusals ----


def test_bad_calls():
    session = Session(lm("llama"), 2)
    session.prefill([text(5), text(7)])
    with pytest.raises(RamifyError, match="at least one row"):
        Session(lm("llama"), 0)
    with pytest.raises(RamifyError, match="an empty tree cannot be scored"):
        session.score([TREE, TokenTree.empty()])
    with pytest.raises(RamifyError, match="the session has 2 rows, but 3 trees were given"):
        session.score([TREE] * 3)
    with pytest.raises(RamifyError, match="nothing to keep: score a tree first"):
        session.keep([[0], [0]])
    session.score([TREE, TokenTree.chain([1])])
    with pytest.raises(RamifyError, match=r"row 1 has 1 scored nodes, but \[1\] are to be kept"):
        session.keep([[0], [1]])
    with pytest.raises(RamifyError):
        session.keep([[0]])
    with pytest.raises(RamifyError, match=r"cannot select \[2\]"):
        session.select([2])
    with pytest.raises(RamifyError, match="cannot select"):
        session.select([])
    with pytest.raises(RamifyError, match=r"rows of \[5, 7\] tokens cannot be cut to \[5, 8\]"):
        session.truncate([5, 8])
    assert session.lengths == [5, 7]


@pytest.mark.parametrize("token", [-1, VOCABULARY, 1 << 40])
def test_tokens_outside_the_vocabulary(token: int):
    session = Session(lm("llama"))
    with pytest.raises(RamifyError, match=f"token {token} is outside the vocabulary") as error:
        session.score(TokenTree.chain([3, token]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_context_ends(family: str):
    session = Session(lm(family))
    session.prefill([text(CONTEXT - 3)])
    with pytest.raises(RamifyError, match="129 tokens do not fit the context of 128 tokens"):
        session.score(TREE)
    # Depth counts, not the number of nodes.
    wide = TokenTree(torch.tensor(text(20)), TreeShape.of([-1] * 20))
    check(family, session.score(wide), [wide], [text(CONTEXT - 3)])
    plain_steps(family, session, [text(CONTEXT - 3)], 3)
    with pytest.raises(RamifyError, match="do not fit the context"):
        session.score(TokenTree.chain([1]))


# ---- models that cannot fork or roll back ----


@pytest.mark.parametrize("family", REFUSED)
def test_refused_families_score_chains(family: str):
    assert not lm(family).trees
    session = Session(lm(family))
    tokens = text(9)
    session.prefill([tokens])
    for size in (1, 3, 1, 2):
        more = text(size, size)
        scores = session.score(TokenTree.chain(more))
        session.keep([range(size)])
        tokens = tokens + more
        torch.testing.assert_close(scores.logits[0], fresh(family, tokens)[-size:], atol=1e-4, rtol=1e-4)
    assert session.lengths == [len(tokens)]


@pytest.mark.parametrize("family", REFUSED)
def test_refused_families_refuse_the_rest(family: str):
    def refused(what: str) -> pytest.RaisesExc[RamifyError]:
        return pytest.raises(RamifyError, match=f"cannot run {what}: it.*; use method='greedy' or 'sample'$")

    with refused("several rows at once"):
        Session(lm(family), 2)
    session = Session(lm(family))
    session.prefill([text(4)])
    with refused("a token tree"):
        session.score(TREE)
    with refused("soft inputs"):
        session.score(TokenTree(torch.tensor([0]), TreeShape.chain(1), {}, torch.zeros(1, 32), torch.ones(1) > 0))
    session.score(TokenTree.chain([1, 2]))
    with refused("a rollback"):
        session.keep([[0]])
    with refused("a rollback"):  # what was scored is in the state: it must be kept first
        session.score(TokenTree.chain([1]))
    with refused("several rows at once"):
        session.select([0, 0])
    session.keep([[0, 1]])
    with refused("a rollback"):
        session.truncate([4])


@pytest.mark.parametrize("family", REFUSED)
def test_a_refusal_leaves_the_session_usable(family: str):
    session = Session(lm(family))
    session.prefill([text(4)])
    with pytest.raises(RamifyError):
        session.score(TREE)
    scores = session.score(TokenTree.chain([5]))
    torch.testing.assert_close(scores.logits[0, -1], fresh(family, [*text(4), 5])[-1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "gpt2", "mixtral"])
@pytest.mark.parametrize("cached", [0, 6])
def test_a_block_sees_the_text_and_all_of_itself(family: str, cached: int):
    """Behind a text that is cached or not, beside a row of another length; what is before a block does not see it."""
    before, size = 9 - cached, 4
    tokens = text(9 + size, 3)
    seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    seen[-size:, -size:] = True
    hidden = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected = model(family)(torch.tensor([tokens]), attention_mask=hidden[None, None], use_cache=False).logits[0]
    session = Session(lm(family), rows=2)
    session.prefill([tokens[:cached], text(3, 1)])
    block = TokenTree(torch.tensor(tokens[cached:]), TreeShape.block(before, size))
    other = TokenTree.chain(text(5, 2))
    scores = session.score([block, other])
    close(scores.logits[0, : len(block)], expected[cached:])
    session.keep([range(before), range(5)])
    plain_steps(family, session, [tokens[:9], text(3, 1) + text(5, 2)], 2)
