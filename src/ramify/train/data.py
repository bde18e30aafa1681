"""What training reads: token ids of texts, and fixed windows over them.

The standard library's source, without its tests, without generated tables and without the modules in ``HELD_OUT``,
which measure the demo model, is what everything bundled was trained on; other texts come from a file or a folder.
"""

from __future__ import annotations

import functools
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.models.causal import CausalLM

HELD_OUT = (
    "bisect.py",
    "calendar.py",
    "configparser.py",
    "csv.py",
    "dataclasses.py",
    "fractions.py",
    "heapq.py",
    "json/decoder.py",
    "queue.py",
    "sched.py",
    "shutil.py",
    "statistics.py",
    "string.py",
    "textwrap.py",
)
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
GENERATED = ("encodings/", "pydoc_data/", "html/entities.py", "turtledemo/")
KINDS = (".txt", ".md", ".py", ".jsonl")


def library_files() -> tuple[list[Path], list[Path]]:
    """The training files and the held-out files of this interpreter's standard library, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    train_files: list[Path] = []
    held_out: list[Path] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts) or relative.as_posix().startswith(GENERATED):
            continue
        (held_out if relative.as_posix() in HELD_OUT else train_files).append(path)
    return train_files, held_out


def texts(data: Path | None) -> list[str]:
    """The texts of a file or of the files in a folder (``.txt``, ``.md``, ``.py``; ``.jsonl`` with a ``text`` a line).

    None is the standard library's training files. Raises ``RamifyError`` where nothing can be read.
    """
    if data is None:
        return [file.read_text(encoding="utf-8", errors="replace") for file in library_files()[0]]
    if not data.exists():
        raise RamifyError(f"there is no training data at {data}")
    files = sorted(file for file in data.rglob("*") if file.suffix in KINDS) if data.is_dir() else [data]
    if data.is_file() and data.suffix not in KINDS:
        raise RamifyError(f"training data comes from {', '.join(KINDS)} files, not {data.name!r}")
    found = [text for file in files for text in _read(file) if text.strip()]
    if not found:
        raise RamifyError(f"there is no text in {data}; give a file or folder of {', '.join(KINDS)} files")
    return found


def _read(file: Path) -> Iterator[str]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RamifyError(f"{file} is not UTF-8 text; convert it first") from None
    if file.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise RamifyError(f"{file}, line {number} is no JSON") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise RamifyError(f"{file}, line {number} has no 'text'")
        yield entry["text"]


def documents(lm: CausalLM, data: Path | None = None) -> list[list[int]]:
    """The token ids of every text of ``data`` (see ``texts``), in the vocabulary of ``lm``."""
    return [encode(lm, text) for text in texts(data)]


def held_out_documents(lm: CausalLM) -> list[list[int]]:
    """The token ids of the held-out modules."""
    return [encode(lm, file.read_text(encoding="utf-8", errors="replace")) for file in library_files()[1]]


def split_off(documents: list[list[int]], size: int) -> tuple[list[list[int]], list[list[int]]]:
    """``documents`` without their last ``size`` tokens, and these; raises ``RamifyError`` when that is most of them."""
    total = sum(map(len, documents))
    if total < 4 * size:
        raise RamifyError(f"the training data has {total} tokens; to hold {size} of them out, give at least {4 * size}")
    kept, held = list(documents), list[list[int]]()
    while size > 0:
        last = kept.pop()
        cut = max(0, len(last) - size)
        held.insert(0, last[cut:])
        size -= len(last) - cut
        if cut:
            kept.append(last[:cut])
    return kept, held


def encode(lm: CausalLM, text: str) -> list[int]:
    """Token ids of ``text`` alone: no special tokens."""
    tokenizer = lm.require_tokenizer()
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def separator(lm: CausalLM) -> int:
    """The token between documents: the tokenizer's end of text, else its first id."""
    end = lm.require_tokenizer().eos_token_id
    return 0 if end is None else int(end)


class Windows:
    """Fixed windows of ``context + 1`` tokens over the corpus, in a new order every epoch."""

    def __init__(self, documents: list[list[int]], separator: int, context: int, batch: int, seed: int) -> None:
        self.documents, self.separator, self.context = documents, separator, context
        self.batch, self.seed = batch, seed
        self.total = sum(len(document) + 1 for document in documents)
        self.per_epoch = (self.total - context) // context - 1
        if self.per_epoch < 1:
            raise RamifyError(f"a corpus of {self.total} tokens is too small for windows of {context}; give more text")

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one instance per run
    def epoch(self, number: int) -> Tensor:
        """Windows of epoch ``number``: [per_epoch, context + 1]."""
        rng = random.Random(f"{self.seed}/{number}")
        order = list(range(len(self.documents)))
        rng.shuffle(order)
        stream: list[int] = []
        for index in order:
            stream.append(self.separator)
            stream.extend(self.documents[index])
        offset = rng.randrange(self.context)
        starts = [offset + self.context * i for i in range(self.per_epoch)]
        rng.shuffle(starts)
        flat = torch.tensor(stream, dtype=torch.int32)
        return torch.stack([flat[start : start + self.context + 1] for start in starts])

    def __call__(self, step: int) -> Tensor:
        """The batch of ``step``: [batch, context + 1]."""
        rows = []
        for index in range(step * self.batch, (step + 1) * self.batch):
            number, place = divmod(index, self.per_epoch)
            rows.append(self.epoch(number)[place])
        return torch.stack(rows).long()
