"""The first convolution over [x, ST]: dense as in the paper, and factorised on the same weights."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .st import Resize, Segments, masked_embeds, segment_masks, st_map


def dense_st_conv(
    x: Float[Tensor, "b c_in h w"],
    segments: Segments,
    weight: Float[Tensor, "c_out c_in_d kh kw"],
    bias: Float[Tensor, " c_out"] | None,
    padding: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    resize: Resize = "majority",
) -> Float[Tensor, "b c_out h_out w_out"]:
    """conv2d([x, ST]) with ST built on the grid of x (SpaText, sec. 3.2).

    The slice of ST costs 2 d kh kw c_out h_out w_out FLOPs per sample.
    """
    st = st_map(segments, (x.shape[2], x.shape[3]), resize).to(x.dtype)
    return F.conv2d(torch.cat([x, st], dim=1), weight, bias, stride=stride, padding=padding)


def factorised_st_conv(
    x: Float[Tensor, "b c_in h w"],
    segments: Segments,
    weight: Float[Tensor, "c_out c_in_d kh kw"],
    bias: Float[Tensor, " c_out"] | None,
    padding: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    resize: Resize = "majority",
    *,
    channels_last: bool = False,
) -> Float[Tensor, "b c_out h_out w_out"]:
    """`dense_st_conv` without ST, exact in value and gradient to float tolerance (our derivation).

    ST = sum_k mask_k embed_k and a convolution is linear, hence
    conv(ST, W) = sum_k conv(mask_k, W . embed_k), the kernel W . embed_k having one input channel.
    FLOPs per sample for the slice of ST: 2 k kh kw c_out (d + h_out w_out). The channels of x and
    the masks go through one unfold and one product: on a CPU faster than a convolution of x plus a
    product, and than a convolution grouped over the batch, whose backward is slow.
    `channels_last` is the memory format of what is returned, which the same product gives as well.
    """
    c_in = x.shape[1]
    masks = segment_masks(segments, (x.shape[2], x.shape[3]), resize, dtype=x.dtype)
    kernel = (weight.shape[2], weight.shape[3])
    columns = F.unfold(torch.cat([x, masks], dim=1), kernel, padding=padding, stride=stride)
    # split, whose backward is one concatenation: two slices would each pad a gradient of full size.
    weight_x, weight_st = weight.split([c_in, weight.shape[1] - c_in], dim=1)
    of_x = weight_x.flatten(1).expand(len(x), -1, -1)
    of_masks = project_kernels(weight_st, masked_embeds(segments).to(x.dtype)).flatten(2)
    kernels = torch.cat([of_x, of_masks], dim=2)
    size = _output_size(x, kernel, padding, stride)
    if channels_last:
        columns, kernels = columns.mT, kernels.mT
        y = columns @ kernels if bias is None else torch.baddbmm(bias, columns, kernels)
        return y.unflatten(1, size).permute(0, 3, 1, 2)
    y = kernels @ columns if bias is None else torch.baddbmm(bias[:, None], kernels, columns)
    return y.unflatten(2, size)


def project_kernels(
    weight_st: Float[Tensor, "c_out d kh kw"], embeds: Float[Tensor, "b k d"]
) -> Float[Tensor, "b c_out k kh_kw"]:
    """The kernel of each segment's mask: weight_st contracted with its embedding."""
    return torch.einsum("odp,bkd->bokp", weight_st.flatten(2), embeds)


def _output_size(
    x: Float[Tensor, "b c h w"],
    kernel: tuple[int, int],
    padding: int | tuple[int, int],
    stride: int | tuple[int, int],
) -> tuple[int, int]:
    pads, strides = (v if isinstance(v, tuple) else (v, v) for v in (padding, stride))
    h, w = (
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[2:], pads, kernel, strides, strict=True)
    )
    return h, w
