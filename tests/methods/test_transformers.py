"""Inside transformers and around it: ``custom_generate`` gives what ``generate`` gives, and ``ramify.generate`` too.

Greedy tokens are compared with transformers' own loop under the same settings, processors, criteria and streamers;
samples are compared with the exact law.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from families import VOCABULARY, build, byte_lm, byte_tokenizer, lm, model, text
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from ramify.api import generate, stream
from ramify.engine.events import Accepted, Event, Finished
from ramify.engine.request import Request
from ramify.errors import RamifyError
from ramify.methods.base import Method
from ramify.methods.draft.autoregressive import Greedy, Sample
from ramify.methods.draft.prompt_lookup import PromptLookup
from ramify.methods.draft.suffix import Suffix
from ramify.methods.draft.token_recycling import TokenRecycling
from ramify.models.causal import CausalLM

METHODS = [Greedy(), PromptLookup(length=10), Suffix(length=40), TokenRecycling(nodes=16)]
IDS = [method.card.name for method in METHODS]
FAMILIES = ["llama", "mistral", "gemma3", "gpt2"]
NEW = 24


def single() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([text(9, 3, period=3)])}


def padded() -> dict[str, Tensor]:
    """Three prompts of different length, padded on the left."""
    prompts = [text(4, 1), text(13, 2, period=5), text(9, 3, period=3)]
    ids = torch.tensor([[0] * (13 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (13 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


class Rough(LogitsProcessor):
    """A processor that looks at the whole prefix: no token twice in a row, and a bonus from all earlier ones."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bonus = input_ids.sum(dim=1) % VOCABULARY
        rows = torch.arange(len(scores))
        scores = scores.clone()
        scores[rows, bonus] += 2.0
        scores[rows, input_ids[:, -1]] = -torch.inf
        return scores


def allowed(row: int, ids: Tensor) -> list[int]:
    """Different tokens for different rows."""
    return list(range(row, VOCABULARY, 3))


