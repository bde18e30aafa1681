"""``ramify unmask`` in real processes, on a tiny denoiser with the demo model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import answered, ramify, refused  # noqa: F401 - fixtures

from ramify.models.causal import DEMO

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("denoiser")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=4098, n_embd=16, n_layer=1, n_head=2, n_positions=96, initializer_range=0.3, bos_token_id=None,
        eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    config.denoiser = {"mask_token_id": 4096}
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return str(folder)


def test_a_text_is_continued_and_the_canvas_drawn(model: str, tmp_path: Path) -> None:
    page = tmp_path / "canvas.html"
    done = ramify("unmask", "def f(", "-m", model, "--max-new-tokens", "12", "-o", "block=4", "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "12 tokens in" in done.stderr
    assert "The canvas over time" in page.read_text(encoding="utf-8")


def test_blanks_are_filled(model: str) -> None:
    arguments = ("-m", model, "--method", "unmask", "--blank", "___", "--blank-tokens", "3", "--json")
    done = ramify("unmask", "-", *arguments, stdin="return ___ + ___\n")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["stats"]["passes"] == 6
    assert len({p for step in told["steps"] for p in step["positions"]}) == 6
    assert " + " in told["text"]
    assert told["text"].endswith("\n")


def test_a_picture_as_it_fills(tmp_path: Path, answered: Callable[..., dict[str, Any]]) -> None:  # noqa: F811
    file = tmp_path / "frames.png"
    arguments = ("-m", "demo-masked-image", "--method", "maskgit", "-o", "steps=4", "--frames", str(file))
    told = answered("unmask", "brick", *arguments)
    assert len(told["tokens"]) == 256
    assert max(told["tokens"]) < 64  # codes only, no class
    assert told["stats"]["passes"] == 4
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "-m", "MODEL"], "the canvas is empty"),
        (["def", "-m", "demo"], "autoregressive checkpoint"),
        (["def", "-m", "MODEL", "--method", "greedy"], "fills in no canvas; use method='unmask'"),
        (["def", "-m", "MODEL", "--blank", "___"], "has no '___' to fill in"),
        (["def", "-m", "MODEL", "--max-new-tokens", "200"], "longer than the 96"),
        (["def", "-m", "MODEL", "-o", "steps=0"], "steps is 0"),
        (["def", "-m", "MODEL", "-o", "steps=99"], "99 steps cannot fill 64 open positions"),
        (["def", "-m", "MODEL", "-o", "cache=double"], "takes 'none' or 'prefix' or 'dual' or 'delayed'"),
        (["def", "-m", "MODEL", "--frames", "a.png"], "is no image model"),
        (["bricks", "-m", "demo-masked-image"], "did you mean 'brick'"),
        (["def", "-m", "MODEL", "--mask-token", "[NONE]"], "has no token '[NONE]'"),
    ],
)
def test_bad_input_is_one_sentence(
    model: str,
    refused: Callable[..., str],  # noqa: F811
    arguments: list[str],
    said: str,
) -> None:
    assert said in refused("unmask", *[model if argument == "MODEL" else argument for argument in arguments])
