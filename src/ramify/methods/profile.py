"""What ``ramify tune`` found for a model on this machine, kept beside the cost curves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramify.models.calibrate import cache_folder, curve_key
from ramify.models.causal import CausalLM


@dataclass(frozen=True)
class Profile:
    """The method to use for greedy or for sampled text.

    ``spec``: the method as ``build_spec`` reads it; "" where plain decoding is fastest. ``predicted``, ``measured``:
    its speed-up over plain decoding. ``prompts``, ``temperature``: what it was measured on (None: greedy). ``plain``:
    seconds of a plain step; None in the profiles of earlier versions.
    """

    spec: str
    predicted: float
    measured: float
    prompts: int
    temperature: float | None
    plain: float | None = None

    def save(self, lm: CausalLM) -> None:
        """Keep it for this model, dtype, forward pass, device and threads."""
        file = _file()
        known = _read(file)
        known.setdefault(_key(lm), {})[_regime(self.temperature is not None)] = asdict(self)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(file)

    @staticmethod
    def of(lm: CausalLM, sampled: bool) -> Profile | None:
        """The one kept for this model here; None where there is none, or a damaged one."""
        entry = _read(_file()).get(_key(lm), {}).get(_regime(sampled))
        if not isinstance(entry, dict):
            return None
        try:
            return Profile(
                spec=str(entry["spec"]),
                predicted=float(entry["predicted"]),
                measured=float(entry["measured"]),
                prompts=int(entry["prompts"]),
                temperature=None if entry["temperature"] is None else float(entry["temperature"]),
                plain=None if entry.get("plain") is None else float(entry["plain"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def _file() -> Path:
    return cache_folder() / "profiles.json"


def _key(lm: CausalLM) -> str:
    """Acceptance depends on the weights, which a cost curve does not know: the model's name stands for them."""
    return f"{lm.name}: {curve_key(lm)}"


def _regime(sampled: bool) -> str:
    return "sampled" if sampled else "greedy"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """All profiles by model and regime; a damaged file holds none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    known = content if isinstance(content, dict) else {}
    return {key: entry for key, entry in known.items() if isinstance(entry, dict)}
