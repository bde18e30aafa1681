"""A picture as its canvas fills: what it looks like after some of the steps, side by side in one PNG file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ramify.engine.events import Remasked, Unmasked
from ramify.engine.result import Result
from ramify.errors import RamifyError
from ramify.models.image_tokens import ImageTokens

SCALE, GAP = 4, 1  # how often a pixel is repeated, and white pixels between two frames
BLANK = 1.0  # open positions are white, as is the page


def write(results: Sequence[Result], tokens: ImageTokens, path: str | Path, most: int = 8) -> None:
    """Write one line of at most ``most`` frames for each of ``results``, which ran with one plan, below each other."""
    try:
        Path(path).write_bytes(png(sheet([frames(result, tokens, most) for result in results])))
    except OSError as error:
        raise RamifyError(f"cannot write the frames to {path}: {error.strerror or error}") from None


def frames(result: Result, tokens: ImageTokens, most: int = 8) -> Tensor:
    """The canvas of ``result`` after at most ``most`` of its steps, evenly apart, the last among them: [n, H, W]."""
    start = len(result.prompt)
    ids = torch.full((tokens.length,), tokens.mask_id)
    seen: dict[int, Tensor] = {}
    for event in result.events:
        if isinstance(event, Unmasked | Remasked):
            if max(event.positions, default=start) >= start + tokens.length:
                raise RamifyError(f"this canvas is no picture of {tokens.length} tokens behind a class")
            places = torch.tensor(event.positions, dtype=torch.long) - start
            ids[places] = torch.tensor(event.tokens) if isinstance(event, Unmasked) else tokens.mask_id
            seen[event.step] = ids.clone()
    if not seen:
        raise RamifyError("nothing was filled in, so there is nothing to show")
    steps = sorted(seen)
    count = min(most, len(steps))
    chosen = [steps[round((place + 1) * len(steps) / count) - 1] for place in range(count)]
    return tokens.decode(torch.stack([seen[step] for step in chosen]), blank=BLANK)


def sheet(lines: Sequence[Tensor]) -> Tensor:
    """Pictures [n, H, W] as lines of one picture, white where a line is shorter: [height, width], from 0 to 1."""
    height, width = lines[0].shape[1:]
    across = max(map(len, lines))
    page = torch.ones(len(lines) * (height + GAP) - GAP, across * (width + GAP) - GAP)
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            top, left = row * (height + GAP), column * (width + GAP)
            page[top : top + height, left : left + width] = image
    return page.clamp(0, 1).repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)


def png(image: Tensor) -> bytes:
    """``image`` [H, W], grey from 0 to 1, as a PNG file of eight bits."""
    height, width = image.shape
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    lines = b"".join(b"\0" + bytes(line) for line in levels.tolist())  # 0: the line is stored as it is
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    kind, data = part
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
