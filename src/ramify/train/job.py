"""What a training recipe is asked to do, and where the recipes are.

A recipe is a file in ``train/recipes`` with ``train(job) -> Iterator[Progress]``; a trained drafter needs none, for
``train/heads.py`` trains every ``Head`` alike. Both are found by name, without a list.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramify.errors import RamifyError, unknown
from ramify.methods.registry import catalogue

if TYPE_CHECKING:
    from ramify.models.causal import CausalLM
    from ramify.train.trainer import Progress

FOLDER = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class Job:
    """One training run.

    ``model``: the target, as ``load`` takes it or loaded already. ``data``: a file or folder of texts, None for the
    standard library's training files. ``out``: where checkpoints, curve and result go; what is there is resumed.
    ``steps``, ``learning_rate``: None for the recipe's own. ``options``: of the recipe or head, by name. ``dry``: only
    estimate what the run would take.
    """

    out: Path
    model: Any = "demo"
    data: Path | None = None
    steps: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    dry: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise RamifyError(f"steps is {self.steps}; train at least 1")
        if self.out.exists() and not self.out.is_dir():
            raise RamifyError(f"cannot train into {self.out}: it is a file")

    def lm(self, **how: Any) -> CausalLM:
        """The target, loaded with ``how`` unless it is loaded already."""
        from ramify.models.causal import CausalLM, load

        return self.model if isinstance(self.model, CausalLM) else load(self.model, **how)

    def take(self, **defaults: Any) -> dict[str, Any]:
        """The options with ``defaults`` for those not given; raises ``RamifyError`` for one that is not among them."""
        for option in self.options:
            if option not in defaults:
                raise unknown("option of the recipe:", option, defaults)
        return defaults | self.options


Trainer = Callable[[Job], "Iterator[Progress]"]


@functools.cache
def recipes() -> dict[str, str]:
    """Every recipe's name with one line about it: the files in ``train/recipes``, and the methods that are trained."""
    found = {
        card.name: f"{card.title}: the part that is trained beside the target"
        for card in catalogue()
        if "training" in card.needs and card.place.startswith("ramify.")
    }
    for file in sorted(FOLDER.glob("*.py")):
        if file.stem != "__init__":
            summary = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[file.stem.replace("_", "-")] = summary.split("\n")[0].rstrip(".")
    return dict(sorted(found.items()))


def trainer(name: str) -> Trainer:
    """The recipe called ``name``; raises ``RamifyError`` with the nearest name when there is none."""
    if name not in recipes():
        raise unknown("recipe", name, recipes())
    stem = name.replace("-", "_")
    if (FOLDER / f"{stem}.py").exists():
        train: Trainer = importlib.import_module(f"ramify.train.recipes.{stem}").train
        return train
    from ramify.train.heads import train_head

    return functools.partial(train_head, name)
