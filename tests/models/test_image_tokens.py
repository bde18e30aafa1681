"""Image tokens: to tokens and back, the vocabulary, files, and what is no picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.models.image_tokens import FILE, ImageTokens

CODES = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
TOKENS = ImageTokens(CODES, ("cat", "dog"), (2, 3))


def test_the_vocabulary_in_order() -> None:
    assert (TOKENS.codes, TOKENS.side, TOKENS.length) == (3, 2, 6)
    assert [TOKENS.class_id("cat"), TOKENS.class_id("dog"), TOKENS.null_id, TOKENS.mask_id] == [3, 4, 5, 6]
    assert TOKENS.vocab_size == 7


def test_patches_are_read_in_raster_order() -> None:
    image = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]).float()
    assert TOKENS.encode(image[None]).tolist() == [[2, 1, 0, 0, 2, 1]]
    assert torch.equal(TOKENS.decode(torch.tensor([[2, 1, 0, 0, 2, 1]]))[0], image)


@given(ids=st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_decoded_tokens_are_the_tokens_again(ids: list[int]) -> None:
    assert TOKENS.encode(TOKENS.decode(torch.tensor([ids]))).tolist() == [ids]


def test_the_nearest_patch_is_taken() -> None:
    assert TOKENS.encode(torch.full((1, 4, 6), 0.9)).tolist() == [[1] * 6]


def test_masks_are_blank() -> None:
    ids = torch.tensor([[0, 0, 0, 0, 0, TOKENS.mask_id]])
    assert TOKENS.decode(ids, blank=0.75)[0, 2:, 4:].tolist() == [[0.75, 0.75], [0.75, 0.75]]


def test_files_bring_everything_back(tmp_path: Path) -> None:
    TOKENS.save(tmp_path)
    found = ImageTokens.load(tmp_path)
    assert torch.equal(found.codebook, CODES)
    assert (found.classes, found.grid) == (TOKENS.classes, TOKENS.grid)


def test_a_folder_without_and_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="no image model"):
        ImageTokens.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"not this")
    with pytest.raises(RamifyError, match="is damaged"):
        ImageTokens.load(tmp_path)


def test_what_is_no_picture() -> None:
    with pytest.raises(RamifyError, match="4 × 6 pixels"):
        TOKENS.encode(torch.zeros(1, 6, 4))
    with pytest.raises(RamifyError, match="6 tokens"):
        TOKENS.decode(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(RamifyError, match="class token"):
        TOKENS.decode(torch.full((1, 6), TOKENS.class_id("cat")))
    with pytest.raises(RamifyError, match="did you mean 'dog'"):
        TOKENS.class_id("dogs")
    with pytest.raises(RamifyError, match="square patches"):
        ImageTokens(torch.zeros(3, 5), ("cat",))
