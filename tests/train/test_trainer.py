"""The training loop and the demo model's recipe: schedule, exact resume, batches, tokenizer, files, bits per byte."""

from __future__ import annotations

import itertools
import json
import math
import re
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import VOCABULARY, build
from safetensors import safe_open
from torch import Tensor, nn

from ramify.train.data import HELD_OUT, SKIPPED_FOLDERS, Windows, library_files
from ramify.train.demo_lm import END_OF_TEXT, bits_per_byte, train_tokenizer, xz_bits_per_byte
from ramify.train.trainer import Progress, TrainConfig, _optimizers, train

# ---------------------------------------------------------------- schedule


def test_the_schedule_is_a_trapezoid():
    config = TrainConfig(steps=20, warmup=4, cooldown=0.5)
    assert [config.scale(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [config.scale(step) for step in range(9, 20)] == pytest.approx([1.0] * 2 + [x / 10 for x in range(9, 0, -1)])
    assert config.scale(20) == 0.0


def test_schedules_at_the_edges():
    flat = TrainConfig(steps=3, warmup=0, cooldown=0.0)
    assert [flat.scale(step) for step in range(3)] == [1.0, 1.0, 1.0]
    falling = TrainConfig(steps=4, warmup=0, cooldown=1.0)
    assert [falling.scale(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    longer = TrainConfig(steps=40, warmup=4, cooldown=0.5)  # a prolonged run has the same beginning
    assert [longer.scale(step) for step in range(10)] == [
        TrainConfig(20, warmup=4, cooldown=0.5).scale(s) for s in range(10)
    ]
    for settings in ({"steps": 0}, {"steps": 3, "cooldown": 1.5}, {"steps": 3, "cooldown": -0.1}):
        with pytest.raises(ValueError):
            TrainConfig(**settings)


# ---------------------------------------------------------------- loop

CONFIG = TrainConfig(steps=6, learning_rate=1e-2, warmup=2, cooldown=0.5, eval_every=2, save_every=3)


def model() -> nn.Module:
    built: nn.Module = build("llama", seed=1, tie_word_embeddings=True)
    return built


def loss_of(trained: nn.Module) -> Any:
    def loss_at(step: int) -> Tensor:
        ids = torch.randint(VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(step))
        logits = trained(input_ids=ids[:, :-1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return loss_at


def run(out: Path, stop: int = 6, evaluate: Any = None) -> tuple[nn.Module, list[Progress]]:
    """Train a new model in ``out`` and give up after step ``stop``."""
    trained = model()
    seen = []
    for progress in train(trained, loss_of(trained), CONFIG, out, evaluate):
        seen.append(progress)
        if progress.step == stop:
            break
    return trained, seen


def curve(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_an_interrupted_run_ends_as_if_nothing_had_been(stop: int, tmp_path: Path):
    whole, progress = run(tmp_path / "whole")
    _, first = run(tmp_path / "parts", stop)
    resumed, rest = run(tmp_path / "parts")
    assert [one.step for one in first] == list(range(1, stop + 1))
    assert [one.step for one in rest] == [4, 5, 6]  # from the checkpoint of step 3
    assert [one.loss for one in first[:3] + rest] == [one.loss for one in progress]
    for (name, mine), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert [line["step"] for line in curve(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in curve(tmp_path / "parts")] == [one.loss for one in progress]
    fresh = model()
    assert not all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))


def test_a_finished_run_only_loads(tmp_path: Path):
    whole, _ = run(tmp_path)
    again, progress = run(tmp_path)
    assert progress == []
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_the_checkpoint_is_safetensors(tmp_path: Path):
    trained, _ = run(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.safetensors", "curve.jsonl"]
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "6"
        assert float(file.metadata()["seconds"]) >= 0
        names = set(file.keys())
        for name, parameter in trained.named_parameters():
            assert torch.equal(file.get_tensor(f"model.{name}"), parameter)
    assert any(name.endswith("momentum_buffer") for name in names)  # Muon
    assert any(name.endswith("exp_avg_sq") for name in names)  # AdamW


def test_evaluations_come_when_due_and_at_the_end(tmp_path: Path):
    asked = []

    def evaluate() -> dict[str, float]:
        asked.append(trained_mode())
        return {"figure": float(len(asked))}

    trained = model()

    def trained_mode() -> bool:
        return trained.training

    config = TrainConfig(steps=5, warmup=0, eval_every=2, save_every=9)
    progress = list(train(trained, loss_of(trained), config, tmp_path, evaluate))
    found = [None, {"figure": 1.0}, None, {"figure": 2.0}, {"figure": 3.0}]
    assert [one.evaluation for one in progress] == [line["evaluation"] for line in curve(tmp_path)] == found
    assert asked == [False] * 3
    assert not trained.training


def test_learning_learns(tmp_path: Path):
    trained = model()
    ids = torch.arange(24)[None] % 8

    def loss_at(step: int) -> Tensor:
        logits = trained(input_ids=ids[:, :-1]).logits
        return nn.functional.cross_entropy(logits[0], ids[0, 1:])

    losses = [
        one.loss for one in train(trained, loss_at, TrainConfig(steps=20, learning_rate=1e-2, warmup=0), tmp_path)
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_matrices_go_to_muon_and_the_rest_to_adam():
    untied = build("llama")
    untied.model.norm.weight.requires_grad_(False)
    muon, adam = _optimizers(untied, CONFIG)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adam, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in untied.named_parameters()}
    matrices, others = (
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]} for optimizer in (muon, adam)
    )
    assert all(name.endswith("proj.weight") for name in matrices)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= others
    assert matrices | others == set(names.values()) - {"model.norm.weight"}
    assert not matrices & others


# ---------------------------------------------------------------- batches

DOCUMENTS = [list(range(100 * n + 1, 100 * n + 1 + size)) for n, size in enumerate((37, 5, 61, 1, 48, 90))]


def windows(seed: int = 0) -> Windows:
    return Windows(DOCUMENTS, separator=0, context=8, batch=3, seed=seed)


def test_an_epoch_has_every_window_once():
    made = windows()
    assert made.total == sum(map(len, DOCUMENTS)) + len(DOCUMENTS)
    for number in range(3):
        epoch = made.epoch(number)
        assert epoch.shape == (made.per_epoch, 9)
        assert made.per_epoch >= (made.total - 2 * 8) // 8 - 1  # little is left over at the ends
        read = epoch[:, :-1].flatten().tolist()  # what the model is given: no place twice
        tokens = [token for token in read if token]
        assert len(tokens) == len(set(tokens))
        assert set(tokens) <= {token for document in DOCUMENTS for token in document}
        for window in epoch.tolist():
            for token, following in itertools.pairwise(window):
                assert following in (token + 1, 0) or token == 0  # text in order, separated
    assert not torch.equal(made.epoch(0), made.epoch(1))


def test_batches_are_a_function_of_the_step():
    made, backwards = windows(), windows()
    steps = 2 * made.per_epoch // 3 + 2  # into the third epoch
    batches = [made(step) for step in range(steps)]
    assert all(torch.equal(backwards(step), batches[step]) for step in reversed(range(steps)))
    assert {(batch.shape, batch.dtype) for batch in batches} == {(torch.Size([3, 9]), torch.int64)}
    flat = torch.cat(batches)
    for number in range(2):  # the batches of an epoch are its windows in order, across batches too
        start = number * made.per_epoch
        assert torch.equal(flat[start : start + made.per_epoch], made.epoch(number).long())
    assert not torch.equal(windows(seed=1)(0), batches[0])


# ---------------------------------------------------------------- tokenizer

SOURCES = [
    "def read(path):\n    with open(path) as file:\n        return file.read()\n",
    "class Queue:\n    def __init__(self, size=100):\n        self.items = [None] * size\n\n\n",
    "for number in range(1000):\n    print(f'{number:>5} {number ** 2}')\n",
]
TEXTS = [
    *SOURCES,
    "",
    "\n",
    " \t \n\n\t\tif x:\t# tabs\n",
    "a = 'naïve café – Größe 漢字 🎉 \u00a0\u2028'\r\n\r\nb = 2\r",
    "x=1;y  =   2  \n   \n",
    "\x00\x7f\\N{BEL} \ufeff end",
    "1234567 0x_FF 1e-9 __dunder__ ...!==",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(SOURCES, 300, folder, context=64)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_tokenizer_gives_every_text_back(tokenizer: Any, text: str):
    ids = tokenizer.backend_tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == ids
    assert max(ids, default=0) < len(tokenizer)


def test_the_tokenizers_settings(tokenizer: Any):
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.eos_token_id == 0
    assert tokenizer.model_max_length == 64
    assert 257 <= len(tokenizer) <= 300
    pieces = [tokenizer.decode([token]) for token in range(1, len(tokenizer))]
    assert any(re.fullmatch(r"\n +", piece) for piece in pieces)  # a line break and its indentation are one piece
    assert not any(re.search(r"\S\n|[a-z]\d|\S ", piece) for piece in pieces)


# ---------------------------------------------------------------- files


def test_library_files_leave_out_tests_and_what_is_held_out():
    root = Path(sysconfig.get_path("stdlib"))
    training, held_out = library_files()
    names = [file.relative_to(root).as_posix() for file in training]
    assert {file.relative_to(root).as_posix() for file in held_out} == set(HELD_OUT)
    assert names == sorted(names, key=lambda name: Path(name).parts)
    assert len(names) > 300
    assert not set(names) & set(HELD_OUT)
    assert not [name for name in names if SKIPPED_FOLDERS & set(Path(name).parts)]
    assert not [name for name in names if name.startswith(("encodings/", "pydoc_data/", "test/"))]
    assert {"ast.py", "json/encoder.py", "asyncio/tasks.py"} <= set(names)


# ---------------------------------------------------------------- bits per byte


class Uniform(nn.Module):
    """Every token as likely as any other; notes how much it is given."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.lengths = vocabulary, list[int]()

    def forward(self, input_ids: Tensor) -> Any:
        self.lengths.append(input_ids.shape[1])
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocabulary))


@pytest.mark.parametrize("lengths", [[5], [16], [17], [40, 1, 33], [8, 9, 24, 25, 100], [0, 3]])
def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary(lengths: list[int]):
    model = Uniform(64)
    documents = [[1] * length for length in lengths]
    size = 3 * sum(lengths) + 7
    found = bits_per_byte(model, documents, separator=0, size=size, context=16)
    assert found == pytest.approx(math.log2(64) * sum(lengths) / size)
    assert max(model.lengths) <= 16


class Counting(nn.Module):
    """Sure of the successor of a token that has half a context before it, or the document's start; else wrong."""

    def forward(self, input_ids: Tensor) -> Any:
        logits = torch.full((*input_ids.shape, 64), -40.0)
        for place, token in enumerate(input_ids[0].tolist()):
            seen = place + 1 >= 8 or input_ids[0, 0] == 0
            logits[0, place, token + 1 if seen else 63] = 40.0
        return SimpleNamespace(logits=logits)


def test_every_token_is_seen_with_half_a_context():
    assert bits_per_byte(Counting(), [list(range(1, 60))], separator=0, size=59, context=16) == pytest.approx(0.0)


def test_xz_is_what_xz_says(tmp_path: Path):
    import lzma

    (tmp_path / "a").write_bytes(b"abc" * 400)
    (tmp_path / "b").write_bytes(bytes(range(256)))
    files = [tmp_path / "a", tmp_path / "b"]
    packed = sum(len(lzma.compress(file.read_bytes(), preset=9 | lzma.PRESET_EXTREME)) for file in files)
    assert xz_bits_per_byte(files) == 8 * packed / (1200 + 256)
