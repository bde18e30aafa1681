"""An assistant with another tokenizer: translations that fit, and decoding that stays what it is."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build, byte_lm, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ramify.api import generate
from ramify.errors import RamifyError
from ramify.methods.draft.assistant import Assistant
from ramify.methods.draft.translate import UNFINISHED, Tongue, Translated, continuation, same_vocabulary
from ramify.models.causal import CausalLM, load
from ramify.train.demo_lm import train_tokenizer

TEXT = (
    "The café at the corner opens at 7, said Zoë; 日本語のメニュー is on the wall 🙂.\n"
    "    for each in menu:\n        order(each)  # naïve, but it works 🙂🙂\n"
    "Ein Kännchen Kaffee kostet 4,50 €, das Übliche.\n"
)
STEPS, CONTEXT = 100, 512
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 5}


@functools.cache
def trained(size: int) -> Any:
    """A byte-level tokenizer of ``size`` tokens, trained on ``TEXT`` as the demo model's was on its own."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer([TEXT], size, Path(folder), 512)
        return AutoTokenizer.from_pretrained(folder)


@functools.cache
def spaced() -> Any:
    """A tokenizer that writes spaces as ▁ and one in front of every text, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator([TEXT.replace("🙂", "")], trainers.BpeTrainer(vocab_size=420, special_tokens=special))
    described = json.loads(backend.to_str())
    described["added_tokens"] = described["added_tokens"][:2]  # bytes are no special tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), unk_token="<unk>", bos_token="<s>", eos_token="<s>"
    )


TONGUES = {"small": lambda: trained(290), "large": lambda: trained(400), "bytes": byte_tokenizer, "spaced": spaced}


# ---------------------------------------------------------------- translations


@pytest.mark.parametrize("name", TONGUES)
def test_the_rest_of_a_text_continues_every_beginning(name: str):
    """Also one that ends within a character: what is found decodes to the text, and is the tokenizer's own rest."""
    tongue = Tongue(TONGUES[name]())
    ids = tongue.encode(TEXT)
    assert tongue.decode(ids) == TEXT
    for count in range(1, len(ids)):
        whole = tongue.decode(ids[:count]).rstrip(UNFINISHED)
        more = TEXT[len(whole) :][:30]
        found = continuation(tongue, ids[:count], more)
        assert tongue.decode([*ids[:count], *found]) == whole + more
        sure = len(found) - 4  # the cut at the end may split a token
        assert sure < 1 or found[:sure] == ids[count : count + sure]


@pytest.mark.parametrize("name", ["small", "large", "bytes"])
def test_a_merge_across_the_boundary_is_not_made(name: str):
    """Committed "ca" is no longer how "café" would begin: the rest is then written by itself."""
    tongue = Tongue(TONGUES[name]())
    split = [*tongue.encode("The ca"), *tongue.encode("f")]
    found = continuation(tongue, split, "é at the corner")
    assert tongue.decode([*split, *found]) == "The café at the corner"
    newline = tongue.encode("menu:\n")
    found = continuation(tongue, newline, "    order")
    assert tongue.decode([*newline, *found]) == "menu:\n    order"


def test_no_space_is_made_up_in_front_of_a_continuation():
    tongue = Tongue(spaced())
    assert tongue.decode(tongue.encode("ner")) == "ner"
    begun = tongue.encode("the cor")
    found = continuation(tongue, begun, "ner opens")
    assert tongue.decode([*begun, *found]) == "the corner opens"


def test_another_character_than_the_one_begun_is_no_continuation():
    tongue = Tongue(trained(290))
    begun = tongue.encode("Zoë")[:-1]
    assert tongue.decode(begun).endswith(UNFINISHED)
    assert continuation(tongue, begun, "ë; ")
    assert continuation(tongue, begun, "x; ") == []
    assert continuation(tongue, begun, "") == []


@given(st.data(), st.sampled_from(sorted(TONGUES)))
def test_any_tokens_have_a_continuation_or_none(data: st.DataObject, name: str):
    """Random ids are no text that anybody would write; what is proposed still decodes to what was meant.

    But for SentencePiece's, where a single wrong byte spoils the decoding of all bytes around it.
    """
    tokenizer = TONGUES[name]()
    tongue = Tongue(tokenizer)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=24))
    more = data.draw(st.text(max_size=8))
    found = continuation(tongue, tokens, more)
    assert not found or name == "spaced" or tongue.decode([*tokens[-16:], *found]).endswith(more)


def test_the_end_of_a_text_is_enough_to_encode():
    """What the assistant reads is what its tokenizer makes of the whole text, however it grew."""
    large, small = trained(400), trained(290)
    for own in (large, spaced(), byte_tokenizer()):
        drafter = Translated(SimpleNamespace(), wrapped(small), wrapped(own))  # type: ignore[arg-type]
        ids = small(TEXT)["input_ids"]
        for count in range(1, len(ids), 3):
            text = small.decode(ids[:count]).rstrip(UNFINISHED)
            drafter._read(text)
            assert drafter.ids == own(text)["input_ids"]
        drafter._read("Another text")
        assert drafter.ids == own("Another text")["input_ids"]


