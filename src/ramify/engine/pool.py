"""The pool: many paths behind one prompt as rows of one session, and what a policy may do with them.

A path that is forked shares everything up to the fork; its row is copied once, when it first grows. The prompt is read
once and keeps a row of its own, so that paths can begin at any time. Paths that are not given a token wait, at no cost.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ramify.engine.events import Prefilled, Refined, Scored
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.session import Scores, Session
from ramify.engine.step_pool import Choice, StepPool
from ramify.engine.tree import TokenTree, TreeShape
from ramify.errors import RamifyError
from ramify.models.cache import send
from ramify.models.causal import CausalLM

TOP = 20  # tokens whose log-probabilities make the confidence: DeepConf, section 3


class Pool(StepPool):
    """All paths of one request, as rows of one session.

    ``logits``: float32 [rows, V], what the next tokens are drawn from. ``top``: k of the confidences, 20 as in DeepConf
    (section 3), at most half of the vocabulary, lest the unlikely half decide. ``layers``: those whose hidden states
    are kept, numbered as for ``Session.score``. Raises ``RamifyError`` for processors that keep a state.
    """

    def __init__(
        self,
        lm: CausalLM,
        request: Request,
        row: int = 0,
        budget: int | None = None,
        layers: Sequence[int] = (),
    ) -> None:
        request.sampler.require_stateless()
        super().__init__(request, row, budget)
        self.lm, self.layers = lm, tuple(layers)
        self.top = min(TOP, max(1, lm.vocab_size // 2))
        self._token_texts: dict[int, str] = {}
        self._confidences: list[float] = []
        self._entropies: list[float] = []
        self._began = len(request.padding) + len(request.prompt)
        self._rows: dict[Path | None, int] = {None: 0}  # the session's row that each path continues; None: the prompt
        self._ahead: tuple[Path, list[int], Scores] | None = None  # what ``look`` read last
        self._read_prompt()

    # ---- what there is to see ----

    def log_probs(self, paths: Sequence[Path]) -> Tensor:
        return self._log_probs[self._index(paths)]

    def laws(self, paths: Sequence[Path], *, soft: bool = False) -> Tensor:
        sampler = self.request.sampler
        laws = self._log_probs.new_empty(len(paths), self._log_probs.shape[-1])
        for places, index, prefixes in self._by_length(paths):
            logits = self.logits[index]
            laws[places] = sampler.scores(prefixes, logits).softmax(-1) if soft else sampler.laws(prefixes, logits)
        return laws

    def processed(self, paths: Sequence[Path]) -> Tensor:
        scores = self._log_probs.new_empty(len(paths), self._log_probs.shape[-1])
        for places, index, prefixes in self._by_length(paths):
            scores[places] = self.request.sampler.scores(prefixes, self._log_probs[index])
        return scores

    def confidence(self, path: Path) -> float:
        return self._confidences[self._rows[path]]

    def entropy(self, path: Path) -> float:
        return self._entropies[self._rows[path]]

    def states(self, paths: Sequence[Path], layer: int) -> Tensor:
        """Hidden states of ``layer``, one of ``layers``, at the newest token of each path: [n, D]."""
        return self._states[layer][self._index(paths)]

    def prompt_states(self, layer: int) -> Tensor:
        """Hidden states of ``layer``, one of ``layers``, at every token of the prompt: [n, D]."""
        return self._prompt_states[layer]

    def text_of(self, token: int) -> str:
        if token not in self._token_texts:
            self._token_texts[token] = self.lm.require_tokenizer().decode([token])
        return self._token_texts[token]

    def reason(self, path: Path, token: int) -> str | None:
        request = self.request
        if token in request.stop_tokens:
            return "stop"
        if request.criteria:
            ids = torch.tensor([[*request.padding, *request.prompt, *path.tokens, token]], device=self.lm.device)
            if any(bool(torch.as_tensor(criterion(ids, None)).any()) for criterion in request.criteria):
                return "stop"
        return "length" if len(request.prompt) + len(path) + 1 >= request.max_length else None

    # ---- what a policy may do ----

    def sample(self, paths: Sequence[Path], without: Mapping[Path, int] | None = None) -> list[Choice]:
        """As every pool draws; ``without``: a token that a path may not take."""
        laws = self.laws(paths)
        for place, path in enumerate(paths):
            if without and path in without:
                laws[place, without[path]] = 0
                laws[place] /= laws[place].sum().clamp_min(torch.finfo(laws.dtype).tiny)
        if self.request.sampler.greedy:
            tokens = laws.argmax(dim=-1)
        else:
            size = laws.shape[-1]
            races = torch.stack([self._noise_of(path).race(size, self._began + len(path)) for path in paths])
            tokens = (laws / send(races, laws.device)).argmax(dim=-1)
        drawn = laws.gather(1, tokens[:, None])[:, 0].log().tolist()
        return [Choice(*each) for each in zip(paths, tokens.tolist(), drawn, strict=True)]

    def look(self, path: Path, tokens: Sequence[int], layer: int) -> Tensor:
        """Hidden states [n, D] of ``layer`` that each of ``tokens`` would have behind ``path``, which does not grow.

        One pass over all of them. If the path alone then grows by one of them, that needs no pass of its own.
        """
        if len(tokens) > 1:
            self.lm.require_trees("a look at several tokens")
        began = time.perf_counter()
        self._arrange([path])
        scores = self.session.score(TokenTree.from_paths([[token] for token in tokens]), hidden_layers=self.layers)
        self._ahead = (path, list(tokens), scores)
        self.spent += len(tokens)
        self.events.append(Scored(self.step, (self.row,), len(tokens), time.perf_counter() - began))
        return scores.hidden[layer][0]

    def set_logits(self, path: Path, logits: Tensor) -> None:
        """Put ``logits`` [V] in the place of those that ``path``'s next token is drawn from.

        Statistics go on reading the model's own.
        """
        self.logits[self._rows[path]] = logits

    def again(
        self, paths: Sequence[Path], copies: int, way: Callable[[Sequence[Path]], AbstractContextManager[object]]
    ) -> Tensor:
        """Read the newest token of each of ``paths`` once more as it is, and ``copies`` times in another way.

        All in one pass within ``way(paths)``, whose paths are in the order of its rows: 1 + ``copies`` sibling nodes
        each, of which the first is to be left alone, for it stays in the cache. Returns float32 logits
        [n, 1 + copies, V]; nothing else changes.
        """
        began = time.perf_counter()
        asked, paths = paths, _in_place(paths, self._rows)
        self._arrange(paths)
        lengths = self.session.lengths
        self.session.truncate([*(length - 1 for length in lengths[: len(paths)]), *lengths[len(paths) :]])
        shape = TreeShape.of([-1] * (1 + copies))
        newest = [path.tokens[-1] if path.tokens else self.request.prompt[-1] for path in paths]
        trees = [TokenTree(torch.full((1 + copies,), token), shape) for token in newest]
        with way(paths):
            scores = self.session.score(trees)
        self.session.keep([[0]] * len(paths))
        self.spent += len(paths) * (1 + copies)
        nodes = len(paths) * scores.rows_run
        self.events.append(Scored(self.step, (self.row,), nodes, time.perf_counter() - began))
        self.events.append(Refined(self.row, self.step, tuple(path.number for path in asked), copies))
        return scores.logits.float()[self._index(asked)]

    # ---- the session behind it ----

    def _read_prompt(self) -> None:
        began = time.perf_counter()
        request, prompt = self.request, list(self.request.prompt)
        self.session = Session(self.lm, 1, capacity=min(request.max_length, len(prompt) + 512) + 1)
        parts: list[dict[int, Tensor]] = []
        calls = 0
        if len(prompt) > 1:
            observe = (lambda row, tokens, logits, hidden: parts.append(hidden)) if self.layers else None
            calls = self.session.prefill([prompt[:-1]], observe=observe, logits=False, hidden_layers=self.layers)
        scores = self.session.score(TokenTree.chain(prompt[-1:]), hidden_layers=self.layers)
        self.session.keep([[0]])
        parts.append({layer: states[0] for layer, states in scores.hidden.items()})
        self._prompt_states = {layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}
        self._ids = torch.zeros(1, len(request.padding) + request.max_length + 1, dtype=torch.long)
        self._ids[0, : self._began] = torch.tensor([*request.padding, *prompt])
        self._ids = self._ids.to(self.lm.device)
        self._states = {layer: states[:, 0] for layer, states in scores.hidden.items()}
        self.logits = self._log_probs = scores.logits.new_empty(0, scores.logits.shape[-1], dtype=torch.float32)
        self._take(scores.logits[:, 0], self._states)
        self.events.append(Prefilled(self.row, len(prompt), calls + 1, time.perf_counter() - began))

    def _enter(self, path: Path) -> Path:
        if len(self.paths) == 1:
            self.lm.require_trees("several paths at once")
        self._rows[path] = self._rows[None if path.parent is None else self.paths[path.parent]]
        return super()._enter(path)

    def _end(self, path: Path, reason: str) -> None:
        super()._end(path, reason)
        del self._rows[path]
        tokenizer = self.lm.tokenizer
        path.text = tokenizer.decode(path.tokens, skip_special_tokens=True) if tokenizer is not None else ""
        if path.complete:
            path.answer = self.request.answer(path.text)

    def _log_probs_of(self, choices: Sequence[Choice]) -> list[float]:
        index = self._index([choice.path for choice in choices])
        tokens = torch.tensor([choice.token for choice in choices], device=index.device)
        found: list[float] = self._log_probs[index, tokens].tolist()
        return found

    @property
    def _held(self) -> int:
        return sum(self.session.lengths)

    def _score(self, active: list[Path]) -> None:
        """One forward pass over the newest token of each of ``active``; the other live paths and the prompt wait."""
        began = time.perf_counter()
        seen = self._ahead if self._ahead and self._ahead[0] is active[0] and len(active) == 1 else None
        if seen and active[0].tokens[-1] in seen[1]:
            scores, nodes = seen[2], [seen[1].index(active[0].tokens[-1])]
            self.spent -= 1  # counted when it was looked at
        else:
            active = _in_place(active, self._rows)
            self._arrange(active)
            trees = [TokenTree.chain([path.tokens[-1]]) for path in active]
            scores, nodes = self.session.score(trees, hidden_layers=self.layers), [0] * len(active)
            self.events.append(Scored(self.step, (self.row,), len(active), time.perf_counter() - began))
        self._ahead = None
        self.session.keep([[node] for node in nodes])
        tokens = torch.tensor([path.tokens[-1] for path in active], device=self._ids.device)
        ends = torch.tensor([self._began + len(path) - 1 for path in active], device=self._ids.device)
        rows = torch.arange(len(active), device=ends.device)
        self._ids[rows, ends] = tokens
        states = {layer: found[rows, nodes] for layer, found in scores.hidden.items()}
        self._take(scores.logits[rows, nodes], states)

    def _arrange(self, active: Sequence[Path]) -> None:
        """Rows of their own for all live paths, those of ``active`` first."""
        self._ahead = None
        growing = set(active)
        waiting: list[Path | None] = [path for path in self.live if path not in growing]
        if self.lm.trees:
            waiting.append(None)
        order = [self._rows[path] for path in [*active, *waiting]]
        self.session.select(order)
        index = torch.tensor(order, device=self._ids.device)
        self._ids = self._ids[index]
        self._rows = {path: place for place, path in enumerate([*active, *waiting])}
        self.logits, self._log_probs = self.logits[index], self._log_probs[index]
        self._states = {layer: states[index] for layer, states in self._states.items()}
        self._confidences = [self._confidences[row] for row in order]
        self._entropies = [self._entropies[row] for row in order]

    def _take(self, logits: Tensor, states: dict[int, Tensor]) -> None:
        """``logits`` [n, V] and states [n, D] of the first n rows, scored just now; the others keep what they have."""
        fresh = logits.float()
        if not bool(fresh.isfinite().any(dim=-1).all()) or bool(fresh.isnan().any()):
            raise RamifyError(
                "the model returned NaN or infinite logits; check its weights, or load it with dtype='float32'"
            )
        logp = torch.log_softmax(fresh, dim=-1)
        confidences = -logp.topk(self.top, dim=-1).values.mean(dim=-1)
        entropies = torch.special.entr(logp.exp()).sum(dim=-1)
        known = torch.stack([confidences, entropies]).tolist()
        count = len(logits)
        self.logits = torch.cat([fresh, self.logits[count:]])
        self._log_probs = torch.cat([logp, self._log_probs[count:]])
        self._states = {layer: torch.cat([found, self._states[layer][count:]]) for layer, found in states.items()}
        self._confidences = [*known[0], *self._confidences[count:]]
        self._entropies = [*known[1], *self._entropies[count:]]

    def _index(self, paths: Sequence[Path]) -> Tensor:
        return torch.tensor([self._rows[path] for path in paths], device=self._ids.device, dtype=torch.long)

    def _by_length(self, paths: Sequence[Path]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Places in ``paths``, their rows [n] and prefixes [n, length]; processors read one length at a time."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for place, path in enumerate(paths):
            groups[len(path) if self.request.sampler.processors else 0].append(place)
        for places in groups.values():
            index = self._index([paths[place] for place in places])
            yield places, index, self._ids[index, : self._began + len(paths[places[0]])]


def _in_place(paths: Sequence[Path], rows: Mapping[Path | None, int]) -> list[Path]:
    """``paths`` in an order that leaves as many as possible in the rows where they are."""
    order: list[Path | None] = [None] * len(paths)
    others = []
    for path in paths:
        row = rows[path]
        if row < len(order) and order[row] is None:
            order[row] = path
        else:
            others.append(path)
    rest = iter(others)
    return [path if path is not None else next(rest) for path in order]
