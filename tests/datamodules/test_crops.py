import numpy as np
import pytest

from spatext.datamodules.crops import crop_planes, square_box


def mask_of(shape: tuple[int, int], rows: slice, cols: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[rows, cols] = True
    return mask


@pytest.mark.parametrize(
    ("rows", "cols", "expected"),
    [
        (slice(4, 8), slice(5, 9), (4, 5, 4)),  # square already
        (slice(4, 6), slice(2, 8), (2, 2, 6)),  # wide: two rows above and below
        (slice(2, 8), slice(4, 5), (2, 1, 6)),  # tall, odd remainder: 3 to the left, 2 to the right
        (slice(0, 1), slice(0, 10), (-5, 0, 10)),  # at the border: leaves the image
        (slice(9, 10), slice(0, 10), (4, 0, 10)),
    ],
)
def test_square_is_tight_and_centred(
    rows: slice, cols: slice, expected: tuple[int, int, int]
) -> None:
    assert square_box(mask_of((10, 12), rows, cols)) == expected


def crop_segment(pixels: np.ndarray, mask: np.ndarray, crop_size: int) -> np.ndarray:
    return crop_planes(pixels, mask, crop_size).transpose(1, 2, 0)


def test_crop_without_resizing_is_the_masked_square() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (10, 12, 3), dtype=np.uint8)
    mask = mask_of((10, 12), slice(0, 2), slice(6, 12))
    mask[0, 7] = False
    expected = np.zeros((6, 6, 3), dtype=np.uint8)
    expected[2:4] = pixels[0:2, 6:12]
    expected[2, 1] = 0
    np.testing.assert_array_equal(crop_segment(pixels, mask, 6), expected)


@pytest.mark.parametrize("crop_size", [12, 16, 40])
def test_resize_fills_the_frame_and_stays_black_outside(crop_size: int) -> None:
    colour = np.array([200, 100, 50], dtype=np.uint8)
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    mask = mask_of((64, 64), slice(10, 50), slice(20, 40))
    pixels[mask] = colour
    crop = crop_segment(pixels, mask, crop_size)
    assert crop.shape == (crop_size, crop_size, 3)
    assert crop.dtype == np.uint8
    quarter = crop_size // 4
    np.testing.assert_array_equal(crop[crop_size // 2, crop_size // 2], colour)
    np.testing.assert_array_equal(crop[0, crop_size // 2], colour)  # tight: reaches the frame
    np.testing.assert_array_equal(crop[:, : max(quarter - 2, 1)], 0)
    # nothing of the white surroundings bleeds in: no channel exceeds the segment's own colour
    # by more than bicubic's overshoot
    assert (crop.astype(int) <= colour.astype(int) * 1.15).all()


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    crop = crop_segment(stripes, np.ones((64, 64), dtype=bool), 8)
    np.testing.assert_allclose(crop.astype(float), 100, atol=6)


def test_empty_mask_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="empty mask"):
        square_box(np.zeros((3, 3), dtype=bool))


@pytest.mark.parametrize("crop_size", [6, 9, 20])
def test_words_are_cropped_as_triples(crop_size: int) -> None:
    """And what the fourth byte holds does not matter."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    mask = mask_of((30, 40), slice(0, 20), slice(5, 11)) & (rng.random((30, 40)) < 0.8)
    crop = crop_planes(pixels, mask, crop_size)
    assert crop.shape == (3, crop_size, crop_size)
    expected = crop_segment(np.ascontiguousarray(pixels[..., :3]), mask, crop_size)
    np.testing.assert_array_equal(crop, expected.transpose(2, 0, 1))
