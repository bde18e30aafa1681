"""The command line in real processes: the main job on the bundled model, and one sentence for every bad input."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ramify import cli
from ramify.errors import RamifyError
from ramify.models.causal import DEMO
from ramify.models.weights import unavailable

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ["demo", "generate", "compare", "methods", "calibrate", "tune", "verify", "train", "bench", "solve"]
needs_demo = pytest.mark.skipif(
    not (DEMO / "model.safetensors").exists(), reason="the demo model is not in the package"
)
pytestmark = pytest.mark.process


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"} | more


def ramify(*arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ramify", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment(), cwd=cwd, timeout=300, check=False
    )


def sentence_of(code: int, output: str, errors: str) -> str:
    assert "Traceback" not in errors + output
    assert code == 2, errors
    lines = errors.strip().split("\n")
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Gives the one sentence with which arguments are refused; in this process, since imports take seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.shell.err, "_width", 1000)

    def give(*arguments: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = cli.run(cli.app, arguments)
        return sentence_of(code, *capsys.readouterr())

    return give


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Gives the JSON that a command prints, run in this process."""

    def give(*arguments: str, stdin: str = "") -> dict[str, Any]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        assert cli.run(cli.app, [*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return give


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = ramify(command, "--help")
    assert done.returncode == 0
    for part in (f"Example: ramify {command}", "--json", "--seed"):
        assert part in done.stdout


def test_version() -> None:
    assert ramify("--version").stdout == "ramify 0.1.0\n"


def test_methods() -> None:
    listed = json.loads(ramify("methods", "--json").stdout)
    assert {"greedy", "prompt-lookup", "token-recycling"} <= {card["name"] for card in listed}
    assert "token-recycling" in ramify("methods").stdout


def test_one_method(answered: Callable[..., dict[str, Any]]) -> None:
    option = answered("methods", "prompt-lookup")["options"][0]
    assert (option["name"], option["default"]) == ("ngram", 3)
    assert option["doc"]
    shown = ramify("methods", "prompt-lookup").stdout
    assert "ngram" in shown
    assert "ramify.PromptLookup(ngram=3)" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generat", "x"], "No such command 'generat'"),
        (["generate", "x", "--tempera", "1"], "No such option: --tempera"),
        (["generate", "x", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["generate", "x", "--method", "token-recyling"], "did you mean 'token-recycling'?"),
        (["generate", "x", "--method", "prompt-lookup", "-o", "ngrm=3"], "did you mean 'ngram'?"),
        (["generate", "x", "--method", "prompt-lookup", "-o", "ngram=three"], "takes a whole number, not 'three'"),
        (["generate", "x", "--method", "prompt-lookup", "-o", "ngram"], "written name=value, not 'ngram'"),
        (["generate", "x", "--method", "prompt-lookup", "-o", "match=lst"], "takes 'first' or 'recent', not 'lst'"),
        (["generate", "x", "--method", "greedy", "--temperature", "0.7"], "never samples"),
        (["generate", "x", "--temperature", "0", "--top-p", "0.9"], "at temperature 0 nothing is sampled"),
        (["generate", "x", "--temperature", "-1"], "the temperature is -1"),
        (["generate", "x", "--top-p", "7"], "top_p is 7"),
        (["generate", "x", "--top-k", "0"], "top_k is 0"),
        (["generate", ""], "the prompt is empty"),
        (["methods", "prompt-lokup"], "did you mean 'prompt-lookup'?"),
        (["compare", "--prompts", "no-such-file.txt"], "cannot read prompts from no-such-file.txt"),
        (["compare", "--prompts", "prompts.csv"], "prompts come from a .txt or .jsonl file"),
        (["compare", "--html", "no/such/folder/report.html"], "cannot write to no/such/folder/report.html"),
        (["compare", "--methods", "gredy"], "did you mean 'greedy'?"),
        (["verify", "prompt-lokup"], "did you mean 'prompt-lookup'?"),
        (["generate", "x", "--weights", "int9"], "unknown weight format 'int9'; did you mean 'int8'?"),
        (["compare", "--forward", "fussed"], "unknown forward pass 'fussed'; did you mean 'fused'?"),
        (["calibrate", "--forward", "transformers", "--weights", "int8"], "int8 weights need the fused forward pass"),
        (["bench", "forwards"], "did you mean 'forward'?"),
        (["bench", "forward", "-o", "shape=qwen2-0.5"], "did you mean 'qwen2-0.5b'?"),
        (["bench", "forward", "-o", "weights=plian"], "did you mean 'plain'?"),
        (["bench", "forward", "--save", "no/such/folder/page.md"], "cannot write to no/such/folder/page.md"),
        (["train", "demo-ml"], "did you mean 'demo-lm'?"),
        (["train", "demo-lm", "--steps", "0"], "steps is 0"),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, refused: Callable[..., str]) -> None:
    assert sentence in refused(*arguments)


@pytest.mark.parametrize(
    "arguments", [["generat"], ["generate", "x", "--tempera", "1"], ["methods", "gredy"], ["generate", "-"]]
)
def test_bad_arguments_in_a_real_process(arguments: list[str]) -> None:
    done = ramify(*arguments)
    assert sentence_of(done.returncode, done.stdout, done.stderr)


def test_empty_standard_input(refused: Callable[..., str]) -> None:
    assert "the prompt is empty" in refused("generate", "-", stdin="")


@pytest.mark.parametrize(
    "command",
    [["generate", "x"], ["compare", "--methods", "greedy"], ["calibrate"], ["verify", "greedy"]],
    ids=lambda c: c[0],
)
def test_how_to_load_reaches_load(
    command: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def load(model: str, **given: Any) -> None:
        seen.update(given, model=model)
        raise RamifyError("seen")

    monkeypatch.setattr("ramify.models.causal.load", load)
    options = ["--forward", "fused", "--weights", "int8", "--attention", "eager", "--dtype", "float32"]
    assert refused(*command, *options, "--model", "a/b", "--device", "cpu") == "seen"
    assert seen == {
        "model": "a/b",
        "dtype": "float32",
        "device": "cpu",
        "attention": "eager",
        "forward": "fused",
        "weights": "int8",
        "trust_remote_code": False,
    }
    assert refused(*command) == "seen"
    assert {value for name, value in seen.items() if name not in ("model", "trust_remote_code")} == {None}


def test_what_is_not_installed_is_one_sentence(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: str, **given: Any) -> None:
        raise ImportError("\nFlashAttention2 is not installed.\nMore about it.")

    monkeypatch.setattr("ramify.models.causal.load", load)
    assert refused("calibrate") == "demo cannot be loaded so: FlashAttention2 is not installed."


@pytest.mark.parametrize("command", [["generate", "x"], ["calibrate"], ["verify", "greedy"]], ids=lambda c: c[0])
def test_folder_that_is_no_model(command: list[str], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "is no model folder" in refused(*command, "--model", str(tmp_path))


def test_model_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert "no-such-model" in refused("generate", "x", "--model", "./no-such-model")


@needs_demo
class TestWithTheDemoModel:
    def test_generate_streams_and_counts(self) -> None:
        done = ramify("generate", "def parse_args(", "--max-new-tokens", "24", "-o", "nodes=20")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert "24 tokens in" in done.stderr

    def test_every_method_says_the_same(self, answered: Callable[..., dict[str, Any]]) -> None:
        settings = ["--dtype", "float32", "--max-new-tokens", "32"]
        plain = answered("generate", "-", *settings, "--method", "greedy", stdin="import os\n\ndef walk(")
        for method in (["prompt-lookup"], ["token-recycling", "-o", "nodes=20"]):
            ours = answered("generate", "-", *settings, "--method", *method, stdin="import os\n\ndef walk(")
            assert ours["tokens"] == plain["tokens"]
            assert ours["stats"]["target_calls"] <= plain["stats"]["target_calls"] == 32
            assert ours["stats"]["off_share"] <= plain["stats"]["off_share"] == 1.0

    def test_seed_and_temperature(self, answered: Callable[..., dict[str, Any]]) -> None:
        sampled = ["generate", "def ", "--temperature", "0.8", "--max-new-tokens", "16", "--method", "sample"]
        one, same, other = (answered(*sampled, "--seed", seed)["tokens"] for seed in ("1", "1", "2"))
        assert one == same != other

    def test_stop(self, answered: Callable[..., dict[str, Any]]) -> None:
        answer = answered("generate", "def f(a, b):", "--stop", "\n", "--max-new-tokens", "50", "--method", "greedy")
        assert answer["finish"] == "stop"
        assert "\n" in answer["text"]

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--max-new-tokens", "0"], "max_new_tokens is 0"),
            (["--max-new-tokens", "100000"], "the context of"),
            (["--dtype", "float31"], "unknown dtype 'float31'"),
            (["--chat"], "no chat template"),
            (["--method", "assistant"], "-o model="),
        ],
    )
    def test_bad_settings(self, arguments: list[str], sentence: str, refused: Callable[..., str]) -> None:
        assert sentence in refused("generate", "def ", *arguments)

    def test_prompt_beyond_the_context(self, refused: Callable[..., str]) -> None:
        assert "context" in refused("generate", "-", stdin="x = 1\n" * 2000)

    def test_pickled_weights_only(self, tmp_path: Path, refused: Callable[..., str]) -> None:
        shutil.copytree(DEMO, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
        assert "pickled weights only" in refused("generate", "x", "--model", str(tmp_path / "model"))

    def test_truncated_weights(self, tmp_path: Path, refused: Callable[..., str]) -> None:
        shutil.copytree(DEMO, tmp_path / "model")
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100_000])
        assert "damaged" in refused("generate", "x", "--model", str(tmp_path / "model"))

    def test_compare(self, tmp_path: Path) -> None:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "def f(x):\\n    return"}\n{"prompt": "class A"}\n')
        page = tmp_path / "report.html"
        options = ["--prompts", str(prompts), "--repeats", "1", "--max-new-tokens", "16", "--html", str(page)]
        done = ramify("compare", "--methods", "greedy,prompt-lookup:ngram=2", *options, "--json")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["rows"]
        assert [row["label"] for row in rows] == ["greedy", "prompt-lookup(ngram=2)"]
        assert page.read_text().startswith("<!doctype html>")

    def test_malformed_line_is_named_and_the_rest_is_not_lost(self, tmp_path: Path) -> None:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "def f(x):"}\n{"prompt": \n{"prompt": "class A"}\n')
        options = ["--prompts", str(prompts), "--repeats", "1", "--max-new-tokens", "8", "--json"]
        done = ramify("compare", "--methods", "greedy", *options)
        assert len(json.loads(done.stdout)["prompts"]) == 2
        assert done.returncode == 2
        assert "line 2" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_verify(self) -> None:
        arguments = ["prompt-lookup", "--dtype", "float32", "--max-new-tokens", "16", "--json"]
        done = ramify("verify", *arguments)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ok"] is True

    def test_verify_says_what_runs(
        self, answered: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["verify", "greedy", "--max-new-tokens", "2", "--dtype", "float32"]
        plain = answered(*arguments, "--weights", "plain")["checks"]
        assert {"name": "forward", "ok": True, "detail": "fused, plain weights"} in plain
        own = answered(*arguments, "--forward", "transformers")["checks"]
        assert own[1]["detail"] == "transformers, plain weights; transformers' forward pass was asked for"
        assert cli.run(cli.app, [*arguments, "--weights", "plain"]) == 0
        assert "forward  fused, plain weights" in capsys.readouterr().out

    def test_calibrate(
        self,
        answered: Callable[..., dict[str, Any]],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from ramify.models.calibrate import CostCurve

        curve = CostCurve("key", [1, 2, 4], [3.0, 1.0, 2.0])
        monkeypatch.setattr("ramify.models.calibrate.calibrate", lambda lm, refresh: curve)
        options = ["calibrate", "--dtype", "float32", "--weights", "plain"]
        found = answered(*options)
        assert (found["forward"], found["weights"], found["notes"]) == ("fused", "plain", [])
        assert [point["run"] for point in found["curve"]] == [2, 2, 4]
        assert cli.run(cli.app, options) == 0
        header, *lines = capsys.readouterr().out.split("\n")
        assert header == "demo: fused, plain weights"
        assert [line.split()[:3] for line in lines if line[:5].strip().isdigit()] == [
            ["1", "3000.00", "2"],
            ["2", "1000.00", "1.00"],
            ["4", "2000.00", "2.00"],
        ]
        assert any(line.startswith("run as: more rows") for line in lines)

    def test_bench_forward(self, tmp_path: Path, answered: Callable[..., dict[str, Any]]) -> None:
        page = tmp_path / "forward.md"
        options = ["budget=0", "rows=1,2", "weights=plain", "new_tokens=2", "repeats=1", "memory=false"]
        found = answered("bench", "forward", *(part for o in options for part in ("-o", o)), "--save", str(page))
        assert list(found["charts"][0]["lines"]) == ["transformers", "fused plain"]
        assert f"]({page.stem}-cost.svg)" in page.read_text()
        assert (tmp_path / "forward-cost.svg").read_text().startswith("<svg")

    def test_rounded_weights_and_transformers_loops(self) -> None:
        if unavailable("int8", torch.float32, "cpu"):
            pytest.skip("no int8 products here")
        options = ["--count", "1", "--repeats", "1", "--max-new-tokens", "2", "--dtype", "float32", "--weights", "int8"]
        done = ramify("compare", "--methods", "greedy,hf-greedy", *options, "--json")
        assert done.returncode == 0, done.stderr
        assert "hf-greedy: the model itself decodes, not the one rounded to int8" in done.stderr

    def test_demo(self, tmp_path: Path) -> None:
        """The main job, from the command to the report."""
        done = ramify("demo", "--quick", "--prompts", "1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "token-recycling" in done.stdout
        assert "with the same tokens on" in done.stdout
        assert (tmp_path / "ramify-report.html").stat().st_size > 10_000

    def test_interrupt(self) -> None:
        command = [sys.executable, "-m", "ramify", "compare", "--count", "8", "--repeats", "50"]
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(8)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert errors.strip().split("\n")[-1] == "stopped"