class Enough(StoppingCriteria):
    """Ends a row when the sum of its ids is a multiple of 7."""

    def __call__(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        return input_ids.sum(dim=1) % 7 == 0


def some_eos(family: str, inputs: dict[str, Tensor]) -> list[int]:
    """Ids that the plain text holds, so that they end it."""
    plain = model(family).generate(**inputs, do_sample=False, max_new_tokens=NEW)[:, inputs["input_ids"].shape[1] :]
    return [int(row[5 + 4 * place]) for place, row in enumerate(plain)]


def settings(family: str, inputs: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        "nothing": {},
        "penalty": {"repetition_penalty": 1.3},
        "ngrams": {"no_repeat_ngram_size": 2, "suppress_tokens": [3, 4, 5]},
        "eos": {"eos_token_id": some_eos(family, inputs), "pad_token_id": 2},
        "not yet": {"eos_token_id": some_eos(family, inputs), "min_new_tokens": 12},
        "own processor": {"logits_processor": LogitsProcessorList([Rough()]), "repetition_penalty": 1.1},
        "own rows": {"prefix_allowed_tokens_fn": allowed},
        # transformers pads stopped rows only where there is an end token; without one it lets them run on.
        "own criterion": {"stopping_criteria": StoppingCriteriaList([Enough()]), "eos_token_id": 95, "pad_token_id": 2},
        "config": {"generation_config": GenerationConfig(max_new_tokens=NEW, exponential_decay_length_penalty=(9, 1.5),
                                                         eos_token_id=7, pad_token_id=1)},
    }  # fmt: skip


@pytest.mark.parametrize("batch", [single, padded])
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_gives_the_same(family: str, batch: Any):
    inputs = batch()
    for name, given in settings(family, inputs).items():
        common = {"do_sample": False, "max_new_tokens": NEW} | given
        expected = model(family).generate(**inputs, **common)
        for method in METHODS:
            actual = model(family).generate(**inputs, **common, custom_generate=method)
            assert torch.equal(actual, expected), f"{method} under {name}"


def test_the_settings_change_the_text():
    """The comparison above would prove little if penalties, stops and criteria did nothing."""
    inputs = padded()
    texts = {
        name: model("llama").generate(**inputs, **{"do_sample": False, "max_new_tokens": NEW} | given).tolist()
        for name, given in settings("llama", inputs).items()
    }
    assert sum(texts[one] == texts[two] for one in texts for two in texts) == len(texts)


def test_the_model_is_left_as_it_was():
    trained = build("llama").train()
    before = {name: weight.clone() for name, weight in trained.named_parameters()}
    trained.generate(**single(), custom_generate=PromptLookup(length=10), max_new_tokens=4)
    assert all(weight.requires_grad for weight in trained.parameters())
    assert trained.training
    assert all(torch.equal(weight, before[name]) for name, weight in trained.named_parameters())
    loss = trained(**single(), labels=single()["input_ids"]).loss
    loss.backward()
    with torch.no_grad():
        for weight in trained.parameters():
            weight -= 0.5 * weight.grad
    assert torch.equal(
        trained.generate(**single(), do_sample=False, max_new_tokens=NEW),
        trained.generate(**single(), do_sample=False, max_new_tokens=NEW, custom_generate=PromptLookup(length=10)),
    )


# ---- texts: stop strings, streams ----


def asked(prompt: str = "to be or not to be") -> dict[str, Any]:
    return {"input_ids": torch.tensor([byte_tokenizer()(prompt)["input_ids"]]), "do_sample": False}


def greedy_text(new: int = 60) -> str:
    ids = byte_lm().model.generate(**asked(), max_new_tokens=new)
    text: str = byte_tokenizer().decode(ids[0, asked()["input_ids"].shape[1] :])
    return text


def stops() -> list[str]:
    """Strings that the text holds, of one character and of several, one that it does not hold."""
    printable = "".join(character for character in greedy_text() if character.isascii())
    assert len(set(printable)) > 4
    whole = greedy_text()
    pieces = [whole[place : place + 3] for place in range(8, 40) if whole[place : place + 3].isascii()]
    return [pieces[0], pieces[-1], pieces[len(pieces) // 2][:2], pieces[-1][0], "no such text"]


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_stop_strings_cut_as_generate_cuts(method: Method):
    tokenizer, target = byte_tokenizer(), byte_lm().model
    start = asked()["input_ids"].shape[1]
    lengths = set()
    for stop in stops():
        expected = target.generate(**asked(), max_new_tokens=60, stop_strings=[stop], tokenizer=tokenizer)
        criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, [stop])])
        actual = target.generate(**asked(), max_new_tokens=60, stopping_criteria=criteria, custom_generate=method)
        assert torch.equal(actual, expected)
        result = generate(byte_lm(), "to be or not to be", method, stop=stop, do_sample=False, max_new_tokens=60)
        assert result.tokens == expected[0, start:].tolist()
        assert result.finish == ("length" if stop == "no such text" else "stop")
        assert (stop in result.text) == (result.finish == "stop")
        lengths.add(len(result.tokens))
    assert len(lengths) > 2
    expected = target.generate(**asked(), max_new_tokens=60, stop_strings=stops(), tokenizer=tokenizer)
    result = generate(byte_lm(), "to be or not to be", method, stop=stops(), do_sample=False, max_new_tokens=60)
    assert result.tokens == expected[0, start:].tolist()


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_eos_cuts_as_generate_cuts(method: Method):
    start = asked()["input_ids"].shape[1]
    plain = byte_lm().model.generate(**asked(), max_new_tokens=60)[0, start:].tolist()
    for eos in ([plain[10]], [plain[30], plain[21]], [257]):
        expected = byte_lm().model.generate(**asked(), max_new_tokens=60, eos_token_id=eos)[0, start:].tolist()
        result = generate(byte_lm(), "to be or not to be", method, do_sample=False, max_new_tokens=60, eos_token_id=eos)
        assert result.tokens == expected
        assert result.finish == ("stop" if result.tokens[-1] in eos else "length")


@pytest.mark.parametrize("bound", [False, True], ids=["generate's streamer", "bound streamer"])
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_streamers(method: Method, bound: bool):
    streamer = TextIteratorStreamer(byte_tokenizer(), skip_prompt=not bound, timeout=60)
    how: dict[str, Any] = (
        {"custom_generate": method.bind(streamer)} if bound else {"custom_generate": method, "streamer": streamer}
    )
    thread = threading.Thread(target=byte_lm().model.generate, kwargs=asked() | {"max_new_tokens": 60} | how)
    thread.start()
    pieces = list(streamer)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert "".join(pieces) == greedy_text()
    assert len(pieces) > 3