def wrapped(tokenizer: Any) -> Any:
    return SimpleNamespace(require_tokenizer=lambda: tokenizer)


# ---------------------------------------------------------------- decoding


@functools.cache
def reciting(name: str) -> CausalLM:
    """A small model that has learned ``TEXT`` by heart, with the tokenizer ``name``."""
    tokenizer = TONGUES[name]()
    ids = Tongue(tokenizer).encode(6 * TEXT)
    size = {"hidden_size": 48, "intermediate_size": 48, "initializer_range": 0.05}
    model = build("llama", vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    numbers = random.Random(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 10, 2 * (STEPS - step) / STEPS)
        begins = [numbers.randrange(len(ids) // 2) for _ in range(4)]
        batch = torch.tensor([ids[begin : begin + 97] for begin in begins])
        logits = model(input_ids=batch[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return load(model.requires_grad_(False), tokenizer=tokenizer)


@pytest.mark.parametrize("verifier", ["match", "speculative", "block"])
@pytest.mark.parametrize(
    ("one", "other"), [("small", "large"), ("large", "small"), ("bytes", "large"), ("large", "spaced")]
)
def test_it_is_accepted_where_it_is_right(one: str, other: str, verifier: Any):
    target, assistant = reciting(one), reciting(other)
    assert not same_vocabulary(target, assistant)
    method = Assistant(model=assistant, length=8, schedule="constant", verifier=verifier)
    plain = generate(target, TEXT[:22], "greedy", max_new_tokens=90)
    result = generate(target, TEXT[:22], method, max_new_tokens=90)
    assert result.tokens == plain.tokens
    assert TEXT[22:90] in plain.text
    assert result.stats.accepted > 0.35 * result.stats.drafted  # a cut word is not what the assistant learned to go on
    assert result.stats.target_calls < 30


@pytest.mark.parametrize(("one", "other"), [("small", "large"), ("bytes", "spaced"), ("large", "bytes")])
def test_sampled_tokens_are_the_plain_ones(one: str, other: str):
    target, assistant = reciting(one), reciting(other)
    method = Assistant(model=assistant, verifier="match")
    prompts = [TEXT[:22], TEXT[:3], TEXT[:58]]
    plain = generate(target, prompts, "sample", max_new_tokens=60, **SAMPLED)
    batch = generate(target, prompts, method, max_new_tokens=60, **SAMPLED)
    assert [each.tokens for each in batch] == [each.tokens for each in plain]
    assert sum(each.stats.accepted for each in batch) > 20
    if one == "bytes":
        assert any(within_a_character(each) for each in batch)


def within_a_character(result: Any) -> bool:
    """Whether the text after some step ended there."""
    tongue, tokens = Tongue(byte_tokenizer()), list(result.prompt)
    for _, accepted in result.steps:
        tokens += accepted.tokens
        if tongue.decode(tokens).endswith(UNFINISHED):
            return True
    return False


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_between_real_models(settings: dict[str, Any]):
    """Random weights write random bytes, which no tokenizer would: nothing is lost, little is gained."""
    assistant = load(build("llama", vocab_size=400, max_position_embeddings=200), tokenizer=trained(400))
    for target in (
        byte_lm(),
        load(build("mistral", vocab_size=300, max_position_embeddings=200), tokenizer=trained(290)),
    ):
        for inner in (None, "token-recycling"):
            method = Assistant(model=assistant, verifier="match", inner=inner)
            name = "sample" if settings else "greedy"
            plain = generate(target, ["The caf", "日本語のメ", "x"], name, max_new_tokens=40, **settings)
            batch = generate(target, ["The caf", "日本語のメ", "x"], method, max_new_tokens=40, **settings)
            assert [each.tokens for each in batch] == [each.tokens for each in plain]
            assert sum(each.stats.drafted for each in batch) > 20


def test_an_assistant_that_runs_out_of_context_stops_helping():
    short = load(build("llama", vocab_size=258, max_position_embeddings=60), tokenizer=byte_tokenizer())
    method = Assistant(model=short, length=6, schedule="constant")
    result = generate(reciting("small"), TEXT[:22], method, max_new_tokens=80)
    assert result.tokens == generate(reciting("small"), TEXT[:22], "greedy", max_new_tokens=80).tokens
    assert result.stats.drafted > 0
    assert [len(draft.tree) for draft, _ in result.steps if draft][-10:] == [0] * 10


def test_a_text_of_special_tokens_only_is_decoded_plainly():
    end = trained(290).eos_token_id
    result = generate(reciting("small"), [end], Assistant(model=reciting("large")), max_new_tokens=5)
    assert result.tokens == generate(reciting("small"), [end], "greedy", max_new_tokens=5).tokens


def test_without_tokenizers_another_vocabulary_is_refused():
    bigger = load(build("llama", vocab_size=100))
    target = load(build("llama"))
    with pytest.raises(RamifyError, match=r"another vocabulary \(100 tokens\) than LlamaForCausalLM \(96\); load both"):
        generate(target, [1, 2, 3], Assistant(model=bigger), max_new_tokens=4)
    assert same_vocabulary(target, load(build("llama", seed=1)))
