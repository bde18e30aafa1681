"""What all commands share: where output goes, how options are declared, how errors end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ramify.errors import RamifyError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ramify.methods.base import Method
    from ramify.models.causal import CausalLM

STOPPED = 130

out = Console()
err = Console(stderr=True, highlight=False)

Model = Annotated[str, typer.Option("--model", "-m", help="'demo', a local folder or a hub id.", metavar="MODEL")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default the checkpoint's own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; by default the first GPU, else the CPU.")]
Attention = Annotated[
    str | None,
    typer.Option(help="transformers' attention implementation, eager or sdpa; by default its own choice."),
]
Forward = Annotated[
    str | None,
    typer.Option(help="fused or transformers; by default the fused one wherever it gives the model's own logits."),
]
Weights = Annotated[
    str | None,
    typer.Option(help="plain, packed, int8 or int4; by default packed where the machine has it. int8 and int4 round."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
NoSeed = Annotated[int, typer.Option(help="Accepted as everywhere; this command makes no random choice.")]
Tokens = Annotated[int, typer.Option(help="New tokens at most.")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy, the default the model's.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens that make up this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many most likely tokens.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="An option as name=value; may be repeated.", metavar="N=V")
]


def emit(data: Any) -> None:
    """Print ``data`` as JSON on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")


def note(message: str) -> None:
    """One line for people, on standard error."""
    err.print(message, markup=False, soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on standard error while something takes its time; nothing where there is no terminal."""
    with err.status(what):
        yield


def bar() -> Progress:
    """A progress bar on standard error that goes away when done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def load(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    **how: str | None,
) -> CausalLM:
    """``ramify.load`` with a spinner, imports of torch and transformers included; ``how``: its other options."""
    with waiting(f"loading {model} …"):
        quiet()
        import ramify

        try:
            return ramify.load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **how)
        except ImportError as error:  # what an attention implementation or a checkpoint needs
            raise RamifyError(f"{model} cannot be loaded so: {str(error).strip().splitlines()[0]}") from error


def size(lm: CausalLM, method: Method) -> None:
    """Measure the cost curve now, under a spinner, where the method would do it in the middle of its first answer."""
    sized = any(getattr(method, option, 0) is None for option in ("nodes", "length"))
    if lm.trees and (sized or method.card.name in ("auto", "switched")):
        with waiting("timing forward passes, once for this model and machine …"):
            import ramify

            ramify.calibrate(lm)


def quiet() -> None:
    """Keep transformers' advice and progress bars out of the commands' own output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given, those left at None left out."""
    return {name: value for name, value in settings.items() if value is not None}


def finish(problems: Sequence[str], ok: bool = True) -> None:
    """End a command: exit code 2 naming the prompts that had to be left out, 1 when a check failed, else go on."""
    if problems:
        more = f" (and {len(problems) - 1} more lines)" if len(problems) > 1 else ""
        raise RamifyError(f"{problems[0]}{more}; all other prompts were used")
    if not ok:
        raise typer.Exit(1)


def writable(path: Path | None) -> Path | None:
    """``path``, or a ``RamifyError`` now rather than after the work when nothing can be written there."""
    if path is None:
        return None
    if path.is_dir():
        raise RamifyError(f"cannot write to {path}: it is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise RamifyError(f"cannot write to {path}: its folder does not exist or is not writable")
    return path


def run(app: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Run the command line; what users can mend becomes one sentence. 0 done, 1 failed, 2 bad input, 130 stopped."""
    try:
        code = app(args=list(arguments), prog_name="ramify", standalone_mode=False)
        if code == STOPPED:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        note("stopped")
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except typer.TyperException as error:
        return refuse(error.format_message())
    except RamifyError as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def refuse(message: str) -> int:
    """Print one sentence on standard error; returns the exit code for bad input."""
    note(f"error: {' '.join(message.split())}")
    return 2