def test_a_streamer_shows_one_sequence():
    streamer = TextIteratorStreamer(byte_tokenizer(), timeout=5)
    with pytest.raises(RamifyError, match="a streamer shows one sequence, but the batch has 3"):
        model("llama").generate(**padded(), custom_generate=Greedy().bind(streamer), max_new_tokens=3)


# ---- sampling ----


def test_samples_repeat_under_torchs_seed():
    def sampled(seed: int, method: Method) -> list[list[int]]:
        torch.manual_seed(seed)
        given = {"do_sample": True, "temperature": 0.8, "top_k": 20, "max_new_tokens": NEW}
        ids: list[list[int]] = model("llama").generate(**padded(), **given, custom_generate=method).tolist()
        return ids

    assert (
        sampled(1, PromptLookup(length=10))
        == sampled(1, PromptLookup(length=10))
        == sampled(1, Suffix(length=40))
        == sampled(1, Sample())
    )
    assert sampled(1, PromptLookup(length=10)) != sampled(2, PromptLookup(length=10))


@pytest.mark.parametrize(
    "method", [Sample(), PromptLookup(length=10), TokenRecycling(nodes=6)], ids=lambda m: m.card.name
)
def test_samples_follow_the_law(method: Method):
    """Pairs of sampled tokens against their exact probabilities under temperature and top-k."""
    prompt, count = [5, 6, 5, 6, 5], 600
    temperature, top = 1.5, 4

    def law(tokens: list[int]) -> dict[int, float]:
        with torch.no_grad():
            logits = model("llama")(input_ids=torch.tensor([tokens])).logits[0, -1] / temperature
        best = logits.topk(top)
        return dict(zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True))

    exact = {(a, b): p * q for a, p in law(prompt).items() for b, q in law([*prompt, a]).items()}
    torch.manual_seed(0)
    ids = model("llama").generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 5, dtype=torch.long), do_sample=True,
        temperature=temperature, top_k=top, max_new_tokens=2, num_return_sequences=count, custom_generate=method,
    )  # fmt: skip
    seen = Counter((a, b) for *_, a, b in ids.tolist())
    assert set(seen) <= set(exact)
    common = [pair for pair in exact if exact[pair] * count >= 5]
    observed = [seen[pair] for pair in common] + [count - sum(seen[pair] for pair in common)]
    expected = [exact[pair] * count for pair in common]
    expected.append(count - sum(expected))
    assert len(common) >= 6
    if expected[-1] < 5:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    assert chisquare(observed, expected).pvalue > 1e-3


# ---- ramify.generate takes what generate takes ----


@pytest.mark.parametrize("family", FAMILIES)
def test_ramify_generate_equals_generate(family: str):
    for inputs in (single(),):
        prompt = inputs["input_ids"][0].tolist()
        for name, given in settings(family, inputs).items():
            common = {"do_sample": False, "max_new_tokens": NEW} | given
            expected = model(family).generate(**inputs, **common)[0, len(prompt) :].tolist()
            for method in METHODS:
                assert generate(lm(family), prompt, method, **common).tokens == expected, f"{method} under {name}"


def test_processors_may_come_in_a_plain_list():
    prompt = single()["input_ids"][0].tolist()
    expected = model("llama").generate(**single(), do_sample=False, max_new_tokens=NEW, logits_processor=[Rough()])
    result = generate(lm("llama"), prompt, "suffix", max_new_tokens=NEW, logits_processor=[Rough()])
    assert result.tokens == expected[0, len(prompt) :].tolist()


def guidance() -> LogitsProcessorList:
    return LogitsProcessorList([UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model("llama"))])


