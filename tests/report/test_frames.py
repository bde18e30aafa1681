"""Frames of a picture: what stood there after a step, and a PNG file that others read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch

from ramify.engine.events import Event, Remasked, Unmasked
from ramify.engine.result import Result, Stats
from ramify.errors import RamifyError
from ramify.models.image_tokens import ImageTokens
from ramify.report.frames import frames, png, sheet, write

TOKENS = ImageTokens(torch.tensor([[0.0], [0.25], [0.5]]), ("a",), (2, 2))


def result(*events: Event) -> Result:
    return Result("", [], [3], "length", Stats(), list(events))


def filled(step: int, positions: tuple[int, ...], tokens: tuple[int, ...]) -> Unmasked:
    return Unmasked(0, step, positions, tokens, (1.0,) * len(tokens), 0.0)


EVENTS = (filled(0, (2,), (1,)), filled(1, (1, 4), (0, 2)), Remasked(0, 1, (2,)), filled(2, (2, 3), (2, 1)))


def test_frames_show_the_canvas_after_each_step() -> None:
    found = frames(result(*EVENTS), TOKENS)
    assert found.tolist() == [[[1.0, 0.25], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.5]], [[0.0, 0.5], [0.25, 0.5]]]


def test_fewer_frames_are_evenly_apart_and_end_with_the_last() -> None:
    every = frames(result(*EVENTS), TOKENS)
    assert torch.equal(frames(result(*EVENTS), TOKENS, most=1), every[-1:])
    assert torch.equal(frames(result(*EVENTS), TOKENS, most=2)[-1], every[-1])


def test_a_sheet_leaves_a_gap_and_shorter_lines_white() -> None:
    page = sheet([torch.zeros(2, 3, 3), torch.zeros(1, 3, 3)])[::4, ::4]
    assert page.shape == (7, 7)
    assert page[:3, :3].sum() == 0
    assert page[3].min() == page[:, 3].min() == page[4:, 4:].min() == 1


def test_the_file_is_a_png(tmp_path: Path) -> None:
    write([result(*EVENTS)], TOKENS, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (width, height, depth, colour) == (4 * (3 * 2 + 2), 8, 8, 0)
    size = struct.unpack(">I", data[33:37])[0]
    lines = zlib.decompress(data[41 : 41 + size])
    assert len(lines) == height * (width + 1)
    assert list(lines[1:9]) == [255] * 4 + [64] * 4
    assert struct.unpack(">I", data[29:33])[0] == zlib.crc32(data[12:29])


def test_grey_is_rounded_and_clamped() -> None:
    data = png(torch.tensor([[-1.0, 0.5, 2.0]]))
    size = struct.unpack(">I", data[33:37])[0]
    assert list(zlib.decompress(data[41 : 41 + size])) == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("found", "said"), [(result(), "nothing was filled in"), (result(filled(0, (5,), (0,))), "no picture of 4 tokens")]
)
def test_what_is_no_picture(found: Result, said: str) -> None:
    with pytest.raises(RamifyError, match=said):
        frames(found, TOKENS)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="cannot write the frames"):
        write([result(*EVENTS)], TOKENS, tmp_path / "missing" / "a.png")
