"""Crops of all segments of a batch, cut on the device at once: what `crops` does, batched.

Pillow's resize is separable, so a crop is two matrix products: along x, then along y, each with the
weights of an antialiased bicubic kernel whose support is scaled with the reduction (Keys' cubic
with a = -0.5). ROI-align and grid_sample take a few samples per pixel and alias where a segment
of 800 pixels becomes 224. Of an image of h x w and crops of c x c a segment costs 6 c h w + 6 c^2 h
operations, and about 12 h w bytes of memory: 1.4 GFLOP and 10 MB for 896 x 896 -> 224 x 224.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor

MAX_VALUES = 2**26  # of masked pixels at a time, 256 MB of float32


def crop_segments(
    pixels: UInt8[Tensor, "b 3 h w"],
    ids: Integer[Tensor, "b h w"],
    image: Int64[Tensor, " n"],
    number: Int64[Tensor, " n"],
    crop_size: int,
) -> UInt8[Tensor, "n 3 c c"]:
    """Crop k shows the segment ids[image[k]] == number[k]; black if there is no such pixel.

    As `crops.crop_segment`, but for a rounding to the other side in a few pixels.
    """
    step = max(1, MAX_VALUES // (3 * pixels.shape[-2] * pixels.shape[-1]))
    with _float32_products():
        parts = [
            _crop(pixels[where], ids[where] == which[:, None, None], crop_size)
            for where, which in zip(image.split(step), number.split(step), strict=True)
        ]
    return torch.cat(parts) if parts else pixels.new_zeros(0, 3, crop_size, crop_size)


def square_boxes(
    masks: Bool[Tensor, "n h w"],
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """(top, left, side) as `crops.square_box` has them; arbitrary for an empty mask."""
    (top, height), (left, width) = _extent(masks.any(dim=2)), _extent(masks.any(dim=1))
    side = torch.maximum(height, width)
    return top + (height - side) // 2, left + (width - side) // 2, side


def resize_weights(
    start: Int64[Tensor, " n"], side: Int64[Tensor, " n"], num_in: int, num_out: int, longest: int
) -> Float[Tensor, "n out in"]:
    """Pillow's weights (`precompute_coeffs`) for a resize of [start, start + side) to `num_out`.

    Positions outside of [0, num_in) count in the sum that is brought to 1, having the value 0.
    `side` is at most `longest`.
    """
    side, start = side[:, None, None].double(), start[:, None, None]
    scale = side / num_out
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(num_out, device=side.device)[:, None] + 0.5) * scale
    low = (centre - 2 * stretch + 0.5).floor().clamp(min=0)
    high = torch.minimum((centre + 2 * stretch + 0.5).floor(), side)

    def weights(x: Int64[Tensor, "*n 1 x"]) -> Float[Tensor, "n out x"]:
        kernel = cubic((x + 0.5 - centre) / stretch)
        return torch.where((x >= low) & (x < high), kernel, 0)

    total = weights(torch.arange(longest, device=side.device)[None, None]).sum(-1, keepdim=True)
    return (weights(torch.arange(num_in, device=side.device) - start) / total).float()


def cubic(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Keys (1981) with a = -0.5, Pillow's BICUBIC."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


@contextmanager
def _float32_products() -> Iterator[None]:
    """TF32, which training allows, keeps 11 bits of a weight: too few for one of 256 values."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _crop(
    pixels: UInt8[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], crop_size: int
) -> UInt8[Tensor, "n 3 c c"]:
    h, w = masks.shape[-2:]
    top, left, side = square_boxes(masks)
    down = resize_weights(top, side, h, crop_size, max(h, w))
    across = resize_weights(left, side, w, crop_size, max(h, w))
    black = (pixels * masks[:, None]).float()
    # Pillow keeps bytes between its two passes.
    lines = _bytes(black @ across.mT[:, None])
    return _bytes(down[:, None] @ lines).to(torch.uint8)


def _bytes(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    return (x + 0.5).floor_().clamp_(0, 255)


def _extent(found: Bool[Tensor, "n x"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """(first, number from it to the last)."""
    first = found.int().argmax(dim=1)
    last = found.shape[1] - 1 - found.flip(1).int().argmax(dim=1)
    return first, last - first + 1
