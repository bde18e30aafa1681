"""The pool: many paths behind one prompt as rows of one session, and what a policy may do with them.

A path that is forked shares everything up to the fork; its row is copied once, when it first grows. The prompt is read
once and keeps a row of its own, so that paths can begin at any time. Paths that are not given a token wait, at no cost.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.engine.events import Accepted, Ended, Event, Forked, Grown, Prefilled, Scored
from ramify.engine.path import Path
from ramify.engine.request import Request
from ramify.engine.sampling import Noise
from ramify.engine.session import Session
from ramify.engine.tree import TokenTree
from ramify.errors import RamifyError
from ramify.models.cache import send
from ramify.models.causal import CausalLM

TOP = 20  # tokens whose log-probabilities make the confidence: DeepConf, section 3


@dataclass(frozen=True)
class Choice:
    """``path`` grows by ``token``, whose log-probability under the law it was drawn from is ``sampled_log_prob``.

    Without one, it counts as chosen under the model's own law. The second and later choices for a path fork it.
    """

    path: Path
    token: int
    sampled_log_prob: float | None = None


class Pool:
    """All paths of one request.

    ``paths``: every path there ever was, by number. ``live``: those that have not ended. ``logits``: float32 [rows, V].
    ``step``: how often the paths have grown. ``spent``: effective tokens so far: tokens drawn for any path, and extra
    passes over one of them. ``budget``: how many end the loop, None for no bound. ``stopped``: why the loop was ended,
    None before. ``settled``: how many tokens of the final text are already given out. ``top``: k of the confidences, at
    most half of the vocabulary, lest the unlikely half decide.
    """

    def __init__(self, lm: CausalLM, request: Request, row: int = 0, budget: int | None = None) -> None:
        request.sampler.require_stateless()
        self.lm, self.request, self.row, self.budget = lm, request, row, budget
        self.paths: list[Path] = []
        self.live: list[Path] = []
        self.spent = self.step = self.settled = 0
        self.stopped: str | None = None
        self.top = min(TOP, max(1, lm.vocab_size // 2))
        self.events: list[Event] = []
        self._noise: dict[int, Noise] = {}
        self._confidences: list[float] = []
        self._entropies: list[float] = []
        self._began = len(request.padding) + len(request.prompt)
        self._rows: dict[Path | None, int] = {None: 0}  # the session's row that each path continues; None: the prompt
        self._read_prompt()

    # ---- what there is to see ----

    @property
    def ended(self) -> list[Path]:
        """Paths that came to their own end, in the order of their numbers."""
        return [path for path in self.paths if path.complete]

    def log_probs(self, paths: Sequence[Path]) -> Tensor:
        """The model's own log-probabilities of the next token of each path: float32 [n, V]."""
        return self._log_probs[self._index(paths)]

    def laws(self, paths: Sequence[Path]) -> Tensor:
        """The laws that the next tokens are drawn from, all processors applied: float32 [n, V]."""
        laws = self._log_probs.new_empty(len(paths), self._log_probs.shape[-1])
        for places in self._by_length(paths).values():
            chosen = [paths[place] for place in places]
            prefixes = self._ids[self._index(chosen), : self._began + len(chosen[0])]
            laws[places] = self.request.sampler.laws(prefixes, self.logits[self._index(chosen)])
        return laws

    def processed(self, paths: Sequence[Path]) -> Tensor:
        """The model's own log-probabilities, then all processors, not normalised again: what beams add up."""
        scores = self._log_probs.new_empty(len(paths), self._log_probs.shape[-1])
        for places in self._by_length(paths).values():
            chosen = [paths[place] for place in places]
            prefixes = self._ids[self._index(chosen), : self._began + len(chosen[0])]
            scores[places] = self.request.sampler.scores(prefixes, self.log_probs(chosen))
        return scores

    def confidence(self, path: Path) -> float:
        """Confidence of the model in its next token behind ``path``."""
        return self._confidences[self._rows[path]]

    def entropy(self, path: Path) -> float:
        """Entropy of the model's own law of the next token behind ``path``, in nats."""
        return self._entropies[self._rows[path]]

    # ---- what a policy may do ----

    def start(self, count: int) -> list[Path]:
        """``count`` new paths at the prompt."""
        return [self._enter(Path(len(self.paths)), None) for _ in range(count)]

    def fork(self, path: Path) -> Path:
        """A new path with everything that ``path`` has so far, and randomness of its own."""
        return self._enter(path.fork(len(self.paths)), path)

    def prune(self, path: Path, reason: str) -> None:
        """End a live path before its own end; what it has so far stays in ``paths``."""
        self._end(path, reason)

    def stop(self, reason: str) -> None:
        """End the loop; the live paths are cut."""
        self.stopped = reason

    def sample(self, paths: Sequence[Path], without: Mapping[Path, int] | None = None) -> list[Choice]:
        """One token for each of ``paths``, drawn from its law by its own noise.

        ``without``: a token that a path may not take. The noise belongs to the path's number and the position, so a
        path's tokens do not depend on the others.
        """
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

    def settle(self, path: Path) -> None:
        """Give out everything that ``path`` has so far: every path that is kept from now on begins with it."""
        self.events.append(Accepted(self.row, self.step, (), tuple(path.tokens[self.settled :]), 0.0))
        self.settled = len(path)

    def set_logits(self, path: Path, logits: Tensor) -> None:
        """Put ``logits`` [V] in the place of those that ``path``'s next token is drawn from.

        Statistics go on reading the model's own.
        """
        self.logits[self._rows[path]] = logits

    def advance(self, choices: Iterable[Choice]) -> None:
        """Give paths their next tokens, and score those that go on, all in one forward pass."""
        began = time.perf_counter()
        choices = [self._forked(choice, seen) for choice, seen in _counted(choices)]
        index = self._index([choice.path for choice in choices])
        tokens = torch.tensor([choice.token for choice in choices], device=index.device)
        log_probs = self._log_probs[index, tokens].tolist()
        grown = []
        for choice, log_prob in zip(choices, log_probs, strict=True):
            path, row = choice.path, self._rows[choice.path]
            path.tokens.append(choice.token)
            path.log_probs.append(log_prob)
            path.sampled_log_probs.append(log_prob if choice.sampled_log_prob is None else choice.sampled_log_prob)
            path.confidences.append(self._confidences[row])
            path.entropies.append(self._entropies[row])
            grown.append(path.confidences[-1])
        self.spent += len(choices)
        for choice in choices:
            reason = self._reason(choice.path)
            if reason:
                self._end(choice.path, reason)
        active = [choice.path for choice in choices if choice.path.finish is None]
        seconds = time.perf_counter() - began
        if active:
            self._score(active)
        self.events.append(
            Grown(
                self.row,
                self.step,
                tuple(choice.path.number for choice in choices),
                tuple(choice.token for choice in choices),
                tuple(grown),
                sum(self.session.lengths),
                seconds,
            )
        )
        self.step += 1
        if self.budget is not None and self.spent >= self.budget and self.live:
            self.stop("budget")

    def drain(self) -> list[Event]:
        """What happened since the last call."""
        happened, self.events = self.events, []
        return happened

    # ---- the session behind it ----

    def _read_prompt(self) -> None:
        began = time.perf_counter()
        request, prompt = self.request, list(self.request.prompt)
        self.session = Session(self.lm, 1, capacity=min(request.max_length, len(prompt) + 512) + 1)
        calls = self.session.prefill([prompt[:-1]]) if len(prompt) > 1 else 0
        scores = self.session.score(TokenTree.chain(prompt[-1:]))
        self.session.keep([[0]])
        self._ids = torch.zeros(1, len(request.padding) + request.max_length + 1, dtype=torch.long)
        self._ids[0, : self._began] = torch.tensor([*request.padding, *prompt])
        self._ids = self._ids.to(self.lm.device)
        self._take(scores.logits[:, 0], [])
        self.events.append(Prefilled(self.row, len(prompt), calls + 1, time.perf_counter() - began))

    def _enter(self, path: Path, source: Path | None) -> Path:
        if len(self.paths) == 1:
            self.lm.require_trees("several paths at once")
        self.paths.append(path)
        self.live.append(path)
        self._rows[path] = self._rows[source]
        self.events.append(Forked(self.row, self.step, path.number, path.parent, path.start))
        return path

    def _forked(self, choice: Choice, seen: int) -> Choice:
        if choice.path.finish is not None:
            raise RamifyError(f"path {choice.path.number} has ended ({choice.path.finish}) and cannot grow")
        return choice if seen == 0 else Choice(self.fork(choice.path), choice.token, choice.sampled_log_prob)

    def _end(self, path: Path, reason: str) -> None:
        path.finish = reason
        self.live.remove(path)
        del self._rows[path]
        tokenizer = self.lm.tokenizer
        path.text = tokenizer.decode(path.tokens, skip_special_tokens=True) if tokenizer is not None else ""
        if path.complete:
            path.answer = self.request.answer(path.text)
        self.events.append(Ended(self.row, self.step, path.number, reason))

    def _reason(self, path: Path) -> str | None:
        """Why ``path`` ends with its newest token, if it does."""
        request = self.request
        if path.tokens[-1] in request.stop_tokens:
            return "stop"
        if request.criteria:
            ids = torch.tensor([[*request.padding, *request.prompt, *path.tokens]], device=self.lm.device)
            if any(bool(torch.as_tensor(criterion(ids, None)).any()) for criterion in request.criteria):
                return "stop"
        return "length" if len(request.prompt) + len(path) >= request.max_length else None

    def _score(self, active: list[Path]) -> None:
        """One forward pass over the newest token of each of ``active``; the other live paths and the prompt wait."""
        began = time.perf_counter()
        active = _in_place(active, self._rows)
        growing = set(active)
        waiting: list[Path | None] = [path for path in self.live if path not in growing]
        if self.lm.trees:
            waiting.append(None)
        order = [self._rows[path] for path in [*active, *waiting]]
        self.session.select(order)
        index = torch.tensor(order, device=self._ids.device)
        self._ids = self._ids[index]
        self._rows = {path: place for place, path in enumerate([*active, *waiting])}
        tokens = torch.tensor([path.tokens[-1] for path in active], device=self._ids.device)
        ends = torch.tensor([self._began + len(path) - 1 for path in active], device=self._ids.device)
        self._ids[torch.arange(len(active), device=ends.device), ends] = tokens
        scores = self.session.score([TokenTree.chain([path.tokens[-1]]) for path in active])
        self.session.keep([[0]] * len(active))
        self._take(scores.logits[:, 0], order[len(active) :])
        self.events.append(Scored(self.step, (self.row,), len(active), time.perf_counter() - began))

    def _take(self, logits: Tensor, waiting: list[int]) -> None:
        """``logits`` [n, V] of the rows scored just now, and those that the rows ``waiting`` have kept."""
        fresh = logits.float()
        if not bool(fresh.isfinite().any(dim=-1).all()) or bool(fresh.isnan().any()):
            raise RamifyError(
                "the model returned NaN or infinite logits; check its weights, or load it with dtype='float32'"
            )
        logp = torch.log_softmax(fresh, dim=-1)
        confidences = -logp.topk(self.top, dim=-1).values.mean(dim=-1)
        entropies = torch.special.entr(logp.exp()).sum(dim=-1)
        known = torch.stack([confidences, entropies]).tolist()
        if not waiting:
            self.logits, self._log_probs = fresh.clone(), logp
            self._confidences, self._entropies = known
            return
        self.logits = torch.cat([fresh, self.logits[waiting]])
        self._log_probs = torch.cat([logp, self._log_probs[waiting]])
        self._confidences = [*known[0], *(self._confidences[row] for row in waiting)]
        self._entropies = [*known[1], *(self._entropies[row] for row in waiting)]

    def _index(self, paths: Sequence[Path]) -> Tensor:
        return torch.tensor([self._rows[path] for path in paths], device=self._ids.device, dtype=torch.long)

    def _by_length(self, paths: Sequence[Path]) -> dict[int, list[int]]:
        """Places in ``paths`` by length: processors read prefixes of one length at a time."""
        if not self.request.sampler.processors:
            return {0: list(range(len(paths)))}
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for place, path in enumerate(paths):
            groups[len(path)].append(place)
        return groups

    def _noise_of(self, path: Path) -> Noise:
        if path.number not in self._noise:
            self._noise[path.number] = Noise(self.request.sampler.noise.seed, path.number)
        return self._noise[path.number]


def _counted(choices: Iterable[Choice]) -> list[tuple[Choice, int]]:
    """Each choice with the number of earlier ones for the same path; forks come first, from the path as it was."""
    seen: defaultdict[Path, int] = defaultdict(int)
    counted = []
    for choice in choices:
        counted.append((choice, seen[choice.path]))
        seen[choice.path] += 1
    return counted


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
