"""How well the demo model predicts the held-out modules: bits per byte, beside xz on the same files."""

from __future__ import annotations

from typing import Any

from ramify.bench.recipes import Outcome, Table
from ramify.errors import RamifyError
from ramify.models.causal import load
from ramify.train.data import library_files
from ramify.train.demo_lm import bits_per_byte, xz_bits_per_byte


def run(*, seed: int = 0, model: str = "demo") -> Outcome:
    """Bits per byte of ``model`` on every held-out module of the running interpreter; nothing here is random."""
    lm = load(model)
    tokenizer = lm.require_tokenizer()
    if tokenizer.eos_token_id is None:
        raise RamifyError(f"{lm.name} has no end-of-text token to begin a file with")
    rows: list[dict[str, Any]] = []
    totals = [0.0, 0.0, 0]
    for file in library_files()[1]:
        size = file.stat().st_size
        ids = tokenizer.backend_tokenizer.encode(file.read_text()).ids
        ours = bits_per_byte(lm.model, [ids], tokenizer.eos_token_id, size, lm.context)
        xz = xz_bits_per_byte([file])
        rows.append(_row(f"{file.parent.name}/{file.name}", size, ours, xz))
        totals = [totals[0] + ours * size, totals[1] + xz * size, totals[2] + size]
    rows.append(_row("all", int(totals[2]), totals[0] / totals[2], totals[1] / totals[2]))
    return Outcome([Table(f"Bits per byte of {lm.name} on held-out modules", rows)])


def _row(name: str, size: int, ours: float, xz: float) -> dict[str, Any]:
    return {
        "module": name,
        "bytes": size,
        "model, bits per byte": ours,
        "xz -9e, bits per byte": xz,
        "below xz": f"{100 * (1 - ours / xz):.0f} %",
    }
