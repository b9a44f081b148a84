"""The crop of a segment that CLIP sees: tight square, black outside of the segment.

SpaText, sec. 3.1 (notes on the paper): crop a tight square around the segment, black out the pixels
that are not in it, resize. Black is RGB 0 before CLIP's normalisation. Where the square leaves the
image the paper is silent; that part is black as well (our choice).
"""

import numpy as np
from jaxtyping import Bool, UInt8

from .images import resize_planes, words


def square_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int]:
    """(top, left, side) of the smallest square centred on the mask's bounding box.

    May reach beyond the image; with an odd remainder it lies half a pixel to the top or left.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    cols = np.flatnonzero(mask.any(axis=0))
    assert len(rows), "an empty mask has no box"
    height, width = int(rows[-1] - rows[0]) + 1, int(cols[-1] - cols[0]) + 1
    side = max(height, width)
    return int(rows[0]) + (height - side) // 2, int(cols[0]) + (width - side) // 2, side


def crop_planes(
    pixels: UInt8[np.ndarray, "h w c"], mask: Bool[np.ndarray, "h w"], crop_size: int
) -> UInt8[np.ndarray, "3 s s"]:
    """Black-out at the image's resolution, then one antialiased bicubic resize. `pixels` are RGB
    or, faster, `images.rgbx`."""
    top, left, side = square_box(mask)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, mask.shape[0]), min(left + side, mask.shape[1])
    square = np.zeros((side, side, pixels.shape[2]), dtype=np.uint8)
    target = square[y0 - top : y1 - top, x0 - left : x1 - left]
    source, inside = pixels[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    if pixels.shape[2] == 4:
        np.multiply(words(source), inside, out=words(target))
    else:
        np.multiply(source, inside[..., None], out=target)
    return resize_planes(square, crop_size)
