"""A pool behind a server that gives the likeliest next tokens: every step asks for one token behind each path's text.

A path is its text. The prompt with that text is sent anew for each token, so a server with a prefix cache reads little
of it again; texts that several paths share are asked for once. What a server cannot do otherwise:

- Only the k likeliest tokens have a probability; laws are those among them, and an entropy counts all others as one.
- The text is split into tokens anew by the server. Where that gives other tokens than those that were taken one by one,
  the next law is that behind the server's own splitting.
- Tokens that are pieces of characters cannot be sent back as text and are passed over.
- An end of text is known by its name, "</s>" and the like (``RemoteLM.ends``), or by an answer that is nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ramify.engine.events import Noted, Prefilled, Scored
from ramify.engine.path import Path
from ramify.engine.pool import TOP
from ramify.engine.request import Request
from ramify.engine.step_pool import Choice, StepPool
from ramify.errors import RamifyError
from ramify.models.endpoint import RemoteError
from ramify.models.remote import RemoteLM
from ramify.models.reply import Reply

PIECE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Likely:
    """The likeliest next tokens behind a text, best first.

    ``tokens``: those that can be sent back, as numbers of the pool, with their ``log_probs`` [k]. ``told`` [at least
    k]: the log-probabilities of all that the server told, which confidence and entropy are about.
    """

    tokens: list[int]
    log_probs: Tensor
    told: Tensor

    @property
    def confidence(self) -> float:
        return -float(self.told[:TOP].mean())

    @property
    def entropy(self) -> float:
        masses = self.told.double().exp()
        rest = (1 - masses.sum()).clamp_min(0)
        return float(torch.special.entr(masses).sum() + torch.special.entr(rest))


class ServerPool(StepPool):
    """All paths of one request behind ``prompt``; a token is a number of this pool, in the order of their coming.

    ``request``: its prompt is empty, for it is the server's to count, and its processors look at the scores only.
    ``stop``: texts that end a path and are cut off, as servers do. Raises ``RamifyError`` for a server without
    log-probabilities for texts.
    """

    def __init__(
        self, lm: RemoteLM, prompt: str, request: Request, stop: Sequence[str], row: int = 0, budget: int | None = None
    ) -> None:
        super().__init__(request, row, budget)
        self.lm, self.prompt, self.stop_texts = lm, prompt, tuple(stop)
        self.alternatives = lm.offers.text.top_log_probs
        if not self.alternatives:
            raise RamifyError(
                f"{lm.base_url} gives no alternatives with their log-probs for texts, so no token can be chosen here; "
                "use a method that needs whole paths only, or a server that gives them"
            )
        self._names: list[str] = []
        self._number: dict[str, int] = {}
        self._ends = {self._number_of(name) for name in ("", *lm.ends)}
        self.request = replace(request, stop_tokens=frozenset(self._ends))
        self._likely: dict[str, Likely] = {}
        self.events.append(Noted(f"laws are those of the {self.alternatives} likeliest tokens that the server tells"))
        self._ask([""])

    def log_probs(self, paths: Sequence[Path]) -> Tensor:
        found = torch.full((len(paths), len(self._names)), -torch.inf)
        for row, path in enumerate(paths):
            likely = self._behind(path)
            found[row, likely.tokens] = likely.log_probs
        return found

    def laws(self, paths: Sequence[Path], *, soft: bool = False) -> Tensor:
        sampler, known = self.request.sampler, self.log_probs(paths)
        prefixes = torch.zeros(len(paths), 1, dtype=torch.long)
        return sampler.scores(prefixes, known).softmax(-1) if soft else sampler.laws(prefixes, known)

    def processed(self, paths: Sequence[Path]) -> Tensor:
        return self.request.sampler.scores(torch.zeros(len(paths), 1, dtype=torch.long), self.log_probs(paths))

    def confidence(self, path: Path) -> float:
        return self._behind(path).confidence

    def entropy(self, path: Path) -> float:
        return self._behind(path).entropy

    def text_of(self, token: int) -> str:
        return self._names[token]

    def reason(self, path: Path, token: int) -> str | None:
        if token in self._ends:
            return "stop"
        text = self._text(path) + self._names[token]
        if any(stop in text for stop in self.stop_texts):
            return "stop"
        return "length" if len(path) + 1 >= self.request.max_length else None

    def sample(self, paths: Sequence[Path]) -> list[Choice]:
        choices = []
        for path, law in zip(paths, self.laws(paths), strict=True):
            tokens = self._behind(path).tokens
            own = law[tokens]
            # Raced by rank, not by number: numbers depend on what other paths have seen.
            race = own if self.request.sampler.greedy else own / self._noise_of(path).race(len(own), len(path))
            place = int(race.argmax())
            choices.append(Choice(path, tokens[place], float(own[place].log())))
        return choices

    # ---- the server behind it ----

    def _log_probs_of(self, choices: Sequence[Choice]) -> list[float]:
        known = self.log_probs([choice.path for choice in choices])
        return [float(row[choice.token]) for row, choice in zip(known, choices, strict=True)]

    def _score(self, active: list[Path]) -> None:
        self._ask([self._text(path) for path in active])

    @property
    def _held(self) -> int:
        return 0

    def _end(self, path: Path, reason: str) -> None:
        super()._end(path, reason)
        path.text = self._text(path)
        for stop in self.stop_texts:
            path.text = path.text.partition(stop)[0]
        if path.complete:
            path.answer = self.request.answer(path.text)

    def _text(self, path: Path) -> str:
        return "".join(self._names[token] for token in path.tokens if token not in self._ends)

    def _behind(self, path: Path) -> Likely:
        return self._likely[self._text(path)]

    def _ask(self, texts: Sequence[str]) -> None:
        """Find the likeliest tokens behind each of ``texts`` that has not been asked for yet."""
        began = time.perf_counter()
        asked = [text for text in dict.fromkeys(texts) if text not in self._likely]
        if not asked:
            return
        replies = self.lm.next_tokens([self.prompt + text for text in asked], self.alternatives)
        if asked == [""]:
            self.events.append(Prefilled(self.row, replies[0].prompt_tokens, 0, 0.0))
        for text, reply in zip(asked, replies, strict=True):
            self._likely[text] = self._read(reply)
        self.events.append(Scored(self.step, (self.row,), len(asked), time.perf_counter() - began))

    def _read(self, reply: Reply) -> Likely:
        first = (reply.tokens or [""])[0]
        if not reply.text and reply.finish == "stop":
            self._ends.add(self._number_of(first))
            if not reply.top:  # an end without alternatives, as llama.cpp tells it
                return Likely([self._number_of(first)], torch.zeros(1), torch.zeros(1))
        elif reply.text and PIECE not in first + reply.text and first != reply.text:
            raise RamifyError(
                f"{self.lm.base_url} calls a token {first!r} and writes it {reply.text!r}, so that alternatives cannot "
                "be sent back as text; use a method that needs whole paths only"
            )
        told = reply.top[0] if reply.top else []
        whole: dict[int, float] = {}
        for name, value in told:
            if PIECE not in name and math.isfinite(value):
                whole.setdefault(self._number_of(name), value)
        if not whole:
            raise RemoteError(
                f"{self.lm.base_url} tells no next token that could be sent back as text: those that it tells are "
                "pieces of a character"
            )
        return Likely(list(whole), torch.tensor(list(whole.values())), torch.tensor([value for _, value in told]))

    def _number_of(self, name: str) -> int:
        if name not in self._number:
            self._number[name] = len(self._names)
            self._names.append(name)
        return self._number[name]
