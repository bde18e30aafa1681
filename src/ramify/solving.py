"""Solve: a question in, an answer out, with the vote, the paths and what they cost."""

from __future__ import annotations

import time
from typing import Any

from ramify.api import generate
from ramify.bench.tasks.answers import parse_answer
from ramify.engine.distant import search_distant
from ramify.engine.events import Accepted
from ramify.engine.request import Parser
from ramify.engine.result import Result, Stats
from ramify.errors import RamifyError, unknown
from ramify.methods.base import Method, SearchMethod
from ramify.methods.registry import create
from ramify.models.causal import CausalLM, load
from ramify.models.query import Chat
from ramify.models.remote import RemoteLM

NEW_TOKENS = 512
TEMPERATURE = 0.7  # that of self-consistency, section 3.1
DISTANT = ("temperature", "top_p", "stop")  # settings that a server takes


def solve(
    lm: CausalLM | RemoteLM | str,
    question: str | Chat,
    method: str | Method = "self-consistency",
    *,
    options: dict[str, Any] | None = None,
    max_new_tokens: int | None = None,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    answer: Parser = parse_answer,
    template: str | None = None,
    **settings: Any,
) -> Result:
    """Answer ``question`` along several paths; ``result.answer``, ``.votes``, ``.paths`` and ``.cost`` tell how.

    ``lm``: a local model, or a server. ``method``: one that searches; see ``ramify.methods()``. ``answer`` finds the
    answer in a path's text (``ramify.bench.tasks.parse_answer``: what follows "####" or "the answer is", what a
    \\boxed{} holds, or the last number). ``template``: the text to continue, with {question} in it; by default the
    model's chat template, or the question and a line break where it has none. ``max_new_tokens``: by default 512, or
    what the context leaves. ``temperature``: 0 is greedy.
    ``settings``: further ones as ``generate`` takes them; a server takes top_p and stop.

    Raises ``RamifyError`` for an empty question, for a method that needs more than the model gives, and where no path
    came back at all; whatever arrived before is kept.
    """
    if not question:
        raise RamifyError("the question is empty; give at least one character")
    if template is not None and (not isinstance(question, str) or "{question}" not in template):
        raise RamifyError("a template is a text with {question} in it, and the question then a text as well")
    chosen = create(method, **(options or {}))
    if isinstance(lm, RemoteLM):
        asked = question if template is None else template.replace("{question}", str(question))
        given = {"temperature": temperature, "max_new_tokens": max_new_tokens or NEW_TOKENS, **settings}
        return ask(lm, asked, chosen, answer=answer, seed=seed, **given)
    lm = lm if isinstance(lm, CausalLM) else load(lm)
    drawn = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    prompt = framed(lm, question, template)
    if max_new_tokens is None:
        max_new_tokens = max(1, min(NEW_TOKENS, lm.context - len(lm.encode(prompt))))
    result: Result = generate(
        lm, prompt, chosen, max_new_tokens=max_new_tokens, seed=seed, answer=answer,
        **drawn, **settings,
    )  # fmt: skip
    return result


def framed(lm: CausalLM, question: str | Chat, template: str | None = None) -> str | Chat:
    """What ``lm`` is given to continue for ``question``."""
    if not isinstance(question, str):
        return question
    if template is not None:
        return template.replace("{question}", question)
    if lm.require_tokenizer().chat_template:
        return [{"role": "user", "content": question}]
    return f"{question}\n"


def ask(
    lm: RemoteLM, prompt: str | Chat, method: Method, *, answer: Parser, seed: int, max_new_tokens: int, **settings: Any
) -> Result:
    """The result of ``method`` on a server; paths are seen whole, and their tokens have no ids."""
    for setting in settings:
        if setting not in DISTANT:
            raise unknown("setting of a server:", setting, DISTANT)
    if not isinstance(method, SearchMethod) or (policy := method.distant()) is None:
        raise RamifyError(
            f"{method.card.name}, as it is set, needs more of the model than the text of finished paths, and a server "
            f"gives no more; use self-consistency, best-of-n or deepconf with online=False, or load the model here"
        )
    began, cpu = time.perf_counter(), time.process_time()
    events = list(
        search_distant(
            lm, prompt, policy, answer=answer, seed=seed, budget=method.budget,
            log_probs="log-probs" in method.card.needs, max_new_tokens=max_new_tokens, **settings,
        )
    )  # fmt: skip
    stats = Stats.of(events, 0)
    stats.wall_seconds, stats.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    tokens = [token for event in events if isinstance(event, Accepted) for token in event.tokens]
    result = Result("", tokens, [], Result.finish_reason(events), stats, events)
    result.text = result.paths[0].text
    return result
