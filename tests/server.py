"""An OpenAI-compatible server in the test process, over a model of ours: the dialects of real servers, and faults.

It answers with what ``ramify.generate`` writes, and computes each token's log-probabilities by a forward pass of its
own over everything before it.
"""

from __future__ import annotations

import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

import ramify
from ramify.models.causal import CausalLM

Fault = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """A context: the server runs inside.

    ``text``, ``chat``: which interfaces it has. ``log_probs``: False passes over them in silence. ``most``:
    alternatives for each token; more are an error. ``entries``: completions have log-probabilities in the form of
    chats, no echo, and asked for with 0 alternatives, none at all (llama.cpp). ``tempered``: log-probabilities follow
    the temperature (SGLang). ``echo``: False passes over it. ``new_length``: chats know max_completion_tokens only.
    ``faults``: what happens to the next requests, None for an answer. ``gate``: called at the start of each request.
    ``hold``: streams wait behind so many tokens until the caller hangs up; ``hung_up``: how often that came.

    ``requests``: their bodies, with "path" and "key". ``peak``: most of them under way at once. ``tokens``: of all
    answers, prompts included.
    """

    lm: CausalLM
    text: bool = True
    chat: bool = True
    log_probs: bool = True
    most: int = 20
    entries: bool = False
    tempered: bool = False
    echo: bool = True
    new_length: bool = False
    faults: deque[Fault | None] = field(default_factory=deque)
    gate: Callable[[], Any] = lambda: None
    hold: int | None = None
    hung_up: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    active: int = 0
    peak: int = 0
    tokens: int = 0

    def __enter__(self) -> Server:
        self.lock, self.model_lock, self.closing = threading.Lock(), threading.Lock(), threading.Event()
        handler = type("Handler", (Handler,), {"home": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.block_on_close = False
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        chat = path == "/v1/chat/completions"
        if path != "/v1/completions" and not chat:
            return 404, {"error": {"message": f"no {path} here"}}
        if not (self.chat if chat else self.text):
            return 404, {"detail": "Not Found"}
        if body["model"] != "tiny":
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if chat and self.new_length and "max_tokens" in body:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}
        wanted = body.get("top_logprobs", 0) if chat else body.get("logprobs") or 0
        if self.log_probs and wanted > self.most:
            return 400, {"error": {"message": f"at most {self.most} alternatives"}}
        with self.model_lock:
            return 200, self.write(body, chat, wanted)

    def write(self, body: dict[str, Any], chat: bool, wanted: int) -> dict[str, Any]:
        temperature = body.get("temperature", 1.0)
        settings: dict[str, Any] = {"method": "greedy"}
        if temperature:
            settings = {"method": "sample", "do_sample": True, "temperature": temperature, "top_k": 0}
            settings |= {"top_p": body.get("top_p", 1.0), "seed": body.get("seed", random.randrange(1 << 30))}
        length = body.get("max_completion_tokens") or body["max_tokens"]
        result = ramify.generate(self.lm, body["messages" if chat else "prompt"], max_new_tokens=length,
                                 stop=body.get("stop"), **settings)  # fmt: skip
        text = result.text
        for stop in body.get("stop", ()):
            text = text.partition(stop)[0]
        choice: dict[str, Any] = {"index": 0, "finish_reason": result.finish}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        echo = self.echo and not self.entries and body.get("echo", False)
        asked = body.get("logprobs")
        if self.log_probs and asked is not None and asked is not False and (wanted or not self.entries):
            ids = result.prompt + result.tokens
            laws = self.laws(ids, temperature if self.tempered and temperature else 1.0)
            start = 0 if echo else len(result.prompt)
            form = self.as_entries if chat or self.entries else self.as_lists
            choice["logprobs"] = form(ids, laws, start, wanted)
        if echo:
            choice["text"] = self.name(*result.prompt) + text
        prompt, new = len(result.prompt), len(result.tokens)
        self.tokens += prompt + new
        usage = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
        return {"id": "1", "object": "text_completion", "choices": [choice], "usage": usage}

    def chunks(self, answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """``answer`` as a stream has it: a chunk for each token, and the usage behind them."""
        [choice] = answer["choices"]
        chat, found = "message" in choice, choice.get("logprobs")
        text = choice["message"]["content"] if chat else choice["text"]
        count = answer["usage"]["completion_tokens"]
        for place in range(count):
            # Where the text is cut does not matter; all of it has come with the last token.
            piece = text[place : place + 1] if place + 1 < count else text[place:]
            part = {"index": 0, "finish_reason": choice["finish_reason"] if place + 1 == count else None}
            part |= {"delta": {"content": piece}} if chat else {"text": piece}
            if found:
                part["logprobs"] = {name: values[place : place + 1] for name, values in found.items()}
            yield answer | {"choices": [part], "usage": None}
        yield answer | {"choices": []}

    def laws(self, ids: list[int], temperature: float) -> list[Tensor | None]:
        """The log-probabilities [V] at each place, None for the first."""
        with torch.no_grad():
            logits = [self.lm.model(torch.tensor([ids[:place]])).logits[0, -1] for place in range(1, len(ids))]
        return [None, *((row / temperature).log_softmax(-1) for row in logits)]

    def as_entries(self, ids: list[int], laws: list[Tensor | None], start: int, wanted: int) -> dict[str, Any]:
        found = []
        for token, law in list(zip(ids, laws, strict=True))[start:]:
            best = law.topk(wanted)
            tops = [{"token": self.name(other), "logprob": value} for value, other in zip(best.values.tolist(),
                    best.indices.tolist(), strict=True)]  # fmt: skip
            found.append({"token": self.name(token), "logprob": float(law[token]), "top_logprobs": tops})
        return {"content": found}

    def as_lists(self, ids: list[int], laws: list[Tensor | None], start: int, wanted: int) -> dict[str, Any]:
        tokens, values, tops = [], [], []
        for token, law in list(zip(ids, laws, strict=True))[start:]:
            tokens.append(self.name(token))
            values.append(None if law is None else float(law[token]))
            # The chosen token first, then the best, as vLLM has it.
            chosen = [] if law is None else [token, *law.topk(wanted).indices.tolist()]
            tops.append(None if law is None else {self.name(other): float(law[other]) for other in chosen})
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": [-1] * len(tokens)}

    def name(self, *tokens: int) -> str:
        return self.lm.tokenizer.decode(list(tokens))


class Handler(BaseHTTPRequestHandler):
    home: Server

    def do_POST(self) -> None:
        home = self.home
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with home.lock:
            home.requests.append(body | {"path": self.path, "key": self.headers["Authorization"]})
            home.active += 1
            home.peak = max(home.peak, home.active)
            fault = home.faults.popleft() if home.faults else None
        try:
            home.gate()
            code, found = (0, {}) if fault else home.answer(self.path, body)
        finally:
            with home.lock:
                home.active -= 1  # before the answer, on which the next request may follow at once
        if fault:
            fault(self)
        elif code == 200 and body.get("stream"):
            self.stream(found)
        else:
            send(self, code, json.dumps(found))

    def stream(self, answer: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for place, chunk in enumerate(self.home.chunks(answer)):
                if place == self.home.hold:
                    self.connection.settimeout(30)
                    if not self.connection.recv(1):
                        with self.home.lock:
                            self.home.hung_up += 1
                        return
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.close_connection = True  # the caller had enough

    def log_message(self, *_: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, status: int, body: str, **headers: str) -> None:
    handler.send_response(status)
    for name, value in (
        {"Content-Type": "application/json", "Content-Length": str(len(body.encode()))} | headers
    ).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body.encode())


def status(code: int, message: str = "", **headers: str) -> Fault:
    """An error with ``code``."""
    return lambda handler: send(handler, code, json.dumps({"error": {"message": message}}), **headers)


def says(body: str, kind: str = "application/json") -> Fault:
    """A success with ``body``, whatever it is."""
    return lambda handler: send(handler, 200, body, Content_Type=kind)


def closes(handler: Handler) -> None:
    """The connection is closed without a word."""
    handler.close_connection = True
    handler.connection.close()


def breaks_off(handler: Handler) -> None:
    """The connection is closed in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    closes(handler)


def hangs(handler: Handler) -> None:
    """No answer before the server is closed."""
    handler.home.closing.wait(30)
