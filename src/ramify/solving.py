"""Solve: a question in, an answer out, with the vote, the paths and what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from ramify.api import generate, prepare
from ramify.bench.tasks.answers import parse_answer
from ramify.engine.distant import search_distant, step_distant
from ramify.engine.events import Accepted, Event
from ramify.engine.local_writer import LocalWriter
from ramify.engine.request import Parser, whole
from ramify.engine.result import Result, Stats
from ramify.engine.search import StepPolicy
from ramify.engine.server_writer import ServerWriter
from ramify.errors import RamifyError, unknown
from ramify.methods.asking import AskingMethod
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
    passages: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    max_new_tokens: int | None = None,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    answer: Parser | None = None,
    template: str | None = None,
    **settings: Any,
) -> Result:
    """Answer ``question`` along several paths; ``result.answer``, ``.votes``, ``.paths`` and ``.cost`` tell how.

    ``lm``: a local model, or a server. ``method``: one that searches; see ``ramify.methods()``. ``passages``: texts to
    answer from; STOC-TOT draws its evidence from them, other methods read them before the question. ``answer`` finds
    the answer in a path's text (``ramify.bench.tasks.parse_answer``: what follows "####" or "the answer is", what a
    \\boxed{} holds, or the last number); methods that ask for the answer by itself fall back on all of the reply, and
    STOC-TOT takes it as it is. ``template``: the text to continue, with {question} in it; by default the model's chat
    template, or the question and a line break where it has none. ``max_new_tokens``: by default 512, or what the
    context leaves; for methods with prompts of their own, a bound on each reply. ``temperature``: 0 is greedy.
    ``settings``: further ones as ``generate`` takes them; a server takes top_p and stop.

    Raises ``RamifyError`` for an empty question, for a method that needs more than the model gives, and where no path
    came back at all; whatever arrived before is kept.
    """
    if not question or (isinstance(question, str) and not question.strip()):
        raise RamifyError("the question is empty; give at least one character")
    if template is not None and (not isinstance(question, str) or "{question}" not in template):
        raise RamifyError("a template is a text with {question} in it, and the question then a text as well")
    if passages and not isinstance(question, str):
        raise RamifyError("passages go with a question that is a text; put them into the chat instead")
    chosen = create(method, **(options or {}))
    if isinstance(chosen, AskingMethod):
        if template is not None or not isinstance(question, str):
            raise RamifyError(
                f"{chosen.card.name} puts prompts of its own; give the question as a text, without a template"
            )
        read = answer or (whole if chosen.verbatim else said)
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, **settings}
        return consult(lm, question, chosen, passages, answer=read, **given)
    if isinstance(question, str):
        question = "\n\n".join([*passages, question])
    answer = answer or parse_answer
    if isinstance(lm, RemoteLM):
        asked = question if template is None else template.replace("{question}", str(question))
        given = {"temperature": temperature, "max_new_tokens": max_new_tokens or NEW_TOKENS, **settings}
        return ask(lm, asked, chosen, answer=answer, seed=seed, **given)
    lm = lm if isinstance(lm, CausalLM) else load(lm)
    prompt = framed(lm, question, template)
    if max_new_tokens is None:
        max_new_tokens = max(1, min(NEW_TOKENS, lm.context - len(lm.encode(prompt))))
    result: Result = generate(
        lm, prompt, chosen, max_new_tokens=max_new_tokens, seed=seed, answer=answer,
        **drawing(temperature), **settings,
    )  # fmt: skip
    return result


def said(reply: str) -> str | None:
    """The answer in a reply that should be no more than that: as ``parse_answer`` finds it, or all of it."""
    return parse_answer(reply) or whole(reply)


def drawing(temperature: float) -> dict[str, Any]:
    """A temperature as fields of transformers' ``GenerationConfig``."""
    return {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}


def consult(
    lm: CausalLM | RemoteLM | str,
    question: str,
    method: AskingMethod,
    passages: Sequence[str],
    *,
    answer: Parser,
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
    **settings: Any,
) -> Result:
    """The result of a method that puts prompts of its own, here or on a server; its text is the best path's line."""
    writer: LocalWriter | ServerWriter
    if isinstance(lm, RemoteLM):
        _check_distant(settings)
        writer = ServerWriter(lm, temperature=temperature, most=max_new_tokens, seed=seed, **settings)
    else:
        lm = lm if isinstance(lm, CausalLM) else load(lm)
        most = max(1, lm.context - len(lm.encode(question))) if max_new_tokens is None else max_new_tokens
        drawn = {**drawing(temperature), **settings}
        [request] = prepare(lm, [question], method, max_new_tokens=most, seed=seed, **drawn)
        writer = LocalWriter.of(lm, request)
    return _gathered(method.consult(writer, question, passages, answer))


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
    """The result of ``method`` on a server, where tokens have no ids; ``Path.tokens`` only counts them."""
    _check_distant(settings)
    policy = method.distant() if isinstance(method, SearchMethod) else None
    if not isinstance(method, SearchMethod) or policy is None:
        raise RamifyError(
            f"{method.card.name}, as it is set, needs more of the model than texts and their likeliest next tokens, "
            "which is all that a server gives; load the model here, or use self-consistency, best-of-n, deepconf, "
            "beam-search, diverse-beam-search or cntp"
        )
    given = {"answer": answer, "seed": seed, "budget": method.budget, "max_new_tokens": max_new_tokens, **settings}
    if isinstance(policy, StepPolicy):
        return _gathered(step_distant(lm, prompt, policy, greedy=method.pinned.get("do_sample") is False, **given))
    return _gathered(search_distant(lm, prompt, policy, log_probs="log-probs" in method.card.needs, **given))


def _check_distant(settings: Iterable[str]) -> None:
    for setting in settings:
        if setting not in DISTANT:
            raise unknown("setting of a server:", setting, DISTANT)


def _gathered(stream: Iterable[Event]) -> Result:
    """The result of ``stream``; its text is that of the best path."""
    began, cpu = time.perf_counter(), time.process_time()
    events = list(stream)
    stats = Stats.of(events, 0)
    stats.wall_seconds, stats.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    tokens = [token for event in events if isinstance(event, Accepted) for token in event.tokens]
    result = Result("", tokens, [], Result.finish_reason(events), stats, events)
    result.text = result.paths[0].text
    return result
