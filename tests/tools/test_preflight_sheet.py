"""Cards of the contact sheet, by their pixels."""

from typing import Any

import numpy as np
import pytest
import torch

from spatext.datamodules.drawing import colour
from spatext.tools.preflight_sheet import SIDE, card, crop_block, fitted, sheet


def make_batch(num_segments: int, size: int = 64) -> dict[str, Any]:
    """One gray image, whose k-th segment is the k-th of four rows; crops of one colour each."""
    ids = np.zeros((size, size), dtype=np.uint8)
    for k in range(num_segments):
        ids[k * size // 4 : (k + 1) * size // 4] = k + 1
    crops = torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)
    crops[0, :num_segments] = 200
    return {
        "image": torch.zeros(1, 3, size, size),
        "caption": ["a caption"],
        "key": ["00000/7"],
        "ids": torch.from_numpy(ids)[None],
        "valid": torch.arange(4)[None] < num_segments,
        "crops": crops,
        "texts": [["sky", "", "sea", ""]],
    }


def count(picture: np.ndarray, wanted: tuple[int, int, int]) -> int:
    return int((picture == np.array(wanted, dtype=np.uint8)).all(axis=-1).sum())


@pytest.mark.parametrize("num_segments", [0, 1, 3])
def test_each_segment_has_its_colour_in_frame_and_legend(num_segments: int) -> None:
    picture = card(make_batch(num_segments), 0, "00000.tar")
    cell = SIDE // (1 if num_segments == 1 else 2)
    frame = cell**2 - (cell - 8) ** 2
    for k in range(1, 5):
        found = count(picture, colour(k))
        assert found == 0 if k > num_segments else found >= frame + 100
    # the image itself: gray, once plain and once under the segments
    gray = count(picture, (128, 128, 128))
    assert gray >= SIDE**2 * (2 - num_segments / 4) * 0.95
    assert gray <= SIDE**2 * (2 - num_segments / 4) + 200  # of letters


def test_a_segment_without_text_has_its_number() -> None:
    """So that two cards differ which are alike but for a text."""
    batch = make_batch(2)
    named = card(batch, 0, "x.tar")
    batch["texts"] = [["sky", "segment 2", "", ""]]
    assert np.array_equal(card(batch, 0, "x.tar"), named)
    batch["texts"] = [["sky", "grass", "", ""]]
    assert not np.array_equal(card(batch, 0, "x.tar"), named)


def test_long_captions_are_wrapped_and_bounded() -> None:
    batch = make_batch(1)
    short = card(batch, 0, "x.tar")
    batch["caption"] = ["word " * 80]
    long = card(batch, 0, "x.tar")
    batch["caption"] = ["word " * 4000]
    assert short.shape[1] == long.shape[1]
    assert short.shape[0] < long.shape[0] <= card(batch, 0, "x.tar").shape[0] < 2 * short.shape[0]


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), 256), ((64, 64), 256), ((200, 100), 256)]
)
def test_images_are_brought_to_one_size(size: tuple[int, int], expected: int) -> None:
    ids = np.zeros(size, dtype=np.uint8)
    ids[: size[0] // 2] = 3
    pixels, small = fitted(np.zeros((*size, 3), dtype=np.uint8), ids)
    assert pixels.shape[:2] == small.shape
    assert max(small.shape) == expected
    assert small.shape[0] * size[1] == small.shape[1] * size[0]
    assert (small == 3).mean() == 0.5


def test_crops_fill_a_square() -> None:
    crops = np.full((5, 16, 16, 3), 77, dtype=np.uint8)
    block = crop_block(crops)
    assert block.shape == (2 * (SIDE // 3), SIDE, 3)  # three above two
    assert count(block, (77, 77, 77)) == 5 * (SIDE // 3 - 8) ** 2
    assert (crop_block(crops[:0]) == 255).all()


def test_cards_stand_in_two_columns() -> None:
    one = np.full((40, 300, 3), 9, dtype=np.uint8)
    picture = sheet([one] * 3, "a title")
    assert 2 * 300 < picture.shape[1] < 3 * 300
    assert count(picture, (9, 9, 9)) == 3 * 40 * 300
