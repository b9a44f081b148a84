"""Crops of all segments of a batch, cut on the device at once: what `crops` does, batched.

The resize is separable, so a crop is two matrix products: along x, then along y, each with the
weights of an antialiased bicubic kernel whose support is scaled with the reduction (Keys' cubic
with a = -0.5). ROI-align and grid_sample take a few samples per pixel and alias where a segment
of 800 pixels becomes 224.

Weights are integers, rounded as PyTorch's resize of bytes rounds them, and each is the sum of two
that are short enough for float32 to add their products up without a rounding, in any order. So a
crop has the same bytes on every device, in every batch and as `crops.crop_planes` cuts it. Of an
image of h x w and crops of c x c a segment costs 12 c h w + 12 c^2 h operations, and about 12 h w
bytes of memory: 2.7 GFLOP and 10 MB for 896 x 896 -> 224 x 224.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor

MAX_VALUES = 2**26  # of masked pixels at a time, 256 MB of float32
SHORT = 15  # bits of a short weight: 2**15 * 255 * 1.5 < 2**24, what float32 counts to
MOST_BITS = 22  # of PyTorch's weights


class Uncut(NamedTuple):
    """A window of an image (see `images.rgbx`), and where in it the `num` chosen segments lie: 1
    for the first, 0 elsewhere."""

    pixels: UInt8[np.ndarray, "h w 4"]
    labels: UInt8[np.ndarray, "h w"]
    num: int


def collate_uncut(windows: Mapping[int, Uncut]) -> dict[str, Any]:
    """Of those rows of a batch that have one, at the top left of the largest; `which`, `row` and
    `slot` say of each crop which window it is cut from and where in the batch it belongs."""
    height = max(len(window.labels) for window in windows.values())
    width = max(window.labels.shape[1] for window in windows.values())
    pixels = torch.zeros(len(windows), height, width, 4, dtype=torch.uint8)
    labels = torch.zeros(len(windows), height, width, dtype=torch.uint8)
    places = []
    for i, (place, window) in enumerate(windows.items()):
        h, w = window.labels.shape
        pixels[i, :h, :w] = torch.from_numpy(window.pixels)
        labels[i, :h, :w] = torch.from_numpy(window.labels)
        places += [(i, place, k) for k in range(window.num)]
    which, row, slot = torch.tensor(places, dtype=torch.int64).reshape(-1, 3).unbind(dim=1)
    return {"pixels": pixels, "labels": labels, "which": which, "row": row, "slot": slot}


def crop_batch(crops: UInt8[Tensor, "b k 3 c c"], uncut: Mapping[str, Any]) -> None:
    """Cuts what `collate_uncut` has of a batch into its crops."""
    which, row, slot = uncut["which"], uncut["row"], uncut["slot"]
    pixels = uncut["pixels"].permute(0, 3, 1, 2)[:, :3]
    crops[row, slot] = crop_segments(pixels, uncut["labels"], which, slot + 1, crops.shape[-1])


def crop_segments(
    pixels: UInt8[Tensor, "b 3 h w"],
    ids: Integer[Tensor, "b h w"],
    image: Int64[Tensor, " n"],
    number: Int64[Tensor, " n"],
    crop_size: int,
) -> UInt8[Tensor, "n 3 c c"]:
    """Crop k shows the segment ids[image[k]] == number[k]; black if there is no such pixel.

    The bytes of `crops.crop_planes`.
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
) -> tuple[Float[Tensor, "n out in"], Int64[Tensor, " n"]]:
    """Weights of a resize of [start, start + side) to `num_out`, integers; and their bits: a row
    sums to about 2 ** bits.

    As ATen's UpSampleKernel has them for bytes: the largest of all rows gets 15 bits. Positions
    outside of [0, num_in) count in the sum that is brought to 1, having the value 0. `side` is at
    most `longest`.
    """
    side, start = side[:, None, None].double(), start[:, None, None]
    scale = side / num_out
    stretch = scale.clamp(min=1.0)
    inverse = 1.0 / stretch
    centre = (torch.arange(num_out, device=side.device)[:, None] + 0.5) * scale
    low = (centre - 2 * stretch + 0.5).floor().clamp(min=0)
    high = torch.minimum((centre + 2 * stretch + 0.5).floor(), side)

    def weights(x: Int64[Tensor, "*n 1 x"]) -> Float[Tensor, "n out x"]:
        kernel = cubic((x - centre + 0.5) * inverse)
        return torch.where((x >= low) & (x < high), kernel, 0)

    whole = weights(torch.arange(longest, device=side.device)[None, None])
    total = whole.sum(-1, keepdim=True)
    largest = (whole / total).amax(dim=(1, 2))
    steps = 2.0 ** torch.arange(1, MOST_BITS + 1, device=side.device)
    bits = ((largest[:, None] * steps + 0.5).floor() < 2**15).sum(dim=1)
    exact = weights(torch.arange(num_in, device=side.device) - start) / total
    exact = exact * (2.0**bits)[:, None, None]
    return (exact + exact.sign() / 2).trunc().float(), bits


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
    down, bits = resize_weights(top, side, h, crop_size, max(h, w))
    across, _ = resize_weights(left, side, w, crop_size, max(h, w))
    black = (pixels * masks[:, None]).float()
    # the other way, too, has bytes between its two passes
    lines = _mean(lambda weights: black @ weights.mT, across, bits).float()
    return _mean(lambda weights: weights @ lines, down, bits)


def _mean(
    product: Callable[[Float[Tensor, "n 1 out in"]], Float[Tensor, "n 3 p q"]],
    weights: Float[Tensor, "n out in"],
    bits: Int64[Tensor, " n"],
) -> UInt8[Tensor, "n 3 p q"]:
    """What the weights make of bytes, rounded to bytes."""
    unit = 2.0 ** (bits - SHORT).clamp(min=0)[:, None, None]
    coarse = (weights / unit).floor()
    fine = weights - coarse * unit
    total = product(coarse[:, None]).int() * unit[:, None].int() + product(fine[:, None]).int()
    bits = bits.int()[:, None, None, None]
    return ((total + (1 << bits >> 1)) >> bits).clamp_(0, 255).to(torch.uint8)


def _extent(found: Bool[Tensor, "n x"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """(first, number from it to the last)."""
    first = found.int().argmax(dim=1)
    last = found.shape[1] - 1 - found.flip(1).int().argmax(dim=1)
    return first, last - first + 1
