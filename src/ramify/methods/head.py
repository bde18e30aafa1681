"""A head: the small part that a method trains beside a frozen target, with its file format.

A folder holds ``head.json`` (which method, its sizes, and which model it fits) and ``head.safetensors``. Loading is
strict: every weight has to be there, of its shape, and nothing else, and the target has to be of the kind that the head
was trained for. Bundled heads of the demo model lie in ``models/demo/heads``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ramify.errors import RamifyError, first_line, unknown
from ramify.models.cache import RowCache
from ramify.models.causal import DEMO, CausalLM
from ramify.models.forward import Nodes

BUNDLED = DEMO / "heads"
COMPACT = 4096  # matrices of at least so many entries are worth eight bits


@dataclass(frozen=True)
class Fit:
    """The kind of model that a head fits. ``tokenizer``: fingerprint of its vocabulary, "" where it is not known."""

    hidden_size: int
    vocab_size: int
    layers: int
    tokenizer: str

    @staticmethod
    def of(lm: CausalLM) -> Fit:
        return Fit(int(lm.text_config.hidden_size), lm.vocab_size, lm.layers, fingerprint(lm))

    def refuses(self, other: Fit) -> str:
        """What about ``other`` does not fit, "" when everything does."""
        for name, what in (
            ("hidden_size", "hidden size"),
            ("vocab_size", "vocabulary"),
            ("layers", "number of layers"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"its {what} is {theirs}, not {mine}"
        if self.tokenizer and other.tokenizer and self.tokenizer != other.tokenizer:
            return "its tokenizer has another vocabulary"
        return ""


def fingerprint(lm: CausalLM) -> str:
    """A hash of the tokenizer's vocabulary, "" without a tokenizer."""
    if lm.tokenizer is None:
        return ""
    vocabulary = sorted(lm.tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Regime:
    """How a head is trained unless the user says otherwise.

    ``steps`` of ``batch`` windows of ``context`` tokens (less where the model's context is shorter).
    ``through``: gradients pass through the target's own layers, which then need their plain weights.
    """

    steps: int
    learning_rate: float
    batch: int = 4
    context: int = 256
    optimizer: str = "muon"
    weight_decay: float = 0.0
    warmup: int = 20
    through: bool = False


class Head(nn.Module):
    """Base of all heads. A subclass has a frozen dataclass ``Sizes`` of numbers and words that JSON can hold.

    ``method``: the catalogue's name of the method. ``regime``: how it is trained. The target itself is never part of
    the module: what a head borrows from it (embeddings, norm, LM head) is asked of ``lm`` when needed.
    """

    method: ClassVar[str]
    regime: ClassVar[Regime]
    Sizes: ClassVar[type[Any]]

    def __init__(self, fit: Fit, sizes: Any) -> None:
        super().__init__()
        self.fit, self.sizes = fit, sizes

    @classmethod
    def new(cls, lm: CausalLM, **options: Any) -> Self:
        """An untrained head for ``lm``, initialised as the paper says; ``options``: fields of ``Sizes``."""
        return cls(Fit.of(lm), sizes_of(cls, options))

    def read(self, lm: CausalLM, texts: Sequence[Sequence[int]]) -> None:
        """Once, before training: fill buffers with what the head takes from the training texts; by default nothing.

        For a vocabulary of its own; a run that is resumed reads the same texts again.
        """

    @abstractmethod
    def loss(self, lm: CausalLM, tokens: Tensor) -> Tensor:
        """The training loss on windows ``tokens`` [B, T] of the corpus; a pure function of them."""

    @abstractmethod
    def measure(self, lm: CausalLM, tokens: Tensor) -> dict[str, float]:
        """Held-out figures on ``tokens`` [B, T]: agreement with the target's own choice by distance, and the like."""

    def settle(self, lm: CausalLM, tokens: Tensor) -> None:
        """Once trained: fill buffers with what the head measures of itself on ``tokens`` [B, T]; nothing by default.

        For rank accuracies, by which a tree is laid out, and thresholds; the held-out text stays unseen.
        """

    def save(self, folder: Path, *, compact: bool = False) -> None:
        """Write the head. ``compact``: large matrices with eight bits an entry and a scale a row, the rest bfloat16."""
        folder.mkdir(parents=True, exist_ok=True)
        described = {"method": self.method, "sizes": asdict(self.sizes), "fit": asdict(self.fit)}
        (folder / "head.json").write_text(json.dumps(described, indent=2) + "\n")
        tensors: dict[str, Tensor] = {}
        for name, weight in self.state_dict().items():
            weight = weight.detach().cpu()
            if compact and weight.ndim == 2 and weight.numel() >= COMPACT and weight.is_floating_point():
                scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
                tensors[name] = (weight.float() / scale).round().to(torch.int8)
                tensors[f"{name}.scale"] = scale
            else:
                small = compact and weight.is_floating_point()
                tensors[name] = (weight.bfloat16() if small else weight).contiguous()
        save_file(tensors, folder / "head.safetensors")


H = TypeVar("H", bound=Head)


def sizes_of(cls: type[Head], options: dict[str, Any]) -> Any:
    """The sizes of a head with ``options`` for those that were given; an unknown one quotes the nearest."""
    known = [field.name for field in fields(cls.Sizes)]
    for option in options:
        if option not in known:
            raise unknown(f"size of a {cls.method} head:", option, known)
    return cls.Sizes(**options)


def load_head(cls: type[H], source: str | Path | H | None, lm: CausalLM) -> H:
    """The head of ``cls`` in a folder, the bundled one for None, or ``source`` itself, checked against ``lm``.

    It comes in float32 on the device of ``lm``, frozen. Raises ``RamifyError`` where it is missing, damaged, pickled,
    of another method or for another model.
    """
    head: Head
    if isinstance(source, Head):
        head, name = source, f"this {cls.method} head"
    else:
        folder = Path(source) if source is not None else BUNDLED / cls.method.replace("-", "_")
        name = f"the {cls.method} head in {folder}" if source is not None else f"the bundled {cls.method} head"
        if source is None and (not folder.is_dir() or Fit.of(lm).refuses(_described(cls, folder, name)[1])):
            raise RamifyError(
                f"there is no {cls.method} head for {lm.name}; train one with 'ramify train {cls.method} --model …' "
                "and give its folder as head=…"
            )
        which: Any = cls  # a class can be a key, whatever mypy thinks of a TypeVar
        head = _read(which, folder, name, _stamp(folder))
    if not isinstance(head, cls):
        raise RamifyError(f"{name} is a {type(head).__name__}, not a {cls.__name__}")
    why = head.fit.refuses(Fit.of(lm))
    if why:
        raise RamifyError(f"{name} was trained for another model than {lm.name}: {why}; train one for this model")
    found: H = head.to(lm.device).requires_grad_(False).eval()
    return found


def _described(cls: type[Head], folder: Path, name: str) -> tuple[Any, Fit]:
    try:
        described = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        if described["method"] != cls.method:
            raise RamifyError(f"{folder} holds a head of {described['method']!r}, not of {cls.method!r}")
        return sizes_of(cls, described["sizes"]), Fit(**described["fit"])
    except FileNotFoundError:
        raise RamifyError(
            f"{folder} holds no head: there is no head.json; give a folder that ramify train made"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RamifyError(f"{name} is damaged: head.json cannot be read ({first_line(error)})") from error


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes whenever the files of a head do."""
    files = [folder / "head.json", folder / "head.safetensors"]
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)


@functools.lru_cache(maxsize=16)  # heads are frozen, so objects can share them
def _read(cls: Any, folder: Path, name: str, stamp: tuple[int, ...]) -> Head:
    sizes, fit = _described(cls, folder, name)
    tensors = read_tensors(folder / "head.safetensors", name)
    for scaled in [key for key in tensors if key.endswith(".scale") and key.removesuffix(".scale") in tensors]:
        weight = scaled.removesuffix(".scale")
        tensors[weight] = tensors[weight].float() * tensors.pop(scaled)
    head: Head = cls(fit, sizes)
    fill(head, tensors, name)
    return head


def read_tensors(file: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ``RamifyError`` where it is missing or damaged, or only a pickle is there."""
    if not file.exists():
        pickles = [other.name for kind in ("*.bin", "*.pt", "*.pth") for other in file.parent.glob(kind)]
        if pickles:
            raise RamifyError(
                f"{name} comes as a pickle ({pickles[0]}), which can run code when loaded; convert it to safetensors"
            )
        raise RamifyError(f"{name} has no weights: there is no {file.name} in {file.parent}")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RamifyError(
            f"the weights of {name} are damaged ({first_line(error)}); fetch or train it again"
        ) from error


def fill(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load ``tensors`` into ``module``: all of its weights, of their shapes, and nothing else."""
    expected = module.state_dict()
    missing, spare = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    odd = [key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape]
    problems = [
        f"{what} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for what, keys in (("lacks", missing), ("has unknown", spare), ("has another shape for", sorted(odd)))
        if keys
    ]
    if problems:
        raise RamifyError(f"{name} does not fit its description: it {'; it '.join(problems)}")
    module.load_state_dict({key: tensors[key].to(weight.dtype) for key, weight in expected.items()})


@dataclass(frozen=True)
class Taught:
    """What the frozen target says of windows: ``logits`` [B, T, V], and by layer ``hidden`` [B, T, D]."""

    logits: Tensor
    hidden: dict[int, Tensor]


@torch.no_grad()
def teach(lm: CausalLM, tokens: Tensor, hidden_layers: Sequence[int] = ()) -> Taught:
    """One pass of the target over whole windows [B, T], without gradients; nothing of it is stored."""
    rows, count = tokens.shape
    positions = torch.arange(count, device=tokens.device).expand(rows, -1)
    ancestors = torch.ones(1, count, count, dtype=torch.bool, device=tokens.device).tril_()
    cache = RowCache(lm.layers, rows, count)
    cache.expect(count, tokens.device)
    nodes = Nodes(tokens, positions, [0] * rows, ancestors, hidden_layers=hidden_layers)
    logits, hidden = lm.forward(nodes, cache)
    return Taught(logits, hidden)
