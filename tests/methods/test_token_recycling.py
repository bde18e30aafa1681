"""Token Recycling: the published tree, the worked example, its invariants, templates and their calibration."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY, build, fresh, lm, text
from torch import Tensor

import ramify.methods.draft.token_recycling as module
from ramify.api import generate, prepare
from ramify.engine.drafter import Context, Outcome
from ramify.engine.events import Accepted
from ramify.engine.request import Request
from ramify.engine.result import Result
from ramify.engine.sampling import NodeLaws, Sampler
from ramify.engine.tree import TokenTree
from ramify.engine.verify import match
from ramify.errors import RamifyError
from ramify.methods.draft.autoregressive import Greedy
from ramify.methods.draft.template import Template
from ramify.methods.draft.token_recycling import Recycler, TokenRecycling, calibrate_template, load_template
from ramify.models.calibrate import CostCurve
from ramify.models.causal import load

PROMPT = text(14, 2, period=6)
NEW = 30
# Number of children of every inner node of the published tree, as its paper's code lists them.
CHILDREN = {
    "": 8,
    "0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1,
    "00": 8, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1,
    "10": 2, "11": 1, "20": 1, "30": 1, "40": 1, "50": 1,
    "000": 5, "001": 2, "002": 1, "003": 1, "004": 1, "010": 1, "020": 1, "100": 1, "200": 1, "300": 1,
    "0000": 3, "0001": 1, "0002": 1, "0010": 1, "0100": 1, "1000": 1,
    "00000": 2, "00010": 1,
}  # fmt: skip
FORK = Template(((0,), (1,), (0, 0)))
CALIBRATED = [name for name, entry in json.loads(module.TEMPLATES.read_text()).items() if "rates" in entry]


def context(token: int, sampler: Sampler | None = None) -> Context:
    return Context([token], 9, sampler or Sampler(), torch.Generator(), 1)


def outcome(tokens: list[int], logits: Tensor, path: tuple[int, ...] = (0,)) -> Outcome:
    return Outcome(TokenTree.chain(tokens), logits, path, ())


def ranking(*best: int, vocabulary: int = 12) -> list[float]:
    """Logits whose largest are at ``best``, in this order."""
    return [float(10 - best.index(token)) if token in best else -float(token) for token in range(vocabulary)]


def plain(new: int = NEW, prompt: list[int] = PROMPT) -> list[int]:
    tokens: list[int] = generate(lm("llama"), prompt, "greedy", max_new_tokens=new).tokens
    return tokens


def run(method: TokenRecycling, new: int = NEW, prompt: list[int] = PROMPT, **settings: Any) -> Result:
    result: Result = generate(lm("llama"), prompt, method, max_new_tokens=new, **settings)
    return result


def used(method: TokenRecycling) -> Template:
    [found] = [value for key, value in method.memory.items() if key[0] == "tree"]
    template: Template = found
    return template


def matrix(method: TokenRecycling) -> np.ndarray:
    found: np.ndarray = method.memory["matrix", lm("llama")]
    return found


# ---------------------------------------------------------------- the tree


def test_the_published_tree():
    tree = load_template("paper")
    assert len(tree.ranks) == 80
    assert Counter(map(len, tree.ranks)) == {1: 8, 2: 21, 3: 25, 4: 15, 5: 8, 6: 3}
    children = Counter("".join(map(str, path[:-1])) for path in tree.ranks)
    assert children == CHILDREN
    assert sum("".join(map(str, path)) not in children for path in tree.ranks) == 40
    assert list(tree.ranks) == sorted(tree.ranks, key=lambda path: (len(path), path))  # breadth first
    for parent, count in children.items():  # a node with c children has the ranks 0 to c - 1
        parent_path = tuple(map(int, parent))
        assert [path[-1] for path in tree.ranks if path[:-1] == parent_path] == list(range(count))
    assert tree.shape.children[-1] == tuple(range(8))
    assert sum(not kids for kids in tree.shape.children[:-1]) == 40


@pytest.mark.parametrize("name", CALIBRATED)
def test_every_beginning_of_a_calibrated_tree_is_a_tree(name: str):
    tree = load_template(name)
    assert len(tree.ranks) == len(tree.rates) == len(set(tree.ranks)) == 160
    assert max(map(len, tree.ranks)) <= module.DEPTH
    assert max(map(max, tree.ranks)) < 8
    rate = dict(zip(tree.ranks, tree.rates, strict=True)) | {(): 1.0}
    for size in range(161):
        beginning = tree.first(size)
        nodes = {(), *beginning.ranks}
        assert all(path[:-1] in nodes for path in beginning.ranks)
    assert all(0.0 < rate[path] <= rate[path[:-1]] for path in tree.ranks)
    assert list(tree.rates) == sorted(tree.rates, reverse=True)
    assert tree.expected(0) == 1.0
    assert tree.expected(2) == pytest.approx(1.0 + tree.rates[0] + tree.rates[1])


def test_a_smaller_k_leaves_out_the_ranks_that_it_has_not():
    narrow = load_template("paper").narrow(2)
    assert max(map(max, narrow.ranks)) == 1
    assert narrow.ranks == tuple(path for path in load_template("paper").ranks if max(path) < 2)
    half = Template(((0,), (3,), (0, 0)), (0.5, 0.4, 0.3)).narrow(2)
    assert half == Template(((0,), (0, 0)), (0.5, 0.3))


def test_templates_are_kept_in_files(tmp_path: Path):
    file = tmp_path / "mine.json"
    for template in (Template(FORK.ranks, (0.5, 0.25, 0.125)), FORK, load_template("greedy")):
        template.save(file)
        assert load_template(str(file)) == template
    FORK.save(file)
    result = run(TokenRecycling(template=str(file)))
    assert result.tokens == plain()
    assert max(len(draft.tree) for draft, _ in result.steps if draft) == 3


def test_what_is_wrong_with_a_template_is_said(tmp_path: Path):
    with pytest.raises(RamifyError, match=r"node \(0, 0\) before its parent"):
        Template(((0, 0), (0,)))
    with pytest.raises(RamifyError, match="did you mean 'calibrated'"):
        run(TokenRecycling(template="calibrate"))
    with pytest.raises(RamifyError, match="did you mean 'paper'"):
        run(TokenRecycling(template="papers"))
    with pytest.raises(RamifyError, match="3 nodes, fewer than the 4"):
        FORK.first(4)
    with pytest.raises(RamifyError, match="80 nodes, fewer than the 81"):
        run(TokenRecycling(template="paper", nodes=81))
    with pytest.raises(RamifyError, match="3 nodes but 1 rates"):
        Template(FORK.ranks, (0.5,))
    file = tmp_path / "mine.json"
    broken = ["{", "[[0], [1]]", '{"paths": [[0]]}']
    broken += [f'{{"ranks": {ranks}}}' for ranks in ("3", "[[]]", "[[-1]]", '[["a"]]', "[[1, 0]]")]
    for content in broken:
        file.write_text(content)
        with pytest.raises(RamifyError, match=r"mine\.json is no template file"):
            load_template(str(file))


def test_what_is_wrong_with_the_options_is_said():
    with pytest.raises(RamifyError, match="nodes must be at least 0, got -1"):
        TokenRecycling(nodes=-1)
    with pytest.raises(RamifyError, match="k must be at least 1, got 0"):
        TokenRecycling(k=0)
    with pytest.raises(RamifyError, match="unknown scope 'requests'; did you mean 'request'"):
        TokenRecycling(scope="requests")  # type: ignore[arg-type]
    with pytest.raises(RamifyError, match="unknown update 'accept'; did you mean 'accepted'"):
        TokenRecycling(update="accept")  # type: ignore[arg-type]


# ---------------------------------------------------------------- the worked example


def example() -> Recycler:
    table = np.zeros((12, 2), dtype=np.int32)
    table[5], table[7], table[8] = [7, 9], [8, 3], [11, 11]
    return Recycler(TokenRecycling(k=2), FORK, table)


# Root 5, then nodes 7, 9, 8: the model wants 7 at the root, 8 after 7, and 2 after 8.
EXAMPLE_LOGITS = torch.tensor([ranking(7, 1), ranking(8, 4), ranking(6, 0), ranking(2, 10)])


def test_the_worked_example_drafts_and_verifies():
    tree = example().draft(context(5))
    assert tree.tokens.tolist() == [7, 9, 8]
    rooted = tree.rooted(5)
    assert rooted.tokens.tolist() == [5, 7, 9, 8]
    assert rooted.shape.parents == (-1, 0, 0, 1)
    assert rooted.shape.depth == (0, 1, 1, 2)  # positions L - 1, L, L, L + 1
    rows = ["".join(str(int(seen)) for seen in row) for row in rooted.shape.ancestors]
    assert rows == ["1000", "1100", "1010", "1101"]
    laws = NodeLaws(Sampler(), rooted, EXAMPLE_LOGITS, torch.zeros(9, dtype=torch.long), 1)
    verdict = match(rooted, laws, torch.Generator())
    assert (verdict.path, verdict.token) == ((0, 1, 3), 2)
    committed = [*rooted.tokens[list(verdict.path[1:])].tolist(), verdict.token]
    assert committed == [7, 8, 2]


def test_the_worked_example_overwrites_whole_rows():
    recycler = example()
    rooted = recycler.draft(context(5)).rooted(5)
    recycler.observe(Outcome(rooted, EXAMPLE_LOGITS, (0, 1, 3), (7, 8, 2)))
    expected = np.zeros((12, 2), dtype=np.int32)
    expected[5], expected[7], expected[9], expected[8] = [7, 1], [8, 4], [6, 0], [2, 10]
    assert (recycler.matrix == expected).all()
    assert recycler.draft(context(5)).tokens.tolist() == [7, 1, 8]


def test_the_ablation_learns_from_accepted_nodes_only():
    recycler = example()
    recycler.options = TokenRecycling(k=2, update="accepted")
    rooted = recycler.draft(context(5)).rooted(5)
    recycler.observe(Outcome(rooted, EXAMPLE_LOGITS, (0, 1), (7, 2)))
    assert recycler.matrix[[5, 7, 9, 8]].tolist() == [[7, 1], [8, 4], [0, 0], [11, 11]]


def test_the_last_of_equal_tokens_wins():
    recycler = example()
    logits = torch.tensor([ranking(1, 2), ranking(3, 4), ranking(5, 6), ranking(8, 9), ranking(10, 11)])
    recycler.observe(outcome([5, 7, 5, 7, 5], logits))
    assert recycler.matrix[[5, 7]].tolist() == [[10, 11], [8, 9]]
    recycler.observe_prompt([7, 7], logits[:2], {})
    assert recycler.matrix[[5, 7]].tolist() == [[10, 11], [3, 4]]


# ---------------------------------------------------------------- invariants


@pytest.mark.parametrize("update", ["all", "accepted"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_matrix_gives_the_greedy_tokens(update: Any, seed: int):
    method = TokenRecycling(template="paper", update=update, seed_from_prompt=bool(seed))
    adversarial = np.random.default_rng(seed).integers(0, VOCABULARY, (VOCABULARY, 8), dtype=np.int32)
    method.memory["matrix", lm("llama")] = adversarial if seed else np.full_like(adversarial, 7)
    assert run(method).tokens == plain()


def test_no_nodes_is_plain_decoding():
    method = TokenRecycling(nodes=0)
    result = run(method)
    assert result.tokens == plain()
    assert result.stats.target_calls == result.stats.row_steps == NEW
    assert result.stats.drafted == 0
    assert not matrix(method).any()


def test_a_chain_of_rank_zero_looks_bigrams_up(tmp_path: Path):
    Template(((0,), (0, 0), (0, 0, 0))).save(tmp_path / "chain.json")
    method = TokenRecycling(k=1, template=str(tmp_path / "chain.json"), seed_from_prompt=False)
    result = run(method)
    assert result.tokens == plain()
    assert max(result.stats.accepted_lengths) <= 4
    assert result.stats.accepted > 0
    bigrams = np.zeros(VOCABULARY, dtype=np.int64)
    tokens = list(PROMPT)
    for draft, accepted in result.steps:
        guess = [tokens[-1]]
        while len(guess) <= min(3, len(PROMPT) + NEW - len(tokens) - 1):
            guess.append(int(bigrams[guess[-1]]))
        assert draft is None or draft.tree.tokens.tolist() == guess[1:]
        # What follows each scored token, by transformers' own pass over its prefix; the last one of a token stays.
        for place in range(len(guess)):
            bigrams[guess[place]] = int(fresh("llama", tokens[:-1] + guess[: place + 1])[-1].argmax())
        tokens += accepted.tokens
    assert (matrix(method)[:, 0] != 0).sum() > 5


@dataclass(frozen=True)
class Watched(TokenRecycling):
    """Keeps every outcome, and a copy of the matrix right after it was learned from."""

    def drafter(self, lm: Any, request: Request) -> Recycler:
        recycler = Recycler(self, self._tree(lm, request.sampler.greedy), self._matrix(lm))
        learn, self.memory["seen"] = recycler.observe, []

        def observe(outcome: Outcome) -> None:
            learn(outcome)
            self.memory["seen"].append((outcome, recycler.matrix.copy()))

        recycler.observe = observe  # type: ignore[method-assign]
        return recycler


def test_rows_are_the_models_best_successors_and_trees_score_like_texts():
    method = Watched(template="paper")
    tokens = list(PROMPT)
    result = run(method)
    assert result.tokens == plain()
    assert len(method.memory["seen"]) == result.stats.target_calls - 1  # nothing is learned from the last pass
    for seen, table in method.memory["seen"]:
        scored = seen.tree.tokens.tolist()
        best = seen.logits.topk(8, dim=-1).indices
        for node, token in enumerate(scored):
            if scored.count(token) == 1:
                assert table[token].tolist() == best[node].tolist()
        [*_, last] = seen.path
        text_so_far = tokens + [scored[node] for node in seen.path[1:]]
        assert scored[0] == tokens[-1]
        torch.testing.assert_close(seen.logits[last], fresh("llama", text_so_far)[-1], rtol=1e-4, atol=1e-4)
        tokens += seen.tokens


# ---------------------------------------------------------------- what is remembered


def test_the_matrix_is_carried_by_the_object():
    method = TokenRecycling(nodes=24, seed_from_prompt=False)
    first = run(method)
    learned = matrix(method).copy()
    assert learned.any()
    second = run(method)
    assert second.tokens == first.tokens == plain()
    assert second.stats.target_calls < first.stats.target_calls
    again = replace(method)
    assert again == method
    assert not again.memory
    assert run(again).stats.accepted_lengths == first.stats.accepted_lengths
    assert (matrix(again) == learned).all()


def test_the_matrix_is_forgotten_after_a_request():
    method = TokenRecycling(nodes=24, seed_from_prompt=False, scope="request")
    first, second = run(method), run(method)
    assert first.stats.accepted_lengths == second.stats.accepted_lengths
    assert ("matrix", lm("llama")) not in method.memory


def test_models_do_not_share_a_matrix():
    method, other = TokenRecycling(nodes=8), load(build("llama", seed=3))
    run(method)
    learned = matrix(method).copy()
    generate(other, PROMPT, method, max_new_tokens=8)
    assert (matrix(method) == learned).all()
    assert method.memory["matrix", other].any()


def test_the_prompt_seeds_the_matrix_if_wanted():
    seeded, unseeded = TokenRecycling(nodes=8), TokenRecycling(nodes=8, seed_from_prompt=False)
    for method in (seeded, unseeded):
        run(method, new=1)  # one pass, from which nothing is learned any more
    assert not matrix(unseeded).any()
    best = fresh("llama", PROMPT[:-1]).topk(8, dim=-1).indices
    for place, token in enumerate(PROMPT[:-1]):
        if token not in PROMPT[place + 1 : -1]:
            assert matrix(seeded)[token].tolist() == best[place].tolist()
    untouched = [token for token in range(VOCABULARY) if token not in PROMPT[:-1]]
    assert not matrix(seeded)[untouched].any()


# ---------------------------------------------------------------- the size of the tree


def test_the_cost_curve_sizes_the_tree(monkeypatch: pytest.MonkeyPatch):
    curves = {
        "free": CostCurve("free", [1, 161], [1.0, 1.0]),
        "steep": CostCurve("steep", [1, 2, 161], [1.0, 2.0, 322.0]),
        "step": CostCurve("step", [1, 25, 26, 161], [1.0, 1.0, 90.0, 90.0]),
    }
    sizes = {}
    for name, curve in curves.items():
        monkeypatch.setattr(module, "calibrate", lambda lm, curve=curve: curve)
        method = TokenRecycling()
        assert run(method).tokens == plain()
        sizes[name] = len(used(method).ranks)
    assert sizes == {"free": 160, "steep": 0, "step": 24}
    assert used(method) == load_template("greedy").first(24)
    sampled = TokenRecycling()
    run(sampled, do_sample=True)
    assert used(sampled) == load_template("sampled").first(24)


def test_sizes_without_a_curve(monkeypatch: pytest.MonkeyPatch):
    def never(lm: Any) -> CostCurve:
        raise AssertionError("nothing to size")

    monkeypatch.setattr(module, "calibrate", never)
    for method, nodes in ((TokenRecycling(template="paper"), 80), (TokenRecycling(nodes=20), 20)):
        run(method, new=3)
        assert len(used(method).ranks) == nodes


# ---------------------------------------------------------------- calibration


class Asked(Recycler):
    """Counts the paths of the full tree that would have been right, knowing the ``whole`` text."""

    def __init__(self, method: TokenRecycling, whole: list[int], table: np.ndarray) -> None:
        super().__init__(method, load_template("paper"), table)
        self.whole, self.steps, self.counts = whole, 0, Counter[tuple[int, ...]]()

    def draft(self, context: Context) -> TokenTree:
        self.steps += 1
        path: tuple[int, ...] = ()
        for place in range(len(context.tokens), min(len(self.whole), len(context.tokens) + module.DEPTH)):
            row = self.matrix[self.whole[place - 1]].tolist()
            if self.whole[place] not in row:
                break
            path = (*path, row.index(self.whole[place]))
            self.counts[path] += 1
        return super().draft(context)


def test_calibration_counts_the_nodes_that_would_have_been_right():
    requests = prepare(lm("llama"), [PROMPT, text(9, 5, period=3)], Greedy(), max_new_tokens=20)
    template = calibrate_template(lm("llama"), requests, nodes=12)
    assert 0 < len(template.ranks) <= 12

    # The same by hand: run the method and ask its matrix before every step.
    counts: Counter[tuple[int, ...]] = Counter()
    steps = 0
    method = TokenRecycling(template="paper")
    for request in requests:
        whole = [*request.prompt, *plain(20, list(request.prompt))]
        drafter = Asked(method, whole, method._matrix(lm("llama")))
        events = module.speculate(lm("llama"), [request], [drafter])
        tokens = [token for event in events if isinstance(event, Accepted) for token in event.tokens]
        assert [*request.prompt, *tokens] == whole
        counts.update(drafter.counts)
        steps += drafter.steps
    assert steps > 0
    best = sorted(counts, key=lambda path: (-counts[path], len(path), path))[:12]
    assert list(template.ranks) == best
    assert template.rates == pytest.approx([counts[path] / steps for path in best])


@pytest.mark.parametrize("greedy", [True, False])
def test_a_trained_template_is_used(greedy: bool, tmp_path: Path):
    from ramify.train.token_recycling import train_template

    prompts: list[Any] = [PROMPT, text(9, 5, period=3)]
    template = train_template(lm("llama"), prompts, greedy=greedy, nodes=6, max_new_tokens=12)
    assert 0 < len(template.ranks) == len(template.rates) <= 6
    template.save(tmp_path / "mine.json")
    assert run(TokenRecycling(template=str(tmp_path / "mine.json"), nodes=len(template.ranks))).tokens == plain()
