"""Text, chat and log-probabilities from an OpenAI-compatible server: vLLM, SGLang, llama.cpp, a hosted service.

What a server is able to do is probed with tiny requests when it first matters, and what it does not offer is refused by
name. Every sample is a request of its own with a seed of its own, so that results do not depend on concurrency, each
reply's tokens are counted, and a caller may stop at any of them; servers with a prefix cache compute the prompt once.

Limits: the tokenizer is the server's, so tokens are strings. A stop text is cut off, where ``ramify.generate`` keeps
it. The server's sampling defaults hold for what is not said here (vLLM takes top-k from the model's own settings; say
``extra={"top_k": 0}``). Seeds are as good as the server's: in batches of other sizes, near-ties may fall otherwise.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from ramify.errors import RamifyError
from ramify.models.arriving import CUT, Arriving, Watch
from ramify.models.endpoint import Endpoint, RemoteError
from ramify.models.offers import Interface, Offers, probe
from ramify.models.query import FIELDS, Chat, Query, check, query
from ramify.models.reply import Reply
from ramify.models.workers import Workers

PROBE_TEXT = "1 2 3 4"
ENDS = ("</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>",
        "<|return|>", "<｜end▁of▁sentence｜>", "[EOS]")  # fmt: skip
PROBE_CHAT = [{"role": "user", "content": "Count from 1 to 9."}]


@dataclass(frozen=True, eq=False)
class RemoteLM:
    """A language model behind an OpenAI-compatible server.

    ``model``: the name that the server knows it by. ``base_url``: usually ends in "/v1". ``api_key``: None for the
    environment's OPENAI_API_KEY, or none. ``chat``: True sends everything through chat completions, a text as one user
    message; False sends texts through completions and refuses chats; None sends texts through completions where the
    server has them. ``concurrency``: requests under way at any time. ``timeout``: seconds without an answer.
    ``retries``: further tries of a request that failed for a passing reason. ``budget``: cap on the tokens of all
    requests of this object, prompts included; a request that might exceed it is not sent (a prompt that was not
    counted yet is taken as one token for each byte). ``extra``: further fields of every request (top_k, min_p, …).
    ``ends``: how the server names tokens that end a text, where it tells alternatives; by default the usual names.
    """

    model: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    _: KW_ONLY
    chat: bool | None = None
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 4
    budget: int | None = None
    extra: Mapping[str, Any] | None = None
    ends: Sequence[str] = ENDS

    _endpoint: Endpoint = field(init=False, repr=False)
    _workers: Workers = field(init=False, repr=False)
    _probing: Any = field(init=False, repr=False, default_factory=threading.Lock)
    _lengths: dict[str, int] = field(init=False, repr=False, default_factory=dict)  # of prompts, as the server counts
    _interfaces: dict[bool, Interface] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise RamifyError(f"base_url is {self.base_url!r}; give one like http://localhost:8000/v1")
        for name, value, least in (("concurrency", self.concurrency, 1), ("retries", self.retries, 0),
                                   ("budget", self.budget, 1)):  # fmt: skip
            if value is not None and value < least:
                raise RamifyError(f"{name} is {value}; give at least {least}")
        if not self.timeout > 0:
            raise RamifyError(f"timeout is {self.timeout} s; give more than 0")
        if clash := sorted(FIELDS & set(self.extra or ())):
            raise RamifyError(f"extra cannot hold {clash[0]!r}, which is a setting of its own or fixed; leave it out")
        endpoint = Endpoint(self.base_url, self.api_key, self.timeout, self.retries, self.budget)
        object.__setattr__(self, "_endpoint", endpoint)
        object.__setattr__(self, "_workers", Workers(self.concurrency))

    @property
    def spent(self) -> int:
        """Tokens of all answered requests so far, prompts and probes included."""
        return self._endpoint.meter.spent

    @property
    def offers(self) -> Offers:
        """What the server gives, found out once; an interface that ``chat`` leaves aside is not asked."""
        aside = Interface(f"chat={self.chat} leaves it aside")
        return Offers(
            text=aside if self.chat is True else self._interface(chat=False),
            chat=aside if self.chat is False else self._interface(chat=True),
        )

    def complete(
        self,
        prompt: str | Chat,
        *,
        samples: int = 1,
        max_new_tokens: int = 128,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        log_probs: bool = False,
        top_log_probs: int = 0,
        watch: Watch | None = None,
    ) -> list[Reply]:
        """Continue a text, or answer a chat, ``samples`` times; sample i uses ``seed`` + i.

        ``temperature``: 0 is greedy. ``temperature``, ``top_p``: None leaves them to the server. ``top_log_probs``:
        alternatives for each token; they imply ``log_probs``. ``watch``: as for ``as_completed``. Raises
        ``RemoteError`` when the server fails for good or the budget is spent, with all that arrived in its ``replies``,
        and ``RamifyError`` for what is not offered.
        """
        replies = self.as_completed(
            prompt, samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop,
            seed=seed, log_probs=log_probs, top_log_probs=top_log_probs, watch=watch,
        )  # fmt: skip
        return sorted(replies, key=lambda reply: reply.sample)

    def as_completed(
        self,
        prompt: str | Chat,
        *,
        samples: int = 1,
        max_new_tokens: int = 128,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        log_probs: bool = False,
        top_log_probs: int = 0,
        watch: Watch | None = None,
    ) -> Iterator[Reply]:
        """Like ``complete``, giving each reply when it arrives; a caller who stops leaves the other samples unsent.

        ``watch``: answers come as streams, and each ends as soon as this says False to what has arrived of it; asked
        from several threads, once there are log-probabilities. Such a reply's ``finish`` is "cut". Nothing is sent
        before the first reply is asked for.
        """
        check(prompt, samples, max_new_tokens, temperature, top_p, seed, top_log_probs)
        chat = self._goes_by_chat(prompt)
        asked = query(
            self.model, prompt, chat=chat, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            stop=stop, alternatives=self._alternatives(chat, top_log_probs) if log_probs or top_log_probs else None,
            extra=self.extra,
        )  # fmt: skip
        asked.top = top_log_probs
        if watch is None:
            return self._workers.run(lambda sample: self._ask(asked, sample, seed), samples)
        return self._workers.run(functools.partial(self._follow, asked, seed, watch), samples)

    def next_tokens(self, texts: Sequence[str], top_log_probs: int) -> list[Reply]:
        """One token behind each of several texts, with the likeliest ones by the model's own law; a request for each.

        The token is the likeliest one, or drawn at temperature 1 where log-probabilities may follow the temperature.
        """
        temperature = 0.0 if self._interface(chat=False).tempered is False else 1.0
        for text in texts:
            check(text, 1, 1, temperature, 1.0, None, top_log_probs)
        most = self._alternatives(False, top_log_probs)
        asked = [
            query(
                self.model, text, chat=False, max_new_tokens=1, temperature=temperature, top_p=1.0, alternatives=most,
                extra=self.extra,
            )
            for text in texts
        ]  # fmt: skip
        for each in asked:
            each.top = top_log_probs
        replies = self._workers.run(lambda place: self._ask(asked[place], place, None), len(asked))
        return sorted(replies, key=lambda reply: reply.sample)

    def score(self, prompt: str, continuation: str) -> Reply:
        """The log-probabilities of a given ``continuation``, from a server that echoes the prompt's.

        The tokens are those behind what the prompt alone and prompt with continuation have in common. Costs two
        requests for one token.
        """
        if not prompt or not continuation:
            raise RamifyError("score needs a prompt and a continuation, and one of them is empty")
        if self.chat is True or not self._interface(chat=False).echo:
            raise RamifyError(f"{self.base_url} gives no log-probs of a prompt (echo), so nothing can be scored there")
        alone, whole = self._echoed(prompt), self._echoed(prompt + continuation)
        pairs = zip(alone.tokens or (), whole.tokens or (), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        tokens, log_probs = (whole.tokens or [])[shared:], (whole.log_probs or [])[shared:]
        if any(map(math.isnan, log_probs)):
            raise RamifyError("prompt and continuation are one first token, which has no log-prob; lengthen the prompt")
        return replace(
            whole, text=continuation, tokens=tokens, log_probs=log_probs, prompt_tokens=shared,
            completion_tokens=len(tokens),
        )  # fmt: skip

    def _echoed(self, text: str) -> Reply:
        """The tokens of ``text`` with their log-probabilities, and nothing behind them."""
        asked = query(
            self.model, text, chat=False, max_new_tokens=1, temperature=1.0, alternatives=1, echo=True, extra=self.extra
        )
        [reply] = self._workers.run(lambda sample: self._ask(asked, sample, None), 1)
        end = len(reply.tokens or ()) - reply.completion_tokens
        return replace(reply, tokens=(reply.tokens or [])[:end], log_probs=(reply.log_probs or [])[:end])

    def _ask(self, asked: Query, sample: int, seed: int | None) -> Reply:
        return self._endpoint.ask(_seeded(asked, seed, sample), asked.bound, lambda answer: asked.read(answer, sample))

    def _follow(self, asked: Query, seed: int | None, watch: Watch, sample: int) -> Reply:
        body, prompt = _seeded(asked, seed, sample), str(asked.body.get("messages") or asked.body["prompt"])
        asked.prompt_tokens = self._lengths.get(prompt)
        reply = self._endpoint.follow(body, asked.bound, lambda: Arriving(sample, asked.top), asked.read_at_most, watch)
        if asked.granted and "logprobs" in body and reply.text and not reply.tokens:
            raise RemoteError(f"{self.base_url} gives no log-probs with a stream, though it gives them without")
        if reply.finish != CUT:
            self._lengths[prompt] = reply.prompt_tokens
        return reply

    def _goes_by_chat(self, prompt: str | Chat) -> bool:
        if isinstance(prompt, str):
            return bool(self._interface(chat=False).refusal) if self.chat is None else self.chat
        if self.chat is False:
            raise RamifyError("chat=False sends texts only, and the prompt is a chat; leave chat out")
        return True

    def _alternatives(self, chat: bool, top: int) -> int:
        """How many alternatives to ask for where ``top`` are wanted; raises ``RamifyError`` where that is too much."""
        found, kind = self._interface(chat=chat), "chats" if chat else "texts"
        if found.refusal:
            raise RemoteError(found.refusal)
        if not found.log_probs:
            raise RamifyError(f"{self.base_url} gives no log-probs with {kind}; use what needs text only, or a server "
                              "that gives them")  # fmt: skip
        if top > found.top_log_probs:
            raise RamifyError(f"{self.base_url} gives {found.top_log_probs} alternatives for each token of {kind}, not "
                              f"{top}; lower top_log_probs, or raise the server's limit")  # fmt: skip
        # llama.cpp takes 0 for no log-probabilities at all.
        return max(top, min(1, found.top_log_probs))

    def _interface(self, *, chat: bool) -> Interface:
        def ask(temperature: float, alternatives: int | None, echo: bool) -> Reply:
            asked = query(
                self.model, PROBE_CHAT if chat else PROBE_TEXT, chat=chat, max_new_tokens=1, temperature=temperature,
                alternatives=alternatives, echo=echo, extra=self.extra,
            )  # fmt: skip
            asked.top, asked.granted = alternatives or 0, False
            [reply] = self._workers.run(lambda sample: self._ask(asked, sample, None), 1)
            return reply

        with self._probing:
            if chat not in self._interfaces:
                self._interfaces[chat] = probe(ask, echo=not chat)
            return self._interfaces[chat]


def _seeded(asked: Query, seed: int | None, sample: int) -> dict[str, Any]:
    return asked.body if seed is None else asked.body | {"seed": seed + sample}
