"""ramify: run a language model along many paths at once, so that it answers faster without changing what it says.

    lm = ramify.load("demo")
    result = ramify.generate(lm, "def parse_args(", method="token-recycling", max_new_tokens=200)
    result.text, result.stats, result.events

Importing this package is cheap: torch and transformers load when something that needs them is first used. Every
method class is an attribute too, under its own name, as in ``ramify.TokenRecycling(nodes=40)``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ramify.methods as _methods
from ramify.errors import RamifyError
from ramify.methods.registry import Card, catalogue, register

if TYPE_CHECKING:
    from ramify.api import generate, stream
    from ramify.bench.check import verify
    from ramify.bench.compare import compare
    from ramify.bench.tune import tune
    from ramify.engine.result import Result
    from ramify.methods.base import Method
    from ramify.methods.registry import catalogue as methods
    from ramify.models.calibrate import calibrate
    from ramify.models.causal import CausalLM, load
    from ramify.models.endpoint import RemoteError
    from ramify.models.masked import MaskedLM, load_masked
    from ramify.models.remote import RemoteLM
    from ramify.solving import solve
    from ramify.unmasking import unmask

__version__ = "0.1.0"

__all__ = [
    "CausalLM",
    "MaskedLM",
    "Method",
    "RamifyError",
    "RemoteError",
    "RemoteLM",
    "Result",
    "calibrate",
    "compare",
    "generate",
    "load",
    "load_masked",
    "methods",
    "register",
    "solve",
    "stream",
    "tune",
    "unmask",
    "verify",
]

_PLACES = {
    "CausalLM": "ramify.models.causal",
    "MaskedLM": "ramify.models.masked",
    "Method": "ramify.methods.base",
    "RemoteError": "ramify.models.endpoint",
    "RemoteLM": "ramify.models.remote",
    "Result": "ramify.engine.result",
    "calibrate": "ramify.models.calibrate",
    "compare": "ramify.bench.compare",
    "generate": "ramify.api",
    "load": "ramify.models.causal",
    "load_masked": "ramify.models.masked",
    "solve": "ramify.solving",
    "stream": "ramify.api",
    "tune": "ramify.bench.tune",
    "unmask": "ramify.unmasking",
    "verify": "ramify.bench.check",
}


class _Methods(ModuleType):
    """``ramify.methods`` is the folder of methods; called, it gives their catalogue."""

    def __call__(self) -> list[Card]:
        return catalogue()


_methods.__class__ = _Methods


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if not name.startswith("_"):
        for card in catalogue():
            module, _, cls = card.place.partition(":")
            if cls == name:
                return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'ramify' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(card.place.partition(":")[2] for card in catalogue()), "__version__"})
