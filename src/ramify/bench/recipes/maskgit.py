"""MaskGIT: noise in the confidence against none, at several numbers of steps, on the grid and the image model."""

from __future__ import annotations

import torch

from ramify.bench.pictures import fill, grids, pictures
from ramify.bench.recipes import Outcome, Table
from ramify.methods.unmask.maskgit import MaskGIT
from ramify.models.causal import BUNDLED
from ramify.models.image_tokens import ImageTokens
from ramify.models.masked import load_masked
from ramify.train.denoise_grids import agreement, colour_entropy
from ramify.train.images import require_extra
from ramify.train.images_quality import Judge

BATCH = 40


def run(
    *,
    seed: int = 0,
    grid: int = 200,
    images: int = 120,
    steps: tuple[int, ...] = (2, 4, 8, 16),
    noises: tuple[float, ...] = (0.0, 1.0, 4.5, 20.0),
) -> Outcome:
    """``grid`` grids and ``images`` pictures, in 12 steps, for every τ_c of ``noises``; 0 leaves a part out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = Outcome()
    try:
        if grid:
            lm, requests = load_masked("grid-model"), grids(grid, seed)
            rows = []
            for count in steps:
                row = {"steps": str(count)}
                for noise in noises:
                    method = MaskGIT(steps=int(count), confidence_noise=float(noise))
                    tokens = fill(lm, method, requests, BATCH).tokens
                    row[f"τ_c = {noise:g}"] = f"{agreement(tokens):.3f}; {colour_entropy(tokens):.2f}"
                rows.append(row)
            title = f"grid-model, {grid} grids: share of cells that agree; entropy of their colours (data: 0.930; 2.08)"
            outcome.tables.append(Table(title, rows))
        if images:
            outcome.tables.append(_images(images, noises, seed))
    finally:
        torch.set_num_threads(before)
    return outcome


def _images(count: int, noises: tuple[float, ...], seed: int) -> Table:
    require_extra()
    lm, tokens = load_masked("demo-masked-image"), ImageTokens.load(BUNDLED["demo-masked-image"])
    judge = Judge(tokens)
    requests, labels = pictures(tokens, count, seed)
    rows = []
    for noise in noises:
        found = judge.of(fill(lm, MaskGIT(confidence_noise=float(noise)), requests, 8).tokens, labels)
        rows.append(
            {
                "τ_c": f"{noise:g}",
                "Fréchet to training crops": f"{found.train:.2f}",
                "to held-out crops": f"{found.test:.2f}",
                "class told": f"{100 * found.right:.0f} %",
                "seams": f"{found.seams:.2f}",
                "token entropy": f"{found.entropy:.2f}",
            }
        )
    return Table(f"demo-masked-image, {count} pictures in 12 steps", rows)
