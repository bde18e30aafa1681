"""Small real pictures: grey crops of six photographs and textures that come inside scikit-image.

Each class is one picture, halved in size. Its last quarter, a vertical strip, is held out: no training crop has a pixel
of it. Crops are drawn at random places and turned left for right in half of the cases. All pictures are in the public
domain, under CC0 or free of known restrictions (scikit-image's own README says so); none is copied here.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.models.image_tokens import ImageTokens

SIZE = 32
# name → (loader in skimage.data, file that must be in the package: scikit-image would fetch a missing one)
PICTURES = {
    "brick": ("brick", "brick.png"),
    "grass": ("grass", "grass.png"),
    "gravel": ("gravel", "gravel.png"),
    "coins": ("coins", "coins.png"),
    "tissue": ("immunohistochemistry", "ihc.png"),
    "stars": ("hubble_deep_field", "hubble_deep_field.jpg"),
}
CLASSES = tuple(PICTURES)
HELD_OUT = 0.25
Split = Literal["train", "test"]


def require_extra() -> None:
    """Raise ``RamifyError`` unless the optional packages of the image model are there."""
    missing = [name for name in ("skimage", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise RamifyError(f"pictures need {' and '.join(missing)}; pip install 'ramify[images]'")


@functools.cache
def picture(name: str) -> Tensor:
    """The whole picture of a class: [height, width], grey from 0 to 1, half its size."""
    require_extra()
    from skimage import data

    loader, file = PICTURES[name]
    if not Path(data.__file__).with_name(file).exists():
        raise RamifyError(f"this scikit-image comes without {file}; install 0.25 or newer")
    image = torch.from_numpy(getattr(data, loader)()).float() / 255
    if image.ndim == 3:
        image = image @ torch.tensor([0.2125, 0.7154, 0.0721])
    height, width = (side // 2 * 2 for side in image.shape)
    return image[:height, :width].unfold(0, 2, 2).unfold(1, 2, 2).mean((-2, -1))


def crops(labels: Tensor, split: Split, generator: torch.Generator) -> Tensor:
    """Crops [B, 32, 32] of the classes ``labels`` [B] from the training part or the held-out strip."""
    found = []
    turned = torch.rand(len(labels), generator=generator) < 0.5
    for label, turn in zip(labels.tolist(), turned.tolist(), strict=True):
        image = picture(CLASSES[label])
        border = math.floor(image.shape[1] * (1 - HELD_OUT))
        part = image[:, :border] if split == "train" else image[:, border:]
        top, left = (int(torch.randint(side - SIZE + 1, (), generator=generator)) for side in part.shape)
        crop = part[top : top + SIZE, left : left + SIZE]
        found.append(crop.flip(1) if turn else crop)
    return torch.stack(found)


def balanced(count: int) -> Tensor:
    """``count`` labels, every class as often as any other (up to one)."""
    return torch.arange(count) % len(CLASSES)


def fit_tokens(codes: int, side: int, seed: int, count: int = 3000) -> ImageTokens:
    """The codebook: k-means over the patches of ``count`` training crops."""
    require_extra()
    from sklearn.cluster import MiniBatchKMeans  # type: ignore[import-untyped]

    images = crops(balanced(count), "train", torch.Generator().manual_seed(seed))
    patches = images.unfold(1, side, side).unfold(2, side, side).reshape(-1, side * side)
    means = MiniBatchKMeans(codes, batch_size=4096, n_init=3, random_state=seed).fit(patches.numpy())
    codebook = torch.from_numpy(means.cluster_centers_).float()
    return ImageTokens(codebook[codebook.mean(1).argsort()], CLASSES, (SIZE // side, SIZE // side))