def test_stateful_processors_need_plain_decoding():
    prompt = single()["input_ids"][0].tolist()
    for method in METHODS[1:]:
        with pytest.raises(RamifyError, match=r"keeps a state from token to token.*use method='greedy'") as error:
            generate(lm("llama"), prompt, method, max_new_tokens=NEW, logits_processor=guidance())
        assert "\n" not in str(error.value)
        with pytest.raises(RamifyError, match=r"UnbatchedClassifierFreeGuidance.*keeps a state from token to token"):
            model("llama").generate(**single(), guidance_scale=1.5, custom_generate=method, max_new_tokens=3)
    expected = model("llama").generate(**single(), do_sample=False, max_new_tokens=NEW, logits_processor=guidance())
    result = generate(lm("llama"), prompt, "greedy", max_new_tokens=NEW, logits_processor=guidance())
    assert result.tokens == expected[0, len(prompt) :].tolist()
    assert result.tokens != generate(lm("llama"), prompt, "greedy", max_new_tokens=NEW).tokens
    with pytest.raises(RamifyError, match="several sequences cannot share it; generate them one by one"):
        generate(lm("llama"), [prompt, prompt], "greedy", max_new_tokens=NEW, logits_processor=guidance())
    with pytest.raises(RamifyError, match="several sequences cannot share it"):
        model("llama").generate(**padded(), guidance_scale=1.5, custom_generate=Greedy(), max_new_tokens=3)
    both = generate(lm("llama"), [prompt, prompt], "greedy", max_new_tokens=NEW, guidance_scale=1.5)
    assert both[0].tokens == both[1].tokens == result.tokens


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"attention_mask": torch.tensor([[1] * 8 + [0]])}, "padded on the left only"),
    ],
)
def test_what_custom_generate_refuses(given: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message) as error:
        model("llama").generate(**single() | given, custom_generate=PromptLookup(length=10), max_new_tokens=3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences=3"),
        ({"temprature": 0.5}, "temprature"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"stop_strings": ["a"]}, "stop"),
    ],
)
def test_what_ramify_generate_refuses(given: dict[str, Any], message: str):
    with pytest.raises(RamifyError, match=message) as error:
        generate(lm("llama"), [1, 2, 3], "prompt-lookup", max_new_tokens=3, **given)
    assert "\n" not in str(error.value)


# ---- streams of our own ----


@dataclass(frozen=True)
class Says(Method):
    """Commits given ids in parts of given sizes."""

    ids: tuple[int, ...] = ()
    sizes: tuple[int, ...] = (1,)

    def run(self, lm: CausalLM, requests: Sequence[Request]) -> Iterator[Event]:
        place = step = 0
        while place < len(self.ids):
            size = self.sizes[step % len(self.sizes)]
            yield Accepted(0, step, (), self.ids[place : place + size], 0.0)
            place, step = place + size, step + 1
        yield Finished(0, step, "length")


@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (5,), (1, 2, 3, 4), (99,)])
@pytest.mark.parametrize("said", ["naïve 🌳 → 日本語 ⅔é", "plain", "🌳", "a🌳\ufffd", ""])
def test_characters_arrive_whole(said: str, sizes: tuple[int, ...]):
    ids = tuple(said.encode())
    shown = stream(byte_lm(), "x", Says(ids, sizes))
    pieces = list(shown)
    assert "".join(pieces) == said
    assert all(pieces)
    if "\ufffd" not in said:
        assert not any("\ufffd" in piece for piece in pieces)
    assert shown.result is not None
    assert shown.result.text == said
    assert shown.result.tokens == list(ids)


def test_a_character_that_never_ends_is_shown_at_last():
    shown = stream(byte_lm(), "x", Says(tuple("ab🌳".encode()[:-1])))
    pieces = list(shown)
    assert "".join(pieces) == "ab\ufffd"
    assert shown.result is not None
    assert shown.result.text == "ab\ufffd"


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_pieces_make_up_the_text(method: Method):
    for given in ({"do_sample": False}, {"do_sample": True, "temperature": 1.3}):
        if "do_sample" in method.pinned and given["do_sample"]:
            continue
        shown = stream(byte_lm(), "to be or not to be", method, max_new_tokens=80, seed=4, **given)
        pieces = list(shown)
        whole = generate(byte_lm(), "to be or not to be", method, max_new_tokens=80, seed=4, **given)
        assert shown.result is not None
        assert "".join(pieces) == shown.result.text == whole.text
        assert shown.result.tokens == whole.tokens
        assert shown.result.stats.generated_tokens == 80
        assert len(pieces) > 3
        assert len(shown.events) == len(shown.result.events)


def test_events_are_there_while_the_text_runs():
    shown = stream(byte_lm(), "to be", "greedy", max_new_tokens=8)
    counts = [len([event for event in shown.events if isinstance(event, Accepted)]) for _ in shown]
    assert counts[0] < counts[-1] == 8
