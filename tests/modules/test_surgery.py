from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.st import Segments, st_map
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.surgery import widen_conv
from tiny import (
    CHANNELS,
    EMBED_DIM,
    LATENT_SIZE,
    MAX_LENGTH,
    SIZE,
    WIDTH,
    load_backbone,
    make_unet,
    unchecked,
)

NULL = Segments.null(2, 3, EMBED_DIM, (SIZE, SIZE))


def draw_segments(num_segments: int = 3, dim: int = EMBED_DIM) -> Segments:
    ids = torch.randint(0, num_segments + 1, (2, SIZE, SIZE), dtype=torch.uint8)
    valid = torch.tensor([[True] * num_segments, [False, *[True] * (num_segments - 1)]])
    return Segments(ids, 10 * torch.randn(2, num_segments, dim), valid)


def quantise(x: torch.Tensor) -> torch.Tensor:
    """Multiples of 1/64 below 2: sums of their products are exact in float32, in any order."""
    return (x.clamp(-1.9, 1.9) * 64).round() / 64


def base_and_backbone(base: Path, **options: str) -> tuple[nn.Module, LatentBackbone]:
    """The UNet of the folder and its widened self, whose first convolutions are exact."""
    unet = type(make_unet()).from_pretrained(base, subfolder="unet").eval()
    backbone = load_backbone(base, channels_last=False, **options)
    with torch.no_grad():
        for conv in (unet.conv_in, backbone.unet.conv_in):
            conv.weight[:, :CHANNELS] = quantise(conv.weight[:, :CHANNELS])
            conv.bias.copy_(quantise(conv.bias))
    return unet, backbone


DRAW = torch.Generator().manual_seed(0)
X_T = quantise(torch.randn(2, CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=DRAW))
T = torch.tensor([7, 900])
TEXT = torch.randn(2, MAX_LENGTH, WIDTH, generator=DRAW)


def test_old_kernels_and_bias_are_copied() -> None:
    conv = nn.Conv2d(3, 5, (3, 5), stride=(2, 1), padding=(1, 2)).double()
    wide = widen_conv(conv, 4)
    assert torch.equal(wide.weight[:, :3], conv.weight)
    assert torch.equal(wide.bias, conv.bias)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert_close(wide(x), conv(x), rtol=1e-10, atol=1e-10)
    assert wide.weight.shape == (5, 7, 3, 5)


def test_a_convolution_without_bias_stays_so() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    wide = widen_conv(conv, 4)
    x = torch.randn(2, 3, 8, 8)
    assert_close(wide(x), conv(x), rtol=1e-5, atol=1e-5)


def test_he_draws_the_new_slice_alone() -> None:
    conv = nn.Conv2d(4, 64, (3, 5))
    nn.init.constant_(conv.weight, 7.0)
    wide = widen_conv(conv, 48)
    new = wide.weight[:, 4:].detach()
    assert_close(new.std().item(), (2 / (48 * 3 * 5)) ** 0.5, rtol=0.02, atol=0.0)
    assert abs(new.mean().item()) < 1e-3
    assert (wide.weight[:, :4] == 7).all()


@pytest.mark.parametrize("st_conv", ["factorised", "dense"])
def test_zero_weights_give_the_base_output_for_every_map(base: Path, st_conv: str) -> None:
    unet, backbone = base_and_backbone(base, new_weights="zero", st_conv=st_conv)
    expected = unet(X_T, T, TEXT).sample
    for segments in (NULL, draw_segments(), draw_segments(5)):
        assert torch.equal(backbone.denoise(X_T, T, Conditions(TEXT, segments)), expected)


@pytest.mark.parametrize("st_conv", ["factorised", "dense"])
def test_null_segments_give_the_base_output(base: Path, st_conv: str) -> None:
    unet, backbone = base_and_backbone(base, new_weights="he", st_conv=st_conv)
    expected = unet(X_T, T, TEXT).sample
    assert torch.equal(backbone.denoise(X_T, T, Conditions(TEXT, NULL)), expected)
    painted = backbone.denoise(X_T, T, Conditions(TEXT, draw_segments()))
    assert (painted - expected).abs().mean() > 1e-2


@pytest.mark.parametrize("st_resize", ["area", "majority"])
def test_factorised_and_dense_agree_in_value_and_gradient(base: Path, st_resize: str) -> None:
    results = {}
    conditions = Conditions(TEXT, draw_segments()).to(dtype=torch.float64)
    for st_conv in ("factorised", "dense"):
        torch.manual_seed(0)
        backbone = load_backbone(base, st_conv=st_conv, st_resize=st_resize).double()
        prediction = backbone.denoise(X_T.double(), T, conditions)
        prediction.square().mean().backward()
        results[st_conv] = prediction.detach(), backbone.unet.conv_in.weight.grad
    assert_close(results["factorised"], results["dense"], rtol=1e-9, atol=1e-12)
    assert results["dense"][1][:, CHANNELS:].abs().max() > 1e-4


def test_painting_adds_the_convolved_map() -> None:
    wide = widen_conv(nn.Conv2d(3, 5, 3, padding=1), EMBED_DIM)
    x, segments = torch.randn(2, 3, SIZE, SIZE), draw_segments()
    stacked = torch.cat([x, st_map(segments, (SIZE, SIZE))], dim=1)
    expected = nn.functional.conv2d(stacked, wide.weight, wide.bias, padding=1)
    with wide.painting(segments):
        assert_close(wide(x), expected, rtol=1e-4, atol=1e-4)


def test_painting_ends_with_its_block_even_by_an_exception() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    wide = widen_conv(conv, EMBED_DIM)
    x = torch.randn(2, 3, SIZE, SIZE)

    def fail() -> None:
        with wide.painting(draw_segments()):
            assert not torch.allclose(wide(x), conv(x), atol=0.1)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert_close(wide(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_weights": "ones"}, "^new_weights: found 'ones', expected .*he.*zero"),
        ({"evaluation": "sparse"}, "^st_conv: found 'sparse', expected .*factorised.*dense"),
        ({"resize": "cubic"}, "^st_resize: found 'cubic', expected .*area.*majority"),
    ],
)
def test_unknown_options_are_named(options: dict[str, str], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        widen_conv(nn.Conv2d(3, 5, 3), 4, **options)
