"""Images on coarser and finer grids, blurred and cut: between the stages of a cascade."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from .random import Purpose, uniform


def downsample(image: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c h_out w_out"]:
    """Mean over cells of factor x factor pixels (our choice: unCLIP does not say how).

    Raises ValueError for sides that are no multiples of `factor`.
    """
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(
            f"image: found {height} x {width} pixels, expected sides that are multiples of {factor}"
        )
    return F.avg_pool2d(image, factor) if factor > 1 else image


def upsample(image: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c h_out w_out"]:
    """Bicubic, antialiased, corners not aligned: what Karlo's super-resolution is conditioned on.

    It overshoots at edges and is not clamped, as there.
    """
    if factor == 1:
        return image
    height, width = image.shape[-2:]
    enlarged = F.interpolate(
        image.to(torch.promote_types(image.dtype, torch.float32)),  # CPUs have it for no less
        size=(factor * height, factor * width),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return enlarged.to(image.dtype)


def blur(image: Float[Tensor, "b c h w"], sigma: float = 0.6) -> Float[Tensor, "b c h w"]:
    """Gaussian, 3 x 3, of 0.6 pixels: the augmentation of DALL-E 2's first upsampler (Ramesh et al.
    2022, app. C). The kernel is sampled at whole pixels; borders are reflected (our choice)."""
    side = math.exp(-0.5 / sigma**2)
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    # Sums, not a convolution: autocast would round the image to 8 bits.
    rows = padded[..., 1:-1, :] + side * (padded[..., :-2, :] + padded[..., 2:, :])
    cells = rows[..., 1:-1] + side * (rows[..., :-2] + rows[..., 2:])
    return cells / (1.0 + 2.0 * side) ** 2


def random_crops(
    images: Sequence[Shaped[Tensor, "b ... h w"]],
    size: int,
    seed: int,
    index: Int64[Tensor, " b"],
) -> list[Shaped[Tensor, "b ... size size"]]:
    """The same square of `size` pixels out of each of several images of a sample, the image and its
    ids for instance; where it lies is a function of (seed, index of the sample) alone.

    Raises ValueError where it does not fit.
    """
    height, width = images[0].shape[-2:]
    if size > min(height, width):
        raise ValueError(
            f"crop: found {size}, expected at most the sides of the images, {height} x {width}"
        )
    places = torch.tensor([height - size + 1, width - size + 1], device=index.device)
    corners = (uniform(seed, Purpose.CROP, index, (2,)) * places).long()
    steps = torch.arange(size, device=index.device)
    rows, columns = (corners[:, axis, None] + steps for axis in (0, 1))
    samples = torch.arange(len(index), device=index.device)[:, None, None]
    return [_gather(image, samples, rows[:, :, None], columns[:, None, :]) for image in images]


def _gather(image: Tensor, samples: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if image.ndim == 3:
        return image[samples, rows, columns]
    # A network runs in the layout of its input, which is not to depend on where that was cut.
    return image[samples, :, rows, columns].movedim(-1, 1).contiguous()
