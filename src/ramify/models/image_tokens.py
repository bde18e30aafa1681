"""Small grey images as tokens and back: a codebook of square patches, read in raster order.

A token is the nearest of K patches, so a picture of rows × columns patches is a text of rows · columns tokens. Behind
the K codes the vocabulary holds one token for each class, which stands first as the prompt, the null class of
classifier-free guidance, and the mask.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ramify.errors import RamifyError, unknown

FILE = "codebook.safetensors"


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """``codebook``: float [K, side · side], grey from 0 to 1. ``grid``: (rows, columns) of patches in a picture."""

    codebook: Tensor
    classes: tuple[str, ...]
    grid: tuple[int, int] = (16, 16)

    def __post_init__(self) -> None:
        if self.codebook.ndim != 2 or self.side**2 != self.codebook.shape[1]:
            raise RamifyError(f"a codebook holds square patches, one a line; it is {list(self.codebook.shape)}")

    @property
    def side(self) -> int:
        """Pixels along a patch."""
        return math.isqrt(self.codebook.shape[1])

    @property
    def codes(self) -> int:
        return len(self.codebook)

    @property
    def length(self) -> int:
        """Tokens of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def null_id(self) -> int:
        return self.codes + len(self.classes)

    @property
    def mask_id(self) -> int:
        return self.null_id + 1

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1

    def class_id(self, name: str) -> int:
        """The token that asks for a picture of class ``name``."""
        if name not in self.classes:
            raise unknown("class", name, self.classes)
        return self.codes + self.classes.index(name)

    def only_codes(self, _: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: of ``scores`` [B, V] nothing but codes is left, for no class stands in a picture."""
        return scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) >= self.codes, -torch.inf)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, rows · columns] of ``images`` [B, height, width], grey from 0 to 1."""
        height, width = (count * self.side for count in self.grid)
        if images.ndim != 3 or images.shape[1:] != (height, width):
            raise RamifyError(f"pictures here are {height} × {width} pixels, given {list(images.shape)}")
        parts = images.unfold(1, self.side, self.side).unfold(2, self.side, self.side)
        return torch.cdist(parts.reshape(-1, self.side**2), self.codebook).argmin(-1).view(len(images), -1)

    def decode(self, ids: Tensor, blank: float = 0.5) -> Tensor:
        """Images [B, height, width] of tokens [B, rows · columns]; the mask is shown in the grey ``blank``."""
        if ids.ndim != 2 or ids.shape[1] != self.length:
            raise RamifyError(f"a picture is {self.length} tokens, given {list(ids.shape)}")
        if bool(((ids >= self.codes) & (ids != self.mask_id) | (ids < 0)).any()):
            raise RamifyError(f"the tokens of a picture are below {self.codes}; a class token is no part of it")
        known = torch.cat([self.codebook, self.codebook.new_full((1, self.side**2), blank)])
        patches = known[ids.clamp_max(self.codes)].view(len(ids), *self.grid, self.side, self.side)
        return patches.transpose(2, 3).reshape(len(ids), self.grid[0] * self.side, self.grid[1] * self.side)

    def save(self, folder: Path) -> None:
        """Write the codebook beside the model."""
        told = {"classes": json.dumps(self.classes), "grid": json.dumps(self.grid)}
        save_file({"codebook": self.codebook.contiguous()}, folder / FILE, told)

    @classmethod
    def load(cls, folder: str | Path) -> ImageTokens:
        """The tokens that belong to the model in ``folder``; raises ``RamifyError`` where it has none."""
        path = Path(folder) / FILE
        if not path.exists():
            raise RamifyError(f"{folder} holds no {FILE}, so it is no image model of ramify's")
        try:
            with safe_open(path, "pt") as file:
                told, codebook = file.metadata() or {}, file.get_tensor("codebook")
            rows, columns = json.loads(told["grid"])
            return cls(codebook, tuple(json.loads(told["classes"])), (rows, columns))
        except (SafetensorError, KeyError, ValueError) as error:
            raise RamifyError(f"{path} is damaged ({error}); fetch or train the model again") from error
