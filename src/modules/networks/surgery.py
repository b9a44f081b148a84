"""Widening the first convolution of a pretrained denoiser for the spatio-textual map."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..functional.st import Resize, Segments
from ..functional.st_conv import dense_st_conv, factorised_st_conv

NewWeights = Literal["he", "zero"]
Evaluation = Literal["factorised", "dense"]


class StConv2d(nn.Conv2d):
    """A convolution over [x_t, ST] that never needs ST to be built.

    Its weight is the ordinary [c_out, c_in + d, kh, kw] tensor of the paper's concatenated input
    (SpaText, section 3.3), so checkpoints load and export anywhere. The segments of the batch are
    lent to it for the length of one call by `painting`; without them ST is null.
    `evaluation` selects the exact factorised form or the dense one, `resize` how segments come to
    the grid of x_t.
    """

    def __init__(
        self,
        st_channels: int,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1),
        bias: bool = True,
        evaluation: Evaluation = "factorised",
        resize: Resize = "majority",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        if evaluation not in get_args(Evaluation):
            raise ValueError(
                f"st_conv: found {evaluation!r}, expected one of {get_args(Evaluation)}"
            )
        if resize not in get_args(Resize):
            raise ValueError(f"st_resize: found {resize!r}, expected one of {get_args(Resize)}")
        self.st_channels = st_channels
        self.evaluation, self.resize = evaluation, resize
        self._segments: Segments | None = None

    @contextmanager
    def painting(self, segments: Segments) -> Iterator[None]:
        """Lend the segments of one batch to the calls inside the block."""
        self._segments = segments
        try:
            yield
        finally:
            self._segments = None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e i j"]:
        if self._segments is None or self.st_channels == 0:
            weight = self.weight[:, : self.in_channels - self.st_channels]
            return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)
        options: dict[str, Any] = {
            "padding": self.padding,
            "stride": self.stride,
            "resize": self.resize,
        }
        if self.evaluation == "dense":
            return dense_st_conv(x, self._segments, self.weight, self.bias, **options)
        # As a convolution of torch would, so that the layers behind it need not copy.
        options["channels_last"] = self.weight.is_contiguous(memory_format=torch.channels_last)
        return factorised_st_conv(x, self._segments, self.weight, self.bias, **options)


def widen_conv(
    conv: nn.Conv2d,
    st_channels: int,
    *,
    in_channels: int | None = None,
    new_weights: NewWeights = "he",
    evaluation: Evaluation = "factorised",
    resize: Resize = "majority",
) -> StConv2d:
    """`conv` with `st_channels` more inputs: old kernels and bias copied, the new slice drawn.

    "he" is the paper's choice (He et al. 2015, fan-in of the new slice, ReLU gain); with "zero"
    the network's output equals the base model's for every ST. A `conv` that has as many more than
    `in_channels` inputs already is copied whole. Raises ValueError for another number of them.
    """
    if new_weights not in get_args(NewWeights):
        raise ValueError(f"new_weights: found {new_weights!r}, expected {get_args(NewWeights)}")
    in_channels = in_channels or conv.in_channels
    if conv.in_channels not in (in_channels, in_channels + st_channels):
        raise ValueError(
            f"unet.conv_in: found {conv.in_channels} inputs, expected {in_channels}, or "
            f"{in_channels + st_channels} as they are with a spatio-textual map"
        )
    wide = StConv2d(
        st_channels,
        in_channels + st_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        evaluation=evaluation,
        resize=resize,
    )
    with torch.no_grad():
        wide.weight[:, : conv.in_channels].copy_(conv.weight)
        new = wide.weight[:, conv.in_channels :]
        if new_weights == "zero" or st_channels == 0:
            new.zero_()
        else:
            fan_in = st_channels * math.prod(conv.kernel_size)
            new.normal_(std=math.sqrt(2 / fan_in))
        if conv.bias is not None and wide.bias is not None:
            wide.bias.copy_(conv.bias)
    return wide.to(conv.weight.device, conv.weight.dtype)
