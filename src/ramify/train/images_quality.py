"""How good generated pictures are, at a size where no published network judges them: fixed features of real crops.

Of a picture we take 16 numbers: its mean, its contrast (log of the standard deviation), and at full and at half size
the log energies of the seven diagonals of a 4 × 4 cosine transform, averaged over the blocks: how much there is of
every fineness of detail. Between two sets of pictures of one class, with means m, n and covariances S, T of these
numbers (each in units of its deviation over all real training crops), the Fréchet distance is

    |m − n|² + tr(S + T − 2 (S T)^½),          averaged over the classes.

A Gaussian for each class, fitted to training crops, tells the class of a picture. Seams are the mean grey step between
patches over the mean step inside them: tokens drawn at once, without seeing each other, do not fit at the border.
Token entropy, by class, falls where a sampler repeats itself. All pictures, real ones too, are seen through the
tokenizer, so that its loss is not counted.
"""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.models.image_tokens import ImageTokens
from ramify.train.denoisers import at
from ramify.train.images import CLASSES, Split, balanced, crops

REAL = 2400  # crops of each split, all classes together
FLOOR = 1e-5  # below the energy of any real detail; black areas have none


@dataclass(frozen=True)
class Quality:
    """``train``, ``test``: Fréchet distance to the training crops and to the held-out ones. ``right``: share of
    pictures that are told to be of their class. ``seams``: see above. ``entropy``: of tokens within a class, nats.
    """

    train: float
    test: float
    right: float
    seams: float
    entropy: float


class Judge:
    """Measures pictures, given as tokens, against real crops."""

    def __init__(self, tokens: ImageTokens, seed: int = 0) -> None:
        self.tokens = tokens
        self.real = {split: self._crops(split, seed) for split in ("train", "test")}
        known = {split: features(tokens.decode(ids)) for split, ids in self.real.items()}
        self.scale = known["train"].std(0)
        self.known = {split: _moments(found / self.scale, balanced(REAL)) for split, found in known.items()}

    def _crops(self, split: Split, seed: int) -> Tensor:
        return self.tokens.encode(crops(balanced(REAL), split, at(seed, {"train": -3, "test": -4}[split])))

    def of(self, ids: Tensor, labels: Tensor) -> Quality:
        """The quality of pictures ``ids`` [B, 256] that were asked to be of the classes ``labels`` [B]."""
        images = self.tokens.decode(ids)
        found = features(images) / self.scale
        own = _moments(found, labels)
        distance = {split: statistics.mean(map(frechet, own, known)) for split, known in self.known.items()}
        right = (self._told(found) == labels).double().mean().item()
        entropy = statistics.mean(_entropy(ids[labels == label]) for label in range(len(CLASSES)))
        return Quality(distance["train"], distance["test"], right, seams(images, self.tokens.side), entropy)

    def _told(self, found: Tensor) -> Tensor:
        scores = []
        for mean, spread in self.known["train"]:
            away = found - mean
            distance = (away * torch.linalg.solve(spread, away.T).T).sum(1)
            scores.append(-(distance + torch.logdet(spread)) / 2)
        return torch.stack(scores, 1).argmax(1)


def features(images: Tensor) -> Tensor:
    """The 16 numbers of each of ``images`` [B, 32, 32]: float64 [B, 16]."""
    images = images.double()
    half = images.unfold(1, 2, 2).unfold(2, 2, 2).mean((-2, -1))
    contrast = (images.flatten(1).std(1) + FLOOR**0.5).log()
    return torch.cat([images.mean((1, 2))[:, None], contrast[:, None], _energies(images), _energies(half)], 1)


def _energies(images: Tensor) -> Tensor:
    """Log energies of the diagonals of 4 × 4 cosine transforms: [B, 7]."""
    blocks = (images - images.mean((1, 2), keepdim=True)).unfold(1, 4, 4).unfold(2, 4, 4)
    basis = _cosines()
    energy = (basis @ blocks @ basis.T).square().mean((1, 2))
    diagonal = torch.arange(4)[:, None] + torch.arange(4)
    return torch.stack([energy[:, diagonal == d].mean(1) for d in range(7)], 1).add(FLOOR).log()


@functools.cache
def _cosines() -> Tensor:
    """The orthonormal cosine transform of four numbers."""
    rows, columns = torch.arange(4, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    basis: Tensor = torch.cos(math.pi / 4 * (columns + 0.5) * rows) * 0.5**0.5
    basis[0] *= 0.5**0.5
    return basis


def _moments(found: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance of every class; a hundredth of a deviation is added, for classes with a constant feature."""
    steady = 1e-4 * torch.eye(found.shape[1], dtype=found.dtype)
    parts = [found[labels == label] for label in range(len(CLASSES))]
    return [(part.mean(0), torch.cov(part.T) + steady) for part in parts]


def frechet(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """The distance between two Gaussians, given as (mean, covariance)."""
    (m, s), (n, t) = one, other
    values, vectors = torch.linalg.eigh(s)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ t @ root).clamp_min(0).sqrt().sum()
    return float((m - n).square().sum() + s.trace() + t.trace() - 2 * shared)


def seams(images: Tensor, side: int) -> float:
    """The mean grey step between patches over that inside them."""
    steps = [images.diff(dim=1).abs().mean((0, 2)), images.diff(dim=2).abs().mean((0, 1))]
    border = torch.arange(1, images.shape[1]) % side == 0
    return float(sum(step[border].mean() for step in steps) / sum(step[~border].mean() for step in steps))


def _entropy(ids: Tensor) -> float:
    shares = torch.bincount(ids.flatten()).double()
    return float(torch.special.entr(shares / shares.sum()).sum())
